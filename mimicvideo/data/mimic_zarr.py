"""Standardisation of the zarr episodes that the official mimic-video preprocessing writes: rotations as rows, next poses as targets."""

import numpy as np

from mimicvideo.data.standards import Columns

_POSITION = [3, 7, 11]  # in a 4 x 4 pose, row by row
_ROTATION = [0, 1, 2, 4, 5, 6]  # the first two rows of its rotation


def bridge(columns: Columns) -> Columns:
    """BridgeData: a 4 x 4 pose and the gripper become position, the rotation's first two rows and gripper.

    The target of a step is the pose of the next row, in the same axes as the state, with the next row's gripper command; at the end it
    is the last (mimic-video, evaluation on SIMPLER: the first action of a chunk is the pose one step ahead; one shift for all of it).
    """
    pose, gripper = columns["proprio"][:, :16], columns["proprio"][:, 16:]
    short = pose[:, _POSITION + _ROTATION]
    targets = np.hstack([short, columns["actions"]])
    ahead = np.concatenate([targets[1:], targets[-1:]])
    return {**columns, "proprio": np.hstack([short, gripper]), "actions": ahead}


def libero(columns: Columns) -> Columns:
    """LIBERO: of the rotation in an action, 3 x 3 after the position, the first two rows stay."""
    return {**columns, "actions": np.delete(columns["actions"], [9, 10, 11], axis=1)}
