"""What a video model takes: sizes of clips, noise levels, observed latents."""

import torch
from torch import Tensor

from mimicvideo.video import wan
from mimicvideo.video.backbone import VideoCondition


def check_clip_size(frames: int, height: int, width: int, patch: int = 2) -> None:
    """Raises ValueError unless frames = 1 + 4n and height and width are multiples of 8 pixels times the patch size."""
    if (frames - 1) % wan.FRAMES_PER_LATENT or frames < 1:
        shorter = 1 + wan.FRAMES_PER_LATENT * max((frames - 1) // wan.FRAMES_PER_LATENT, 0)
        raise ValueError(f"a clip of {frames} frames: the video VAE takes 1 + 4n frames; nearest are {shorter} and {shorter + 4}")
    unit = wan.PIXELS_PER_LATENT * patch
    for name, size in (("height", height), ("width", width)):
        if size % unit or size < unit:
            lower = max(size // unit, 1) * unit
            raise ValueError(f"{name} {size} is not a multiple of {unit} pixels; nearest are {lower} and {lower + unit}")


def check_pixels(video: Tensor) -> None:
    """Raises ValueError unless these are bytes of (batch, frames, height, width, 3): other numbers would be taken for 0 ... 255."""
    if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[-1] != 3:
        given = f"{str(video.dtype).removeprefix('torch.')} of {tuple(video.shape)}"
        raise ValueError(f"video must be uint8 of shape (batch, frames, height, width, 3), got {given}")


def latent_frames(frames: int) -> int:
    """Of a clip of 1 + 4n frames: the first has one of its own."""
    return 1 + (frames - 1) // wan.FRAMES_PER_LATENT


def check_levels(tau: Tensor, batch: int) -> None:
    """Raises ValueError unless there is one noise level in [0, 1] per sample. Values on a GPU are not looked at: that would wait for it."""
    if tau.shape != (batch,):
        raise ValueError(f"tau must have one noise level per sample, shape ({batch},), got {tuple(tau.shape)}")
    if not tau.is_cuda and not torch.compiler.is_compiling() and not bool(((tau >= 0) & (tau <= 1)).all()):  # NaN fails too
        raise ValueError(f"tau must lie in [0, 1] (0 clean, 1 noise), got {tau.tolist()}")


def check_condition(condition: VideoCondition, noisy: Tensor) -> None:
    """Raises ValueError unless the observed latents fit the noisy ones, and there is a prompt for each: others would be broadcast."""
    batch, z_channels, z_frames, z_height, z_width = noisy.shape
    observed = condition.observed
    if observed.shape != (batch, z_channels, observed.shape[2], z_height, z_width) or not 1 <= observed.shape[2] <= z_frames:
        raise ValueError(f"observed latents {tuple(observed.shape)} do not fit noisy latents {tuple(noisy.shape)}")
    if condition.prompt.ndim != 3 or len(condition.prompt) != batch:
        raise ValueError(
            f"prompt must have shape ({batch}, prompt_tokens, prompt_dim), one for each sample, got {tuple(condition.prompt.shape)}"
        )
    count = condition.num_observed
    if count is not None and not count.is_cuda and not bool(((count >= 1) & (count <= observed.shape[2])).all()):
        raise ValueError(f"num_observed must lie in 1 ... {observed.shape[2]}, the number of observed latents, got {count.tolist()}")
