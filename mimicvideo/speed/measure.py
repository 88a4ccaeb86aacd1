"""How long a call takes and how much memory it needs: warm-up, percentiles, a budget of time."""

import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure.

    Attributes:
        calls: Timed calls of the fast variants.
        reference_calls: Timed calls of the plain ones, which are slow.
        warm_up: Calls after the first that are not timed.
        seconds: Budget for the timed calls of one variant; fewer are made if it is spent.
        ways: How many of our variants of a row are measured, the most important first.
        only: Their names, if only some are to be measured.
    """

    calls: int = 1000
    reference_calls: int = 20
    warm_up: int = 3
    seconds: float = 200.0
    ways: int = 8
    only: tuple[str, ...] = ()

    def chosen(self, ways: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Those of our variants, whose names come first, that are to be measured. Raises SystemExit if a wanted name is not there."""
        if not self.only:
            return list(ways[: self.ways])
        names = [name for name, *_ in ways]
        if unknown := [name for name in self.only if name not in names]:
            sys.exit(f"no such way here: {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, names))}")
        return [way for way in ways if way[0] in self.only]


@dataclass(frozen=True)
class Timing:
    """Times of single calls in milliseconds: wall times, each waited for, unless they were `queued` (see `measure`).

    Attributes:
        first_ms: The first call, with whatever it compiles, captures and loads.
        p50_ms, p99_ms, mean_ms: Over the timed calls.
        calls: How many were timed.
        peak_gib: The most memory that was allocated on the GPU during the timed calls; None off GPU.
        reserved_gib: What torch holds of it afterwards, graphs' own memory included.
    """

    first_ms: float
    p50_ms: float
    p99_ms: float
    mean_ms: float
    calls: int
    peak_gib: float | None
    reserved_gib: float | None

    def record(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call, waited for."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return 1000 * (time.perf_counter() - started)


def measure(
    function: Callable[[], Any],
    device: torch.device,
    calls: int,
    warm_up: int = 3,
    seconds: float = 200.0,
    pause: float = 0.0,
    queued: bool = False,
) -> Timing:
    """Times `calls` calls of `function`, or as many as fit into `seconds` (three at least), after a first and `warm_up` more.

    Before each there is a `pause` in seconds: without one a large GPU soon runs at its power limit, below its highest clock.
    With `queued` none is waited for, as steps of training are not: a call's time is that between the ends of two on the GPU.
    """
    first = timed(function, device)
    for _ in range(warm_up):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    if queued and device.type == "cuda":
        times = _queued(function, calls, seconds)
    else:
        times = []
        while len(times) < calls and (len(times) < 3 or sum(times) < 1000 * seconds):
            time.sleep(pause)
            times.append(timed(function, device))
    peak = reserved = None
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(device) / 2**30, torch.cuda.memory_reserved(device) / 2**30
    p50, p99 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    return Timing(first, p50, p99, sum(times) / len(times), len(times), peak, reserved)


def _queued(function: Callable[[], Any], calls: int, seconds: float) -> list[float]:
    """Milliseconds between the ends of calls that follow one another on the GPU."""
    ends = [torch.cuda.Event(enable_timing=True)]
    ends[0].record()
    started = time.perf_counter()
    while len(ends) <= calls and (len(ends) < 4 or time.perf_counter() - started < seconds):
        function()
        ends.append(torch.cuda.Event(enable_timing=True))
        ends[-1].record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) for first, second in itertools.pairwise(ends)]


def free(device: torch.device, compiled: bool = True) -> None:
    """Gives memory back that nothing refers to any more and, if `compiled`, forgets compiled code."""
    if compiled:
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def difference(value: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """How far two results lie apart: root mean square over that of the reference, and the largest over its largest."""
    value, reference = value.double(), reference.double()
    apart = value - reference
    return {
        "relative_rms": (apart.norm() / reference.norm().clamp(min=1e-30)).item(),
        "relative_max": (apart.abs().max() / reference.abs().max().clamp(min=1e-30)).item(),
    }
