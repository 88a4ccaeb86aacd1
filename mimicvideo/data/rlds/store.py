"""RldsStore: one split of a dataset that tensorflow-datasets prepared: one record an episode, steps inside it."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mimicvideo.data.decode import resize
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.listing import Listing
from mimicvideo.data.rlds.example import Damaged
from mimicvideo.data.rlds.records import Record, index_shards
from mimicvideo.data.rlds.schema import Column, read_schema
from mimicvideo.data.rlds.values import count_rows, decode_picture, feature_digest, picture_spans, read_values
from mimicvideo.data.store import Entry, Store

log = logging.getLogger(__name__)


class RldsStore(Store):
    """Reads TFRecord and array_record files without TensorFlow. Pictures stay bytes until their rows are asked for.

    Keys are names joined by `/`, without the leading `steps/`: `observation/state`, `action`, `episode_metadata/file_path`. What an
    episode has once, such as `success`, is given for each of its rows. Features of varying length are no keys.

    Args:
        root: The folder of a version, with features.json and dataset_info.json, or of the dataset if that has one version only.
        split: Its name, such as train.

    Raises:
        DatasetError: If there is no such dataset or split, or its files hold more episodes than dataset_info.json says. An episode that
            is missing or damaged is an entry whose `numbers` say so.
    """

    def __init__(self, root: Path, split: str = "train") -> None:
        schema = read_schema(root, split)
        self.root, self._columns = schema.root, schema.columns
        if schema.left_out:
            log.info("features of %s that are not read: %s", self.root, "; ".join(f"{key} ({why})" for key, why in schema.left_out.items()))
        self.keys = {key: tuple(dim or 0 for dim in column.shape) for key, column in self._of_kind("number").items()}
        self.text_keys = list(self._of_kind("text"))
        self._shards = index_shards(self.root, split, schema.shards, functools.partial(count_rows, self._clock()))
        counts = []
        for shard, (_, expected) in zip(self._shards, schema.shards, strict=True):
            if len(shard.rows) > expected:
                raise DatasetError(
                    f"{shard.path} holds {len(shard.rows)} episodes, dataset_info.json says {expected}: mend shardLengths there, "
                    "or download the two files of the same version"
                )
            counts.append(np.append(np.maximum(shard.rows, 0), np.zeros(expected - len(shard.rows), np.int32)))
        self._firsts = np.cumsum([0, *(expected for _, expected in schema.shards)])  # number of each file's first episode
        rows = np.concatenate(counts)
        self.entries = Listing(np.arange(len(rows)), rows, self._entry, [""], np.zeros(len(rows), np.int32))  # entries have no tasks yet
        self.cameras = self._camera_sizes()
        self.defaults = self._customs()

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        columns = {key: self._columns[key] for key in keys}
        values = self._values(entry, list(columns.values()))
        return {key: self._per_row(entry, key, column, values[column]) for key, column in columns.items()}

    def texts(self, entry: Entry, key: str) -> list[str]:
        column = self._columns[key]
        sentences: dict[str, None] = {}
        for text in dict.fromkeys(self._values(entry, [column])[column].tolist()):
            try:
                lines = text.decode("utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise DatasetError(f"{entry.name}: {key} is no UTF-8 text: {text[:40]!r}") from error
            sentences.update(dict.fromkeys(line.strip() for line in lines if line.strip()))
        return list(sentences)

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        height, width = self.cameras[key]
        frames = np.empty((len(rows), height, width, 3), np.uint8)
        try:
            record = self._record(entry)
            spans = picture_spans(record, self._columns[key])
            for number, row in enumerate(rows.tolist()):
                if row >= len(spans):
                    raise Damaged(f"there are {len(spans)} pictures, none for row {row}")
                self._picture(record, spans[row], row, frames[number])
        except Damaged as error:
            raise VideoError(f"{entry.name}: {error}") from error
        return resize(frames, size)

    def identity(self, entry: Entry, key: str) -> list[Any]:
        column = self._columns[key]
        try:
            record = self._record(entry)
            return [self.cameras[key], feature_digest(record, column)]
        except Damaged as error:
            raise VideoError(f"{entry.name}: {error}") from error

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        shard, number = self._shards[entry.place[0]], entry.place[1]
        try:
            record = self._record(entry)
            if full and not shard.is_intact(number):
                return f"{entry.name} is damaged: its content does not fit its CRC"
            for key in cameras:
                spans = picture_spans(record, self._columns[key])
                if len(spans) != entry.rows:
                    return f"{entry.name} has {len(spans)} pictures {key} for {entry.rows} steps"
                pixels = np.empty((*self.cameras[key], 3), np.uint8)
                first = self._picture(record, spans[0], 0, pixels) if spans else np.ones(0)
                if not first.any() and len({record.read(start, end - start) for start, end in spans}) == 1:
                    return f"{entry.name} has no view {key}: all its pictures are black"
                for row, span in enumerate(spans if full else ()):
                    self._picture(record, span, row, pixels)
        except Damaged as error:
            return f"{entry.name}: {error}"
        return None

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        shards = [shard.path for shard in self._shards if shard.path.is_file()]
        return [self.root / "dataset_info.json", self.root / "features.json", *shards], shards

    def _entry(self, index: int) -> Entry:
        place = int(np.searchsorted(self._firsts, index, side="right")) - 1
        number, rows = index - int(self._firsts[place]), self._shards[place].rows
        count = max(0, int(rows[number])) if number < len(rows) else 0
        return Entry(index, f"{self._shards[place].path.name} record {number}", count, (place, number))

    def _record(self, entry: Entry) -> Record:
        return self._shards[entry.place[0]].record(entry.place[1])

    def _values(self, entry: Entry, columns: Sequence[Column]) -> Mapping[Column, np.ndarray]:
        try:
            return read_values(self._record(entry), columns)
        except Damaged as error:
            raise DatasetError(f"{entry.name}: {error}") from error

    def _per_row(self, entry: Entry, key: str, column: Column, values: np.ndarray) -> np.ndarray:
        if column.per_step:
            return values
        if len(values) != 1:
            raise DatasetError(f"{entry.name}: {key} has {len(values)} values for one episode")
        return np.repeat(values, entry.rows, axis=0)

    def _picture(
        self, record: Record, span: tuple[int, int], row: int, into: UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "height width 3"]:
        try:
            picture = decode_picture(record.read(span[0], span[1] - span[0]), into)
        except Damaged as error:
            raise Damaged(f"the picture of row {row} is {error}") from error
        if picture.shape != into.shape:
            sizes = [f"{height} x {width}" for height, width, _ in (picture.shape, into.shape)]
            raise Damaged(f"the picture of row {row} is {sizes[0]} pixels, not {sizes[1]}")
        return into

    def _of_kind(self, kind: str) -> dict[str, Column]:
        return {key: column for key, column in self._columns.items() if column.kind == kind}

    def _clock(self) -> Column:
        """The column that tells the number of steps most cheaply."""
        steps = [column for column in self._columns.values() if column.per_step]
        plain = [column for column in steps if column.kind == "number" and column.encoding == "none" and column.numbers]
        return min(plain, key=lambda column: column.numbers) if plain else steps[0]

    def _camera_sizes(self) -> dict[str, tuple[int, int]]:
        sizes = {}
        for key, column in self._of_kind("picture").items():
            height, width = column.shape[:2]
            sizes[key] = (height, width) if height and width else self._size_of_first(key)
        return sizes

    def _size_of_first(self, key: str) -> tuple[int, int]:
        """Of the first readable picture, where features.json does not say."""
        for entry in self.entries:
            try:
                record = self._record(entry)
                start, end = picture_spans(record, self._columns[key])[0]
                height, width = decode_picture(record.read(start, end - start)).shape[:2]
                return height, width
            except (Damaged, IndexError):
                continue
        raise DatasetError(f"{self.root} has no readable picture {key!r}")

    def _customs(self) -> dict[str, list[str]]:
        """The usual keys, as far as they are there."""
        usual = {
            "proprio": ("observation/state", "observation/proprio"),
            "actions": ("action",),
            "instruction": ("language_instruction", "observation/natural_language_instruction", "observation/language_instruction"),
        }
        found = {name: next((key for key in keys if key in self._columns), None) for name, keys in usual.items()}
        return {name: [key] for name, key in found.items() if key is not None}
