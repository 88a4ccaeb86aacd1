"""Gripper conventions: which numbers mean open and closed, continuous, binary or incremental, mapped to those that a policy learns."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True)
class Gripper:
    """How a dataset tells how far a gripper is open, and what a policy learns instead.

    Opening is (stored - closed) / (open - closed): 1 is open, 0 is closed. Any convention is two numbers: 0/1, -1/1, inverted, or a
    width in metres. The policy learns learned_closed + opening * (learned_open - learned_closed).

    Args:
        open: The stored number of an open gripper.
        closed: That of a closed one.
        learned_open: What the policy learns for open; 1 and 0 are Open X-Embodiment's.
        learned_closed: Likewise.
        clip: Whether openings beyond [0, 1] are cut (Bridge: official `process_bridge.py`); otherwise they pass.
        thresholds: Openings up to the first count as closed, from the second on as open; those in between take the next definite one,
            since a gripper on its way there was told so (OpenVLA's Bridge: 0.05 and 0.95). None keeps them continuous.
        incremental: Stored numbers near `open` are commands to open, those near `closed` to close, others to stay: the state that the
            commands lead to is learned, and before the first command the opposite of it (Open X-Embodiment's fractal, kuka, jaco_play).

    Raises:
        ValueError: If open and closed are equal, thresholds are not 0 <= low <= high <= 1, or incremental has none of them.
    """

    open: float = 1.0
    closed: float = 0.0
    learned_open: float = 1.0
    learned_closed: float = 0.0
    clip: bool = False
    thresholds: tuple[float, float] | None = None
    incremental: bool = False

    def __post_init__(self) -> None:
        for one, other in (("open", "closed"), ("learned_open", "learned_closed")):
            first, second = getattr(self, one), getattr(self, other)
            if first == second or not np.isfinite([first, second]).all():
                raise ValueError(f"{one} and {other} must be two different finite numbers, got {first} and {second}")
        if self.thresholds is not None and not 0 <= self.thresholds[0] <= self.thresholds[1] <= 1:
            raise ValueError(f"thresholds must be 0 <= closed below <= open above <= 1 of the opening, got {list(self.thresholds)}")
        if self.incremental and (self.thresholds is None or self.thresholds[0] == self.thresholds[1]):
            raise ValueError("incremental needs thresholds with room for 'stay' between them, such as [0.45, 0.55] for -1, 0 and 1")

    def learn(self, stored: Shaped[np.ndarray, "steps dims"]) -> Float[np.ndarray, "steps dims"]:
        """A whole episode's stored numbers as learned ones."""
        opening = (np.asarray(stored, dtype=np.float64) - self.closed) / (self.open - self.closed)
        if self.clip:
            opening = opening.clip(0, 1)
        if self.thresholds is not None:
            definite = np.where(opening >= self.thresholds[1], 1.0, np.where(opening <= self.thresholds[0], 0.0, np.nan))
            opening = _hold_last(definite) if self.incremental else _take_next(definite, opening)
        return self.learned_closed + opening * (self.learned_open - self.learned_closed)

    def store(self, learned: Shaped[np.ndarray, "*batch dims"]) -> Float[np.ndarray, "*batch dims"]:
        """Learned numbers in the dataset's convention; of incremental ones, commands towards that state."""
        opening = (np.asarray(learned, dtype=np.float64) - self.learned_closed) / (self.learned_open - self.learned_closed)
        return self.closed + opening * (self.open - self.closed)


def _take_next(definite: Float[np.ndarray, "steps dims"], opening: Float[np.ndarray, "steps dims"]) -> Float[np.ndarray, "steps dims"]:
    """NaN becomes the next number that is none; at the end the nearer of 0 and 1, since no next one says which."""
    result = definite.copy()
    following = np.where(opening[-1] >= 0.5, 1.0, 0.0)
    for step in range(len(result) - 1, -1, -1):
        following = np.where(np.isnan(result[step]), following, result[step])
        result[step] = following
    return result


def _hold_last(definite: Float[np.ndarray, "steps dims"]) -> Float[np.ndarray, "steps dims"]:
    """NaN becomes the last number that was none; before the first, its opposite; where there is none at all, 1 (open)."""
    known = ~np.isnan(definite)
    first = np.take_along_axis(definite, known.argmax(0)[None], axis=0)[0]
    state = np.where(known.any(0), 1.0 - first, 1.0)
    result = definite.copy()
    for step in range(len(result)):
        state = np.where(known[step], definite[step], state)
        result[step] = state
    return result
