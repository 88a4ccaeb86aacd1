"""Grippers: every convention against numbers written out, the way back, and declarations that make no sense."""

import numpy as np
import pytest

from mimicvideo.data.gripper import Gripper


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


@pytest.mark.parametrize(
    ("gripper", "stored", "learned"),
    [
        (Gripper(), [0, 0.25, 1], [0, 0.25, 1]),
        (Gripper(open=-1, closed=1), [-1, 0, 1], [1, 0.5, 0]),  # LIBERO's commands
        (Gripper(open=0, closed=1), [0, 1, 0.9], [1, 0, 0.1]),  # inverted
        (Gripper(open=0.04, closed=0.0), [0.04, 0.01, 0], [1, 0.25, 0]),  # metres
        (Gripper(open=-1, closed=1, learned_open=-1, learned_closed=1), [-1, 0.5, 1], [-1, 0.5, 1]),  # as it is
        (Gripper(open=1, closed=0, learned_open=-1, learned_closed=1), [1, 0.25], [-1, 0.5]),
    ],
)
def test_conventions_there_and_back(gripper, stored, learned):
    np.testing.assert_allclose(gripper.learn(column(*stored)), column(*learned), atol=1e-15)
    np.testing.assert_allclose(gripper.store(column(*learned)), column(*stored), atol=1e-15)


def test_clipping_is_a_choice():
    stored = column(-0.1, 0.5, 1.2)
    np.testing.assert_array_equal(Gripper(clip=True).learn(stored), column(0, 0.5, 1))
    np.testing.assert_array_equal(Gripper().learn(stored), stored)


def test_values_between_thresholds_take_the_next_definite_one():
    gripper = Gripper(thresholds=(0.05, 0.95))
    stored = column(1, 0.9, 0.5, 0.02, 0, 0.3, 0.7, 1.0, 0.6)
    # the last has no next one: it is nearer to open
    np.testing.assert_array_equal(gripper.learn(stored), column(1, 0, 0, 0, 0, 1, 1, 1, 1))
    np.testing.assert_array_equal(gripper.learn(column(0.4, 0.4)), column(0, 0))


def test_thresholds_hold_for_widths_too():
    gripper = Gripper(open=0.08, closed=0.0, thresholds=(0.5, 0.5))
    np.testing.assert_array_equal(gripper.learn(column(0.079, 0.041, 0.039, 0)), column(1, 1, 0, 0))


def test_incremental_commands_become_states():
    gripper = Gripper(open=-1, closed=1, thresholds=(0.45, 0.55), incremental=True)
    commands = column(0, 0, 1, 0, 0, -1, 0)
    np.testing.assert_array_equal(gripper.learn(commands), column(1, 1, 0, 0, 0, 1, 1))
    np.testing.assert_array_equal(gripper.learn(column(0, 0)), column(1, 1))
    both = np.concatenate([commands, -commands], axis=1)  # each dimension on its own
    np.testing.assert_array_equal(gripper.learn(both)[:, 1], [0, 0, 1, 1, 1, 0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"open": 1, "closed": 1}, "open and closed must be two different finite numbers, got 1 and 1"),
        ({"learned_open": 0}, "learned_open and learned_closed must be two different"),
        ({"open": float("nan")}, "two different finite numbers"),
        ({"thresholds": (0.9, 0.1)}, "thresholds must be 0 <="),
        ({"thresholds": (-0.1, 0.9)}, "thresholds must be 0 <="),
        ({"incremental": True}, "incremental needs thresholds"),
        ({"incremental": True, "thresholds": (0.5, 0.5)}, "incremental needs thresholds"),
    ],
)
def test_declarations_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Gripper(**options)
