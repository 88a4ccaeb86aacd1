"""Rows and control steps of windows, compared with the formulas written out."""

import numpy as np
import pytest

from mimicvideo.data.window import Window, fill_tail, proprio_rows

PAPER = Window(observed=5, future=56, frame_interval=4)


@pytest.mark.parametrize("anchor", [0, 1, 15, 16, 40, 99, 100, 115])
def test_frame_rows_are_the_papers(anchor: int) -> None:
    rows = 100
    expected = [min(max(anchor + (j - 4) * 4, 0), rows - 1) for j in range(61)]
    assert PAPER.frame_rows(anchor, rows).tolist() == expected


def test_extreme_draws_repeat_the_first_and_the_last_frame() -> None:
    rows = 100
    assert PAPER.clip_anchors(rows) == rows + 4 * 4
    assert PAPER.frame_rows(PAPER.clip_anchors(rows) - 1, rows).tolist() == [99] * 61
    assert PAPER.frame_rows(PAPER.clip_anchors(rows) - 2, rows).tolist() == [98] + [99] * 60
    assert PAPER.frame_rows(0, rows)[:6].tolist() == [0, 0, 0, 0, 0, 4]
    for anchor in (-1, PAPER.clip_anchors(rows)):
        with pytest.raises(IndexError, match=f"anchor {anchor} lies outside"):
            PAPER.frame_rows(anchor, rows)


def test_one_observed_frame_draws_every_row_once() -> None:
    window = Window(observed=1, future=8, frame_interval=3)
    assert window.clip_anchors(10) == 10
    assert window.frame_rows(9, 10).tolist() == [9] * 9
    assert window.frame_rows(2, 10).tolist() == [2, 5, 8, 9, 9, 9, 9, 9, 9]
    assert window.frame_rows(0, 1).tolist() == [0] * 9
    assert window.span == 25
    assert len(set(window.frame_rows(0, window.span).tolist())) == 9, "an episode of `span` rows shows a window without repetition"
    assert window.frame_rows(0, window.span - 1)[-1] == window.span - 2, "with one row less the last frame is held back"


def test_indices_are_integers() -> None:
    assert PAPER.frame_rows(3, 50).dtype == np.int64
    assert PAPER.action_steps(3, 50)[0].dtype == np.int64
    assert proprio_rows(3, 2).dtype == np.int64


def test_actions_start_at_the_rows_first_control_step() -> None:
    window = Window(observed=1, future=4, horizon=6, stride=3)
    steps, beyond = window.action_steps(row=2, rows=4)
    assert steps.tolist() == [6, 7, 8, 9, 10, 11] and not beyond.any()
    steps, beyond = window.action_steps(row=3, rows=4)
    assert steps.tolist() == [9, 10, 11, 11, 11, 11]
    assert beyond.tolist() == [False, False, False, True, True, True]


def test_proprio_history_repeats_the_first_row() -> None:
    assert proprio_rows(5, 3).tolist() == [3, 4, 5]
    assert proprio_rows(1, 4).tolist() == [0, 0, 0, 1]


def test_tails() -> None:
    actions = np.array([[1, 2, 3], [4, 5, 6], [4, 5, 6]], np.float32)
    beyond = np.array([False, False, True])
    assert fill_tail(actions, beyond, "repeat") is actions
    np.testing.assert_array_equal(fill_tail(actions, beyond, "zero_delta"), [[1, 2, 3], [4, 5, 6], [0, 0, 0]])
    held = fill_tail(actions, beyond, "zero_delta", hold_dims=(2,))
    np.testing.assert_array_equal(held, [[1, 2, 3], [4, 5, 6], [0, 0, 6]])
    assert held.dtype == np.float32
    np.testing.assert_array_equal(actions[2], [4, 5, 6], "the input is not changed")


@pytest.mark.parametrize(
    ("observed", "future", "message"),
    [
        (3, 8, "observed must be 1 \\+ 4m .* got 3: the nearest are 1 and 5"),
        (2, 7, "observed .* got 2: the nearest are 1 and 5"),
        (0, 8, "observed must be a whole number of at least 1, got 0"),
        (1, 7, "observed \\+ future must be 1 \\+ 4n .* got 1 \\+ 7 = 8: .* nearest values of future are 4 and 8"),
        (5, 2, "got 5 \\+ 2 = 7: .* nearest values of future are 4"),
        (1, 0, "future must be a whole number of at least 1, got 0"),
    ],
)
def test_clip_lengths_that_the_vae_cannot_take(observed: int, future: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(observed, future)


@pytest.mark.parametrize("name", ["frame_interval", "horizon", "stride"])
def test_counts_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        Window(1, 4, **{name: 0})
