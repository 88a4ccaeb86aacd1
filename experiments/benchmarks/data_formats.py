"""The same episodes in every format that is read, for data.py: 30 rows per second, one camera, states and actions of 7 numbers."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scene import scene

from mimicvideo.data.lerobot_files import write_json
from mimicvideo.data.lerobot_writer import LeRobotWriter
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.video_encoding import VideoCodec, encode_video

HZ, NUMBERS, TOLD = 30, 7, "move the block"
# As lerobot 0.4.4 writes videos (video_utils.encode_video_frames: g=2, crf=30), without frames out of order.
CODEC = VideoCodec("libx264", crf=30, keyframe_interval=2, pixel_format="yuv420p", preset="medium")
STATE, ACTION = ([f"{letter}{place}" for place in range(NUMBERS)] for letter in "sa")
NAMES: dict[str, Any] = {"robot": "arm", "proprio_names": STATE, "action_names": ACTION}

Episode = tuple[np.ndarray, np.ndarray, np.ndarray]  # pictures, states, actions


def episode(number: int, rows: int, height: int, width: int) -> Episode:
    """An episode of given rows; the same number gives the same one."""
    random = np.random.default_rng(number)
    states, actions = (random.normal(size=(rows, NUMBERS)).astype(np.float32) for _ in range(2))
    return np.stack(list(scene(height, width, rows, number))), states, actions


def lerobot_v30(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """By this project's writer, a video file per episode."""
    height, width = episodes[0][0].shape[1:3]
    cameras = [{"name": "front", "height": height, "width": width, "view": {}}]
    described: dict[str, Any] = {"control_hz": HZ, "stride": 1, "proprio_names": STATE, "action_names": ACTION, "codec": CODEC}
    with LeRobotWriter(root, robot="arm", cameras=cameras, **described) as writer:
        for number, (pictures, states, actions) in enumerate(episodes):
            writer.add_episode({"front": pictures}, states, actions, instruction=TOLD, task="block", seed=number)
        writer.finish()
    return None


def lerobot_v21(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """A parquet and an mp4 file per episode, lists of JSON objects."""
    key = "observation.images.front"
    for folder in ("meta", "data/chunk-000", f"videos/chunk-000/{key}"):
        (root / folder).mkdir(parents=True)
    listing, start = [], 0
    for number, (pictures, states, actions) in enumerate(episodes):
        rows = len(states)
        columns = {
            "observation.state": pa.array(list(states), pa.list_(pa.float32(), NUMBERS)),
            "action": pa.array(list(actions), pa.list_(pa.float32(), NUMBERS)),
            "timestamp": pa.array(np.arange(rows, dtype=np.float32) / HZ),
            **{name: pa.array(np.arange(rows) + first) for name, first in (("frame_index", 0), ("index", start))},
            **{name: pa.array(np.full(rows, value)) for name, value in (("episode_index", number), ("task_index", 0))},
        }
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{number:06d}.parquet")
        encode_video(root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", pictures, HZ, CODEC)
        listing.append({"episode_index": number, "tasks": [TOLD], "length": rows})
        start += rows
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TOLD}) + "\n")
    shape = list(episodes[0][0].shape[1:])
    info = {
        "codebase_version": "v2.1",
        "robot_type": "arm",
        "total_episodes": len(episodes),
        "total_frames": start,
        "chunks_size": 1000,
        "fps": HZ,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [NUMBERS], "names": STATE},
            "action": {"dtype": "float32", "shape": [NUMBERS], "names": ACTION},
            key: {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"]},
        },
    }
    write_json(root / "meta/info.json", info)
    return None


