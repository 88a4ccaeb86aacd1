"""Robust statistics over episodes: what is usual is the median, what is unusual lies many MADs from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

# Six standard deviations: of normally distributed values one in 10^9 lies beyond, so that even a million sound episodes raise no alarm by
# chance. Where a tail is heavier than the MAD tells, its tenth and ninetieth percentile do: mixtures of tasks are no normal distributions.
SIGMAS = 6.0
MAD_TO_SIGMA = 1.4826
DECILE_TO_SIGMA = 1 / 1.2816
SAMPLE = 2048  # episodes that statistics are taken from: medians of so many are within 3 % of a standard deviation
FEWEST = 3  # episodes from which on one can stand out: of two, either may be wrong
FEW = 10  # episodes up to which percentiles and MADs are small by chance: the spread is then that of all but the farthest
RARE = 0.1  # a share of the episodes up to which a peculiarity is a fault of theirs and not the dataset's way; one episode always is


@dataclass(frozen=True)
class Usual:
    """How a quantity is distributed over episodes. Of fewer than FEWEST, or if it is undefined for all, nothing is unusual.

    Attributes:
        median: Of the values.
        below: Their spread downwards, as a standard deviation.
        above: Likewise upwards.
        mean: Of the values.
        high: Their third quartile.
        count: How many there are.
    """

    median: float
    below: float
    above: float
    mean: float
    high: float
    count: int

    @property
    def rare(self) -> float:
        """The largest share of the values that is rare."""
        return max(RARE, 1 / max(self.count, 1)) + 1e-9

    @property
    def known(self) -> bool:
        """Whether there are enough values for one to be unusual."""
        return np.isfinite(self.above)

    @property
    def same(self) -> bool:
        """Whether nine tenths of the values are one."""
        return self.above == 0 and self.below == 0

    def far_above(self, value: float | None, floor: float) -> bool:
        """Whether a value exceeds the usual by more than six spreads and more than `floor`."""
        return value is not None and value - self.median > max(SIGMAS * self.above, floor)

    def far_below(self, value: float | None, floor: float) -> bool:
        """Likewise downwards."""
        return value is not None and self.median - value > max(SIGMAS * self.below, floor)

    def far(self, value: float | None, floor: float) -> bool:
        """Either."""
        return self.far_above(value, floor) or self.far_below(value, floor)


def usual(values: Iterable[float | None]) -> Usual:
    """Of the values that are defined. The least and the greatest have no say in the spreads, so that one of few can stand out."""
    known = np.sort([value for value in values if value is not None and np.isfinite(value)]).astype(np.float64)
    if not len(known):
        return Usual(float("nan"), float("inf"), float("inf"), float("nan"), float("nan"), 0)
    median = float(np.median(known))
    below = above = float("inf")
    off = np.sort(np.abs(known - median))
    if FEWEST <= len(known) < FEW:
        below = above = off[-2]
    elif len(known) >= FEW:
        mad = MAD_TO_SIGMA * float(np.median(off))
        low, high = np.percentile(known[1:-1], [10, 90])
        below, above = max(mad, DECILE_TO_SIGMA * (median - low)), max(mad, DECILE_TO_SIGMA * (high - median))
    return Usual(median, float(below), float(above), float(known.mean()), float(np.percentile(known, 75)), len(known))


def evenly(count: int, most: int) -> Int[np.ndarray, " chosen"]:
    """At most `most` places of `count`, evenly spaced: the same at every run."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64)) if count else np.zeros(0, np.int64)


def correlation(a: Float64[np.ndarray, "rows a"], b: Float64[np.ndarray, "rows b"]) -> Float64[np.ndarray, "a b"]:
    """Pearson's, of each column with each; 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.outer(np.sqrt((a * a).sum(0)), np.sqrt((b * b).sum(0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 1e-12, (a.T @ b) / norm, 0.0)


def runs(mask: Sequence[bool] | Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """First place and length of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask, np.int8), [0]])))
    return [(int(start), int(stop - start)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
