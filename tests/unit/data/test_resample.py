"""Resampling: exact rates, every mode of values against formulas, irregular time stamps, gaps, and motion that is conserved."""

from fractions import Fraction

import numpy as np
import pytest

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.layout import parse_layout
from mimicvideo.data.resample import grid, linear, rate, rate_places, resample, seconds, time_places
from mimicvideo.data.rotations import to_matrix

# ---- places -------------------------------------------------------------------------------------------------------------------


def test_30_to_5_hz_takes_every_sixth_frame():
    places = rate_places(301, 30, 5)
    assert places.nearest.tolist() == list(range(0, 301, 6)) and not places.share.any()


def test_long_episodes_stay_exact():
    places = rate_places(10**6, "30000/1001", "5000/1001")
    assert places.low[-1] == 999_996 and not places.share.any()
    assert rate_places(10**6, 29.97, 4.995).low[-1] == 999_996


def test_a_computed_rate_stays_exact_in_long_episodes():
    """Its digits are no short fraction: as one they would not fit into 64 bits after some minutes."""
    found = rate_places(10**6, 30_000 / 1_001, 20)
    exact = rate_places(10**6, "30000/1001", 20)
    np.testing.assert_array_equal(found.low, exact.low)
    np.testing.assert_array_equal(found.share, exact.share)
    assert found.low[-1] == 999_998 and (np.diff(found.low) >= 1).all()


@pytest.mark.parametrize(("source", "target"), [(30, 20), (20, 30), (10, 3), (3, 10), (25, 30), (15, "30000/1001"), (5, 20), (7.5, 5)])
def test_rates_that_do_not_divide_against_fractions(source, target):
    places = rate_places(50, source, target)
    period = Fraction(str(source)) / Fraction(str(target))
    expected = [number * period for number in range(1000) if number * period <= 49]
    assert places.low.tolist() == [int(place) for place in expected]
    np.testing.assert_allclose(places.share, [float(place - int(place)) for place in expected], atol=1e-15)
    distance = [min(range(50), key=lambda sample, place=place: (abs(sample - place), sample)) for place in expected]
    assert places.nearest.tolist() == distance  # ties: the earlier


def test_ends_are_held():
    places = rate_places(4, 10, 10, count=6, start=Fraction(-2, 10))
    assert places.low.tolist() == [0, 0, 0, 1, 2, 3] and not places.share.any()
    places = rate_places(3, 10, 10, count=5, start=-0.05)
    assert places.low.tolist() == [0, 0, 1, 2, 2]
    np.testing.assert_array_equal(places.share, [0, 0.5, 0.5, 0, 0])
    assert rate_places(1, 30, 5).nearest.tolist() == [0]
    times = time_places(np.array([1.0, 2.0]), np.array([0.0, 0.9, 1.5, 2.0, 7.0]))
    assert times.low.tolist() == [0, 0, 0, 1, 1] and times.share.tolist() == [0, 0, 0.5, 0, 0]


def test_time_stamps_of_an_even_clock_give_the_places_of_its_rate():
    nanoseconds = np.round(np.arange(301) * 1e9 / 30).astype(np.uint64) + np.uint64(1_700_000_000_000_000_000)
    times = seconds(nanoseconds)
    assert times[0] == 0 and abs(times[-1] - 10) < 1e-9
    for target in (5, 20, 30, 7):
        at = grid(0, times[-1], target)
        by_time, by_rate = time_places(times, at), rate_places(301, 30, target)
        assert by_time.nearest.tolist() == by_rate.nearest.tolist(), target
        np.testing.assert_allclose(by_time.low + by_time.share, by_rate.low + by_rate.share, atol=1e-6)


def test_irregular_time_stamps():
    times = np.array([0.0, 0.1, 0.35, 0.4, 1.0])
    values = np.array([[0.0], [1.0], [3.0], [5.0], [-1.0]])
    at = np.linspace(-0.1, 1.1, 38)
    places = time_places(times, at)
    np.testing.assert_allclose(linear(values, places)[:, 0], np.interp(at, times, values[:, 0]), atol=1e-12)
    assert places.nearest.tolist() == [int(np.abs(times - moment).argmin()) for moment in at]


