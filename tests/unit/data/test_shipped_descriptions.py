"""The descriptions of LIBERO, robomimic, mimic-video's zarr and bimanual data open datasets in the layouts that they name."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.rotations import to_matrix
from mimicvideo.data.spec import load_spec
from tests.synthetic_episodes import by_writer, write_video

ROWS = 6
RANDOM = np.random.default_rng(0)
FILM = RANDOM.integers(0, 255, (ROWS, 16, 16, 3), np.uint8)


def libero(root: Path, cameras: dict[str, np.ndarray], observations: dict[str, int], name: str) -> dict[str, np.ndarray]:
    root.mkdir()
    values = {key: RANDOM.normal(size=(ROWS, width)) for key, width in observations.items()}
    with h5py.File(root / name, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = values["actions"] = RANDOM.normal(size=(ROWS, 7))
        for key, value in {**values, **cameras}.items():
            if key != "actions":
                demo[f"obs/{key}"] = value
    return values


def test_libero(tmp_path: Path) -> None:
    cameras = {"agentview_rgb": FILM, "eye_in_hand_rgb": FILM[::-1]}
    sizes = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}
    made = libero(tmp_path / "d", cameras, sizes, "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5")
    reader = open_episodes(tmp_path / "d", ["agentview", "wrist"], spec="libero_hdf5")
    (episode,) = reader.episodes
    assert (reader.control_hz, reader.robot, episode.instruction) == (20.0, "Panda", "turn on the stove")
    np.testing.assert_allclose(reader.proprio(episode), np.hstack([made[key] for key in ("ee_pos", "ee_ori", "gripper_states")]), rtol=1e-6)
    np.testing.assert_allclose(reader.actions(episode), made["actions"], rtol=1e-6)
    turned = [np.rot90(view, 2, axes=(1, 2)) for view in (FILM, FILM[::-1])]
    np.testing.assert_array_equal(reader.frames(episode, range(ROWS)), np.concatenate(turned, axis=2))


def test_robomimic(tmp_path: Path) -> None:
    cameras = {"agentview_image": FILM, "robot0_eye_in_hand_image": FILM}
    sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    libero(tmp_path / "d", cameras, sizes, "lift_the_cube.hdf5")
    reader = open_episodes(tmp_path / "d", ["agentview"], spec="robomimic_hdf5")
    assert (reader.episodes[0].instruction, len(reader.proprio_names), len(reader.action_names)) == ("lift the cube", 9, 7)
    np.testing.assert_array_equal(reader.frames(reader.episodes[0], [2]), FILM[[2]])


def official(root: Path, hz: float, **streams: np.ndarray) -> None:
    group = zarr.open_group(root, mode="w", zarr_format=2).create_group("episode_0")
    times = (np.arange(ROWS) * (10**9 / hz)).astype(np.uint64)
    for key, values in streams.items():
        group.create_array(key, data=values, chunks=(min(65, ROWS), *values.shape[1:]))
        group.create_array(f"{key}_timestamps", data=times, chunks=(ROWS,))
    group.create_array("language_instruction", data=np.array([b"put the bowl on the plate."]), chunks=(1,))
    group.create_array("language_instruction_timestamps", data=np.zeros(1, np.uint64), chunks=(1,))
    group.create_array("language_embedding", data=np.zeros((1, 8, 4), np.float16), chunks=(1, 8, 4))


def first_batch(root: Path, spec: str) -> Any:
    """What stage 2 trains on, in the learned representation: ten numbers each."""
    options: dict[str, Any] = {"observed": 5, "future": 4, "horizon": 4, "action_dim": 10, "proprio_dim": 10, "validation_fraction": 0.0}
    data = DemonstrationData(root=str(root), spec=spec, cameras=["workspace"], batch_size=6, **options)
    return next(iter(data.train_dataloader()))


def test_bridge_of_mimic_video(tmp_path: Path) -> None:
    poses = np.tile(np.eye(4), (ROWS, 1, 1))
    poses[:, :3, :3] = to_matrix(RANDOM.normal(size=(ROWS, 3)), "axis_angle")
    poses[:, :3, 3] = RANDOM.normal(size=(ROWS, 3))
    opening, command = RANDOM.random(ROWS), RANDOM.random(ROWS)
    streams = {"eef_pose_lowdim": poses, "gripper_state_lowdim": opening, "gripper_action_lowdim": command}
    official(tmp_path / "z", 5, workspace_rgb=FILM, **streams)
    reader = open_episodes(tmp_path / "z", spec="mimic_zarr_bridge")
    (episode,) = reader.episodes
    assert (reader.control_hz, episode.instruction) == (5.0, "put the bowl on the plate.")
    short = np.hstack([poses[:, :3, 3], poses[:, 0, :3], poses[:, 1, :3]])
    np.testing.assert_allclose(reader.proprio(episode), np.column_stack([short, opening]), atol=1e-6)
    ahead = np.minimum(np.arange(ROWS) + 1, ROWS - 1)
    np.testing.assert_allclose(reader.actions(episode), np.column_stack([short, command])[ahead], atol=1e-6)
    batch = first_batch(tmp_path / "z", "mimic_zarr_bridge")
    for row, chunk in zip(batch["row"].tolist(), batch["actions"], strict=True):
        relative = np.linalg.inv(poses[row]) @ poses[min(row + 1, ROWS - 1)]
        np.testing.assert_allclose(chunk[0], [*relative[:3, 3], *relative[:2, :3].reshape(-1), command[min(row + 1, ROWS - 1)]], atol=1e-5)


def test_libero_of_mimic_video(tmp_path: Path) -> None:
    turns = to_matrix(RANDOM.normal(size=(ROWS, 3)), "axis_angle")
    streams: dict[str, Any] = {
        "eef_pos_lowdim": RANDOM.normal(size=(ROWS, 3)),
        "eef_rot_lowdim": np.tile([0.0, 0.0, 0.0, 1.0], (ROWS, 1)),
        "gripper_lowdim": RANDOM.random(ROWS),
        "eef_pos_ref_delta_lowdim": RANDOM.normal(size=(ROWS, 3)),
        "eef_rot_ref_delta_lowdim": turns,
        "gripper_action_lowdim": np.sign(RANDOM.normal(size=(ROWS, 1))),
    }
    official(tmp_path / "z", 20, workspace_rgb=FILM, wrist_rgb=FILM, **streams)
    reader = open_episodes(tmp_path / "z", ["workspace"], spec="mimic_zarr_libero")
    (episode,) = reader.episodes
    expected = np.hstack([streams["eef_pos_ref_delta_lowdim"], turns[:, 0], turns[:, 1], streams["gripper_action_lowdim"]])
    np.testing.assert_allclose(reader.actions(episode), expected, atol=1e-6)
    assert (reader.control_hz, reader.proprio(episode).shape) == (20.0, (ROWS, 8))
    batch = first_batch(tmp_path / "z", "mimic_zarr_libero")
    rows = batch["row"].numpy()
    np.testing.assert_allclose(batch["actions"][:, 0], expected[rows], atol=1e-5)
    np.testing.assert_allclose(batch["observation"]["proprio"][:, 0, 3:9], np.tile([1, 0, 0, 0, 1, 0], (len(rows), 1)), atol=1e-6)


def bimanual(root: Path, features: dict[str, int], cameras: list[str]) -> dict[str, np.ndarray]:
    """A LeRobotDataset v2.1 of one episode."""
    values = {key: RANDOM.normal(size=(ROWS, width)).astype(np.float32) for key, width in features.items()}
    table = {key: pa.array(value.tolist(), pa.list_(pa.float32())) for key, value in values.items()}
    table |= {"episode_index": pa.array([0] * ROWS), "frame_index": pa.array(range(ROWS)), "task_index": pa.array([0] * ROWS)}
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    pq.write_table(pa.table(table), root / "data/chunk-000/episode_000000.parquet")
    for camera in cameras:
        write_video(root / f"videos/chunk-000/observation.images.{camera}/episode_000000.mp4", list(FILM), 50)
    (root / "meta/episodes.jsonl").write_text(json.dumps({"episode_index": 0, "tasks": ["Fold it."], "length": ROWS}))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "Fold it."}))
    described: dict[str, Any] = {key: {"dtype": "float32", "shape": [width], "names": None} for key, width in features.items()}
    names = ["height", "width", "channels"]
    described |= {f"observation.images.{camera}": {"dtype": "video", "shape": [16, 16, 3], "names": names} for camera in cameras}
    info = {"codebase_version": "v2.1", "fps": 50, "total_episodes": 1, "total_frames": ROWS, "features": described}
    (root / "meta/info.json").write_text(json.dumps(info))
    return values


def test_aloha(tmp_path: Path) -> None:
    bimanual(tmp_path / "d", {"observation.state": 14, "action": 14}, ["top", "cam_high"])
    reader = open_episodes(tmp_path / "d", ["top"], spec="aloha_bimanual")
    assert (reader.control_hz, reader.robot, reader.action_names[7]) == (50.0, "aloha", "right_waist")


def test_two_arms_under_several_keys(tmp_path: Path) -> None:
    widths = {"left_arm": 6, "left_gripper": 1, "right_arm": 6, "right_gripper": 1}
    features = {f"{kind}.{part}": width for kind in ("observation.state", "action") for part, width in widths.items()}
    made = bimanual(tmp_path / "d", features, ["front", "left_wrist", "right_wrist"])
    reader = open_episodes(tmp_path / "d", ["front", "left_wrist"], spec="bimanual_keys")
    (episode,) = reader.episodes
    np.testing.assert_array_equal(reader.actions(episode), np.hstack([made[f"action.{part}"] for part in widths]))
    np.testing.assert_array_equal(reader.proprio(episode), np.hstack([made[f"observation.state.{part}"] for part in widths]))
    assert reader.frames(episode, [0]).shape == (1, 16, 32, 3)


def test_meta_world(tmp_path: Path) -> None:
    made = by_writer(tmp_path / "d", stride=2)
    plain, described = open_episodes(made.root), open_episodes(made.root, spec="metaworld")
    assert type(plain) is type(described) and plain.tables_fingerprint == described.tables_fingerprint


def test_captioned_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(FILM), 10)
    (tmp_path / "a.txt").write_text("Stir.")
    assert open_episodes(tmp_path, spec="captioned_videos").episodes[0].instruction == "Stir."


def test_a_description_of_another_format_says_what_is_missing(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(FILM), 10)
    for name in ("libero_hdf5", "mimic_zarr_bridge", "aloha_bimanual"):
        assert load_spec(name).format != "videos"
        with pytest.raises(DatasetError, match=re.escape(str(tmp_path))):
            open_episodes(tmp_path, spec=name)
