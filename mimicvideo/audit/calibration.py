"""What a dataset's numbers mean, learned from a sample of its episodes: typical speeds, grippers, which state follows which action."""

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64

from mimicvideo.audit.robust import correlation, evenly
from mimicvideo.data.episodes import Episode, Episodes

EPISODES = 64  # in the sample: medians over so many stand up to 30 of them being wrong
LAGS = 5  # rows in either direction: 1 s at 5 Hz, the slowest rate of the usual datasets
RELATED = 0.5  # median correlation from which a state is said to follow an action: half of its motion explained in amplitude
ROWS = 12  # below so many, correlations over lags mean nothing
GRIPPER = re.compile(r"grip|finger|claw|jaw|grasp|open_close")
BINS = 50
_USUAL_LAGS = range(-3, 4)


@dataclass(frozen=True)
class Relation:
    """A state dimension moves with an action dimension: with its value (`delta`), or with its change (`absolute`)."""

    action: int
    state: int
    mode: Literal["delta", "absolute"]
    sign: int


@dataclass(frozen=True)
class Calibration:
    """What a summary of an episode needs to know of its dataset.

    Attributes:
        action_scale: Distance from the 5th to the 95th percentile of each action dimension.
        speed: A typical fast change of each state dimension per row; 0 for those that seldom change.
        ranges: Limits of the histograms, by `actions` and `proprio`, [dims, 2].
        relations: Of action dimensions with the state that follows them.
        lag: Rows after which it does so best.
        action_grippers: Which action dimensions are gripper commands.
        state_grippers: Which state dimensions are gripper openings.
    """

    action_scale: list[float]
    speed: list[float]
    ranges: dict[str, list[list[float]]]
    relations: list[Relation] = field(default_factory=list)
    lag: int = 0
    action_grippers: list[int] = field(default_factory=list)
    state_grippers: list[int] = field(default_factory=list)


def calibrate(reader: Episodes) -> Calibration:
    """Learns from at most EPISODES episodes, evenly spaced; their pictures are not touched."""
    actions, states = [], []
    for place in evenly(len(reader.episodes), EPISODES):
        episode = reader.episodes[place]
        action, state = by_row(reader, episode)
        if len(action) > 1 and np.isfinite(action).all() and np.isfinite(state).all():
            actions.append(action)
            states.append(state)
    if not actions:
        widths = {"actions": len(reader.action_names), "proprio": len(reader.proprio_names)}
        return Calibration([0.0] * widths["actions"], [0.0] * widths["proprio"], {n: [[0.0, 1.0]] * w for n, w in widths.items()})
    low, high = np.percentile(np.concatenate(actions), [5, 95], axis=0)
    speeds = np.stack([np.percentile(np.abs(change(state)), 90, axis=0) for state in states])
    action_grippers = [dim for dim, name in enumerate(reader.action_names) if GRIPPER.search(name.lower())]
    if not action_grippers and not any(GRIPPER.search(name.lower()) for name in reader.proprio_names):
        action_grippers = _two_valued(actions)
    state_grippers = [dim for dim, name in enumerate(reader.proprio_names) if GRIPPER.search(name.lower())]
    relations, lag = _relations(actions, states, action_grippers, state_grippers)
    return Calibration(
        action_scale=(high - low).tolist(),
        speed=np.median(speeds, axis=0).tolist(),
        ranges={"actions": _ranges(actions), "proprio": _ranges(states)},
        relations=relations,
        lag=lag,
        action_grippers=action_grippers,
        state_grippers=state_grippers,
    )


def read_numbers(
    reader: Episodes, episode: Episode
) -> tuple[Float64[np.ndarray, "steps action_dim"], Float64[np.ndarray, "rows proprio_dim"]]:
    """Actions and states, of no dimensions where a training uses none of the dataset's."""
    actions = reader.actions(episode) if reader.action_names else np.zeros((episode.length * reader.stride, 0))
    states = reader.proprio(episode) if reader.proprio_names else np.zeros((episode.length, 0))
    return np.asarray(actions, np.float64), np.asarray(states, np.float64)


