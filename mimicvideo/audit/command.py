"""The verb `audit`: which datasets under which configuration, where results go, and the status that it ends with."""

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimicvideo.messages import ConfigError

STOPPED = 130  # by Ctrl-C, as a shell has it
CLEAN, FOUND = 0, 1  # 2, for what cannot be run, is the program's own
SEVERITIES = ("warning", "error", "never")


def audit(argv: Sequence[str], training_data: Callable[[list[str]], dict[str, Any]]) -> int:
    """Audits the datasets of a training configuration.

    Args:
        argv: Flags of the verb; those that it does not know are the configuration's.
        training_data: Makes `class_path` and `init_args` of the data out of flags of `fit`.

    Returns:
        The program's status: 0 if nothing is found at or above `--fail-on`, else 1; 130 if it was stopped from the keyboard.

    Raises:
        ConfigError: If the flags are wrong, no dataset can be opened, or results cannot be written.
    """
    options, rest = _parser().parse_known_args(list(argv))
    if options.num_workers < 0:
        raise ConfigError(f"--num_workers must not be negative, got {options.num_workers}")
    if options.thumbnails < 0:
        raise ConfigError(f"--thumbnails must not be negative, got {options.thumbnails}")
    given = _data_flags(options, rest)
    configuration = training_data(given) if options.config else None

    from mimicvideo.audit.run import run_audit
    from mimicvideo.audit.sources import build_data
    from mimicvideo.data.errors import DatasetError

    with _readers_silent():
        try:
            data = build_data(configuration, given)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        try:
            results = run_audit(
                data,
                out=Path(options.out),
                num_workers=options.num_workers,
                verify=options.verify,
                language=options.language,
                max_thumbnails=options.thumbnails,
            )
        except (DatasetError, OSError) as error:  # status 1 would say that something was found
            raise ConfigError(str(error)) from error
        except KeyboardInterrupt:
            print(f"mimicvideo audit: stopped; the same command goes on from what is kept in {options.out}", file=sys.stderr)
            return STOPPED
    counts = {severity: sum(audited.findings.number(severity) for audited in results) for severity in ("warning", "error")}
    failing = {"never": 0, "error": counts["error"], "warning": counts["error"] + counts["warning"]}[options.fail_on]
    return FOUND if failing else CLEAN


@contextmanager
def _readers_silent() -> Iterator[None]:
    """What readers warn of becomes findings."""
    readers = logging.getLogger("mimicvideo.data")
    before = readers.level
    readers.setLevel(logging.ERROR)
    try:
        yield
    finally:
        readers.setLevel(before)


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="mimicvideo audit",
        description="Looks at every episode of a training's datasets: how many samples they give, and what is wrong with which episode.",
        epilog="Status: 0 nothing found at or above --fail-on, 1 something found, 2 cannot run. Other flags are those of fit.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="append", default=[], help="a configuration of fit: conf/experiment/NAME.yaml")
    parser.add_argument("--data", help="conf/data/NAME.yaml, or the folder of a dataset, in place of --config")
    parser.add_argument("--out", default="runs/audit", help="folder of audit.json, audit.html, quarantine.json and kept results")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read (default: 0, this one)")
    parser.add_argument(
        "--verify", choices=("full", "quick"), default="full", help="quick does not look for damage that decoders paint over"
    )
    parser.add_argument("--language", default="en", help="of the instructions, such as en, de, fr; any accepts all (default: en)")
    parser.add_argument("--fail-on", "--fail_on", dest="fail_on", choices=SEVERITIES, default="warning", help="(default: warning)")
    parser.add_argument("--thumbnails", type=int, default=24, help="pictures of faulty episodes in the report, per dataset (default: 24)")
    return parser


class _Parser(ArgumentParser):
    def error(self, message: str) -> Any:  # the program prints it in its own form
        raise ConfigError(message)


def _data_flags(options: Namespace, rest: Sequence[str]) -> list[str]:
    """Flags that describe the data: of `fit` with a --config, of the data alone without.

    Raises:
        ConfigError: If neither or both are given, or a flag is unknown.
    """
    if bool(options.config) == bool(options.data):
        raise ConfigError("give either --config conf/experiment/NAME.yaml, or --data with conf/data/NAME.yaml or a dataset's folder")
    if options.config:
        return [*(f"--config={file}" for file in options.config), *rest]
    for flag in rest:
        if flag.startswith("--") and not flag.startswith("--data."):
            raise ConfigError(f"{flag.partition('=')[0]} is not accepted: with --data, other flags are --data.NAME=VALUE")
    if options.data.endswith((".yaml", ".yml")):
        if not Path(options.data).is_file():
            raise ConfigError(f"--data: there is no file {options.data}")
        return [f"--data={options.data}", *rest]
    return ["--data=mimicvideo.data.modules.ClipData", f"--data.root={options.data}", *rest]
