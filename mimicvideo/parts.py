"""Whether the parts that a configuration chooses take their numbers, and each other: found before data or weights are read."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.strategies import StrategyRegistry

from mimicvideo.memory import BACKBONE, execution_of, factory, sharing
from mimicvideo.messages import ConfigError, nearest

SMALL = ("noise", "video_noise", "action_noise", "future")  # arguments of a model that are built at once and hold no weights
POLICY = "mimicvideo.action.policy.ActionPolicy"
FINETUNE = "mimicvideo.video.finetune.VideoFinetune"
FROZEN = "mimicvideo.video.adaptation.Frozen"


def check_parts(config: Mapping[str, Any], trains: bool) -> None:
    """Builds what is small, and the decoder without memory, and compares sizes.

    A class that is not of this package is left to its constructor, and so is a video model of unknown size.

    Args:
        config: Of `fit` or another verb of training, parsed: `model`, `data`, `trainer`.
        trains: Whether the verb trains: a frozen video model can only be measured.

    Raises:
        ConfigError: With the key, for what a constructor would refuse later: numbers out of range, noise levels outside [0, 1], a step
            beyond the grid, a block that the video model does not have, a context that does not take so many blocks, LoRA targets that
            match nothing, a clip that the VAE cannot take.
    """
    _check_trainer(config.get("trainer") or {})
    model, data = config["model"], config.get("data") or {}
    arguments, sizes = model.get("init_args") or {}, data.get("init_args") or {}
    if _ours(data):
        _check_data(data)
    built = {name: _built(name, arguments[name]) for name in SMALL if _ours(arguments.get(name))}
    if model["class_path"] == POLICY:
        _check_policy(arguments, sizes, built)
    if model["class_path"] == FINETUNE:
        _check_finetune(arguments, sizes, trains)
    _check_training(arguments)
    video = arguments.get("backbone") or {}
    if video.get("class_path") == BACKBONE:
        _check_video_model(video["init_args"], config.get("trainer") or {})
        _check_clips(sizes)


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """What Lightning would refuse with the model in memory, or take: a clip below zero turns gradients round."""
    least = {"devices": 1, "num_nodes": 1, "accumulate_grad_batches": 1, "max_steps": 0, "gradient_clip_val": 0}
    for name, smallest in least.items():
        value = trainer.get(name)
        unlimited = name in ("devices", "max_steps") and value in (-1, "-1")
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, int | float) and not unlimited and not value >= smallest:
            raise ConfigError(f"trainer.{name} must be at least {smallest}, got {value}")
    strategy = trainer.get("strategy")
    if not isinstance(strategy, str):
        return
    known = ["auto", *StrategyRegistry.available_strategies()]
    if strategy not in known:
        raise ConfigError(f"trainer.strategy: there is no {strategy!r}{nearest(strategy, known)}")
    if strategy.startswith("fsdp"):
        raise ConfigError(
            f"trainer.strategy={strategy}, Lightning's first FSDP, is not supported: use --config conf/trainer/fsdp.yaml (stage 1) or "
            "conf/trainer/ddp.yaml"
        )


def _check_policy(model: Mapping[str, Any], data: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    from mimicvideo.action.acting import Acting
    from mimicvideo.action.context import check_blocks
    from mimicvideo.action.decoder import DecoderShape
    from mimicvideo.action.flow_times import check_flow_times
    from mimicvideo.action.options import check_policy_options
    from mimicvideo.normalize import normalizer_pair
    from mimicvideo.video.inputs import latent_frames

    if data.get("history", 1) != 1:
        raise ConfigError(f"data.init_args.history is {data['history']}: an ActionPolicy reads the present state alone: set it to 1")
    with _named("model.init_args"):
        _asked(check_policy_options, model)
        normalizer_pair(model["normalization"], actions=(model["action_dim"], model["horizon"]), proprio=(model["proprio_dim"], 1))
        if {"video_noise", "future"} <= built.keys():
            check_flow_times(model["flow_times"], built["video_noise"], built["future"])
        if model["acting"] is not None:
            acting = Acting(**model["acting"].get("init_args", model["acting"]))
            if {"observed", "future"} <= data.keys():
                acting.z_frames(latent_frames(data["observed"]), latent_frames(data["observed"] + data["future"]))
    video = model.get("backbone") or {}
    network = _network(video["init_args"]) if video.get("class_path") == BACKBONE else None
    if network is None:
        return
    with _named("model.init_args"):
        blocks = check_blocks(model["block"], network["num_layers"])
        if _ours(model.get("decoder")):
            width = network["num_attention_heads"] * network["attention_head_dim"]
            shape = DecoderShape(width, model["action_dim"], model["proprio_dim"], model["horizon"], blocks=len(blocks))
            with torch.device("meta"):
                factory(model["decoder"])(shape)


def _check_finetune(model: Mapping[str, Any], data: Mapping[str, Any], trains: bool) -> None:
    from mimicvideo.video.inputs import latent_frames
    from mimicvideo.video.options import NOTHING_TRAINS, check_finetune_options, check_observed

    with _named("model.init_args"):
        _asked(check_finetune_options, model)
        if model["observed"] is not None and {"observed", "future"} <= data.keys():
            check_observed(model["observed"], latent_frames(data["observed"] + data["future"]))
    adaptation = ((model.get("backbone") or {}).get("init_args") or {}).get("adaptation") or {}
    if trains and adaptation.get("class_path") == FROZEN:
        raise ConfigError(f"model.init_args.backbone.init_args.adaptation: {NOTHING_TRAINS}")


def _check_training(model: Mapping[str, Any]) -> None:
    """What both stages have: levels of validation, a weight average, an optimizer and a schedule, which are tried on one weight."""
    from mimicvideo.ema import check_decay
    from mimicvideo.noise import check_validation_taus

    with _named("model.init_args"):
        if model.get("validation_taus") is not None:
            check_validation_taus(model["validation_taus"])
        check_decay(model.get("ema_decay"))
    if not _ours(model.get("optimizer"), "torch."):
        return
    with _named("model.init_args.optimizer"):
        optimizer = instantiate_class(([torch.nn.Parameter(torch.zeros(1))],), dict(model["optimizer"]))
    if _ours(model.get("scheduler"), "torch."):
        with _named("model.init_args.scheduler"):
            instantiate_class((optimizer,), dict(model["scheduler"]))


def _check_video_model(video: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    from mimicvideo.video.options import check_backbone_options, check_execution
    from mimicvideo.video.sizes import backbone_size

    execution = execution_of(video)
    with _named("model.init_args.backbone.init_args"):
        _asked(check_backbone_options, video)
        for option in ("merge_lora", "fp8_training"):
            if execution.get(option) and sharing(trainer)[1]:
                raise ValueError(f"execution.{option} needs whole weights, but conf/trainer/fsdp.yaml divides them: take ddp.yaml")
    if not _ours(video.get("adaptation")):
        return
    adaptation = _built("backbone.init_args.adaptation", video["adaptation"])
    with _named("model.init_args.backbone.init_args"):
        check_execution(adaptation, execution)
    if _network(video) is not None:
        with _named("model.init_args.backbone.init_args.adaptation"), suppress(FileNotFoundError):  # of a text encoder that is to come
            backbone_size(video["pretrained"], adaptation)


def _network(video: Mapping[str, Any]) -> dict[str, Any] | None:
    """The transformer's configuration; None if it is not here yet, or damaged: whoever reads it says so."""
    from mimicvideo.video.sizes import transformer_config

    try:
        return transformer_config(video["pretrained"])
    except (FileNotFoundError, ValueError):
        return None


