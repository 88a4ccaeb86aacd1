"""From a place in an episode to the stored rows of its frames and the control steps of its actions: integers only."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Tail = Literal["repeat", "zero_delta"]


@dataclass(frozen=True)
class Anchors:
    """Which anchors of an episode are samples: `first`, `first + every`, ..., all that lie below its rows plus `beyond`."""

    first: int = 0
    beyond: int = 0
    every: int = 1

    def counts(self, rows: Int[np.ndarray, " episodes"]) -> Int[np.ndarray, " episodes"]:
        """How many anchors episodes of so many rows have."""
        return np.maximum(-(-(rows + self.beyond - self.first) // self.every), 0)

    def row(self, number: int) -> int:
        """The anchor of this number."""
        return self.first + self.every * number

    def rows(self, rows: int) -> Int[np.ndarray, " anchors"]:
        """All anchors of an episode of so many rows."""
        return np.arange(self.first, max(rows + self.beyond, self.first), self.every)


EVERY_ROW = Anchors()


@dataclass(frozen=True)
class Window:
    """The geometry of a clip, the same in both stages.

    Frame j of `observed + future` lies at row `anchor + (j - (observed - 1)) * frame_interval`, clipped to the episode: beyond
    either end the first or last frame repeats, which is how a model learns what being done looks like (paper, stage 1).
    Actions start at control step `anchor * stride`, the moment at which the anchor's frame was taken.

    Args:
        observed: Frames up to and with the anchor, 1 + 4m.
        future: Frames after it, a multiple of 4 (the VAE joins 4 frames), so that a clip has 1 + 4n.
        frame_interval: Stored rows from one frame to the next.
        horizon: Control steps of an action chunk.
        stride: Control steps per stored row.

    Raises:
        ValueError: If a number is out of range; the message gives the nearest valid ones.
    """

    observed: int
    future: int
    frame_interval: int = 1
    horizon: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for name in ("observed", "future", "frame_interval", "horizon", "stride"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        if self.observed % 4 != 1:
            raise ValueError(
                f"observed must be 1 + 4m frames (the video VAE joins 4 frames after the first), got {self.observed}: "
                f"the nearest are {_nearest(self.observed, 1)}"
            )
        if self.frames % 4 != 1:
            raise ValueError(
                f"observed + future must be 1 + 4n frames (the video VAE joins 4 frames after the first), got "
                f"{self.observed} + {self.future} = {self.frames}: with observed = {self.observed}, "
                f"the nearest values of future are {_nearest(self.future, 0)}"
            )

    @property
    def frames(self) -> int:
        """Frames of a whole clip."""
        return self.observed + self.future

    @property
    def span(self) -> int:
        """Rows that a clip covers if none of its frames repeats."""
        return (self.frames - 1) * self.frame_interval + 1

    def clip_anchors(self, rows: int) -> int:
        """How many anchors stage 1 draws from: 0 ... N + (observed - 1) * frame_interval - 1. The last shows the last row alone."""
        return rows + (self.observed - 1) * self.frame_interval

    def anchors(self, past_end: bool, anchor_interval: int = 1, repeat_first: bool = True, repeat_last: bool = True) -> Anchors:
        """The anchors of samples, whole multiples of `anchor_interval`.

        Args:
            past_end: Whether the observed frames may lie beyond the end, as in stage 1; see `clip_anchors`.
            anchor_interval: Rows from one anchor to the next.
            repeat_first: Whether there are samples whose frames begin before the episode.
            repeat_last: Whether there are samples whose frames end after it.
        """
        lead = (self.observed - 1) * self.frame_interval
        first = 0 if repeat_first else -(-lead // anchor_interval) * anchor_interval
        beyond = -self.future * self.frame_interval if not repeat_last else lead if past_end else 0
        return Anchors(first, beyond, anchor_interval)

    def frame_rows(self, anchor: int, rows: int) -> Int[np.ndarray, " frames"]:
        """Rows of a clip's frames in an episode of `rows` rows.

        Args:
            anchor: In [0, rows) for stage 2, in [0, clip_anchors(rows)) for stage 1.
            rows: Rows of the episode.

        Raises:
            IndexError: If the anchor lies outside the latter.
        """
        if not 0 <= anchor < self.clip_anchors(rows):
            raise IndexError(f"anchor {anchor} lies outside [0, {self.clip_anchors(rows)}) of an episode of {rows} rows")
        return np.clip(self._unclipped(anchor), 0, rows - 1)

    def frames_within(self, anchor: int, rows: int) -> Bool[np.ndarray, " frames"]:
        """Which of a clip's frames lie in the episode; the others repeat its first or last."""
        wanted = self._unclipped(anchor)
        return (wanted >= 0) & (wanted < rows)

    def _unclipped(self, anchor: int) -> Int[np.ndarray, " frames"]:
        return anchor + (np.arange(self.frames, dtype=np.int64) - (self.observed - 1)) * self.frame_interval

    def action_steps(self, row: int, rows: int) -> tuple[Int[np.ndarray, " horizon"], Bool[np.ndarray, " horizon"]]:
        """Control steps of the chunk that starts at a row, held at the episode's last, and which of them lie beyond its end."""
        steps = row * self.stride + np.arange(self.horizon, dtype=np.int64)
        last = rows * self.stride - 1
        return np.minimum(steps, last), steps > last


def proprio_rows(row: int, history: int) -> Int[np.ndarray, " history"]:
    """Rows of the last `history` states up to `row`; before the start the first repeats."""
    return np.maximum(row - np.arange(history - 1, -1, -1, dtype=np.int64), 0)


def fill_tail(
    actions: Float[np.ndarray, "*steps action_dim"],
    beyond: Bool[np.ndarray, "*steps"],
    tail: Tail,
    hold_dims: tuple[int, ...] = (),
    neutral: Float[np.ndarray, " action_dim"] | None = None,
) -> Float[np.ndarray, "*steps action_dim"]:
    """What the actions beyond an episode's end are.

    Args:
        actions: Already held at the episode's last action there.
        beyond: Where that is.
        tail: `repeat` keeps the last action, right for absolute targets and the official code's choice; `zero_delta` sets it to
            `neutral`, which means "stay" for deltas.
        hold_dims: Dimensions that keep their last value under `zero_delta`, such as a gripper command.
        neutral: The action that changes nothing; None is zero. 6-D rotations need their identity, see `Representation.neutral`.
    """
    if tail == "repeat" or not beyond.any():
        return actions
    moves = np.ones(actions.shape[-1], dtype=bool)
    moves[list(hold_dims)] = False
    stay = np.zeros((), actions.dtype) if neutral is None else neutral.astype(actions.dtype)
    return np.where(beyond[..., None] & moves, stay, actions)


def _nearest(value: int, remainder: int) -> str:
    """`5 and 9`: the values on both sides that leave `remainder` when divided by 4, at least 1."""
    low = value - (value - remainder) % 4
    return " and ".join(str(number) for number in (low, low + 4) if number >= 1)
