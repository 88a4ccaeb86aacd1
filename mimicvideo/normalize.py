"""Normalizer: dataset units <-> network units. Its buffers are part of the policy's weights, so a checkpoint carries its units."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Mode = Literal["variance", "min_max", "quantile", "identity"]


class Normalization(TypedDict, total=False):
    """How a policy's units become network units; see `Normalizer` for the modes. Left out: the paper's, `variance` per step."""

    actions: Mode | list[Mode]
    proprio: Mode | list[Mode]
    per_step: bool


SMALLEST_SCALE = 1e-5  # below it a dimension counts as constant and its scale is 1: official `normalizer.py`

# The statistics each mode reads.
_NEEDS: dict[str, tuple[str, ...]] = {
    "variance": ("mean", "p2", "p98", "clipped_mean", "clipped_std"),
    "min_max": ("min", "max"),
    "quantile": ("q01", "q99"),
    "identity": (),
}
CLIP_FACTOR = 1.5  # how far beyond p2 and p98, seen from the mean, `variance` clips: official `normalizer.py`
NO_LIMIT = torch.finfo(torch.float32).max  # where nothing is clipped; infinity in a checkpoint would be taken for a fault


class Normalizer(nn.Module):
    """(clip(x) - offset) / scale, per dimension and, if wanted, per step of the horizon.

    | mode | clip | offset | scale |
    |---|---|---|---|
    | variance | mean + 1.5 (p2 - mean) ... mean + 1.5 (p98 - mean) | mean of the clipped values | their standard deviation |
    | min_max | - | (max + min) / 2 | (max - min) / 2 |
    | quantile | q01 ... q99 | (q99 + q01) / 2 | (q99 - q01) / 2 |
    | identity | - | 0 | 1 |

    `variance` per step is the paper's. Only `normalize` clips; `unnormalize` never does.

    Args:
        dims: Numbers per step.
        steps: Steps of the horizon (of the history, for proprioception).
        mode: One for all dimensions or one for each.
        per_step: Whether each step has statistics of its own; otherwise they are pooled over the steps.

    Raises:
        ValueError: If a mode is unknown or their number is not `dims`.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    fitted: Tensor

    def __init__(self, dims: int, steps: int = 1, mode: Mode | Sequence[Mode] = "variance", per_step: bool = True) -> None:
        super().__init__()
        modes = [mode] * dims if isinstance(mode, str) else list(mode)
        if len(modes) != dims:
            raise ValueError(f"give one normalisation mode or one for each of the {dims} dimensions, got {len(modes)}: {modes}")
        for name in modes:
            if name not in _NEEDS:
                raise ValueError(f"unknown normalisation mode {name!r}: choose from {', '.join(get_args(Mode))}")
        self.modes, self.per_step = modes, per_step
        rows = steps if per_step else 1
        self.register_buffer("offset", torch.zeros(rows, dims))
        self.register_buffer("scale", torch.ones(rows, dims))
        self.register_buffer("low", torch.full((rows, dims), -NO_LIMIT))
        self.register_buffer("high", torch.full((rows, dims), NO_LIMIT))
        self.register_buffer("fitted", torch.tensor(all(name == "identity" for name in modes)))
        self._was_fitted = False

    @torch.no_grad()
    def fit(self, statistics: Mapping[str, Any]) -> None:
        """Takes the numbers over.

        Args:
            statistics: By name (mean, p2, p98, clipped_mean, clipped_std, min, max, q01, q99) values of shape (steps, dims) if
                `per_step`, else (dims,) or (1, dims). Lists, arrays or tensors.

        Raises:
            ValueError: If one is missing, has another shape, or is not finite.
        """
        wanted = {name for mode in self.modes for name in _NEEDS[mode]}
        read = {name: self._read(statistics, name) for name in sorted(wanted)}
        for column, mode in enumerate(self.modes):
            of = {name: read[name][:, column] for name in _NEEDS[mode]}
            low, high = torch.tensor(-NO_LIMIT), torch.tensor(NO_LIMIT)
            if mode == "variance":
                low = of["mean"] + CLIP_FACTOR * (of["p2"] - of["mean"])
                high = of["mean"] + CLIP_FACTOR * (of["p98"] - of["mean"])
                offset, scale = of["clipped_mean"], of["clipped_std"]
            elif mode == "min_max":
                offset, scale = (of["max"] + of["min"]) / 2, (of["max"] - of["min"]) / 2
            elif mode == "quantile":
                low, high = of["q01"], of["q99"]
                offset, scale = (high + low) / 2, (high - low) / 2
            else:
                offset, scale = torch.tensor(0.0), torch.tensor(1.0)
            self.offset[:, column], self.low[:, column], self.high[:, column] = offset, low, high
            self.scale[:, column] = torch.where(scale < SMALLEST_SCALE, torch.ones_like(scale), scale)
        self.fitted.fill_(True)

    def normalize(self, x: Float[Tensor, "*batch steps dims"]) -> Float[Tensor, "*batch steps dims"]:
        """Dataset units -> network units."""
        self._check(x)
        return (x.clamp(self.low, self.high) - self.offset) / self.scale

    def unnormalize(self, x: Float[Tensor, "*batch steps dims"]) -> Float[Tensor, "*batch steps dims"]:
        """Network units -> dataset units."""
        self._check(x)
        return x * self.scale + self.offset

    def _check(self, x: Tensor) -> None:
        rows, dims = self.offset.shape
        if x.shape[-1] != dims or (self.per_step and x.shape[-2] != rows):
            raise ValueError(f"expected (..., {rows if self.per_step else 'steps'}, {dims}) to normalise, got {tuple(x.shape)}")
        if not self.is_fitted:
            raise RuntimeError("the normaliser has no statistics yet: call fit(...), train first, or load a checkpoint")

    @property
    def is_fitted(self) -> bool:
        """Whether it has its statistics, from `fit` or a checkpoint."""
        self._was_fitted = self._was_fitted or bool(self.fitted)  # a look at the buffer waits for the accelerator: once is enough
        return self._was_fitted

    def _read(self, statistics: Mapping[str, Any], name: str) -> Float[Tensor, "rows dims"]:
        if name not in statistics:
            raise ValueError(f"the statistics lack {name!r}; they have {', '.join(sorted(statistics))}")
        value = torch.as_tensor(statistics[name], dtype=torch.float64)
        if value.ndim == 1 and not self.per_step:
            value = value[None]
        if value.shape != self.offset.shape:
            raise ValueError(f"statistic {name!r} has shape {tuple(value.shape)}, expected {tuple(self.offset.shape)} (steps, dimensions)")
        if not value.isfinite().all():
            raise ValueError(f"statistic {name!r} is not finite in dimensions {(~value.isfinite()).any(0).nonzero().flatten().tolist()}")
        return value


def normalizer_pair(
    normalization: Normalization | None, actions: tuple[int, int], proprio: tuple[int, int]
) -> tuple[Normalizer, Normalizer]:
    """The normalisers of actions and proprioception.

    Args:
        normalization: What differs from the paper's.
        actions: Their dimensions and steps.
        proprio: Likewise.

    Raises:
        ValueError: If `normalization` has another key, or see `Normalizer`.
    """
    known = sorted(Normalization.__annotations__)
    for key in normalization or {}:
        if key not in known:
            raise ValueError(f"normalization has no {key!r}: choose from {', '.join(known)}")
    given: Normalization = {"actions": "variance", "proprio": "variance", "per_step": True, **(normalization or {})}
    per_step = given["per_step"]
    return Normalizer(*actions, given["actions"], per_step), Normalizer(*proprio, given["proprio"], per_step)
