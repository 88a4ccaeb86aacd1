"""Rotations: literal numbers that pin every convention, round trips between all formats, slerp, and what is refused."""

import itertools
from typing import Any

import numpy as np
import pytest

from mimicvideo.data import rotations
from mimicvideo.data.rotations import WIDTHS, convert, from_matrix, slerp, to_matrix

FORMATS = list(WIDTHS)
QUARTER_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x becomes y
HALF = np.sqrt(0.5)


def rodrigues(axis, angle):
    """The exponential of a skew matrix, summed as a power series."""
    x, y, z = np.asarray(axis, dtype=np.float64) / np.linalg.norm(axis) * angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result, term = np.eye(3), np.eye(3)
    for order in range(1, 40):
        term = term @ skew / order
        result = result + term
    return result


def random_matrices(count=200, seed=0):
    random = np.random.default_rng(seed)
    return np.stack([rodrigues(random.normal(size=3), random.uniform(0, np.pi)) for _ in range(count)])


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("matrix", [0, -1, 0, 1, 0, 0, 0, 0, 1]),
        ("quaternion_wxyz", [HALF, 0, 0, HALF]),
        ("quaternion_xyzw", [0, 0, HALF, HALF]),
        ("axis_angle", [0, 0, np.pi / 2]),
        ("euler_xyz", [0, 0, np.pi / 2]),
        ("6d", [0, -1, 0, 1, 0, 0]),  # rows: the column convention would be 0, 1, 0, -1, 0, 0
    ],
)
def test_a_quarter_turn_about_z_in_every_format(kind, numbers):
    np.testing.assert_allclose(to_matrix(np.array(numbers), kind), QUARTER_Z, atol=1e-15)
    np.testing.assert_allclose(from_matrix(QUARTER_Z, kind), numbers, atol=1e-15)


def test_6d_rotations_are_the_first_two_rows():
    matrix = rodrigues([1, 2, 3], 0.7)
    assert from_matrix(matrix, "6d").tolist() == [*matrix[0], *matrix[1]]
    assert from_matrix(np.eye(3), "6d").tolist() == rotations.IDENTITY_6D.tolist() == [1, 0, 0, 0, 1, 0]


def test_6d_rotations_of_a_network_are_made_orthonormal_row_by_row():
    decoded = to_matrix(np.array([0.0, 2.0, 0.0, 3.0, 5.0, 0.0]), "6d")
    np.testing.assert_allclose(decoded, [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-15)  # the third is first x second


def test_euler_angles_turn_about_fixed_axes_x_then_y_then_z():
    roll, pitch, yaw = 0.3, -0.5, 1.2
    by_hand = rodrigues([0, 0, 1], yaw) @ rodrigues([0, 1, 0], pitch) @ rodrigues([1, 0, 0], roll)
    np.testing.assert_allclose(to_matrix(np.array([roll, pitch, yaw]), "euler_xyz"), by_hand, atol=1e-14)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_euler_angles_at_the_poles_keep_the_rotation(pitch):
    matrix = to_matrix(np.array([0.4, pitch, 1.1]), "euler_xyz")
    angles = from_matrix(matrix, "euler_xyz")
    assert angles[2] == 0
    np.testing.assert_allclose(to_matrix(angles, "euler_xyz"), matrix, atol=1e-14)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(FORMATS, 2)))
def test_round_trips_between_all_formats(source, target):
    matrices = random_matrices()
    there = convert(from_matrix(matrices, source), source, target)
    assert there.dtype == np.float64 and there.shape == (200, WIDTHS[target])
    np.testing.assert_allclose(to_matrix(there, target), matrices, atol=1e-11)


@pytest.mark.parametrize("angle", [0.0, 1e-15, 1e-9, 1e-5, np.pi - 1e-9, np.pi])
@pytest.mark.parametrize("kind", FORMATS)
def test_no_turn_and_half_turns_lose_nothing(angle, kind):
    for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 2, -2]):
        matrix = rodrigues(axis, angle)
        np.testing.assert_allclose(to_matrix(from_matrix(matrix, kind), kind), matrix, atol=1e-12)


