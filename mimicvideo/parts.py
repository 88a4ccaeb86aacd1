"""Whether the parts that a configuration chooses take their numbers, and each other: found before data or weights are read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class

from mimicvideo.memory import BACKBONE, factory
from mimicvideo.messages import ConfigError

SMALL = ("noise", "video_noise", "action_noise", "future")  # arguments of a model that are built at once and hold no weights
POLICY = "mimicvideo.action.policy.ActionPolicy"


def check_parts(config: Mapping[str, Any]) -> None:
    """Builds what is small, and the decoder without memory, and compares sizes.

    A class that is not of this package is left to its constructor, and so is a video model of unknown size.

    Args:
        config: Of `fit` or another verb of training, parsed: `model`, `data`.

    Raises:
        ConfigError: With the key, for what a constructor would refuse later: noise levels outside [0, 1], a step beyond the grid, a
            block that the video model does not have, a context that does not take so many blocks, a clip that the VAE cannot take.
    """
    model, data = config["model"], config.get("data") or {}
    arguments, sizes = model.get("init_args") or {}, data.get("init_args") or {}
    built = {name: _built(name, arguments[name]) for name in SMALL if _ours(arguments.get(name))}
    if model["class_path"] == POLICY:
        _check_policy(arguments, sizes, built)
    video = arguments.get("backbone") or {}
    if video.get("class_path") == BACKBONE:
        adaptation = video["init_args"].get("adaptation")
        if _ours(adaptation):
            _built("backbone.init_args.adaptation", adaptation)
        _check_clips(sizes)


def _check_policy(model: Mapping[str, Any], data: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    from mimicvideo.action.context import check_blocks
    from mimicvideo.action.decoder import DecoderShape
    from mimicvideo.action.flow_times import check_flow_times
    from mimicvideo.video.sizes import transformer_config

    if data.get("history", 1) != 1:
        raise ConfigError(f"data.init_args.history is {data['history']}: an ActionPolicy reads the present state alone: set it to 1")
    if {"video_noise", "future"} <= built.keys():
        with _named("model.init_args"):
            check_flow_times(model["flow_times"], built["video_noise"], built["future"])
    video = model.get("backbone") or {}
    if video.get("class_path") != BACKBONE:
        return
    try:
        network = transformer_config(video["init_args"]["pretrained"])
    except (FileNotFoundError, ValueError):  # not here yet, or damaged: whoever reads it says so
        return
    with _named("model.init_args"):
        blocks = check_blocks(model["block"], network["num_layers"])
        if _ours(model.get("decoder")):
            width = network["num_attention_heads"] * network["attention_head_dim"]
            shape = DecoderShape(width, model["action_dim"], model["proprio_dim"], model["horizon"], blocks=len(blocks))
            with torch.device("meta"):
                factory(model["decoder"])(shape)


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


def _ours(spec: Any) -> bool:
    return isinstance(spec, Mapping) and str(spec.get("class_path")).startswith("mimicvideo.")


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
