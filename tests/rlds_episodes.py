"""Small RLDS datasets in the schema of bridge_dataset, prepared as tensorflow-datasets does, without TensorFlow."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CAMERAS = [f"image_{number}" for number in range(4)]
NAME = "bridge_dataset"


@dataclass
class MadeRlds:
    """A dataset and what was put into it, by episode."""

    root: Path
    actions: list[np.ndarray]
    states: list[np.ndarray]
    pictures: list[dict[str, np.ndarray]]  # by camera, [rows, height, width, 3]
    sentences: list[str]

    def shard(self, number: int = 0) -> Path:
        return sorted(self.root.glob(f"{NAME}-train.*"))[number]


def features(size: tuple[int, int] = (32, 48), encoding: str = "none", picture: str = "jpeg") -> Any:
    """tfds' description of the schema. States can be packed: `bytes`, `zlib`."""
    import tensorflow_datasets as tfds

    images = {name: tfds.features.Image(shape=(*size, 3), dtype=np.uint8, encoding_format=picture) for name in CAMERAS}
    state = tfds.features.Tensor(shape=(7,), dtype=np.float32, encoding=encoding)
    flags = {name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    step = {
        "observation": {**images, "state": state},
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        **flags,
        "language_instruction": tfds.features.Text(),
        "language_embedding": tfds.features.Tensor(shape=(512,), dtype=np.float32),
    }
    about = {"file_path": tfds.features.Text(), "has_image_0": tfds.features.Scalar(dtype=np.bool_)}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), "episode_metadata": about})


def content(episode: int, rows: int, size: tuple[int, int] = (32, 48), absent: Sequence[str] = ()) -> dict[str, Any]:
    """What an episode holds, with pictures as arrays. Views that are absent are black."""
    random = np.random.default_rng(episode)
    ramp = np.add.outer(np.linspace(0, 120, size[0]), np.linspace(0, 60, size[1]))
    pictures = {}
    for number, camera in enumerate(CAMERAS):
        shades = [ramp + 3 * (row % 20) + 5 * (episode % 4) for row in range(rows)]
        colours = [np.stack([shade, shade[:, ::-1], 0 * shade + 60 * number], -1) for shade in shades]
        pictures[camera] = np.array(colours).reshape(rows, *size, 3).astype(np.uint8) * (camera not in absent)
    return {
        "pictures": pictures,
        "state": random.normal(size=(rows, 7)).astype(np.float32),
        "action": random.normal(size=(rows, 7)).astype(np.float32),
        "sentence": f"put block {episode} on the plate",
        "file_path": f"/data/success/{episode}.npy",
    }


def encoded(picture: np.ndarray, kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return buffer.getvalue()


def example(made: dict[str, Any], kind: str = "jpeg") -> dict[str, Any]:
    """The same as a builder would yield it."""
    rows = len(made["state"])
    steps = [
        {
            "observation": {
                **{camera: io.BytesIO(encoded(made["pictures"][camera][row], kind)) for camera in CAMERAS},
                "state": made["state"][row],
            },
            "action": made["action"][row],
            "discount": 1.0,
            "reward": float(row == rows - 1),
            "is_first": row == 0,
            "is_last": row == rows - 1,
            "is_terminal": row == rows - 1,
            "language_instruction": made["sentence"],
            "language_embedding": np.zeros(512, np.float32),
        }
        for row in range(rows)
    ]
    return {"steps": steps, "episode_metadata": {"file_path": made["file_path"], "has_image_0": True}}


def serialised(made: dict[str, Any], described: Any, kind: str = "jpeg") -> bytes:
    """An episode as tfds' own serializer writes it."""
    return described.serialize_example(example(made, kind))


def write_tfrecord(path: Path, records: Sequence[bytes]) -> None:
    """By TensorBoard's writer."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
        writer.flush()


def write_array_record(path: Path, records: Sequence[bytes]) -> None:
    """By the library that tfds uses, with its options."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def make_rlds(
    root: Path,
    lengths: Sequence[int] = (7, 5, 9, 6),
    shards: int = 2,
    file_format: str = "tfrecord",
    size: tuple[int, int] = (32, 48),
    encoding: str = "none",
    picture: str = "jpeg",
    absent: dict[int, Sequence[str]] | None = None,
) -> MadeRlds:
    """Writes a split `train`, as many episodes to each file."""
    root.mkdir(parents=True, exist_ok=True)
    described = features(size, encoding, picture)
    described.save_config(root)
    made = [content(number, rows, size, (absent or {}).get(number, ())) for number, rows in enumerate(lengths)]
    records = [serialised(one, described, picture) for one in made]
    parts = np.array_split(np.arange(len(records)), shards)
    for number, part in enumerate(parts):
        path = root / f"{NAME}-train.{file_format}-{number:05d}-of-{shards:05d}"
        {"tfrecord": write_tfrecord, "array_record": write_array_record}[file_format](path, [records[index] for index in part])
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(len(part)) for part in parts],
        "numBytes": str(sum(map(len, records))),
    }
    info = {"name": NAME, "version": "1.0.0", "fileFormat": file_format, "splits": [split]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    return MadeRlds(
        root,
        [one["action"] for one in made],
        [one["state"] for one in made],
        [one["pictures"] for one in made],
        [one["sentence"] for one in made],
    )