def rlds(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """TFRecord as tensorflow-datasets writes it, JPEG pictures of quality 95."""
    import tensorflow_datasets as tfds
    from PIL import Image

    from tests.rlds_episodes import write_tfrecord

    def jpeg(picture: np.ndarray) -> io.BytesIO:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "jpeg", quality=95)
        buffer.seek(0)
        return buffer

    vector = tfds.features.Tensor(shape=(NUMBERS,), dtype=np.float32)
    image = tfds.features.Image(shape=episodes[0][0].shape[1:], dtype=np.uint8, encoding_format="jpeg")
    step = {"observation": {"image": image, "state": vector}, "action": vector, "language_instruction": tfds.features.Text()}
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    root.mkdir(parents=True)
    features.save_config(str(root))
    records = []
    for pictures, states, actions in episodes:
        steps = [
            {"observation": {"image": jpeg(picture), "state": state}, "action": action, "language_instruction": TOLD}
            for picture, state, action in zip(pictures, states, actions, strict=True)
        ]
        records.append(features.serialize_example({"steps": steps}))
    write_tfrecord(root / "block-train.tfrecord-00000-of-00001", records)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "filepathTemplate": template, "shardLengths": [str(len(records))], "numBytes": str(sum(map(len, records)))}
    write_json(root / "dataset_info.json", {"name": "block", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]})
    keys: dict[str, Any] = {"proprio": ["observation/state"], "actions": ["action"], "instruction": ["language_instruction"]}
    return DatasetSpec(hz=HZ, cameras={"front": "observation/image"}, **keys, **NAMES)


def zarr(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """As the official preprocessing: a group per episode, Blosc lz4 level 1 with bit-shuffle, 65 pictures to a chunk."""
    import zarr as library
    from numcodecs import Blosc

    container = library.open_group(root, mode="w", zarr_format=2)
    for number, (pictures, states, actions) in enumerate(episodes):
        group, rows = container.create_group(f"episode_{number}"), len(states)
        times = np.arange(rows, dtype=np.uint64) * np.uint64(10**9) // np.uint64(HZ)
        for key, values, chunk in (("workspace_rgb", pictures, 65), ("state_lowdim", states, 1024), ("action_lowdim", actions, 1024)):
            chunks = (min(chunk, rows), *values.shape[1:])
            group.create_array(key, data=values, chunks=chunks, compressors=[Blosc("lz4", 1, Blosc.BITSHUFFLE)])
            group.create_array(f"{key}_timestamps", data=times, chunks=(min(1024, rows),))
        group.create_array("language_instruction", data=np.array([TOLD.encode()]), chunks=(1,))
        group.create_array("language_instruction_timestamps", data=np.zeros(1, np.uint64), chunks=(1,))
    return DatasetSpec(cameras={"front": "workspace_rgb"}, proprio=["state_lowdim"], actions=["action_lowdim"], hz=HZ, **NAMES)


def hdf5(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """As LIBERO: a file per task, pictures as they are."""
    import h5py

    root.mkdir(parents=True)
    with h5py.File(root / "block_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": [TOLD]})
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": HZ, "robots": ["arm"]}})
        for number, (pictures, states, actions) in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["obs/state"] = actions.astype(np.float64), states
            demo.create_dataset("obs/agentview_rgb", data=pictures)
    return DatasetSpec(cameras={"front": "obs/agentview_rgb"}, proprio=["obs/state"], **NAMES)


def videos(root: Path, episodes: list[Episode]) -> DatasetSpec | None:
    """Files with captions, without numbers."""
    root.mkdir(parents=True)
    for number, (pictures, _, _) in enumerate(episodes):
        encode_video(root / f"clip_{number}.mp4", pictures, HZ, CODEC)
        (root / f"clip_{number}.txt").write_text(TOLD + "\n")
    return DatasetSpec(cameras={"front": "video"}, robot="arm")


# By the name in the table.
FORMATS: dict[str, Callable[[Path, list[Episode]], DatasetSpec | None]] = {
    "LeRobot v3.0, h264": lerobot_v30,
    "LeRobot v2.1, h264": lerobot_v21,
    "RLDS, JPEG": rlds,
    "zarr, lz4": zarr,
    "HDF5, uncompressed": hdf5,
    "video folder, h264": videos,
}


def make(name: str, root: Path, episodes: int, rows: int, height: int, width: int) -> DatasetSpec | None:
    """Writes a dataset anew and returns its description, if it needs one."""
    shutil.rmtree(root, ignore_errors=True)
    return FORMATS[name](root, [episode(number, rows, height, width) for number in range(episodes)])
