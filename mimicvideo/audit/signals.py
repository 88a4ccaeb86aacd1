"""The numbers of one episode in a summary of bounded size: ranges, histograms, idle ends, and how states follow actions."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from mimicvideo.audit.calibration import BINS, LAGS, ROWS, Calibration, by_row, change, driving, lagged, read_numbers
from mimicvideo.audit.robust import correlation
from mimicvideo.data.episodes import Episode, Episodes

STILL = 0.05  # of a typical fast speed: a minimum-jerk motion is below it during the first and last 4 % of its time
MOVING = 0.15  # of the same: fast enough that a picture must show it
DESCRIPTOR_TIMES, DESCRIPTOR_SIZE = 16, 32
DIGITS = 6
INVERTED = 0.3  # of pooled correlation: oscillations correlate with the wrong sign half a period away, but less


def summarise_numbers(reader: Episodes, episode: Episode, calibration: Calibration) -> tuple[dict[str, Any], np.ndarray]:
    """Everything that is kept of an episode's numbers, and how fast its states change in each row, in units of the typical fast speed.

    The speed is of no length if there are no numbers or they are not finite, and then no end is called idle.
    """
    actions, states = read_numbers(reader, episode)
    bad = {name: _not_finite(values) for name, values in (("actions", actions), ("proprio", states))}
    summary: dict[str, Any] = {
        "gripper": [],
        "not_finite": {name: text for name, text in bad.items() if text},
        "hash": {name: _digest(values) for name, values in (("actions", actions), ("proprio", states))},
        "times": _times(reader.times(episode)),
    }
    if summary["not_finite"] or not len(actions):
        return summary, np.zeros(0)
    for name, values in (("actions", actions), ("proprio", states)):
        summary[name] = _dimensions(values, calibration.ranges[name])
    if not actions.shape[1] + states.shape[1]:
        return summary, np.zeros(0)
    action_rows, states = by_row(reader, episode)
    speed = _speed(action_rows, states, calibration)
    summary["idle"] = _idle(speed)
    summary["gripper"] = [_gripper(action_rows[:, dim], states[:, calibration.state_grippers]) for dim in calibration.action_grippers]
    if len(states) >= ROWS and calibration.relations:
        summary["follow"] = _follow(action_rows, states, calibration)
    summary["descriptor"] = _descriptor(action_rows, states, calibration)
    return summary, speed


def _not_finite(values: Float64[np.ndarray, "rows dims"]) -> str | None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    row, dim = np.argwhere(bad)[0]
    return f"{int(bad.sum())} numbers, the first in row {row}, dimension {dim}: {values[row, dim]}"


def _digest(values: np.ndarray) -> str | None:
    """Of the content; None where a copy means nothing because nothing changes."""
    if not values.size or (values == values[0]).all():
        return None
    return hashlib.sha256(np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()[:16]


def _times(times: Float64[np.ndarray, " rows"] | None) -> dict[str, Any] | None:
    if times is None or len(times) < 2:
        return None
    steps = np.diff(times)
    backwards = np.flatnonzero(~(steps > 0))
    return {
        "step": float(np.median(steps)),
        "largest": float(steps.max()),
        "largest_row": int(steps.argmax()) + 1,
        "backwards": int(backwards[0]) + 1 if len(backwards) else None,
    }


def _dimensions(values: Float64[np.ndarray, "rows dims"], ranges: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Per dimension: extremes, mean, deviation, the share of rows at the episode's own extremes, and a histogram with both overflows."""
    if not values.shape[1]:
        return {name: [] for name in ("min", "max", "mean", "std", "at_limit", "histogram")}
    low, high = values.min(0), values.max(0)
    near = 1e-6 * np.maximum(high - low, 1e-12)
    at_limit = ((values <= low + near) | (values >= high - near)).mean(0)
    histograms = []
    for column, (left, right) in zip(values.T, ranges, strict=True):
        bins = np.clip(np.floor((column - left) / (right - left) * BINS), -1, BINS).astype(int) + 1
        histograms.append(np.bincount(bins, minlength=BINS + 2).tolist())
    return {
        "min": low.tolist(),
        "max": high.tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "at_limit": at_limit.round(4).tolist(),
        "histogram": histograms,
    }


def _speed(actions: np.ndarray, states: np.ndarray, calibration: Calibration) -> Float64[np.ndarray, " rows"]:
    """Of the fastest dimension, from each row to the next; of the actions' changes where there are no states. The last row has none."""
    values, scale = (states, np.array(calibration.speed)) if states.shape[1] else (actions, np.array(calibration.action_scale))
    seldom = scale <= 1e-9 * max(scale.max(initial=0.0), 1e-9)
    steps = np.abs(change(values)) / np.where(seldom, 1.0, scale)
    # A dimension that seldom changes, such as a gripper's, has no typical speed: any change of it is motion.
    steps = np.where(seldom, np.where(steps > 1e-6, 1.0, 0.0), steps)
    return np.append(steps.max(1, initial=0.0), 0.0)