def test_gaps_are_refused_or_counted():
    times = np.concatenate([np.arange(10) / 10, 3 + np.arange(10) / 10])
    at = grid(0, 3.9, 10)
    with pytest.raises(DatasetError, match=r"20 of 40 samples lie in gaps longer than 0.5 s; the first lasts 2.1 s from 0.9 s on"):
        time_places(times, at, max_gap=0.5)
    places = time_places(times, at, max_gap=0.5, max_share=0.5)
    assert places.in_gap.sum() == 20 and places.in_gap[10:30].all()
    assert not time_places(times, at, max_gap=2.2).in_gap.any()
    assert not time_places(times, times, max_gap=0.5).in_gap.any(), "samples that are met are not made up"


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "missing, NaN"),
        ([0, np.nan], "missing, NaN"),
        ([0, 0.1, 0.1], "0.1 s is followed by 0.1 s at sample 2"),
        ([1, 0], "do not increase"),
    ],
)
def test_broken_time_stamps_are_refused(times, message):
    with pytest.raises(DatasetError, match=message):
        time_places(np.array(times, dtype=np.float64), np.array([0.0]))


@pytest.mark.parametrize("value", [0, -5, "fast", "1/0", float("nan")])
def test_rates_are_positive_numbers(value):
    with pytest.raises(ValueError, match="a rate must be"):
        rate(value)


# ---- values -------------------------------------------------------------------------------------------------------------------

ABSOLUTE = parse_layout(
    {
        "hand": {"kind": "position", "dims": [0, 1, 2]},
        "turn": {"kind": "rotation", "dims": [3, 4, 5], "format": "axis_angle"},
        "joint": {"kind": "joint", "dims": [6]},
        "gripper": {"kind": "gripper", "dims": [7]},
        "mode": {"kind": "other", "dims": [8]},
    },
    "proprio",
)


def steady(times):
    """A body that moves and turns evenly, as stored numbers."""
    stored = np.zeros((len(times), 9))
    stored[:, :3] = np.outer(times, [1, -2, 0.5])
    stored[:, 3:6] = np.outer(times, [0.3, 0.6, -0.2])
    stored[:, 6], stored[:, 7], stored[:, 8] = 4 * times, times > 0.5, np.round(times * 3)
    return stored


@pytest.mark.parametrize("target", [5, 20, 12, 7])
@pytest.mark.parametrize("stamped", [False, True])
def test_each_kind_of_number_in_its_mode(target, stamped):
    times = np.sort(np.random.default_rng(0).uniform(0, 2, 41)) if stamped else np.arange(41) / 20
    times[0] = 0
    learned = ABSOLUTE.learn({"proprio": steady(times)})
    result = resample(ABSOLUTE, learned, times if stamped else 20, target)
    at = np.arange(int(times[-1] * target + 1e-9) + 1) / target
    expected = ABSOLUTE.learn({"proprio": steady(at)})
    np.testing.assert_allclose(result[:, :10], expected[:, :10], atol=1e-12)  # lines, slerp, joints
    distances = np.abs(times[None] - at[:, None])
    np.testing.assert_array_equal(result[:, 10:], learned[(distances - 1e-9 * (len(times) - np.arange(len(times)))).argmin(1), 10:])
    assert set(np.unique(result[:, 10])) <= {0.0, 1.0}, "a gripper is never half open between two samples"


def test_rotations_go_the_short_way():
    angles = np.radians([[0, 0, 170], [0, 0, -170]])
    layout = parse_layout({"turn": {"kind": "rotation", "dims": [0, 1, 2], "format": "euler_xyz"}}, "proprio")
    middle = resample(layout, layout.learn({"proprio": angles}), 1, 2)[1]
    np.testing.assert_allclose(middle, [-1, 0, 0, 0, -1, 0], atol=1e-12)


