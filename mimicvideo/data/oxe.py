"""What the datasets of Open X-Embodiment need beside their keys, to have states and actions alike: seven numbers of motion and gripper.

An action is a translation and a rotation of the end effector, three numbers each, and the gripper, absolute, 1 for open. Which dataset
needs what follows octo-models/octo `octo/data/oxe/oxe_standardization_transforms.py` and openvla/openvla
`prismatic/vla/datasets/rlds/oxe/transforms.py`, except where a function says otherwise.
"""

import numpy as np
from jaxtyping import Float64

from mimicvideo.data import oxe_grippers as grippers
from mimicvideo.data.standards import Columns, needs

IDLE = 1e-5  # motion below this in every dimension is none


def relative_gripper(columns: Columns) -> Columns:
    """The action's last number closes (+) or opens (-) the gripper."""
    return _gripper(columns, grippers.from_relative(columns["actions"][:, -1]))


def inverted_gripper(columns: Columns) -> Columns:
    """The action's last number is 1 for closed, or more; 0 or less for open."""
    return _gripper(columns, grippers.inverted(columns["actions"][:, -1]))


def bridge(columns: Columns) -> Columns:
    """The gripper is made binary, and a step's motion is the difference to the state that was reached; the last step has none and goes."""
    proprio, actions = columns["proprio"], columns["actions"]
    motion = np.diff(proprio[:, :6], axis=0, append=proprio[-1:, :6])
    keep = np.arange(len(proprio)) < len(proprio) - 1
    return {**columns, "actions": np.column_stack([motion, grippers.binary(actions[:, 6])]), "keep": keep}


@needs("success")
def kuka(columns: Columns) -> Columns:
    """Episodes without success go; the gripper is relative."""
    return {**relative_gripper(columns), "keep": columns["success"].astype(bool)}


def taco_play(columns: Columns) -> Columns:
    """`robot_obs` is position, Euler angles, gripper width and more: the first seven stay. (Octo and OpenVLA take the number after the
    width, which features.json calls a joint.) The gripper's -1 ... 1 is clipped, 1 being open as both have it; features.json says closed.
    """
    return {**_gripper(columns, np.clip(columns["actions"][:, -1], 0.0, 1.0)), "proprio": columns["proprio"][:, :7]}


def jaco_play(columns: Columns) -> Columns:
    """The end effector does not turn; the gripper is relative."""
    actions = columns["actions"]
    return {**columns, "actions": np.column_stack([actions[:, :3], np.zeros((len(actions), 3)), grippers.from_relative(actions[:, -1])])}


def berkeley_cable_routing(columns: Columns) -> Columns:
    """The gripper stays closed: it holds the cable."""
    return {**columns, "actions": np.column_stack([columns["actions"], np.zeros(len(columns["actions"]))])}


def berkeley_autolab_ur5(columns: Columns) -> Columns:
    """`robot_state` has the joints first; the end effector's pose and the gripper are numbers 6 ... 13. Its action is relative."""
    return {**relative_gripper(columns), "proprio": columns["proprio"][:, 6:14]}


@needs("observation/instruction")
def language_table(columns: Columns) -> Columns:
    """The stick moves in a plane. Instructions are code points, zeros after the end."""
    actions = columns["actions"]
    still, open_ = np.zeros((len(actions), 4)), np.ones(len(actions))
    codes = dict.fromkeys(map(tuple, columns["observation/instruction"].astype(int).tolist()))
    sentences = dict.fromkeys("".join(map(chr, row)).partition("\0")[0].strip() for row in codes)
    told = np.array([text for text in sentences if text], np.str_)
    return {**columns, "actions": np.column_stack([actions, still, open_]), "instructions": told}


def stanford_hydra(columns: Columns) -> Columns:
    """Position, Euler angles and gripper out of a state of 27 numbers, which has more; the gripper's action is inverted."""
    state = columns["proprio"]
    return {**inverted_gripper(columns), "proprio": np.column_stack([state[:, :3], state[:, 7:10], state[:, -3]])}