def _check_clips(data: Mapping[str, Any]) -> None:
    from mimicvideo.data.window import Window
    from mimicvideo.video.inputs import check_clip_size

    if not {"observed", "future"} <= data.keys():
        return
    height, width = data.get("height"), data.get("width")
    with _named("data.init_args"):
        if (height is None) != (width is None):
            raise ValueError(f"give both height and width, or neither, got height={height}, width={width}")
        clip = Window(data["observed"], data["future"])
        if height is not None and width is not None:
            check_clip_size(clip.frames, height, width * len(data.get("cameras") or [1]))


def _check_data(data: Mapping[str, Any]) -> None:
    """Builds it: nothing is read before its setup."""
    from mimicvideo.data.sources import Source

    arguments = dict(data.get("init_args") or {})
    if arguments.get("sources"):
        arguments["sources"] = {name: one if isinstance(one, str) else Source(**one) for name, one in arguments["sources"].items()}
    with _named("data.init_args"):
        instantiate_class((), {"class_path": data["class_path"], "init_args": arguments})


def _asked(check: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """Calls a check with those arguments that its parameters name."""
    check(**{name: arguments[name] for name in inspect.signature(check).parameters})


def _ours(spec: Any, *others: str) -> bool:
    return isinstance(spec, Mapping) and str(spec.get("class_path")).startswith(("mimicvideo.", *others))


def _built(name: str, spec: Mapping[str, Any]) -> Any:
    with _named(f"model.init_args.{name}"):
        return instantiate_class((), dict(spec))


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Says of a ValueError which key of the configuration it is about."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
