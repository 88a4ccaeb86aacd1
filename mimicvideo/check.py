"""Checks many configurations of one verb in one process, before a sweep starts; builds nothing."""

import json
import sys

from mimicvideo.messages import ConfigError


def check(verb: str, configs: dict[str, str]) -> None:
    """Parses configurations as the verb would.

    Args:
        verb: Such as `fit`.
        configs: YAML by the name that an error message shall give it.

    Raises:
        SystemExit: With status 2 and a message on stderr for the first that is refused.
    """
    for name, text in configs.items():
        try:
            _parse(verb, text)
        except ConfigError as error:
            sys.stderr.write(f"mimicvideo {verb}: error: {error}\n(in the job {name}; none has started)\n")
            sys.exit(2)
        except SystemExit:
            sys.stderr.write(f"(in the job {name}; none has started)\n")
            raise


def _parse(verb: str, text: str) -> None:
    if verb in ("fit", "validate", "test", "predict"):
        from mimicvideo.cli import CheckingCLI

        CheckingCLI(args=[verb, f"--config={text}"])
    else:
        from mimicvideo.functions import function_parser

        function_parser(verb).parse_args([f"--config={text}"])


if __name__ == "__main__":
    check(sys.argv[1], json.load(sys.stdin))
