"""One stream at another rate: values between samples, by rates in exact fractions or by time stamps, with ends held and gaps refused."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.layout import Group, Layout
from mimicvideo.data.rotations import from_matrix, inverse, slerp, to_matrix

Rate = int | float | str | Fraction  # Hz; a string may be a fraction, such as "30000/1001"

_LARGEST_DENOMINATOR = 10**5  # of a rate: products of two with a million samples still fit into 64 bits
_SNAP = 1e-6  # of an interval: time stamps are rounded, and a sample that is meant to be met exactly is


@dataclass(frozen=True)
class Places:
    """Where the samples of a new grid lie among the old ones.

    Attributes:
        low: The old sample at or before each new one.
        share: How far it is to the next, in [0, 1). Beyond the ends it is 0: the first or last sample is held.
        in_gap: Which lie inside a gap.
    """

    low: Int[np.ndarray, " targets"]
    share: Float[np.ndarray, " targets"]
    in_gap: Bool[np.ndarray, " targets"]

    @property
    def nearest(self) -> Int[np.ndarray, " targets"]:
        """The nearest old samples; of two equally near ones the earlier, so that nothing is taken from the future without need."""
        return self.low + (self.share > 0.5)


def rate(value: Rate) -> Fraction:
    """A rate in Hz as the fraction that its decimal digits say, or the nearest simple one: 29.97 is 2997/100, and 29.97002997002997, which
    is what a computed rate looks like, 30000/1001. Raises ValueError if it is not positive."""
    try:
        result = Fraction(str(value)).limit_denominator(_LARGEST_DENOMINATOR)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a rate must be a number of Hz or a fraction such as '30000/1001', got {value!r}") from None
    if result <= 0:
        raise ValueError(f"a rate must be positive, got {value!r} Hz")
    return result


def rate_places(length: int, source_hz: Rate, target_hz: Rate, count: int | None = None, start: Rate = 0) -> Places:
    """Places by rates, in whole numbers: 30 -> 5 Hz meets every sixth sample exactly, however long the episode.

    Args:
        length: Old samples, the first at 0 s.
        source_hz: Their rate.
        target_hz: That of the new ones.
        count: New samples; None takes those up to the last old one.
        start: Time of the first new sample in seconds, which may be negative.

    Raises:
        ValueError: If a number is out of range.
    """
    if length < 1 or (count is not None and count < 1):
        raise ValueError(f"length and count must be at least 1, got {length} and {count}")
    source, target, first = rate(source_hz), rate(target_hz), Fraction(str(start))
    if count is None:
        count = max(int(((length - 1) / source - first) * target // 1) + 1, 1)
    step, begin = source / target, first * source  # in old samples
    common = step.denominator * begin.denominator
    ticks = np.arange(count, dtype=np.int64) * (step.numerator * begin.denominator) + begin.numerator * step.denominator
    low, rest = np.divmod(ticks, common)
    held = (low < 0) | (low >= length - 1)
    share = np.where(held, 0.0, rest / common)
    return Places(low.clip(0, length - 1), share, np.zeros(count, dtype=bool))


def time_places(
    times: Shaped[np.ndarray, " samples"],
    at: Float[np.ndarray, " targets"],
    max_gap: float | None = None,
    max_share: float = 0.0,
) -> Places:
    """Places by time stamps.

    Args:
        times: Of the old samples, in seconds; see `seconds` for clocks that count nanoseconds.
        at: Of the new ones, on the same clock; see `grid`.
        max_gap: The longest interval between old samples, in seconds, over which values are made up; None allows any.
        max_share: The share of the new samples, in [0, 1], that may lie in longer ones; they are marked in `in_gap`.

    Raises:
        DatasetError: If time stamps are not finite or do not increase, or more samples than `max_share` lie in gaps.
    """
    times = np.asarray(times, dtype=np.float64)
    if len(times) == 0 or not np.isfinite(times).all():
        raise DatasetError("time stamps are missing, NaN or infinite: drop those rows, or give the stream's rate instead")
    intervals = np.diff(times)
    if (intervals <= 0).any():
        place = int(np.argmax(intervals <= 0))
        raise DatasetError(
            f"time stamps do not increase: {times[place]:g} s is followed by {times[place + 1]:g} s at sample {place + 1}; sort them, "
            "drop doubled rows, or give the stream's rate instead"
        )
    last = len(times) - 1
    low = np.searchsorted(times, at, side="right") - 1
    inside = (low >= 0) & (low < last)
    low = low.clip(0, last)
    interval = np.append(intervals, 1.0)[low]
    share = np.where(inside, (at - times[low]) / interval, 0.0)
    next_one = share > 1 - _SNAP
    low, share = low + next_one, np.where(next_one | (share < _SNAP), 0.0, share)
    share = np.where(np.abs(share - 0.5) < _SNAP, 0.5, share)
    in_gap = np.zeros(len(at), dtype=bool) if max_gap is None else inside & (share > 0) & (interval > max_gap)
    if in_gap.sum() > max_share * len(at):
        place = int(low[in_gap.argmax()])
        raise DatasetError(
            f"{int(in_gap.sum())} of {len(at)} samples lie in gaps longer than {max_gap:g} s; "
            f"the first lasts {intervals[place]:.3g} s from {times[place]:g} s on. "
            f"Drop the episode, raise max_gap, or allow a share of them with max_share (now {max_share:g})"
        )
    return Places(low, share, in_gap)


def seconds(stamps: Shaped[np.ndarray, " samples"], unit: float = 1e-9) -> Float[np.ndarray, " samples"]:
    """Time stamps since the first one, in seconds; subtracted before they are rounded, since nanoseconds fill 64 bits."""
    stamps = np.asarray(stamps)
    if stamps.dtype == np.uint64:
        stamps = stamps.astype(np.int64)
    return (stamps - stamps[0]).astype(np.float64) * unit


def grid(start: float, end: float, hz: Rate) -> Float[np.ndarray, " targets"]:
    """Times from `start` at a rate, up to `end` and with it if it is met."""
    step = rate(hz)
    count = int((end - start) * float(step) + _SNAP) + 1
    return start + _times(count, step)


# ---- values -------------------------------------------------------------------------------------------------------------------


def linear(values: Shaped[np.ndarray, "samples dims"], places: Places) -> Float[np.ndarray, "targets dims"]:
    """Straight lines between samples. A sample that is met keeps its exact value."""
    values = np.asarray(values, dtype=np.float64)
    share, low = places.share[:, None], values[places.low]
    return np.where(share == 0, low, (1 - share) * low + share * values[_following(places, len(values))])


def slerped(values: Shaped[np.ndarray, "samples 6"], places: Places) -> Float[np.ndarray, "targets 6"]:
    """6-D rotations, turning evenly the short way between samples."""
    values = np.asarray(values, dtype=np.float64)
    matrices = to_matrix(values, "6d")
    between = slerp(matrices[places.low], matrices[_following(places, len(values))], places.share)
    return np.where(places.share[:, None] == 0, values[places.low], from_matrix(between, "6d"))


def resample(
    layout: Layout,
    values: Shaped[np.ndarray, "samples learned_dim"],
    source: Rate | Shaped[np.ndarray, " stamps"],
    target_hz: Rate,
    count: int | None = None,
    max_gap: float | None = None,
    max_share: float = 0.0,
) -> Float[np.ndarray, "targets learned_dim"]:
    """An episode's vectors, in learnable form (`Layout.learn`), at another rate from its first sample on.

    Absolute positions and joints are interpolated along lines and rotations by slerp; grippers and other numbers take the nearest sample.
    Stored deltas last until the next one: they are summed or composed over each new step, so that no motion is lost or made up.

    Args:
        layout: What the numbers are.
        values: One row per sample.
        source: Their rate, or their time stamps in seconds.
        target_hz: The rate that is wanted.
        count: New samples; None takes those up to the last sample, or for deltas until the last has been carried out.
        max_gap: See `time_places`.
        max_share: See `time_places`.

    Raises:
        ValueError: If a rate is not positive.
        DatasetError: See `time_places`.
    """
    deltas = any(group.stored == "delta" for group in layout.groups)
    places = _places(len(values), source, target_hz, count, deltas, max_gap, max_share)
    edges = _edges(len(values), source, target_hz, len(places.low)) if deltas else None
    result = np.empty((len(places.low), layout.learned_dim))
    for group in layout.groups:
        here = layout.places[group.name]
        if group.stored == "delta":
            assert edges is not None
            result[:, here] = _compose(layout, group, np.asarray(values, dtype=np.float64), edges)
        elif group.kind == "rotation":
            result[:, here] = slerped(values[:, here], places)
        elif group.kind in ("position", "joint"):
            result[:, here] = linear(values[:, here], places)
        else:
            result[:, here] = values[places.nearest, here]
    return result


def _times(count: int, hz: Fraction) -> Float[np.ndarray, " targets"]:
    return np.arange(count) * hz.denominator / hz.numerator


def _places(
    length: int, source: Rate | np.ndarray, target_hz: Rate, count: int | None, deltas: bool, max_gap: float | None, max_share: float
) -> Places:
    target = rate(target_hz)
    if not isinstance(source, np.ndarray):
        if count is None and deltas:
            count = -int(-length * target / rate(source) // 1)  # rounded up: the last step may be part of one
        return rate_places(length, source, target, count)
    if len(source) != length:
        raise DatasetError(f"{length} samples have {len(source)} time stamps: they must be as many")
    end = float(source[-1]) + (_typical(source) if deltas else 0.0)
    if count is None:
        at = grid(float(source[0]), end, target)
        at = at[: max(int(np.ceil((end - float(source[0])) * float(target) - _SNAP)), 1)] if deltas else at
    else:
        at = float(source[0]) + _times(count, target)
    return time_places(source, at, max_gap, max_share)


def _edges(length: int, source: Rate | np.ndarray, target_hz: Rate, count: int) -> Places:
    """Where each new step begins and, last, the end of the last one, among the beginnings of the old steps and their end."""
    if not isinstance(source, np.ndarray):
        return rate_places(length + 1, source, target_hz, count + 1)
    at = float(source[0]) + _times(count + 1, rate(target_hz))
    return time_places(np.append(source, source[-1] + _typical(source)), at)


def _typical(times: np.ndarray) -> float:
    """How long the last step lasts: as long as most."""
    if len(times) < 2:
        raise DatasetError("one sample alone does not say how long its delta lasts: give the stream's rate instead of time stamps")
    return float(np.median(np.diff(times)))


def _compose(layout: Layout, group: Group, values: np.ndarray, edges: Places) -> np.ndarray:
    """The changes between edges of the motion that deltas add up to."""
    here = layout.places[group.name]
    rotation = next((other for other in layout.groups if other.kind == "rotation" and other.body == group.body), None)
    if group.kind == "rotation" or (group.kind == "position" and group.frame == "body" and rotation is not None):
        assert rotation is not None
        turns = _positions_of_turns(to_matrix(values[:, layout.places[rotation.name]], "6d"), body=group.frame == "body")
        at = to_matrix(slerped(from_matrix(turns, "6d"), edges), "6d")
        if group.kind == "rotation":
            change = inverse(at[:-1]) @ at[1:] if group.frame == "body" else at[1:] @ inverse(at[:-1])
            return from_matrix(change, "6d")
        steps = (turns[:-1] @ values[:, here, None])[..., 0]
        moved = np.diff(linear(_sums(steps), edges), axis=0)
        return (inverse(at[:-1]) @ moved[..., None])[..., 0]
    return np.diff(linear(_sums(values[:, here]), edges), axis=0)


def _sums(steps: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)])


def _positions_of_turns(turns: np.ndarray, body: bool) -> np.ndarray:
    """The orientation before each turn and after the last, from identity on."""
    result = np.tile(np.eye(3), (len(turns) + 1, 1, 1))
    for step, turn in enumerate(turns):
        result[step + 1] = result[step] @ turn if body else turn @ result[step]
    return result


def _following(places: Places, samples: int) -> np.ndarray:
    return np.minimum(places.low + 1, samples - 1)
