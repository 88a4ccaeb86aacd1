"""The corpus of `tests.faults` in every other format, sound or with a fault that the format can carry, as files or in its recordings."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
import zarr
from PIL import Image

from mimicvideo.data.lerobot_files import write_json
from mimicvideo.data.video_encoding import encode_video
from tests.faults import ACTION, BAD, CAMERAS, CODEC, HZ, SIDE, STATE, Corpus, Recording, encode, record
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


# -- faults of files -----------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], Any]
GERMAN = "Hebe den roten Würfel auf und lege ihn ab."


def overwritten(path: Path, share: float = 0.5, count: int = 400) -> None:
    """Puts noise into the middle of a file."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * share)
    count = min(count, len(content) - start)
    content[start : start + count] = np.random.default_rng(0).integers(0, 256, count, np.uint8).tobytes()
    path.write_bytes(bytes(content))


def cut(path: Path, share: float = 0.6) -> None:
    """Loses the end of a file."""
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def record_changed(change: Callable[[Recording], bytes]) -> Damage:
    """The record of the bad episode is another, with a CRC that fits."""

    def damage(root: Path) -> None:
        content = records(root)
        content[BAD] = change(record(BAD))
        for path in root.glob("toy-train.tfrecord-*"):
            path.unlink()
        write_shards(root, content)

    return damage


def spoiled(change: Callable[[bytes], bytes]) -> Damage:
    """One picture of the front camera is another."""

    def pictures(name: str, row: int, content: bytes) -> bytes:
        return change(content) if (name, row) == ("front", 7) else content

    return record_changed(lambda recording: serialised(recording, pictures))


def bytes_in_record(root: Path) -> None:
    from mimicvideo.data.rlds.tfrecord import find_records

    starts, lengths, _ = find_records(shard(root))
    content = bytearray(shard(root).read_bytes())
    start, length = int(starts[BAD % PER_SHARD]), int(lengths[BAD % PER_SHARD])
    # The order of a record's features is another in every process: the bytes are those of a picture of the front camera.
    inside = content.index(b"steps/observation/front", start, start + length) + 400
    content[inside : inside + 50] = bytes(50)
    shard(root).write_bytes(bytes(content))


def with_nan(recording: Recording) -> Recording:
    states = recording.states.copy()
    states[3, 2] = np.nan
    return replace(recording, states=states)


def array(key: str, values: Callable[[Recording], np.ndarray]) -> Damage:
    """An array of the bad zarr episode is another."""

    def damage(root: Path) -> None:
        group: Any = zarr.open_group(root, mode="r+")[f"episode_{BAD}"]
        del group[key]
        group.create_array(key, data=values(record(BAD)))

    return damage


