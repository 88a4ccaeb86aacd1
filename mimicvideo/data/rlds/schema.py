"""What features.json and dataset_info.json say of a dataset that tensorflow-datasets prepared: its columns, splits and files.

Both are read as JSON. tfds would import whatever class they name, which a dataset has no business to ask for.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mimicvideo.data.errors import DatasetError
from mimicvideo.messages import similar

Kind = Literal["number", "text", "picture"]


@dataclass(frozen=True)
class Column:
    """One feature.

    Attributes:
        stored: Its name in the records.
        kind: Numbers, sentences or pictures.
        shape: Of one row of numbers; height, width and 3 of a picture, None where they are not said.
        dtype: Of the numbers.
        encoding: `none`, or that each row is a string of the array's bytes, as they are (`bytes`) or compressed (`zlib`).
        per_step: Whether each step has a row; otherwise the episode has one.
    """

    stored: str
    kind: Kind
    shape: tuple[int | None, ...] = ()
    dtype: str = ""
    encoding: str = "none"
    per_step: bool = True

    @property
    def numbers(self) -> int:
        """How many a row has."""
        return math.prod(dim or 0 for dim in self.shape)


@dataclass(frozen=True)
class Schema:
    """A dataset's columns by key, its file format, and one split's files.

    Attributes:
        root: The folder of the prepared version.
        file_format: tfrecord or array_record.
        columns: By key: names joined by `/`, without `steps/`.
        shards: The split's files in order, and how many episodes each has.
        left_out: Features that cannot be columns, with the reason.
    """

    root: Path
    file_format: str
    columns: dict[str, Column]
    shards: list[tuple[Path, int]]
    left_out: dict[str, str]


def read_schema(root: Path, split: str) -> Schema:
    """What a prepared dataset consists of.

    Args:
        root: The folder of a version, or the dataset's folder if that has one version only.
        split: Its name.

    Raises:
        DatasetError: If there is no prepared dataset, several versions, no such split, or no file of it.
    """
    root = _version_folder(root)
    features, info = _json(root / "features.json"), _json(root / "dataset_info.json")
    file_format = str(info.get("fileFormat") or "tfrecord")
    if file_format not in ("tfrecord", "array_record"):
        raise DatasetError(f"{root} is of format {file_format!r}: tfrecord and array_record are read. Convert it with tfds convert_format")
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    for path, node in _leaves(features, (), root / "features.json"):
        per_step = path[0] == "steps" and len(path) > 1
        stored, key = "/".join(path), "/".join(path[1:] if per_step else path)
        column = _column(stored, node, per_step)
        if isinstance(column, str):
            left_out[stored] = column
        elif key not in columns or per_step:  # a step's feature goes before an episode's of the same name
            if key in columns:
                left_out[columns[key].stored] = f"{stored} has the same name"
            columns[key] = column
        else:
            left_out[stored] = f"{columns[key].stored} has the same name"
    if not any(column.per_step for column in columns.values()):
        raise DatasetError(f"{root} holds no episodes: its features.json has no steps")
    return Schema(root, file_format, columns, _shards(root, info, split, file_format), left_out)


def _version_folder(root: Path) -> Path:
    if (root / "features.json").is_file():
        return root
    versions = sorted(path.parent for path in root.glob("*/features.json"))
    if not versions:
        raise DatasetError(f"{root} holds no dataset that tensorflow-datasets prepared: there is no features.json")
    if len(versions) > 1:
        raise DatasetError(f"{root} has several versions: give one of {', '.join(str(path) for path in versions)}")
    return versions[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: download the whole folder of the dataset's version") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds no mapping")
    return content


def _leaves(node: Any, path: tuple[str, ...], file: Path) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Features that hold no others, with the names that lead there. The dataset of steps counts as a mapping."""
    if not isinstance(node, dict) or "type" in node:
        raise DatasetError(
            f"{file}: {'/'.join(path) or 'the top'} is no feature as tensorflow-datasets writes it today: prepare the dataset anew"
        )
    if "featuresDict" in node:
        for name, child in (node["featuresDict"].get("features") or {}).items():
            yield from _leaves(child, (*path, name), file)
    elif path == ("steps",) and "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], path, file)
    elif path:
        yield path, node


def _column(stored: str, node: dict[str, Any], per_step: bool) -> Column | str:
    """What a feature is, or why it cannot be a column."""
    before: tuple[int, ...] = ()
    while "sequence" in node:
        length = int(node["sequence"].get("length") or -1)
        if length < 1:
            return "its length varies"
        before, node = (*before, length), node["sequence"]["feature"]
    if "text" in node:
        return Column(stored, "text", per_step=per_step)
    if "classLabel" in node:
        return Column(stored, "number", before, "int64", per_step=per_step)
    if "image" in node:
        image = node["image"]
        shape = _shape(image) or (None, None, None)
        if before or len(shape) != 3 or shape[2] not in (3, None) or image.get("dtype", "uint8") != "uint8":
            return f"pictures of shape {shape} and type {image.get('dtype')} are no colours"
        return Column(stored, "picture", (*shape[:2], 3), "uint8", per_step=per_step)
    if "tensor" not in node:
        return f"a {str(node.get('pythonClassName')).rsplit('.', 1)[-1]} is not read"
    tensor = node["tensor"]
    shape, dtype = _shape(tensor), str(tensor.get("dtype"))
    if dtype in ("string", "object"):
        return Column(stored, "text", per_step=per_step)
    if None in shape:
        return "its shape varies"
    try:
        np.dtype(dtype)
    except TypeError:
        return f"numbers of type {dtype} are not read"
    encoding = str(tensor.get("encoding") or "none").lower()
    if encoding not in ("none", "bytes", "zlib") or (before and encoding != "none"):
        return f"encoding {encoding} is not read"
    return Column(stored, "number", (*before, *shape), dtype, encoding, per_step)


def _shape(node: dict[str, Any]) -> tuple[int | None, ...]:
    dims = (int(dim) for dim in (node.get("shape") or {}).get("dimensions") or ())
    return tuple(dim if dim >= 0 else None for dim in dims)


def _shards(root: Path, info: dict[str, Any], split: str, file_format: str) -> list[tuple[Path, int]]:
    splits = {str(entry.get("name")): entry for entry in info.get("splits") or ()}
    if split not in splits:
        hint = similar(split, splits)
        raise DatasetError(f"{root} has no split {split!r}{hint}; it has {', '.join(splits) or 'none'}. Set split in its description")
    lengths = [int(length) for length in splits[split].get("shardLengths") or ()]
    if not lengths:
        raise DatasetError(f"{root / 'dataset_info.json'} lists no files of split {split!r}")
    template = splits[split].get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    shards = []
    for number, length in enumerate(lengths):
        parts = {
            "DATASET": str(info.get("name")),
            "SPLIT": split,
            "FILEFORMAT": file_format,
            "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
            "SHARD_INDEX": f"{number:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
        }
        name = template
        for part, value in parts.items():
            name = name.replace("{" + part + "}", value)
        if Path(name).name != name:
            raise DatasetError(f"{root / 'dataset_info.json'}: the files of split {split!r} should lie beside it, not at {name!r}")
        shards.append((root / name, length))
    if not any(path.is_file() for path, _ in shards):
        raise DatasetError(f"{root} has none of the {len(shards)} files of split {split!r}, such as {shards[0][0].name}")
    return shards
