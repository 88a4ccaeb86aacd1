"""Learning-rate schedules of both stages: linear warm-up, then constant, linear decay or cosine, stepped every optimizer step."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupConstant(LambdaLR):
    """lr * (start -> 1 over `warmup` steps, then 1). The paper's schedule of stage 1.

    Args:
        optimizer: Its learning rates are the peaks.
        warmup: Steps; 0 for none.
        start: First factor.
    """

    def __init__(self, optimizer: Optimizer, warmup: int = 1000, start: float = 1e-6) -> None:
        super().__init__(optimizer, _warmed_up(warmup, start, lambda step: 1.0))


class WarmupLinearDecay(LambdaLR):
    """lr * (start -> 1 over `warmup` steps, then 1 -> end at step `steps`, constant from there).

    Defaults are the official ones of stage 2, whose decay ends far beyond the trained length.

    Args:
        optimizer: Its learning rates are the peaks.
        steps: At which the decay ends, counted from the first step of all.
        warmup: Steps; 0 for none.
        start: First factor.
        end: Last factor.

    Raises:
        ValueError: If the decay would end before the warm-up.
    """

    def __init__(self, optimizer: Optimizer, steps: int = 500_000, warmup: int = 1000, start: float = 1e-6, end: float = 0.2) -> None:
        progress = _progress(warmup, steps)
        super().__init__(optimizer, _warmed_up(warmup, start, lambda step: 1 + (end - 1) * progress(step)))


class WarmupCosine(LambdaLR):
    """lr * (start -> 1 over `warmup` steps, then half a cosine from 1 to `end` at step `steps`, constant from there).

    Args:
        optimizer: Its learning rates are the peaks.
        steps: At which the decay ends, counted from the first step of all.
        warmup: Steps; 0 for none.
        start: First factor.
        end: Last factor.

    Raises:
        ValueError: If the decay would end before the warm-up.
    """

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int = 1000, start: float = 1e-6, end: float = 0.0) -> None:
        progress = _progress(warmup, steps)
        super().__init__(optimizer, _warmed_up(warmup, start, lambda step: end + (1 - end) * (1 + math.cos(math.pi * progress(step))) / 2))


def _warmed_up(warmup: int, start: float, after: Callable[[int], float]) -> Callable[[int], float]:
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    return lambda step: start + (1 - start) * step / warmup if step < warmup else after(step)


def _progress(warmup: int, steps: int) -> Callable[[int], float]:
    if steps <= warmup:
        raise ValueError(f"steps ({steps}), where the decay ends, must exceed warmup ({warmup})")
    return lambda step: min((step - warmup) / (steps - warmup), 1.0)