def test_the_same_rate_changes_nothing():
    learned = ABSOLUTE.learn({"proprio": steady(np.arange(30) / 10)})
    assert np.array_equal(resample(ABSOLUTE, learned, 10, 10), learned)
    assert np.array_equal(resample(ABSOLUTE, learned, 10, 20)[::2], learned)


def delta_layout(frame):
    motion = {"stored": "delta", "learned": "delta", "frame": frame}
    return parse_layout(
        {
            "hand": {"kind": "position", "dims": [0, 1, 2], **motion},
            "turn": {"kind": "rotation", "dims": [3, 4, 5], "format": "axis_angle", **motion},
            "joint": {"kind": "joint", "dims": [6], "stored": "delta", "learned": "delta"},
            "gripper": {"kind": "gripper", "dims": [7]},
        },
        "actions",
    )


def carried_out(learned, frame):
    """The pose after each step: homogeneous matrices, or world axes."""
    pose, poses = np.eye(4), []
    for row in learned:
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = to_matrix(row[3:9], "6d"), row[:3]
        if frame == "body":
            pose = pose @ step
        else:
            turned = np.eye(4)
            turned[:3, :3], turned[:3, 3] = step[:3, :3] @ pose[:3, :3], pose[:3, 3] + row[:3]
            pose = turned
        poses.append(pose)
    return np.array(poses)


@pytest.mark.parametrize("frame", ["body", "world"])
@pytest.mark.parametrize("stamped", [False, True])
def test_deltas_are_composed_over_whole_steps(frame, stamped):
    layout, random = delta_layout(frame), np.random.default_rng(3)
    learned = layout.learn({"actions": np.concatenate([random.normal(size=(24, 7)) * 0.3, random.integers(0, 2, (24, 1))], axis=1)})
    result = resample(layout, learned, np.arange(24) / 20 if stamped else 20, 5)
    assert len(result) == 6
    np.testing.assert_allclose(carried_out(result, frame), carried_out(learned, frame)[3::4], atol=1e-12)
    np.testing.assert_allclose(result[:, 9], learned[:, 9].reshape(6, 4).sum(1), atol=1e-12)
    np.testing.assert_array_equal(result[:, 10], learned[::4, 10])


@pytest.mark.parametrize("frame", ["body", "world"])
@pytest.mark.parametrize(("source", "target"), [(5, 20), (20, 3), (10, 15), (4, 4)])
def test_no_motion_is_lost_at_any_rate(frame, source, target):
    layout, random = delta_layout(frame), np.random.default_rng(4)
    learned = layout.learn({"actions": np.concatenate([random.normal(size=(11, 7)) * 0.3, np.ones((11, 1))], axis=1)})
    result = resample(layout, learned, source, target)
    assert len(result) == -(-11 * target // source)
    np.testing.assert_allclose(carried_out(result, frame)[-1], carried_out(learned, frame)[-1], atol=1e-12)
    np.testing.assert_allclose(result[:, 9].sum(), learned[:, 9].sum(), atol=1e-12)
    longer = resample(layout, learned, source, target, count=len(result) + 5)
    np.testing.assert_allclose(longer[-5:, :10], np.tile([0, 0, 0, 1, 0, 0, 0, 1, 0, 0], (5, 1)), atol=1e-12)  # nothing moves after the end


def test_counts_and_time_stamps_must_fit():
    learned = ABSOLUTE.learn({"proprio": steady(np.arange(10) / 10)})
    assert len(resample(ABSOLUTE, learned, 10, 5, count=9)) == 9
    with pytest.raises(DatasetError, match="10 samples have 9 time stamps"):
        resample(ABSOLUTE, learned, np.arange(9.0), 5)
    with pytest.raises(ValueError, match="must be at least 1"):
        rate_places(0, 1, 1)
    delta = delta_layout("body")
    with pytest.raises(DatasetError, match="one sample alone"):
        resample(delta, np.array([[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1.0]]), np.array([0.0]), 5)