def by_row(reader: Episodes, episode: Episode) -> tuple[Float64[np.ndarray, "rows action_dim"], Float64[np.ndarray, "rows proprio_dim"]]:
    """States, and the mean of the actions between one state and the next."""
    actions, states = read_numbers(reader, episode)
    rows = len(actions) // reader.stride
    return actions[: rows * reader.stride].reshape(rows, reader.stride, actions.shape[1]).mean(1), states


def change(values: Float64[np.ndarray, "rows dims"]) -> Float64[np.ndarray, "rows-1 dims"]:
    """Difference to the next row; a jump of a whole turn, where an angle in [-pi, pi] wraps, is taken out."""
    steps = np.diff(values, axis=0)
    angles = np.abs(values).max(0) < np.pi + 0.01
    wraps = angles & (np.abs(steps) > 1.6 * np.pi)
    return np.where(wraps, steps - 2 * np.pi * np.sign(steps), steps)


def lagged(a: Float64[np.ndarray, "a_rows a"], b: Float64[np.ndarray, "b_rows b"], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `a` beside those of `b` that are `lag` later, as many as both have."""
    rows = min(len(a), len(b))
    a, b = a[:rows], b[:rows]
    return (a[: rows - lag], b[lag:]) if lag >= 0 else (a[-lag:], b[: rows + lag])


def driving(actions: Float64[np.ndarray, "rows dims"], mode: str) -> Float64[np.ndarray, "changes dims"]:
    """What makes states change: actions that are deltas, or the changes of absolute ones."""
    return actions[:-1] if mode == "delta" else change(actions)


def _relations(
    actions: list[np.ndarray], states: list[np.ndarray], action_grippers: list[int], state_grippers: list[int]
) -> tuple[list[Relation], int]:
    long = [(action, state) for action, state in zip(actions, states, strict=True) if len(action) >= ROWS]
    if not long or not long[0][1].shape[1]:
        return [], 0
    medians = {}
    for mode in ("delta", "absolute"):
        for lag in _USUAL_LAGS:
            found = [correlation(*lagged(driving(action, mode), change(state), lag)) for action, state in long]
            medians[mode, lag] = _median_where_moving(np.stack(found))
    relations = []
    for dim in range(actions[0].shape[1]):
        if dim in action_grippers:
            continue
        best = {key: int(np.abs(_without(table[dim], state_grippers)).argmax()) for key, table in medians.items()}
        mode, lag = max(best, key=lambda key: abs(medians[key][dim, best[key]]))
        state = best[mode, lag]
        if abs(value := medians[mode, lag][dim, state]) >= RELATED and state not in state_grippers:
            relations.append(Relation(dim, state, "delta" if mode == "delta" else "absolute", 1 if value > 0 else -1))
    weights = {lag: sum(abs(medians[r.mode, lag][r.action, r.state]) for r in relations) for lag in _USUAL_LAGS}
    return relations, max(weights, key=lambda lag: weights[lag])


def _median_where_moving(tables: Float64[np.ndarray, "episodes a b"]) -> Float64[np.ndarray, "a b"]:
    """Median over the episodes in which both dimensions move at all; 0 where less than half of them do."""
    moving = tables != 0
    often, medians = moving.mean(0) >= 0.5, np.zeros(tables.shape[1:])
    medians[often] = np.nanmedian(np.where(moving, tables, np.nan)[:, often], axis=0)
    return medians


def _without(row: np.ndarray, dims: list[int]) -> np.ndarray:
    row = row.copy()
    row[dims] = 0
    return row


def _two_valued(actions: list[np.ndarray]) -> list[int]:
    """The last dimension, if it has two values only: where grippers are, by the custom of all usual datasets."""
    values = np.concatenate([action[:, -1] for action in actions]) if actions[0].shape[1] else np.zeros(0)
    return [actions[0].shape[1] - 1] if len(np.unique(values)) == 2 and actions[0].shape[1] > 1 else []


def _ranges(values: list[np.ndarray]) -> list[list[float]]:
    """Of histograms: what the sample spans, and a tenth more on both sides."""
    low, high = np.min([v.min(0) for v in values], axis=0), np.max([v.max(0) for v in values], axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 0.5)
    return np.stack([low - margin, high + margin], axis=1).tolist()
