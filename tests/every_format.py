"""The same episodes written in every format that is read: pictures, states, actions and instructions are those of `synthetic_episodes`."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numcodecs import Blosc
from PIL import Image

from mimicvideo.data.lerobot_files import write_json
from mimicvideo.data.spec import DatasetSpec
from tests.rlds_episodes import write_tfrecord
from tests.synthetic_episodes import ACTION_NAMES, STATE_NAMES, by_lerobot, by_writer, numbers, picture, write_video

LENGTHS = (12, 9, 20)
TOLD = ("Do it.", "Do the other thing.", "Do it.")
HZ = 10
SIZE = 16
NAMES: dict[str, Any] = {"robot": "so101", "proprio_names": STATE_NAMES, "action_names": ACTION_NAMES}


def film(episode: int) -> np.ndarray:
    """All pictures of an episode."""
    return np.stack([picture(episode, row, 0, SIZE, SIZE) for row in range(LENGTHS[episode])])


def lerobot_v30(root: Path) -> DatasetSpec | None:
    by_lerobot(root, LENGTHS, TOLD, fps=HZ, size=SIZE)
    return None


def lerobot_v30_described(root: Path) -> DatasetSpec:
    by_lerobot(root, LENGTHS, TOLD, fps=HZ, size=SIZE)
    return DatasetSpec(robot="so101")


def by_mimicvideo(root: Path) -> None:
    by_writer(root, LENGTHS, TOLD, height=SIZE, width=SIZE)


def lerobot_v21(root: Path) -> DatasetSpec | None:
    """As LeRobot wrote until the middle of 2025: a parquet and an mp4 file per episode, lists of JSON objects."""
    listing, tasks = [], sorted(set(TOLD))
    for episode, rows in enumerate(LENGTHS):
        actions, states = numbers(episode, rows, 1)
        path = root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), 2),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), 3),
            "timestamp": pa.array(np.arange(rows, dtype=np.float32) / HZ),
            "frame_index": pa.array(np.arange(rows)),
            "episode_index": pa.array(np.full(rows, episode)),
            "index": pa.array(np.arange(rows) + sum(LENGTHS[:episode])),
            "task_index": pa.array(np.full(rows, tasks.index(TOLD[episode]))),
        }
        pq.write_table(pa.table(columns), path)
        write_video(root / f"videos/chunk-{episode // 2:03d}/observation.images.corner2/episode_{episode:06d}.mp4", list(film(episode)), HZ)
        listing.append({"episode_index": episode, "tasks": [TOLD[episode]], "length": rows})
    _write_meta_v21(root, listing, {"observation.images.corner2": {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": AXES}})
    return None


def lerobot_v21_images(root: Path) -> DatasetSpec | None:
    """The same with PNG pictures in the rows."""
    lerobot_v21(root)
    for episode in range(len(LENGTHS)):
        path = root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        cells = [{"bytes": png(frame), "path": None} for frame in film(episode)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pq.read_table(path).append_column("observation.images.corner2", pa.array(cells, kind))
        pq.write_table(table, path, row_group_size=5)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.corner2"]["dtype"] = "image"
    write_json(root / "meta/info.json", info)
    return None


AXES = ["height", "width", "channels"]


def _write_meta_v21(root: Path, listing: list[dict[str, Any]], pictures: dict[str, Any]) -> None:
    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        (root / "meta").mkdir(exist_ok=True)
        (root / "meta" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("episodes.jsonl", listing)
    lines("tasks.jsonl", [{"task_index": index, "task": text} for index, text in enumerate(sorted(set(TOLD)))])
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so101",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 2,
        "fps": HZ,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": STATE_NAMES},
            "action": {"dtype": "float32", "shape": [3], "names": {"motors": ACTION_NAMES}},
            **pictures,
        },
    }
    write_json(root / "meta/info.json", info)


def png(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "png")
    return content.getvalue()


ZARR = DatasetSpec(cameras={"corner2": "workspace_rgb"}, proprio=["state_lowdim"], actions=["action_lowdim"], **NAMES)


def write_zarr_episode(group: Any, episode: int) -> None:
    """As the official preprocessing: an array and its times in ns for each stream, Blosc lz4 with bit-shuffle."""
    actions, states = numbers(episode, LENGTHS[episode], 1)
    times = np.arange(LENGTHS[episode], dtype=np.uint64) * np.uint64(10**9 // HZ) + np.uint64(1_700_000_000_000_000_000)
    blosc = Blosc("lz4", 1, Blosc.BITSHUFFLE)
    for key, values, chunk in (("workspace_rgb", film(episode), 5), ("state_lowdim", states, 1024), ("action_lowdim", actions, 1024)):
        chunks = (min(chunk, len(values)), *values.shape[1:])
        group.create_array(key, data=values, chunks=chunks, compressors=[blosc] if group.metadata.zarr_format == 2 else "auto")
        group.create_array(f"{key}_timestamps", data=times, chunks=(min(1024, len(times)),))
    text = np.array([TOLD[episode].encode()])
    group.create_array("language_instruction", data=text, chunks=(1,))
    group.create_array("language_instruction_timestamps", data=np.zeros(1, np.uint64), chunks=(1,))


def zarr_v2(root: Path) -> DatasetSpec:
    """One container with a group per episode."""
    container = zarr.open_group(root, mode="w", zarr_format=2)
    for episode in range(len(LENGTHS)):
        write_zarr_episode(container.create_group(f"episode_{episode}"), episode)
    return ZARR


def zarr_v3(root: Path) -> DatasetSpec:
    container = zarr.open_group(root, mode="w", zarr_format=3)
    for episode in range(len(LENGTHS)):
        write_zarr_episode(container.create_group(f"episode_{episode}"), episode)
    return ZARR


def zarr_zips(root: Path) -> DatasetSpec:
    """A zip file per episode."""
    root.mkdir()
    for episode in range(len(LENGTHS)):
        with zarr.storage.ZipStore(root / f"episode_{episode}.zarr.zip", mode="w") as store:
            write_zarr_episode(zarr.open_group(store, mode="w", zarr_format=2), episode)
    return ZARR


HDF5 = DatasetSpec(cameras={"corner2": "obs/agentview_rgb"}, proprio=["obs/x", "obs/y"], rotate_180=["corner2"], **NAMES)


def hdf5(root: Path) -> DatasetSpec:
    """As LIBERO: a file per task, states in several data sets, pictures on their heads."""
    root.mkdir(parents=True)
    for task, members in (("do_it", [0, 2]), ("do_the_other_thing", [1])):
        with h5py.File(root / f"{task}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": [TOLD[members[0]]]})
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": HZ, "robots": ["so101"]}})
            for number, episode in enumerate(members):
                actions, states = numbers(episode, LENGTHS[episode], 1)
                demo = data.create_group(f"demo_{number}")
                demo["actions"] = actions.astype(np.float64)
                demo["obs/x"], demo["obs/y"] = states[:, 0], states[:, 1:]
                demo.create_dataset("obs/agentview_rgb", data=film(episode)[:, ::-1, ::-1])
    return HDF5


def rlds(root: Path) -> DatasetSpec:
    """As tensorflow-datasets prepares it, with PNG pictures."""
    import tensorflow_datasets as tfds

    step = {
        "observation": {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="png"),
            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        },
        "action": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
    }
    described = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
    root.mkdir(parents=True)
    described.save_config(root)
    records = []
    for episode, rows in enumerate(LENGTHS):
        actions, states = numbers(episode, rows, 1)
        steps = [
            {
                "observation": {"image": io.BytesIO(png(frame)), "state": state},
                "action": action,
                "language_instruction": TOLD[episode],
            }
            for frame, state, action in zip(film(episode), states, actions, strict=True)
        ]
        records.append(described.serialize_example({"steps": steps}))
    write_tfrecord(root / "toy-train.tfrecord-00000-of-00001", records)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "filepathTemplate": template, "shardLengths": [str(len(records))], "numBytes": str(sum(map(len, records)))}
    write_json(root / "dataset_info.json", {"name": "toy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]})
    return DatasetSpec(
        hz=HZ,
        cameras={"corner2": "observation/image"},
        proprio=["observation/state"],
        actions=["action"],
        instruction=["language_instruction"],
        **NAMES,
    )


def videos(root: Path) -> DatasetSpec:
    """Files with captions alone."""
    for episode in range(len(LENGTHS)):
        write_video(root / f"videos/clip_{episode}.mp4", list(film(episode)), HZ)
        (root / "metas").mkdir(exist_ok=True)
        (root / f"metas/clip_{episode}.txt").write_text(TOLD[episode] + "\n")
    return DatasetSpec(cameras={"corner2": "video"}, robot="so101")


# By name: what writes it and returns its description, and by how much pictures may differ from the originals (of 255): x264 at crf 4 in
# yuv444p, and nothing where pictures are stored as they are.
CODEC = 3
FORMATS: dict[str, tuple[Callable[[Path], DatasetSpec | None], int]] = {
    "lerobot_v3.0": (lerobot_v30, CODEC),
    "lerobot_v3.0_described": (lerobot_v30_described, CODEC),
    "lerobot_v2.1": (lerobot_v21, CODEC),
    "lerobot_v2.1_images": (lerobot_v21_images, 0),
    "zarr_v2": (zarr_v2, 0),
    "zarr_v3": (zarr_v3, 0),
    "zarr_zips": (zarr_zips, 0),
    "hdf5": (hdf5, 0),
    "rlds": (rlds, 0),
    "videos": (videos, CODEC),
}
WITH_NUMBERS = [name for name in FORMATS if name != "videos"]
# Where the episodes of a format stand in another order than they were made in.
ORDER = {"hdf5": (0, 2, 1)}