def joints_and_gripper(columns: Columns) -> Columns:
    """The state's first eight numbers, joints and gripper, stay; the gripper's action is inverted."""
    return {**inverted_gripper(columns), "proprio": columns["proprio"][:, :8]}


def nyu_franka_play(columns: Columns) -> Columns:
    """Of the action's 15 numbers, the eight before the end are motion and gripper, and one more; the pose is the state's end."""
    actions = columns["actions"]
    gripper = np.clip(actions[:, -2], 0.0, 1.0)
    return {**columns, "actions": np.column_stack([actions[:, -8:-2], gripper]), "proprio": columns["proprio"][:, -6:]}


def furniture_bench(columns: Columns) -> Columns:
    """Rotations are quaternions; pose and gripper are the state's first seven numbers and its last; the gripper's action is inverted."""
    actions, state = columns["actions"], columns["proprio"]
    motion = np.column_stack([actions[:, :3], euler_angles(actions[:, 3:7]), grippers.inverted(actions[:, -1])])
    return {**columns, "actions": motion, "proprio": np.column_stack([state[:, :7], state[:, -1]])}


def ucsd_kitchen(columns: Columns) -> Columns:
    """The action's last number ends the episode; joints are the state's first seven."""
    return {**columns, "actions": columns["actions"][:, :-1], "proprio": columns["proprio"][:, :7]}


@needs("action/future/xyz_residual", "action/future/axis_angle_residual", "action/future/target_close")
def bc_z(columns: Columns) -> Columns:
    """Each of the action's keys has the next ten steps, of which the first is this one; the gripper's is inverted."""
    translation, rotation, closed = (columns[f"action/future/{key}"] for key in ("xyz_residual", "axis_angle_residual", "target_close"))
    return {**columns, "actions": np.column_stack([translation[:, :3], rotation[:, :3], grippers.inverted(closed[:, 0])])}


def iamlab_cmu_pickup_insert(columns: Columns) -> Columns:
    """Rotations are quaternions; joints and gripper are the state's first eight numbers."""
    actions = columns["actions"]
    motion = np.column_stack([actions[:, :3], euler_angles(actions[:, 3:7]), actions[:, 7]])
    return {**columns, "actions": motion, "proprio": columns["proprio"][:, :8]}


def berkeley_fanuc_manipulation(columns: Columns) -> Columns:
    """Actions lack the gripper: it is the state's, number 6, inverted; the joints are before it."""
    state = columns["proprio"]
    return {**columns, "actions": np.column_stack([columns["actions"], grippers.inverted(state[:, 6])]), "proprio": state[:, :7]}


def cmu_stretch(columns: Columns) -> Columns:
    """The action's last number ends the episode; the state is a position and the gripper, without a rotation."""
    state = columns["proprio"]
    pose = np.column_stack([state[:, :3], np.zeros((len(state), 3)), state[:, -1]])
    return {**columns, "actions": columns["actions"][:, :-1], "proprio": pose}


@needs("episode_metadata/file_path")
def droid(columns: Columns) -> Columns:
    """The gripper is inverted. Episodes whose file does not lie under `success` go, as in Physical-Intelligence/openpi
    `droid_rlds_dataset.py`, and steps without any motion."""
    succeeded = any("success" in path for path in columns["episode_metadata/file_path"].tolist())
    moves = np.abs(columns["actions"][:, :6]).max(axis=1) > IDLE
    return {**inverted_gripper(columns), "keep": moves if succeeded else np.zeros_like(moves)}


def euler_angles(quaternions: Float64[np.ndarray, "steps 4"]) -> Float64[np.ndarray, "steps 3"]:
    """Roll, pitch and yaw in radians, about the fixed axes x, y and z in this order, of quaternions (x, y, z, w); no need for norm 1."""
    x, y, z, w = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.column_stack([roll, pitch, yaw])


def _gripper(columns: Columns, gripper: Float64[np.ndarray, " steps"]) -> Columns:
    return {**columns, "actions": np.column_stack([columns["actions"][:, :-1], gripper])}
