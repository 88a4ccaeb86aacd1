"""The vocabulary: what a batch, an observation and a policy are, and the legend of axis names.

Axis names (used in every annotation):
    batch                  samples
    frames                 pixel frames of a clip = observed + future = 1 + 4n
    height width 3         uint8 RGB pixels; several cameras stand side by side along the width
    z_channels z_frames z_height z_width
                           latents of the video VAE; z_frames = 1 + (frames - 1) / 4
    z_observed             latent frames that are kept clean = 1 + (observed - 1) / 4
    tokens                 latent patches = z_frames * z_height/2 * z_width/2, in (frame, row, column) order
    hidden_dim             width of a backbone block, which is the decoder's context_dim
    prompt_tokens prompt_dim   encoded text
    horizon action_dim     an action chunk: `horizon` control steps
    history proprio_dim    past end-effector or joint states

Noise levels are tau in [0, 1] everywhere: 0 is clean, 1 is noise, for video and actions alike.
"""

from typing import Any, NotRequired, Protocol, TypedDict

import torch
from jaxtyping import BFloat16, Bool, Float, Int, UInt8
from torch import Tensor


class Clip(TypedDict):
    """A stage-1 batch: video and the instruction that goes with it. Either `video` or `latents` is present."""

    video: NotRequired[UInt8[Tensor, "batch frames height width 3"]]
    latents: NotRequired[Float[Tensor, "batch z_channels z_frames z_height z_width"] | BFloat16[Tensor, "..."]]
    prompt: list[str]
    frame_mask: NotRequired[Bool[Tensor, "batch frames"]]  # whether a frame lies in the episode; others repeat its first or last
    frame_hz: NotRequired[Float[Tensor, " batch"]]  # frames per second of the clip
    dataset: NotRequired[list[str]]  # the name of the source that a sample came from
    episode: Int[Tensor, " batch"]  # which episode and row a sample came from: named in error messages
    row: Int[Tensor, " batch"]
    position: NotRequired[Int[Tensor, " batch"]]  # number of the sample in the whole training (in the list, for validation)


class Observation(TypedDict):
    """What a policy sees. `video` is absent only in training batches that carry cached latents."""

    video: NotRequired[UInt8[Tensor, "batch observed height width 3"]]
    proprio: Float[Tensor, "batch history proprio_dim"]  # dataset units
    prompt: list[str]


class Demonstration(TypedDict):
    """A stage-2 batch: an observation, the true future video and the expert's actions from here on."""

    observation: Observation
    future: NotRequired[UInt8[Tensor, "batch future height width 3"]]
    latents: NotRequired[Float[Tensor, "batch z_channels z_frames z_height z_width"] | BFloat16[Tensor, "..."]]
    actions: Float[Tensor, "batch horizon action_dim"]  # dataset units
    frame_mask: NotRequired[Bool[Tensor, "batch frames"]]  # see Clip
    proprio_mask: NotRequired[Bool[Tensor, "batch history"]]  # whether a state lies in the episode; others repeat its first
    action_mask: NotRequired[Bool[Tensor, "batch horizon"]]  # whether an action lies in the episode; others are what `tail` makes them
    frame_hz: NotRequired[Float[Tensor, " batch"]]
    control_hz: NotRequired[Float[Tensor, " batch"]]  # control steps per second
    dataset: NotRequired[list[str]]
    episode: Int[Tensor, " batch"]
    row: Int[Tensor, " batch"]
    position: NotRequired[Int[Tensor, " batch"]]  # number of the sample in the whole training (in the list, for validation)


class Policy(Protocol):
    """Anything that turns observations into action chunks; `contract` says which observations and actions."""

    contract: dict[str, Any]

    def predict_actions(
        self,
        observation: Observation,
        *,
        future_video: UInt8[Tensor, "batch future height width 3"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch horizon action_dim"]: ...
