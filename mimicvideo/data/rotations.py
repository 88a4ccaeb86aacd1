"""Rotations in the formats that robot data comes in, by way of rotation matrices: float64, any leading axes, invalid values refused."""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

Format = Literal["matrix", "quaternion_wxyz", "quaternion_xyzw", "axis_angle", "euler_xyz", "6d"]

# Numbers of each format. `matrix` and `6d` are row by row; `euler_xyz` is roll, pitch, yaw about the fixed axes x, y, z in this order
# (Rz Ry Rx), as in Open X-Embodiment; angles are in radians.
WIDTHS: dict[str, int] = {"matrix": 9, "quaternion_wxyz": 4, "quaternion_xyzw": 4, "axis_angle": 3, "euler_xyz": 3, "6d": 6}
IDENTITY_6D = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

# How far a stored rotation may be from a true one: float16 keeps 3 digits. Anything nearer is made exact, anything farther is a mistake.
TOLERANCE = 5e-3
_SMALLEST = 1e-8  # rows of a 6-D rotation that are shorter, or nearer to parallel, have no direction


def to_matrix(values: Shaped[np.ndarray, "*batch width"], kind: Format) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices.

    6-D rotations are the first two rows of the matrix (official mimic-video): the first is normalised, the second made orthogonal to it
    and normalised, the third is their cross product. They may thus come from a network; all other formats must be rotations already.

    Raises:
        ValueError: If the width is not the format's, a number is not finite, or a row is no rotation.
    """
    values = np.asarray(values, dtype=np.float64)
    if kind not in WIDTHS:
        raise ValueError(f"unknown rotation format {kind!r}: choose from {', '.join(get_args(Format))}")
    if values.shape[-1:] != (WIDTHS[kind],):
        raise ValueError(f"a rotation as {kind} has {WIDTHS[kind]} numbers, got an array of shape {values.shape}")
    _refuse(~np.isfinite(values).all(-1), values, "is not finite")
    if kind == "matrix":
        return nearest_rotation(values.reshape(*values.shape[:-1], 3, 3))
    if kind == "6d":
        return _from_two_rows(values)
    if kind == "euler_xyz":
        return _from_euler(values)
    if kind == "axis_angle":
        angle = np.linalg.norm(values, axis=-1, keepdims=True)
        # sin(angle / 2) / angle without dividing by zero: sinc(x) is sin(pi x) / (pi x)
        return _from_quaternion(np.concatenate([np.cos(angle / 2), values * np.sinc(angle / (2 * np.pi)) / 2], axis=-1))
    quaternion = values if kind == "quaternion_wxyz" else np.roll(values, 1, axis=-1)
    norm = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    _refuse(np.abs(norm[..., 0] - 1) > TOLERANCE, values, "is no unit quaternion")
    return _from_quaternion(quaternion / norm)


def from_matrix(matrices: Float[np.ndarray, "*batch 3 3"], kind: Format) -> Float[np.ndarray, "*batch width"]:
    """The numbers of rotation matrices in a format.

    Quaternions have w >= 0, axis-angle vectors a length of at most pi, Euler angles a pitch in [-pi/2, pi/2]; where the pitch is at an
    end, so that roll and yaw turn about the same axis, the yaw is 0.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    if kind == "matrix":
        return matrices.reshape(*matrices.shape[:-2], 9).copy()
    if kind == "6d":
        return matrices[..., :2, :].reshape(*matrices.shape[:-2], 6).copy()
    if kind == "euler_xyz":
        return _to_euler(matrices)
    quaternion = _to_quaternion(matrices)
    if kind == "quaternion_wxyz":
        return quaternion
    if kind == "quaternion_xyzw":
        return np.roll(quaternion, -1, axis=-1)
    if kind == "axis_angle":
        return _to_axis_angle(quaternion)
    raise ValueError(f"unknown rotation format {kind!r}: choose from {', '.join(get_args(Format))}")


def convert(values: Shaped[np.ndarray, "*batch width"], source: Format, target: Format) -> Float[np.ndarray, "*batch other_width"]:
    """From one format to another; see `to_matrix` and `from_matrix`."""
    return from_matrix(to_matrix(values, source), target)


