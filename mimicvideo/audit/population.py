"""What is usual in a dataset: each quantity of the episodes' summaries, with its median and spread over a sample of bounded size."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from mimicvideo.audit.calibration import ROWS
from mimicvideo.audit.robust import SAMPLE, Usual, evenly, usual

NOTHING = usual([])
SMALLEST = 1e-9  # magnitudes below count as zero
# What differs between tasks. Of a few episodes of several tasks none is unusual in these: each may be what its task asks for.
HABITS = re.compile(r"length|gripper/\d+/(min|max|first)|.*/(constant|magnitude|at_limit|leap)")
SEVERAL = 5  # episodes from which on several tasks may be compared all the same


class Population:
    """Statistics of all quantities by name.

    Args:
        summaries: Of the episodes.
        count: How many there are.

    Attributes:
        lag: The place in `pooled` where actions explain most.
        signatures: The usual picture of each camera.
        distances: How far episodes' pictures are from it.
        varied: Whether there are few episodes and several tasks.
    """

    lag = 0

    def __init__(self, summaries: Iterable[dict[str, Any]], count: int) -> None:
        chosen = set(evenly(count, SAMPLE).tolist())
        values: dict[str, list[float | None]] = {}
        signatures: dict[str, list[list[int]]] = {}
        pooled: list[list[float]] = []
        tasks = set()
        for place, summary in enumerate(summaries):
            if place in chosen:
                tasks.add(summary["task"])
                for name, value in quantities(summary):
                    values.setdefault(name, []).append(value)
                if "follow" in summary.get("numbers", {}):
                    pooled.append(summary["numbers"]["follow"]["pooled"])
                for camera, pictures in summary.get("pictures", {}).items():
                    signatures.setdefault(camera, []).append(pictures["signature"])
        self.varied = len(tasks) > 1 and len(chosen) < SEVERAL
        self._usual = {name: self._compared(name, usual(found)) for name, found in values.items()}
        self.signatures: dict[str, Float64[np.ndarray, " values"]] = {
            camera: np.median(np.array(found, np.float64), axis=0) for camera, found in signatures.items()
        }
        self.distances = {
            camera: usual(distance(np.array(one, np.float64), self.signatures[camera]) for one in found)
            for camera, found in signatures.items()
        }
        self._usual["follow/loss"] = NOTHING
        if pooled:
            self.lag = int(np.median(pooled, axis=0).argmax())
            self._usual["follow/loss"] = usual(loss(one, self.lag) for one in pooled)

    def _compared(self, name: str, found: Usual) -> Usual:
        return replace(found, below=math.inf, above=math.inf) if self.varied and HABITS.fullmatch(name) else found

    def __getitem__(self, name: str) -> Usual:
        return self._usual.get(name, NOTHING)


def quantities(summary: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """What is compared between episodes, by name."""
    yield "length", math.log(max(summary["length"], 1))
    numbers = summary.get("numbers", {})
    for kind in ("actions", "proprio"):
        if kind not in numbers:
            continue
        table = numbers[kind]
        for dim, (low, high, limit) in enumerate(zip(table["min"], table["max"], table["at_limit"], strict=True)):
            yield f"{kind}/{dim}/constant", float(low == high)
            yield f"{kind}/{dim}/magnitude", math.log10(max(abs(low), abs(high), SMALLEST))
            yield f"{kind}/{dim}/at_limit", limit if low < high and summary["length"] >= ROWS else None
    if "idle" in numbers:
        yield "idle/head", numbers["idle"][0]
        yield "idle/tail", numbers["idle"][1]
    for number, gripper in enumerate(numbers.get("gripper", ())):
        for name in ("min", "max", "first"):
            yield f"gripper/{number}/{name}", gripper[name]
        yield f"gripper/{number}/opens", math.copysign(1, gripper["opens"]) if abs(gripper["opens"]) >= 0.5 else None
    if (follow := numbers.get("follow")) is not None:
        yield "follow/lag", follow["lag"]
        yield "follow/fit", follow["fit"]
        for number, own in enumerate(follow["own"]):
            yield f"follow/{number}/own", own
            yield f"follow/{number}/cross", follow["cross"][number][number]
            yield f"follow/{number}/slope", log_slope(follow["slope"][number])
    if numbers.get("times"):
        yield "times/largest", numbers["times"]["largest"] / numbers["times"]["step"] if numbers["times"]["step"] > 0 else None
    for camera, pictures in summary.get("pictures", {}).items():
        for name in ("black", "blank"):
            yield f"{camera}/{name}", pictures[name][0]
        yield f"{camera}/frozen", pictures["frozen"]["share"]
        yield f"{camera}/repeats", repeats(pictures["frozen"])
        yield f"{camera}/flash", pictures["flash"][0]
        yield f"{camera}/leap", pictures["leap"][0]


def repeats(frozen: dict[str, Any]) -> int:
    """How many pictures repeat beyond the first that does: that one may be a slow moment."""
    return max(frozen["moving"] - 1, 0)


def loss(pooled: list[float], lag: int) -> float:
    """How many times more of the motion is unexplained by the actions at a lag than at the best one, as a natural logarithm."""
    left = [max(1 - max(value, 0.0) ** 2, 1e-4) for value in pooled]
    return math.log(left[lag] / min(left))


def log_slope(slope: float | None) -> float | None:
    """Decimal logarithm of a slope's size."""
    return math.log10(max(abs(slope), SMALLEST)) if slope is not None else None


def distance(one: Float64[np.ndarray, " values"], other: Float64[np.ndarray, " values"]) -> float:
    """Root mean square difference of two signatures, in levels of 255."""
    return float(np.sqrt(np.mean((one - other) ** 2)))
