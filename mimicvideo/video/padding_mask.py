"""Lets diffusers' Cosmos transformer run without torchvision, of which it uses one nearest-neighbour resize.

torchvision wheels fit one torch release each, which is much to ask for resizing a padding mask of zeros.
"""

from enum import Enum
from types import SimpleNamespace

from diffusers.models.transformers import transformer_cosmos
from torch import Tensor
from torch.nn.functional import interpolate


class _InterpolationMode(Enum):
    NEAREST = "nearest"


def _resize(mask: Tensor, size: list[int], interpolation: _InterpolationMode) -> Tensor:
    return interpolate(mask, size, mode=interpolation.value)


def provide_resize() -> None:
    """Gives diffusers' module the two names that it would have imported from torchvision, unless it has them."""
    if not hasattr(transformer_cosmos, "transforms"):
        functional = SimpleNamespace(resize=_resize)
        transformer_cosmos.transforms = SimpleNamespace(functional=functional, InterpolationMode=_InterpolationMode)
