"""Small LeRobotDatasets v3.0 whose pictures say which episode, row and camera they show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimicvideo.data.lerobot_files import write_json
from mimicvideo.data.lerobot_writer import LeRobotWriter

ACTION_NAMES, STATE_NAMES = ["dx", "dy", "gripper"], ["x", "y"]
VIEW = {"lookat": [0.0, 0.6, 0.2], "fovy": 45.0}
DATA_FILE = "data/chunk-000/file-000.parquet"
EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"


@dataclass
class Made:
    """A dataset and what was put into it."""

    root: Path
    actions: list[np.ndarray]  # by episode, [steps, action_dim]
    states: list[np.ndarray]  # by episode, [rows, state_dim]
    lengths: list[int]
    tasks: list[str]


def picture(episode: int, row: int, camera: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    """A plain colour: red tells the row, green the episode, blue the camera. `what_is_shown` reads it."""
    colour = [20 + 6 * (row % 36), 20 + 6 * (episode % 36), 40 + 80 * camera]
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def what_is_shown(frame: np.ndarray) -> tuple[int, int, int]:
    """Episode, row and camera of a frame that went through `picture` and a video file."""
    red, green, blue = frame.reshape(-1, 3).astype(float).mean(0)
    return round((green - 20) / 6), round((red - 20) / 6), round((blue - 40) / 80)


def numbers(episode: int, rows: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions and states: actions say their control step, states their row."""
    random = np.random.default_rng(episode)
    actions = random.normal(size=(rows * stride, 3)).astype(np.float32)
    actions[:, 0] = 1000 * episode + np.arange(rows * stride)
    states = random.normal(size=(rows, 2)).astype(np.float32)
    states[:, 0] = 1000 * episode + np.arange(rows)
    return actions, states


def by_writer(
    root: Path,
    lengths: Sequence[int] = (12, 9, 20),
    tasks: Sequence[str] | None = None,
    stride: int = 1,
    cameras: Sequence[str] = ("corner2",),
    height: int = 16,
    width: int = 16,
) -> Made:
    """A dataset as `mimicvideo demos` leaves it: one episode per video file."""
    tasks = list(tasks or ["reach-v3"] * len(lengths))
    described = [{"name": name, "height": height, "width": width, "view": VIEW} for name in cameras]
    made = Made(root, [], [], list(lengths), tasks)
    with LeRobotWriter(
        root,
        robot="test-arm",
        control_hz=80.0,
        stride=stride,
        cameras=described,
        proprio_names=STATE_NAMES,
        action_names=ACTION_NAMES,
    ) as writer:
        for episode, (rows, task) in enumerate(zip(lengths, tasks, strict=True)):
            actions, states = numbers(episode, rows, stride)
            frames = {
                name: np.stack([picture(episode, row, number, height, width) for row in range(rows)]) for number, name in enumerate(cameras)
            }
            writer.add_episode(frames, states, actions, instruction=f"Do {task}.", task=task, seed=episode)
            made.actions.append(actions)
            made.states.append(states)
        writer.finish()
    return made


def by_lerobot(
    root: Path,
    lengths: Sequence[int] = (12, 9, 20),
    instructions: Sequence[str] | None = None,
    cameras: Sequence[str] = ("observation.images.corner2",),
    codec: str = "libx264",
    fps: int = 10,
    keyframe_interval: int = 2,
    pixel_format: str = "yuv444p",
    version: str = "v3.0",
    size: int = 16,
) -> Made:
    """A dataset as LeRobot leaves it: all episodes in one parquet and one video file, no word about robots or strides."""
    instructions = list(instructions or ["Do it."] * len(lengths))
    made = Made(root, [], [], list(lengths), instructions)
    texts = sorted(set(instructions))
    columns: dict[str, list[Any]] = {"episode_index": [], "frame_index": [], "task_index": [], "index": [], "timestamp": []}
    listing, start = [], 0
    for episode, rows in enumerate(lengths):
        actions, states = numbers(episode, rows, 1)
        made.actions.append(actions)
        made.states.append(states)
        columns["episode_index"] += [episode] * rows
        columns["frame_index"] += range(rows)
        columns["task_index"] += [texts.index(instructions[episode])] * rows
        columns["index"] += range(start, start + rows)
        columns["timestamp"] += [row / fps for row in range(rows)]
        row: dict[str, Any] = {"episode_index": episode, "tasks": [instructions[episode]], "length": rows}
        row |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": start, "dataset_to_index": start + rows}
        for key in cameras:
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            row |= {f"videos/{key}/from_timestamp": start / fps, f"videos/{key}/to_timestamp": (start + rows) / fps}
        listing.append(row)
        start += rows
    table = pa.table(
        {
            **{name: pa.array(values) for name, values in columns.items()},
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(made.states).reshape(-1)), 2),
            "action": pa.array(np.concatenate(made.actions).tolist(), pa.list_(pa.float32())),
        }
    )
    for name, content in {
        DATA_FILE: table,
        EPISODES_FILE: pa.Table.from_pylist(listing),
        "meta/tasks.parquet": pa.table({"task_index": list(range(len(texts))), "__index_level_0__": texts}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, root / name)
    for number, key in enumerate(cameras):
        frames = [picture(episode, row, number, size, size) for episode, rows in enumerate(lengths) for row in range(rows)]
        write_video(root / f"videos/{key}/chunk-000/file-000.mp4", frames, fps, codec, keyframe_interval, pixel_format)
    video = {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": version,
        "robot_type": "so101",
        "total_episodes": len(lengths),
        "total_frames": start,
        "fps": fps,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": STATE_NAMES},
            "action": {"dtype": "float32", "shape": [3], "names": {"motors": ACTION_NAMES}},
            **{key: video for key in cameras},
        },
    }
    write_json(root / "meta/info.json", info)
    return made


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: int = 10,
    codec: str = "libx264",
    keyframe_interval: int = 2,
    pixel_format: str = "yuv444p",
    **container: str,
) -> None:
    """Encodes frames, with B-frames if the codec likes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=fps, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        stream.gop_size, stream.thread_count = keyframe_interval, 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def change_rows(root: Path, change: Callable[[dict[str, list[Any]]], None], name: str = DATA_FILE) -> None:
    """Rewrites a table of a dataset after `change` has edited its columns in place."""
    table = pq.read_table(root / name)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), root / name)