def _idle(speed: Float64[np.ndarray, " rows"]) -> list[int]:
    """Rows at the start and at the end in which nothing moves; the whole episode counts as both."""
    moving = np.flatnonzero(speed[:-1] > STILL)
    return [int(moving[0]), int(len(speed) - 2 - moving[-1])] if len(moving) else [len(speed), len(speed)]


def _gripper(command: Float64[np.ndarray, " rows"], openings: Float64[np.ndarray, "rows grippers"]) -> dict[str, Any]:
    """Limits, and the strongest correlation of the opening with the command up to LAGS rows before: positive if a large command opens."""
    best = 0.0
    for lag in range(LAGS + 1):
        if len(command) - lag >= ROWS:
            for value in correlation(*lagged(command[:, None], openings, lag))[0]:
                best = float(value) if abs(value) > abs(best) else best
    return {"min": float(command.min()), "max": float(command.max()), "first": float(command[0]), "opens": round(best, 4)}


def _follow(actions: np.ndarray, states: np.ndarray, calibration: Calibration) -> dict[str, Any]:
    """How each related state follows its action: correlations over lags, pooled, with the best lag in fractions of a row.

    `cross` is the table of correlations between all related actions (rows) and states (columns) at the usual lag or beside it,
    signed so that the dataset's own relations are positive; `slope` is the state's change per unit of action, at the best lag.
    """
    relations = calibration.relations
    steps = change(states)
    columns = [relation.state for relation in relations]
    own = np.zeros((2 * LAGS + 1, len(relations)))
    tables = {}
    for lag in range(-LAGS, LAGS + 1):
        if len(steps) - abs(lag) < ROWS // 2:
            continue
        table = np.zeros((len(relations), len(relations)))
        for number, relation in enumerate(relations):
            drive, moved = lagged(driving(actions[:, relation.action : relation.action + 1], relation.mode), steps[:, columns], lag)
            table[number] = relation.sign * correlation(drive, moved)[0]
        tables[lag], own[lag + LAGS] = table, np.diag(table)
    scale = np.array(calibration.speed)[columns]
    energy = np.minimum(np.abs(steps[:, columns]).max(0) / np.where(scale > 0, scale, np.inf), 1.0)  # dims that hardly move have no say
    pooled = own @ energy / max(energy.sum(), 1e-12)
    best = int(pooled.argmax())
    if -pooled.min() > pooled[best] + INVERTED:  # most dimensions have the other sign
        best = int(pooled.argmin())
    near = [lag for lag in range(calibration.lag - 1, calibration.lag + 2) if lag in tables] or list(tables)
    strongest = best - LAGS if best - LAGS in near else max(near, key=lambda lag: float(np.abs(tables[lag]).sum()))
    return {
        "lag": round(best - LAGS + _vertex(np.abs(pooled), best), 3) if energy.max(initial=0) > MOVING else None,
        "fit": round(float(pooled[best]), 4),
        "pooled": pooled.round(4).tolist(),
        "own": own[best].round(4).tolist(),
        "energy": energy.round(4).tolist(),
        "cross": tables[strongest].round(4).tolist(),
        "slope": [_slope(actions, steps, relation, best - LAGS) for relation in relations],
    }


def _vertex(values: np.ndarray, place: int) -> float:
    """Of the parabola through a maximum and its neighbours, relative to it."""
    if not 0 < place < len(values) - 1:
        return 0.0
    left, middle, right = values[place - 1 : place + 2]
    curvature = left - 2 * middle + right
    return float(0.5 * (left - right) / curvature) if curvature < 0 else 0.0


def _slope(actions: np.ndarray, steps: np.ndarray, relation: Any, lag: int) -> float | None:
    drive, moved = lagged(driving(actions, relation.mode)[:, relation.action, None], steps[:, relation.state, None], lag)
    drive, moved = drive[:, 0] - drive.mean(), moved[:, 0] - moved.mean()
    power = float(drive @ drive)
    return float(drive @ moved) / power if power > 0 else None


def _descriptor(actions: np.ndarray, states: np.ndarray, calibration: Calibration) -> list[float]:
    """Actions and states at DESCRIPTOR_TIMES times, in units of their spread over the dataset, projected on fixed random directions.

    Distances between such projections are those of the trajectories to about 1 / sqrt(2 DESCRIPTOR_SIZE) (Johnson-Lindenstrauss), per
    number: 0.1 means that they differ by a tenth of the spread.
    """
    places = np.linspace(0, len(actions) - 1, DESCRIPTOR_TIMES).round().astype(int)
    ranges = np.array(calibration.ranges["proprio"]).reshape(-1, 2)
    parts = [actions[places] / _positive(np.array(calibration.action_scale))]
    parts.append((states[places] - ranges[:, 0]) / _positive(ranges[:, 1] - ranges[:, 0]))
    return projected(np.concatenate(parts, axis=1).ravel())


def projected(values: Float64[np.ndarray, " values"]) -> list[float]:
    """On DESCRIPTOR_SIZE fixed random directions, such that distances become root mean squares over the values."""
    directions = np.random.default_rng(0).normal(size=(DESCRIPTOR_SIZE, len(values)))
    return (directions @ values / np.sqrt(DESCRIPTOR_SIZE * len(values))).round(DIGITS).tolist()


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 1e-9, scale, 1.0)