def test_agrees_with_scipy():
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    theirs = rotation.random(100, random_state=0)
    ours = theirs.as_matrix()
    values: Any
    kind: Any
    for kind, values in {
        "quaternion_xyzw": theirs.as_quat(),
        "axis_angle": theirs.as_rotvec(),
        "euler_xyz": theirs.as_euler("xyz"),
    }.items():
        np.testing.assert_allclose(to_matrix(values, kind), ours, atol=1e-14)
    np.testing.assert_allclose(from_matrix(ours, "axis_angle"), theirs.as_rotvec(), atol=1e-12)
    np.testing.assert_allclose(from_matrix(ours, "euler_xyz"), theirs.as_euler("xyz"), atol=1e-12)


def test_quaternions_of_either_sign_are_one_rotation():
    quaternion = np.array([-0.5, 0.5, -0.5, 0.5])
    np.testing.assert_allclose(to_matrix(quaternion, "quaternion_wxyz"), to_matrix(-quaternion, "quaternion_wxyz"), atol=1e-15)
    assert from_matrix(to_matrix(quaternion, "quaternion_wxyz"), "quaternion_wxyz")[0] > 0


def test_slerp_turns_evenly_the_short_way():
    start, end = rodrigues([1, 0, 0], 0.2), rodrigues([1, 0, 0], 0.2) @ rodrigues([0, 1, 1], 2.4)
    for share in (0.0, 0.25, 0.5, 1.0):
        expected = rodrigues([1, 0, 0], 0.2) @ rodrigues([0, 1, 1], 2.4 * share)
        np.testing.assert_allclose(slerp(start, end, np.array(share)), expected, atol=1e-14)
    over = slerp(np.eye(3), rodrigues([0, 0, 1], np.radians(350)), np.array(0.5))
    np.testing.assert_allclose(over, rodrigues([0, 0, 1], np.radians(-5)), atol=1e-14)
    assert np.isclose(rotations.angle(over), np.radians(5))


def test_rounded_rotations_become_exact():
    matrices = random_matrices(50).astype(np.float16)
    exact = to_matrix(matrices.reshape(50, 9), "matrix")
    np.testing.assert_allclose(exact @ np.swapaxes(exact, 1, 2), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-14)
    np.testing.assert_allclose(exact, matrices, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "numbers", "message"),
    [
        ("quaternion_wxyz", [0.0, 0.0, 0.0, 0.0], "is no unit quaternion"),
        ("quaternion_xyzw", [1.0, 1.0, 0.0, 0.0], "is no unit quaternion"),
        ("matrix", [1, 0, 0, 0, 1, 0, 0, 0, -1], "is a reflection"),
        ("matrix", [1, 0, 0, 0, 1, 0.1, 0, 0, 1], "rows are not orthonormal"),
        ("matrix", [2, 0, 0, 0, 2, 0, 0, 0, 2], "rows are not orthonormal"),
        ("6d", [0, 0, 0, 0, 1, 0], "its first row is zero"),
        ("6d", [0, 1, 0, 0, -2, 0], "its second row is parallel"),
        ("axis_angle", [0, np.nan, 0], "is not finite"),
        ("euler_xyz", [0, np.inf, 0], "is not finite"),
        ("euler_xyz", [0, 0, 0, 0], "has 3 numbers, got an array of shape"),
        ("euler", [0, 0, 0], "unknown rotation format 'euler': choose from matrix"),
    ],
)
def test_what_is_no_rotation_is_refused(kind, numbers, message):
    with pytest.raises(ValueError, match=message):
        to_matrix(np.array(numbers, dtype=np.float64), kind)


def test_the_message_says_which_rotation_of_many():
    quaternions = np.tile([1.0, 0, 0, 0], (4, 5, 1))
    quaternions[2, 3] = [0.5, 0, 0, 0]
    with pytest.raises(ValueError, match=r"rotation \[2, 3\] = \[0.5, .*\] is no unit quaternion \(1 of 20 rotations are wrong\)"):
        to_matrix(quaternions, "quaternion_wxyz")