def stamps(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """All streams of the bad zarr episode have other times, in seconds."""

    def damage(root: Path) -> None:
        group: Any = zarr.open_group(root, mode="r+")[f"episode_{BAD}"]
        times = np.uint64(START) + (change(np.arange(len(record(BAD).states)) / HZ) * 1e9).astype(np.uint64)
        for key in [key for key in group if key.endswith("_timestamps")]:
            del group[key]
            group.create_array(key, data=times)

    return damage


def chunks(root: Path, key: str = "front_rgb") -> list[Path]:
    return sorted(path for path in (root / f"episode_{BAD}" / key).iterdir() if not path.name.startswith("."))


def second_chunk(damage: Damage) -> Damage:
    return lambda root: damage(chunks(root)[1])


def task_file(root: Path) -> Path:
    """That of `lift`, whose second demonstration is recording 3."""
    return root / "0_lift_demo.hdf5"


def demonstration(change: Callable[[Any], Any]) -> Damage:
    def damage(root: Path) -> None:
        with h5py.File(task_file(root), "r+") as file:
            change(file["data/demo_1"])

    return damage


def replaced(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def apply(demo: Any) -> None:
        values = change(demo[key][()])
        del demo[key]
        demo[key] = values

    return demonstration(apply)


def compressed_bytes(root: Path) -> None:
    with h5py.File(task_file(root)) as file:
        place = file["data/demo_1/obs/front_rgb"].id.get_chunk_info(9)
    content = bytearray(task_file(root).read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    task_file(root).write_bytes(bytes(content))


def clip(damage: Damage) -> Damage:
    return lambda root: damage(root / f"clip_{BAD}.mp4")


def caption(content: str | bytes) -> Damage:
    def damage(root: Path) -> None:
        path = root / f"clip_{BAD}.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def nan_values(values: np.ndarray) -> np.ndarray:
    values[3, 2] = np.nan
    return values


SHARD = (4, 5, 6, 7)  # episodes of the bad one's file
# What is done to the files of a sound dataset; the kind that the audit must give it, and to which episodes, None being the dataset.
DAMAGES: dict[str, dict[str, tuple[Damage, str, tuple[int | None, ...]]]] = {
    "rlds": {
        "changed_bytes": (bytes_in_record, "corrupt_video", (BAD,)),
        "truncated_file": (lambda root: cut(shard(root)), "corrupt_video", (6, 7)),
        "missing_file": (lambda root: shard(root).unlink(), "missing_video", SHARD),
        "empty_file": (lambda root: emptied(shard(root)), "corrupt_video", SHARD),
        "small_picture": (spoiled(lambda _: png(np.full((32, 32, 3), 90, np.uint8))), "wrong_resolution", (BAD,)),
        "broken_picture": (spoiled(lambda content: content[: len(content) // 2]), "corrupt_video", (BAD,)),
        "no_example": (record_changed(lambda _: b"\xff" * 100), "unusable", (BAD,)),
        "nan": (record_changed(lambda recording: serialised(with_nan(recording))), "not_finite", (BAD,)),
    },
    "zarr": {
        "gap": (stamps(lambda times: times + 0.7 * (times >= 2)), "timestamp_gap", (BAD,)),
        "rate": (stamps(lambda times: times * 2), "wrong_rate", (BAD,)),
        "back": (stamps(lambda times: np.where(np.arange(len(times)) == 20, 0.1, times)), "timestamps_not_increasing", (BAD,)),
        "repeated_times": (stamps(lambda times: np.minimum(times, 3.0)), "timestamps_not_increasing", (BAD,)),
        "missing_chunk": (second_chunk(Path.unlink), "missing_video", (BAD,)),
        "changed_chunk": (second_chunk(overwritten), "corrupt_video", (BAD,)),
        "empty_chunk": (second_chunk(emptied), "corrupt_video", (BAD,)),
        "short": (array("front_rgb", lambda recording: recording.frames["front"][:20]), "short_video", (BAD,)),
        "small": (array("front_rgb", lambda recording: recording.frames["front"][:, :32, :32]), "wrong_resolution", (BAD,)),
        "no_pictures": (lambda root: shutil.rmtree(root / f"episode_{BAD}/front_rgb"), "missing_video", (BAD,)),
        "no_states": (lambda root: shutil.rmtree(root / f"episode_{BAD}/state_lowdim"), "unusable", (BAD,)),
        "metadata": (lambda root: (root / f"episode_{BAD}/front_rgb/.zarray").write_text("{"), "corrupt_video", (BAD,)),
        "nan": (array("state_lowdim", lambda recording: with_nan(recording).states), "not_finite", (BAD,)),
    },
    "hdf5": {
        "short": (replaced("obs/front_rgb", lambda values: values[:20]), "short_video", (1,)),
        "small": (replaced("obs/front_rgb", lambda values: values[:, :32, :32]), "wrong_resolution", (1,)),
        "no_pictures": (demonstration(lambda demo: demo.pop("obs/front_rgb")), "missing_video", (1,)),
        "no_actions": (demonstration(lambda demo: demo.pop("actions")), "unusable", (1,)),
        "changed_bytes": (compressed_bytes, "corrupt_video", (1,)),
        "nan": (replaced("actions", nan_values), "not_finite", (1,)),
        "truncated_file": (lambda root: cut(task_file(root)), "corrupt_video", (0,)),
        "empty_file": (lambda root: emptied(task_file(root)), "corrupt_video", (0,)),
    },
    "videos": {
        "truncated": (clip(cut), "corrupt_video", (BAD,)),
        "empty": (clip(emptied), "corrupt_video", (BAD,)),
        "changed_bytes": (clip(lambda path: overwritten(path, 0.45)), "corrupt_video", (BAD,)),
        "rate": (clip(lambda path: encode_video(path, record(BAD).frames["front"], HZ // 2, CODEC)), "wrong_rate", (BAD,)),
        "small": (
            clip(lambda path: encode_video(path, np.ascontiguousarray(record(BAD).frames["front"][:, :32, :32]), HZ, CODEC)),
            "wrong_resolution",
            (BAD,),
        ),
        "missing": (clip(Path.unlink), "missing_video", (None,)),  # only its caption tells of it
        "empty_caption": (caption("\n"), "no_instruction", (BAD,)),
        "missing_caption": (lambda root: (root / f"clip_{BAD}.txt").unlink(), "no_instruction", (BAD,)),
        "german_caption": (caption(GERMAN), "other_language", (BAD,)),
        "caption_in_latin_1": (caption("Öffne die Tür.".encode("latin-1")), "unusable", (BAD,)),
    },
}
