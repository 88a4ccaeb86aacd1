"""The corpus of `tests.faults` in every other format, sound or with a fault that the format can carry, as files or in its recordings."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zarr
from PIL import Image

from mimicvideo.data.lerobot_files import write_json
from tests.faults import ACTION, BAD, CAMERAS, HZ, SIDE, STATE, Corpus, Recording, encode
from tests.rlds_episodes import write_tfrecord

NAMES: dict[str, Any] = {"robot": "test-arm", "proprio_names": STATE, "action_names": ACTION}
START = 1_700_000_000_000_000_000  # ns
PER_SHARD = 4


def recordings(corpus: Corpus, changed: dict[int, Recording] | None = None, extra: Sequence[Recording] = ()) -> list[Recording]:
    """Those of the corpus with some changed, and some more."""
    return [(changed or {}).get(index, clean) for index, clean in enumerate([*corpus.recordings, *extra])]


# -- RLDS ----------------------------------------------------------------------------------------------------------------------


@lru_cache
def features() -> Any:
    import tensorflow_datasets as tfds

    image = {name: tfds.features.Image(shape=(SIDE, SIDE, 3), dtype=np.uint8, encoding_format="png") for name in CAMERAS}
    numbers = {"state": tfds.features.Tensor(shape=(7,), dtype=np.float32)}
    step = {
        "observation": {**image, **numbers},
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
    }
    about = {"task": tfds.features.Text()}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": about})


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def serialised(recording: Recording, pictures: Callable[[str, int, bytes], bytes] = lambda name, row, content: content) -> bytes:
    """An episode as tfds writes it; `pictures` may spoil the files of its pictures."""
    steps = [
        {
            "observation": {
                **{name: io.BytesIO(pictures(name, row, png(recording.frames[name][row]))) for name in CAMERAS},
                "state": recording.states[row],
            },
            "action": recording.actions[row],
            "language_instruction": recording.instruction,
        }
        for row in range(len(recording.states))
    ]
    return features().serialize_example({"steps": steps, "episode_metadata": {"task": recording.task}})


_known: dict[int, tuple[Recording, bytes]] = {}


def _serialised(recording: Recording) -> bytes:
    """Sound recordings are those of many datasets: serialised once."""
    if id(recording) not in _known:
        _known[id(recording)] = (recording, serialised(recording))
    return _known[id(recording)][1]


def write_rlds(root: Path, made: Sequence[Recording]) -> None:
    root.mkdir(parents=True)
    features().save_config(root)
    write_shards(root, [_serialised(recording) for recording in made])


def shard(root: Path, index: int = BAD) -> Path:
    return sorted(root.glob("toy-train.tfrecord-*"))[index // PER_SHARD]


def write_shards(root: Path, records: Sequence[bytes]) -> None:
    parts = [records[start : start + PER_SHARD] for start in range(0, len(records), PER_SHARD)]
    for number, part in enumerate(parts):
        write_tfrecord(root / f"toy-train.tfrecord-{number:05d}-of-{len(parts):05d}", part)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    lengths = [str(len(part)) for part in parts]
    split = {"name": "train", "filepathTemplate": template, "shardLengths": lengths, "numBytes": str(sum(map(len, records)))}
    write_json(root / "dataset_info.json", {"name": "toy", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]})


def records(root: Path) -> list[bytes]:
    """What the files hold."""
    from mimicvideo.data.rlds.tfrecord import find_records

    found = []
    for path in sorted(root.glob("toy-train.tfrecord-*")):
        starts, lengths, _ = find_records(path)
        content = path.read_bytes()
        found += [content[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    return found


# -- zarr, HDF5, videos --------------------------------------------------------------------------------------------------------


def write_zarr(root: Path, made: Sequence[Recording]) -> None:
    """As the official preprocessing: a group per episode, times beside every stream."""
    container = zarr.open_group(root, mode="w", zarr_format=2)
    for index, recording in enumerate(made):
        write_zarr_episode(container.create_group(f"episode_{index}"), recording)


def write_zarr_episode(group: Any, recording: Recording) -> None:
    rows = len(recording.states)
    times = np.uint64(START) + np.arange(rows, dtype=np.uint64) * np.uint64(10**9 // HZ)
    streams = {**{f"{name}_rgb": frames for name, frames in recording.frames.items()}}
    for key, values in {**streams, "state_lowdim": recording.states, "action_lowdim": recording.actions}.items():
        chunks = (min(10 if key in streams else 1024, rows), *values.shape[1:])
        group.create_array(key, data=np.ascontiguousarray(values), chunks=chunks)
        group.create_array(f"{key}_timestamps", data=times, chunks=(rows,), compressors=None)
    for key, text in (("language_instruction", recording.instruction), ("task", recording.task)):
        group.create_array(key, data=np.array([text.encode() or b"\0"]), chunks=(1,))


def write_hdf5(root: Path, made: Sequence[Recording]) -> None:
    """As LIBERO: a file for each sentence, which an attribute gives; pictures on their heads."""
    root.mkdir(parents=True)
    by_text: dict[tuple[str, str], list[Recording]] = {}
    for recording in made:
        by_text.setdefault((recording.task, recording.instruction), []).append(recording)
    for number, ((task, text), members) in enumerate(by_text.items()):
        with h5py.File(root / f"{number}_{task}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["problem_info"] = json.dumps({"language_instruction": [text or " "]})
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": HZ, "robots": ["test-arm"]}})
            for place, recording in enumerate(members):
                demo = data.create_group(f"demo_{place}")
                demo["actions"] = recording.actions.astype(np.float64)
                demo["obs/pose"], demo["obs/gripper"] = recording.states[:, :6], recording.states[:, 6:]
                demo["task"] = task
                for name, frames in recording.frames.items():
                    demo.create_dataset(f"obs/{name}_rgb", data=frames[:, ::-1, ::-1], chunks=(1, SIDE, SIDE, 3), compression="gzip")


def hdf5_index(made: Sequence[Recording], index: int) -> int:
    """Where the reader finds a recording: file by file."""
    texts = list(dict.fromkeys((recording.task, recording.instruction) for recording in made))
    order = sorted(range(len(made)), key=lambda place: (texts.index((made[place].task, made[place].instruction)), place))
    return order.index(index)


def write_videos(root: Path, made: Sequence[Recording], corpus: Corpus) -> None:
    """The front camera alone, with captions beside it."""
    root.mkdir(parents=True)
    for index, recording in enumerate(made):
        clean = next((place for place, one in enumerate(corpus.recordings) if one.frames["front"] is recording.frames["front"]), None)
        path = root / f"clip_{index}.mp4"
        if clean is None:
            encode(path, recording.frames["front"])
        else:
            shutil.copy(corpus.videos[clean]["front"].path, path)
        if recording.instruction:
            path.with_suffix(".txt").write_text(recording.instruction + "\n", encoding="utf-8")


# -- all -----------------------------------------------------------------------------------------------------------------------

SPECS: dict[str, dict[str, Any]] = {
    "rlds": {
        "hz": HZ,
        "cameras": {name: f"observation/{name}" for name in CAMERAS},
        "proprio": ["observation/state"],
        "actions": ["action"],
        "task": "episode_metadata/task",
        **NAMES,
    },
    "zarr": {
        "cameras": {name: f"{name}_rgb" for name in CAMERAS},
        "proprio": ["state_lowdim"],
        "actions": ["action_lowdim"],
        "task": "task",
        **NAMES,
    },
    "hdf5": {
        "cameras": {name: f"obs/{name}_rgb" for name in CAMERAS},
        "rotate_180": list(CAMERAS),
        "proprio": ["obs/pose", "obs/gripper"],
        "actions": ["actions"],
        "task": "task",
        **NAMES,
    },
    "videos": {"robot": "test-arm", "cameras": {"front": "video"}},
}


def write_format(kind: str, root: Path, corpus: Corpus, made: Sequence[Recording]) -> None:
    """A dataset of this format, and its description beside it: `<root>.yaml`."""
    if kind == "videos":
        write_videos(root, made, corpus)
    else:
        {"rlds": write_rlds, "zarr": write_zarr, "hdf5": write_hdf5}[kind](root, made)
    spec_of(root).write_text(yaml.safe_dump(SPECS[kind]))


def spec_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.yaml")
