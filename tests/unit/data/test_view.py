"""A dataset seen at other rates and in another representation: pictures, states and chunks against equations of the motion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo.data.batches import DemonstrationBatches, Member
from mimicvideo.data.episodes import Camera, Episode, Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.rotations import from_matrix, to_matrix
from mimicvideo.data.sampler import Item
from mimicvideo.data.statistics import window_statistics
from mimicvideo.data.view import View, viewed
from mimicvideo.data.window import Window

ROWS_HZ, CONTROL_HZ = 10.0, 20.0
POSE = {
    "position": {"kind": "position", "dims": [0, 1, 2], "learned": "relative"},
    "rotation": {"kind": "rotation", "dims": [3, 4, 5], "format": "axis_angle", "learned": "relative"},
    "gripper": {"kind": "gripper", "dims": [6], "open": 1, "closed": 0},
}
STATE = {name: {key: value for key, value in group.items() if key != "learned"} for name, group in POSE.items()}
RELATIVE = {"actions": POSE, "proprio": STATE}


def pose(time: np.ndarray, episode: int = 0) -> np.ndarray:
    """A hand that moves along a line and turns evenly about a fixed axis: both are met exactly by interpolation."""
    axis = np.array([1.0, 2.0, 2.0]) / 3
    place = np.array([0.1, -0.2, 0.3]) + np.outer(time, [0.05, 0.02 + 0.01 * episode, -0.03])
    return np.concatenate([place, np.outer(0.2 + 0.15 * time, axis), (time > 1)[:, None]], axis=1)


class Moving(Episodes):
    """Two episodes in memory; a picture shows its row."""

    def __init__(self, lengths: tuple[int, ...] = (41, 23)) -> None:
        names = ["x", "y", "z", "rx", "ry", "rz", "gripper"]
        listed = [Episode(index, length, ("move",), "move") for index, length in enumerate(lengths)]
        camera = Camera("above", "above", 4, 4, {})
        options = {"robot": "arm", "control_hz": CONTROL_HZ, "stride": 2, "proprio_names": names, "action_names": names}
        super().__init__(Path("moving"), listed, {}, [camera], **options)

    def actions(self, episode: Episode) -> np.ndarray:
        return pose(np.arange(2 * episode.length) / CONTROL_HZ + 0.05, episode.index).astype(np.float32)

    def proprio(self, episode: Episode) -> np.ndarray:
        return pose(np.arange(episode.length) / ROWS_HZ, episode.index).astype(np.float32)

    def _decode(self, episode: Any, camera: Camera, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 4, 4, 3)).copy()

    def _files(self) -> tuple[list[Path], list[Path]]:
        return [], []


def matrix(vector: np.ndarray) -> np.ndarray:
    """A stored vector as a homogeneous transformation."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = to_matrix(vector[3:6], "axis_angle"), vector[:3]
    return result


def test_pictures_and_states_of_other_rates_are_those_of_their_times() -> None:
    view = View(Moving(), frame_hz=5, control_hz=20, representation=RELATIVE)
    assert (view.stride, view.control_hz, [episode.length for episode in view.episodes]) == (4, 20.0, [21, 12])
    episode = view.episodes[1]
    assert view.frames(episode, [0, 3, 11])[:, 0, 0, 0].tolist() == [0, 6, 22]
    times = np.arange(12) / 5
    expected = pose(times, 1)
    np.testing.assert_allclose(view.proprio(episode)[:, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(view.proprio(episode)[:, 3:9], from_matrix(to_matrix(expected[:, 3:6], "axis_angle"), "6d"), atol=1e-6)
    assert view.actions(episode).shape == (48, 10)


def test_actions_between_stored_ones_lie_on_the_motion() -> None:
    view = View(Moving(), frame_hz=10, control_hz=30, representation=RELATIVE)
    actions, inside = view.actions(view.episodes[0]), slice(0, 120)
    expected = pose(np.arange(123) / 30 + 0.05)[inside]
    np.testing.assert_allclose(actions[inside, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(actions[inside, 3:9], from_matrix(to_matrix(expected[:, 3:6], "axis_angle"), "6d"), atol=1e-6)


def test_a_chunk_is_relative_to_its_windows_state() -> None:
    """T_now^-1 T_target with homogeneous matrices, for windows inside and beyond the end."""
    source = Moving()
    view = View(source, representation=RELATIVE)
    window = Window(5, 4, horizon=6, stride=2)
    batches = DemonstrationBatches([Member(view, episode, episode.index, "data") for episode in view.episodes], window, 1, "repeat", ())
    batch = batches[[Item(position=0, episode=0, row=7), Item(position=1, episode=1, row=21)]]
    for sample, (number, row) in enumerate([(0, 7), (1, 21)]):
        stored = source.actions(source.episodes[number])
        now = matrix(source.proprio(source.episodes[number])[row].astype(float))
        for step in range(6):
            target = stored[min(2 * row + step, len(stored) - 1)].astype(float)
            relative = np.linalg.inv(now) @ matrix(target)
            expected = [*relative[:3, 3], *relative[:2, :3].reshape(-1), target[6]]
            np.testing.assert_allclose(batch["actions"][sample, step], expected, atol=1e-5)
    assert batch["actions"].dtype == batch["observation"]["proprio"].dtype
    assert batch["observation"]["proprio"].shape == (2, 1, 10)


@pytest.mark.parametrize("tail", ["repeat", "zero_delta"])
def test_statistics_are_those_of_the_chunks_that_training_sees(tail: Any) -> None:
    view = View(Moving((9, 6)), representation=RELATIVE)
    window = Window(5, 4, horizon=5, stride=2)
    members = [Member(view, episode, episode.index, "data") for episode in view.episodes]
    batches = DemonstrationBatches(members, window, 1, tail, ())
    seen = batches[
        [Item(position=0, episode=number, row=row) for number, member in enumerate(members) for row in range(member.episode.length)]
    ]
    numbers = [view.actions(episode) for episode in view.episodes], [view.proprio(episode) for episode in view.episodes]
    found = window_statistics(*numbers, window, tail, representation=view.representation)
    np.testing.assert_allclose(found["actions"]["per_step"]["mean"], seen["actions"].double().mean(0), atol=1e-6)
    np.testing.assert_allclose(found["actions"]["per_step"]["max"], seen["actions"].double().amax(0), atol=1e-6)


def test_a_view_of_nothing_else_is_the_dataset_itself() -> None:
    source = Moving()
    assert viewed(source, None, None, None, numbers=True) is source
    frames_only = viewed(source, 5, None, None, numbers=False)
    assert (frames_only.control_hz, frames_only.stride, frames_only.action_names) == (5.0, 1, [])


def test_whatever_changes_the_samples_changes_the_fingerprint() -> None:
    source = Moving()
    other = {**RELATIVE, "actions": {**POSE, "gripper": {**POSE["gripper"], "open": 0, "closed": 1}}}
    views = [
        View(source, representation=RELATIVE),
        View(source, 5, 20, RELATIVE),
        View(source, 10, 10, RELATIVE),
        View(source, representation=other),
    ]
    assert len({source.tables_fingerprint, *(view.tables_fingerprint for view in views)}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_hz": 5}, "give representation"),
        ({"frame_hz": 8, "representation": RELATIVE}, "no whole number.*multiple of frame_hz"),
        ({"representation": {"actions": POSE}}, "representation.*actions and proprio"),
        ({"representation": {**RELATIVE, "proprio": {"position": STATE["position"]}}}, r"proprio: dimensions \[3, 4, 5, 6\] of 7"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        View(Moving(), **options)
