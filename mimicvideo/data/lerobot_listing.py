"""The episodes of a LeRobotDataset in columns, as its meta folder lists them in versions 2.0, 2.1 and 3.0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow import json as arrow_json

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot_files import AGAIN, read_lines, read_parquet

DATA_PATHS = {
    "v2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATHS = {
    "v2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
FIELDS = {"v2": ("episode_chunk", "episode_index"), "v3": ("chunk_index", "file_index")}
CHUNK_EPISODES = 1000  # in a folder of a v2 dataset that does not say
NEEDED = ("episode_index", "length", "data/chunk_index", "data/file_index")  # columns of meta/episodes of version 3.0
NOWHERE = -1  # chunk and file of a video that an episode does not have


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are: in `path`, from frame `first` on."""

    path: Path
    first: int


@dataclass(frozen=True)
class EpisodeTable:
    """All episodes by index. A million of them are a few arrays; what is asked of one is made when it is asked.

    Attributes:
        root: The dataset's folder.
        data_path: Of the file with an episode's rows, to be filled with `fields`.
        video_path: Of the file with its pictures, likewise and with `video_key`.
        fields: What these call a chunk and a file.
        indices: Numbers of the episodes, ascending.
        lengths: Their rows.
        told: Their sentences, lists of strings; null or empty where none are listed.
        task_names: Their tasks in their benchmark, which LeRobotWriter adds, or null; None if nobody did.
        data: Chunk and file of their rows.
        videos: By the key of the camera's feature, chunk and file of their pictures; `NOWHERE` if there are none.
        firsts: By the same key, the frame of that file which is an episode's first.
    """

    root: Path
    data_path: str
    video_path: str
    fields: tuple[str, str]
    indices: Int[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    told: pa.Array
    task_names: pa.Array | None
    data: Int[np.ndarray, "episodes 2"]
    videos: dict[str, Int[np.ndarray, "episodes 2"]]
    firsts: dict[str, Int[np.ndarray, " episodes"]]

    def __len__(self) -> int:
        return len(self.indices)

    def sentences(self, place: int) -> tuple[str, ...]:
        """The sentences that are listed with an episode."""
        return tuple(str(text) for text in self.told[place].as_py() or ())

    def task_name(self, place: int) -> str | None:
        """Its task in its benchmark."""
        return None if self.task_names is None else self.task_names[place].as_py()

    def video(self, place: int, key: str) -> VideoSpan | None:
        """Where its pictures of a camera are; None if it has none."""
        if key not in self.videos or self.videos[key][place, 0] == NOWHERE:
            return None
        return VideoSpan(self._path(self.video_path, self.videos[key][place], video_key=key), int(self.firsts[key][place]))

    @property
    def data_files(self) -> list[Path]:
        """All files with rows that are there."""
        return sorted(path for file in self._files if (path := self._path(self.data_path, file)).is_file())

    def video_files(self, keys: Sequence[str], places: Int[np.ndarray, " n"] | None = None) -> list[Path]:
        """All files with pictures of these cameras; of the episodes at these places only, if they are given."""
        files = []
        for key in keys:
            if key in self.videos:
                chosen = self.videos[key] if places is None else self.videos[key][places]
                files += self._paths(self.video_path, chosen[chosen[:, 0] != NOWHERE], video_key=key)
        return sorted(set(files))

    @cached_property
    def codes(self) -> Int[np.ndarray, " episodes"]:
        """A number for the data file of each episode."""
        return np.unique(_joined(self.data), return_inverse=True)[1].astype(np.int32)

    def file(self, code: int) -> Path:
        """The data file of a number in `codes`."""
        return self._path(self.data_path, self._files[code])

    @cached_property
    def _files(self) -> Int[np.ndarray, "files 2"]:
        return self.data[np.unique(self.codes, return_index=True)[1]]

    @cached_property
    def file_rows(self) -> Int[np.ndarray, " files"]:
        """Rows that each data file, by its number, holds of the listed episodes."""
        return np.bincount(self.codes, self.lengths).astype(np.int64)

    @cached_property
    def starts(self) -> Int[np.ndarray, " episodes"]:
        """The row of its data file at which each episode starts, if the episodes lie there one after the other, as is usual."""
        order = np.argsort(self.codes, kind="stable")
        before = np.cumsum(self.lengths[order]) - self.lengths[order]
        starts = np.empty(len(self), np.int64)
        starts[order] = before - (np.cumsum(self.file_rows) - self.file_rows)[self.codes[order]]
        return starts

    def by_file(self) -> Iterator[Int[np.ndarray, " n"]]:
        """The places of the episodes of each data file."""
        order = np.argsort(self.codes, kind="stable")
        return iter(np.split(order, np.cumsum(np.bincount(self.codes))[:-1]))

    def _path(self, template: str, place: Int[np.ndarray, " 2"], **key: str) -> Path:
        chunk, file = place.tolist()
        return self.root / template.format(**{self.fields[0]: chunk, self.fields[1]: file}, **key)

    def _paths(self, template: str, files: Int[np.ndarray, "n 2"], **key: str) -> list[Path]:
        first = np.unique(_joined(files), return_index=True)[1]
        return sorted({self._path(template, files[place], **key) for place in first.tolist()})


def read_v3(root: Path, info: dict[str, Any]) -> tuple[EpisodeTable, list[Path]]:
    """The episodes of a dataset of version 3.0, and the files that list them.

    Raises:
        DatasetError: If there is none, or one is damaged.
    """
    files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{root} is truncated: it has no meta/episodes/chunk-*/file-*.parquet; {AGAIN}")
    keys = _video_keys(info)
    try:
        table = pa.concat_tables([_small(root, path, keys) for path in files], promote_options="permissive")
        order = np.argsort(table["episode_index"].to_numpy(), kind="stable")
        if (np.diff(order) < 0).any():
            table = table.take(pa.array(order))
    except pa.ArrowException as error:
        raise DatasetError(f"the files of {root}/meta/episodes do not go together ({str(error).splitlines()[0]}): {AGAIN}") from error
    if lacks := [name for name in NEEDED if name not in table.column_names or table[name].null_count]:
        raise DatasetError(f"{root}/meta/episodes lacks {', '.join(lacks)} of some or all episodes: {AGAIN}")

    listing = _columns(root, info, keys, table)
    del table
    pa.default_memory_pool().release_unused()  # 130 MB after a million episodes, which Arrow would keep
    return listing, files


def _columns(root: Path, info: dict[str, Any], keys: Sequence[str], table: pa.Table) -> EpisodeTable:
    def pair(name: str) -> Int[np.ndarray, "episodes 2"]:
        return np.stack([table[f"{name}/{which}_index"].fill_null(NOWHERE).to_numpy() for which in ("chunk", "file")], axis=1)

    def firsts(key: str) -> Int[np.ndarray, " episodes"]:
        seconds = table[f"videos/{key}/from_timestamp"].fill_null(0.0).to_numpy()
        return np.round(seconds * float(info["fps"])).astype(np.int64)

    listed = [key for key in keys if f"videos/{key}/chunk_index" in table.column_names]
    none, named = pa.nulls(len(table), pa.list_(pa.string())), "task_name" in table.column_names
    return EpisodeTable(
        root,
        info.get("data_path") or DATA_PATHS["v3"],
        info.get("video_path") or VIDEO_PATHS["v3"],
        FIELDS["v3"],
        indices=table["episode_index"].to_numpy(),
        lengths=table["length"].to_numpy(),
        told=_array(table["tasks"]) if "tasks" in table.column_names else none,
        task_names=pa.array([name or None for name in table["task_name"].to_pylist()], pa.string()) if named else None,
        data=pair("data"),
        videos={key: pair(f"videos/{key}") for key in listed},
        firsts={key: firsts(key) for key in listed},
    )


def _small(root: Path, path: Path, keys: Sequence[str]) -> pa.Table:
    """What is wanted of a file of meta/episodes, in types that take no more memory than they must: there may be a million rows."""
    of_videos = [f"videos/{key}/{name}" for key in keys for name in ("chunk_index", "file_index", "from_timestamp")]
    table = read_parquet(root, path, [*NEEDED, "tasks", "task_name", *of_videos])
    types = {"length": pa.int64(), "episode_index": pa.int64()}
    for place, name in enumerate(table.column_names):
        if kind := types.get(name) or (pa.int32() if name.endswith(("/chunk_index", "/file_index")) else None):
            table = table.set_column(place, name, table[name].cast(kind))
    return table


def read_v2(root: Path, info: dict[str, Any]) -> tuple[EpisodeTable, list[Path]]:
    """The episodes of a dataset of version 2.0 or 2.1, one parquet file and one mp4 file per camera for each, and the file that lists them.

    Raises:
        DatasetError: If that is missing or damaged.
    """
    path = root / "meta" / "episodes.jsonl"
    table = _fast_lines(path)
    if table is None:
        table = _lines(root, path)
    index = table["episode_index"].to_numpy()
    order = np.argsort(index, kind="stable")
    if (np.diff(order) < 0).any():
        table = table.take(pa.array(order))
    index, lengths, told = index[order], table["length"].to_numpy(), _array(table["tasks"])
    del table
    pa.default_memory_pool().release_unused()
    chunks = index // int(info.get("chunks_size") or CHUNK_EPISODES)
    files = np.stack([chunks, index], axis=1).astype(np.int32)
    return EpisodeTable(
        root,
        info.get("data_path") or DATA_PATHS["v2"],
        info.get("video_path") or VIDEO_PATHS["v2"],
        FIELDS["v2"],
        indices=index,
        lengths=lengths,
        told=told,
        task_names=None,
        data=files,
        videos=dict.fromkeys(_video_keys(info), files),
        firsts=dict.fromkeys(_video_keys(info), np.zeros(len(index), np.int64)),
    ), [path]


LINE = pa.schema([("episode_index", pa.int64()), ("length", pa.int64()), ("tasks", pa.list_(pa.string()))])


def _fast_lines(path: Path) -> pa.Table | None:
    """The lines of a file of episodes as Arrow reads them, several times as fast as `_lines`; None if it does not like them."""
    try:
        options = arrow_json.ParseOptions(explicit_schema=LINE, unexpected_field_behavior="ignore")
        table = arrow_json.read_json(path, parse_options=options)
        table.validate(full=True)  # whether all texts are UTF-8
    except (pa.ArrowException, OSError):
        return None
    return None if table["episode_index"].null_count or table["length"].null_count else table


def _lines(root: Path, path: Path) -> pa.Table:
    """The same line by line. Raises DatasetError, naming the line that is wrong."""
    rows = [
        (int(row["episode_index"]), int(row["length"]), [str(text) for text in row.get("tasks") or ()])
        for row in read_lines(root, path, ("episode_index", "length"))
    ]
    return pa.table([list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []], schema=LINE)


def first_sentences(told: pa.Array) -> pa.Array:
    """The first string of each list; null where there is none."""
    lengths = told.value_lengths().fill_null(0).to_numpy()
    firsts = np.cumsum(lengths) - lengths  # in the strings of all lists, one after the other
    return told.flatten().take(pa.array(firsts, pa.int64(), mask=lengths == 0))


def _video_keys(info: dict[str, Any]) -> list[str]:
    return [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]


def _array(column: pa.ChunkedArray) -> pa.Array:
    """In one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _joined(pairs: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Chunk and file as one number, in the same order."""
    return (pairs[:, 0].astype(np.int64) << 32) | pairs[:, 1]