def inverse(matrices: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    """The inverse rotations."""
    return np.swapaxes(matrices, -1, -2)


def angle(matrices: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch"]:
    """By how much each rotation turns, in [0, pi]."""
    return np.asarray(np.linalg.norm(from_matrix(matrices, "axis_angle"), axis=-1))


def slerp(
    start: Float[np.ndarray, "*batch 3 3"], end: Float[np.ndarray, "*batch 3 3"], share: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch 3 3"]:
    """The rotation at `share` of the shortest way from start (0) to end (1), at constant angular velocity."""
    turn = from_matrix(inverse(start) @ end, "axis_angle")
    return start @ to_matrix(turn * np.asarray(share)[..., None], "axis_angle")


def nearest_rotation(matrices: Shaped[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    """Almost orthogonal matrices made orthogonal: rounding errors of stored matrices vanish.

    Raises:
        ValueError: If a matrix is farther than `TOLERANCE` from orthogonal, or a reflection.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    defect = np.abs(inverse(matrices) @ matrices - np.eye(3)).max((-1, -2))
    _refuse(~(defect <= TOLERANCE), matrices, "is no rotation matrix: its rows are not orthonormal")
    _refuse(np.linalg.det(matrices) < 0, matrices, "is a reflection, no rotation: an axis has the wrong sign or two rows are exchanged")
    for _ in range(3):  # Newton's iteration for the polar decomposition squares the defect: 5e-3, 2e-5, 3e-10, below rounding
        matrices = matrices @ (3 * np.eye(3) - inverse(matrices) @ matrices) / 2
    return matrices


def _from_two_rows(values: Float[np.ndarray, "*batch 6"]) -> Float[np.ndarray, "*batch 3 3"]:
    first, second = values[..., :3], values[..., 3:]
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    _refuse(length[..., 0] < _SMALLEST, values, "is no 6-D rotation: its first row is zero")
    first = first / length
    second_length = np.linalg.norm(second, axis=-1, keepdims=True)
    second = second - (first * second).sum(-1, keepdims=True) * first
    length = np.linalg.norm(second, axis=-1, keepdims=True)
    _refuse(length[..., 0] <= _SMALLEST * np.maximum(second_length[..., 0], 1), values, "is no 6-D rotation: its second row is parallel")
    second = second / length
    (x, y, z), (u, v, w) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    third = np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=-1)  # np.cross takes several times as long
    return np.stack([first, second, third], axis=-2)


def _from_euler(values: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    (sr, sp, sy), (cr, cp, cy) = np.moveaxis(np.sin(values), -1, 0), np.moveaxis(np.cos(values), -1, 0)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _to_euler(m: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3"]:
    cos_pitch = np.hypot(m[..., 0, 0], m[..., 1, 0])
    locked = cos_pitch < 1e-9
    roll = np.where(locked, np.arctan2(-m[..., 1, 2], m[..., 1, 1]), np.arctan2(m[..., 2, 1], m[..., 2, 2]))
    yaw = np.where(locked, 0.0, np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    return np.stack([roll, np.arctan2(-m[..., 2, 0], cos_pitch), yaw], axis=-1)


def _from_quaternion(quaternion: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3 3"]:
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _to_quaternion(m: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 4"]:
    """w, x, y, z, found from whichever of them is largest: dividing by it loses no digits."""
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    yz, zx, xy = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]  # 4 w times x, y, z
    sum_xy, sum_zx, sum_yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    squares = np.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], axis=-1)
    products = np.stack(  # row i: 4 q_i q_0 ... 4 q_i q_3
        [
            np.stack([squares[..., 0], yz, zx, xy], axis=-1),
            np.stack([yz, squares[..., 1], sum_xy, sum_zx], axis=-1),
            np.stack([zx, sum_xy, squares[..., 2], sum_yz], axis=-1),
            np.stack([xy, sum_zx, sum_yz, squares[..., 3]], axis=-1),
        ],
        axis=-2,
    )
    largest = squares.argmax(-1)
    quaternion = np.take_along_axis(products, largest[..., None, None], axis=-2)[..., 0, :]
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def _to_axis_angle(quaternion: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 3"]:
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    sine = np.linalg.norm(vector, axis=-1, keepdims=True)
    small = sine < 1e-12  # there angle / sine is 2 to rounding
    return vector * np.where(small, 2.0, 2 * np.arctan2(sine, w) / np.where(small, 1.0, sine))


def _refuse(bad: Any, values: np.ndarray, problem: str) -> None:
    """Raises ValueError naming the first row that is bad, and how many are."""
    bad = np.asarray(bad)
    if not bad.any():
        return
    place = tuple(int(index) for index in np.argwhere(bad)[0])
    of = f" ({int(bad.sum())} of {bad.size} rotations are wrong)" if bad.size > 1 else ""
    numbers = np.array2string(values[place], precision=4, separator=", ").replace("\n", "")
    raise ValueError(f"rotation {list(place) if place else ''} = {numbers} {problem}{of}: check its format, order and dimensions")
