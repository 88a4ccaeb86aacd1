"""Checks configurations and builds nothing: many of one verb before a sweep starts, or one experiment, whose sizes it then counts."""

import json
import sys
from typing import Any

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


def experiment_sizes(argv: list[str]) -> dict[str, int]:
    """Checks a configuration of `fit` and counts its parameters on the meta device, which needs neither weights nor a GPU.

    Args:
        argv: Flags of `fit`.

    Returns:
        `backbone`, the pretrained transformer's parameters, and those that train by where they are: `LoRA`, `AdaLN`,
        `transformer`, `text encoder`, `decoder`. A model that is not built of these parts has none of them.

    Raises:
        ConfigError: If the configuration is refused.
    """
    return _sizes(_checked(argv)["model"]["init_args"])


def _checked(argv: list[str]) -> dict[str, Any]:
    from mimicvideo.cli import CheckingCLI

    return CheckingCLI(args=["fit", *argv]).config["fit"].as_dict()


def _sizes(model: dict[str, Any]) -> dict[str, int]:
    import torch
    from lightning.pytorch.cli import instantiate_class

    from mimicvideo.action.context import check_blocks
    from mimicvideo.action.decoder import DecoderShape
    from mimicvideo.memory import factory
    from mimicvideo.video.sizes import backbone_size

    backbone = (model.get("backbone") or {}).get("init_args", {})
    if "pretrained" not in backbone or "adaptation" not in backbone:
        return {}
    size = backbone_size(backbone["pretrained"], instantiate_class((), backbone["adaptation"]))
    sizes = {"backbone": size.parameters, **size.trained}
    if "decoder" in model:
        blocks = check_blocks(model["block"], size.blocks)
        shape = DecoderShape(size.width, model["action_dim"], model["proprio_dim"], model["horizon"], blocks=len(blocks))
        with torch.device("meta"):
            decoder = factory(model["decoder"])(shape)
        sizes["decoder"] = sum(parameter.numel() for parameter in decoder.parameters())
    return sizes


def training_data(argv: list[str]) -> dict[str, Any]:
    """`class_path` and `init_args` of the data that a configuration of `fit` chooses, after all checks; nothing is built.

    Args:
        argv: Flags of `fit`.

    Raises:
        ConfigError: If the configuration is refused, or chooses no data.
    """
    from mimicvideo.compose import compose_argv

    data = _checked(compose_argv(["fit", *argv])[1:]).get("data")
    if not data:
        raise ConfigError("the configuration chooses no data: --config conf/experiment/NAME.yaml, or --data FILE_OR_FOLDER in its place")
    return data


def print_sizes(argv: list[str]) -> None:
    """`mimicvideo check`: the result of `experiment_sizes` and the memory that a device needs, as tables.

    Of a video model that is still to be made, of sizes that are not known, it says so and counts nothing.

    Raises:
        ConfigError: As `experiment_sizes`; if `memory_gb` is given and does not suffice.
    """
    from mimicvideo.memory import expected_memory, require_memory

    config = _checked(argv)
    try:
        sizes = _sizes(config["model"].get("init_args") or {})
        expected = expected_memory(config)
    except FileNotFoundError as error:
        print(f"the configuration is accepted; its parameters and memory are not known: {error}")
        return
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print("the configuration is accepted" + ("; parameters:" if sizes else ""))
    for name, count in sizes.items():
        print(f"{name:12} {count:>14,}  {'pretrained' if name == 'backbone' else 'trained'}")
    if len(sizes) > 2:
        print(f"{'':12} {sum(sizes.values()) - sizes['backbone']:>14,}  trained in all")
    if expected is not None:
        print("expected memory of each device:", *expected.table(), sep="\n")
        if config["memory_gb"] is not None:
            require_memory(expected, config, config["memory_gb"])


if __name__ == "__main__":
    check(sys.argv[1], json.load(sys.stdin))
