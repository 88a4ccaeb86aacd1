"""The rows of a LeRobotDataset, read from its parquet files when they are asked for, a stretch of many episodes at a time."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot_files import AGAIN, damaged, open_parquet
from mimicvideo.data.lerobot_meta import Meta

EPISODE, FRAME = "episode_index", "frame_index"
STRETCH_ROWS = 2**14  # row groups are read together up to about so many rows: LeRobot writes one per episode, which are slow one by one
KEPT_BYTES = 2**30  # of columns, in each process: 19 million rows of 14 float32 numbers
KEPT_FILES = 2**17  # of which is known where their stretches lie: a version 2 dataset has one for each episode
KEPT_FOOTERS = 4  # that of a file with a row group for each of thousands of episodes takes 10 ms to parse

Column = Any  # np.ndarray [rows, numbers], or a pa.Array of strings


@dataclass(frozen=True)
class _File:
    """What is known of a parquet file: its columns, and its row groups put together to stretches.

    Attributes:
        names: Of its columns.
        groups: Of each stretch.
        ends: The row after the last of each stretch.
    """

    names: tuple[str, ...]
    groups: list[range]
    ends: Int[np.ndarray, " stretches"]

    @property
    def rows(self) -> int:
        """Of the whole file."""
        return int(self.ends[-1])


class LeRobotRows:
    """Columns of single episodes. What was read last stays in memory, up to `KEPT_BYTES`: whoever goes through the episodes in their
    order reads every file once, and a small dataset is read once altogether.

    Args:
        meta: Of the dataset.
    """

    def __init__(self, meta: Meta) -> None:
        self._meta = meta
        self._forget()

    def read(self, place: int, names: Sequence[str]) -> dict[str, Column]:
        """An episode's columns in the order of its frames, in the type they are stored in; null becomes NaN.

        Args:
            place: Of the episode in the listing.
            names: Of features.

        Raises:
            DatasetError: If the file is missing or damaged, lacks a column, or holds another number of rows of the episode.
        """
        code, rows = int(self._meta.listing.codes[place]), self.rows(place)
        if isinstance(rows, slice):
            return dict(zip(names, self._columns(code, names, rows.start, rows.stop), strict=True))
        whole = self._columns(code, names, 0, self.count(code))
        return {
            name: values.take(pa.array(rows)) if isinstance(values, pa.Array) else values[rows]
            for name, values in zip(names, whole, strict=True)
        }

    def rows(self, place: int) -> slice | Int[np.ndarray, " rows"]:
        """Where in its file an episode's rows are, in the order of its frames.

        Raises:
            DatasetError: As for `read`.
        """
        listing = self._meta.listing
        code, index, length = int(listing.codes[place]), int(listing.indices[place]), int(listing.lengths[place])
        start = int(listing.starts[place])
        if self.count(code) == listing.file_rows[code]:
            episode, frame = self._columns(code, (EPISODE, FRAME), start, start + length)
            if (episode == index).all() and (np.diff(frame, axis=0) > 0).all():
                return slice(start, start + length)
        episode, frame = (values[:, 0] for values in self._columns(code, (EPISODE, FRAME), 0, self.count(code)))
        rows = np.flatnonzero(episode == index)
        if len(rows) != length:
            raise DatasetError(f"episode {index} has {len(rows)} rows, {self._meta.listed_in} says {length}; {AGAIN}")
        return rows[np.argsort(frame[rows], kind="stable")]

    def count(self, code: int) -> int:
        """Rows of a data file, by its number in the listing."""
        return self._file(code).rows

    def names(self, place: int) -> tuple[str, ...]:
        """The columns of an episode's file."""
        return self._file(int(self._meta.listing.codes[place])).names

    def stretches(self, code: int, names: Sequence[str]) -> Iterator[list[Column]]:
        """A data file's columns, a stretch of rows after the other."""
        for number in range(len(self._file(code).groups)):
            yield self._stretch(code, number, names)

    def _columns(self, code: int, names: Sequence[str], start: int, stop: int) -> list[Column]:
        """Rows of a file, which may lie in several stretches."""
        file = self._file(code)
        first = int(np.searchsorted(file.ends, start, side="right"))
        last = max(first, int(np.searchsorted(file.ends, stop, side="left")))
        parts = []
        for number in range(first, min(last + 1, len(file.ends))):
            begin = int(file.ends[number - 1]) if number else 0
            part = slice(max(start - begin, 0), stop - begin)
            parts.append([values[part] for values in self._stretch(code, number, names)])
        if not parts:  # an episode without rows at the end of its file
            parts = [[values[:0] for values in self._stretch(code, len(file.ends) - 1, names)]]
        return parts[0] if len(parts) == 1 else [_joined(columns) for columns in zip(*parts, strict=True)]

    def _file(self, code: int) -> _File:
        with self._lock:
            if code in self._files:
                self._files.move_to_end(code)
                return self._files[code]
            with open_parquet(self._meta.root, self._meta.listing.file(code)) as file:
                footer, names = file.metadata, tuple(file.schema_arrow.names)
            self._keep_footer(code, footer)
            ends = np.cumsum([footer.row_group(group).num_rows for group in range(footer.num_row_groups)], dtype=np.int64)
            if not len(ends):
                raise DatasetError(f"{self._meta.listing.file(code)} holds no rows: {AGAIN}")
            number = (ends - 1) // STRETCH_ROWS  # of the stretch, with gaps where a group is larger
            last = np.flatnonzero(np.diff(number, append=number[-1] + 1))
            firsts = [0, *(last[:-1] + 1).tolist()]
            groups = [range(first, end + 1) for first, end in zip(firsts, last.tolist(), strict=True)]
            self._files[code] = found = _File(self._names.setdefault(names, names), groups, ends[last])
            if len(self._files) > KEPT_FILES:
                self._files.popitem(last=False)
            return found

    def _stretch(self, code: int, number: int, names: Sequence[str]) -> list[Column]:
        file = self._file(code)
        with self._lock:
            kept = self._kept.setdefault((code, number), {})
            self._kept.move_to_end((code, number))
            if missing := [name for name in names if name not in kept]:
                kept.update(zip(missing, self._load(code, file, number, missing), strict=True))
                self._bytes += sum(kept[name].nbytes for name in missing)
                while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                    self._bytes -= sum(values.nbytes for values in self._kept.popitem(last=False)[1].values())
            return [kept[name] for name in names]

    def _load(self, code: int, file: _File, number: int, names: Sequence[str]) -> list[Column]:
        path = self._meta.listing.file(code)
        if not path.is_file():
            raise DatasetError(f"{self._meta.root} is truncated: {path.relative_to(self._meta.root)} is missing; {AGAIN}")
        if lacks := [name for name in names if name not in file.names]:
            raise DatasetError(f"{path} lacks the column {lacks[0]}: {AGAIN}")
        with damaged(path), pq.ParquetFile(path, metadata=self._footers.get(code)) as parquet:
            self._keep_footer(code, parquet.metadata)
            table = parquet.read_row_groups(list(file.groups[number]), columns=list(names))
        return [self._converted(table[name].combine_chunks(), path, name) for name in names]

    def _keep_footer(self, code: int, footer: pq.FileMetaData) -> None:
        self._footers[code] = footer
        self._footers.move_to_end(code)
        if len(self._footers) > KEPT_FOOTERS:
            self._footers.popitem(last=False)

    def _converted(self, column: Any, path: Any, name: str) -> Column:
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return column
        values, shape = _matrix(column, path, name), self._meta.features.get(name, {}).get("shape")
        if shape is not None and values.shape[1] != prod(int(side) for side in shape):
            raise DatasetError(f"{path} holds {values.shape[1]} numbers of {name} per row, meta/info.json says {list(shape)}: {AGAIN}")
        return values

    def _forget(self) -> None:
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}  # files have the same, which are kept once
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._kept: OrderedDict[tuple[int, int], dict[str, Column]] = OrderedDict()  # by file and stretch
        self._bytes, self._lock = 0, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: another process reads its own."""
        return {"_meta": self._meta}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._meta = state["_meta"]
        self._forget()


def _joined(parts: Sequence[Column]) -> Column:
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)


def _matrix(values: pa.Array, path: Any, name: str) -> np.ndarray:
    """A column of equally long, perhaps nested lists, or of plain numbers, as [rows, numbers]; null becomes NaN, which the scan reports.

    Raises:
        DatasetError: If rows are missing or not equally long.
    """
    rows, nested = len(values), False
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type):
        if values.null_count:
            raise DatasetError(f"{path} has {values.null_count} rows without {name}: {AGAIN}")
        values, nested = values.flatten(), True
    flat = np.require(values.to_numpy(zero_copy_only=False), requirements="W")  # Arrow's own memory is not to be written to
    if flat.dtype.kind not in "fiub":
        raise DatasetError(f"{path} holds {values.type} where numbers of {name} should be: {AGAIN}")
    if nested and (rows == 0 or len(flat) % rows):
        raise DatasetError(f"{path} holds {len(flat)} numbers of {name} in {rows} rows, which are not equally long: {AGAIN}")
    return flat.reshape(rows, -1)
