"""Grippers of Open X-Embodiment as Octo makes them: one absolute number per step, 1 for open, 0 for closed. See `gripper` for others.

The three conventions that occur, and what is made of them, follow octo-models/octo `octo/data/utils/data_utils.py`.
"""

import numpy as np
from jaxtyping import Float64

MOVES = 0.1  # a relative command below this is none
CLOSED, OPEN = 0.05, 0.95


def from_relative(commands: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
    """From commands that are positive to close, negative to open and about zero to stay. The first command is taken to change something:
    before it the gripper was in the other state; without any it is open."""
    command = np.where(commands > MOVES, 0.0, np.where(commands < -MOVES, 1.0, np.nan))
    given = np.flatnonzero(np.isfinite(command))
    if not len(given):
        return np.ones(len(commands))
    last = np.searchsorted(given, np.arange(len(commands)), side="right") - 1
    return np.where(last < 0, 1.0 - command[given[0]], command[given[np.maximum(last, 0)]])


def binary(values: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
    """0 or 1 from values in [0, 1]: what lies in between takes the next definite value, which the gripper is on its way to. Without a next
    one it stays what the last step has."""
    definite = (values < CLOSED) | (values > OPEN)
    given = np.flatnonzero(definite)
    following = np.searchsorted(given, np.arange(len(values)))
    reached = np.append((values[given] > OPEN).astype(np.float64), values[-1:])
    return reached[following]


def inverted(values: Float64[np.ndarray, " steps"]) -> Float64[np.ndarray, " steps"]:
    """From 1 for closed, with what exceeds [0, 1] clipped: some datasets command -1 ... 1."""
    return 1.0 - np.clip(values, 0.0, 1.0)
