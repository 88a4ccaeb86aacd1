"""LeRobotStore: a LeRobotDataset of any number of states, actions and cameras, with pictures in videos or in the rows themselves."""

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from mimicvideo.data.decode import VideoFacts, decode_frames, resize
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.identity import file_identity, video_identity
from mimicvideo.data.lerobot_meta import AGAIN, Listed, Meta, feature_names, read_meta, read_parquet
from mimicvideo.data.lerobot_tables import ACTION, STATE, matrix
from mimicvideo.data.scan import changed_files, look, video_problem
from mimicvideo.data.store import Entry, Store

NUMBERS = ("float", "int", "uint", "bool")
KEPT_FILES = 4  # parquet files whose columns are kept in memory: a file holds many episodes, which are read one after another


class LeRobotStore(Store):
    """Reads versions 2.0, 2.1 and 3.0.

    Sentences are `task`, what the meta folder says an episode's tasks are, and every feature of strings; `task_name` is LeRobotWriter's.

    Args:
        root: The dataset's folder.

    Raises:
        DatasetError: If the folder is missing, empty, of another version, or truncated.
    """

    def __init__(self, root: str | Path) -> None:
        self._meta: Meta = read_meta(root)
        meta = self._meta
        self.root, self.robot, self.stride = meta.root, meta.robot, meta.stride
        self.hz = meta.control_hz / meta.stride
        self.entries = [Entry(listed.index, f"episode {listed.index}", listed.length, listed) for listed in meta.listing]
        self._cameras = {camera.key: camera for camera in meta.cameras.values()}
        self.cameras = {key: (camera.height, camera.width) for key, camera in self._cameras.items()}
        self.views = {key: camera.view for key, camera in self._cameras.items()}
        self.keys = {
            key: tuple(int(side) for side in feature["shape"])
            for key, feature in meta.features.items()
            if str(feature.get("dtype")).rstrip("0123456789") in NUMBERS
        }
        named = any(listed.task_name for listed in meta.listing)
        strings = [key for key, feature in meta.features.items() if feature.get("dtype") == "string"]
        self.text_keys = ["task", *(["task_name"] if named else []), *strings]
        self.defaults = {
            "actions": [ACTION] if ACTION in self.keys else [],
            "proprio": [STATE] if STATE in self.keys else [],
            "instruction": ["task"],
            "task": ["task_name"] if named else [],
        }
        self.names = self._own_names()
        self._facts: dict[Path, VideoFacts | str] = {}
        self._changed: dict[frozenset[str], set[Path]] = {}
        self._tables: OrderedDict[tuple[Path, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        listed: Listed = entry.place
        rows = self._rows(listed)
        if len(rows) != listed.length:
            raise DatasetError(f"{entry.name} has {len(rows)} rows, {self._meta.listed_in} says {listed.length}; {AGAIN}")
        return {key: self._matrix(listed.data, key)[rows] for key in keys}

    def texts(self, entry: Entry, key: str) -> list[str]:
        listed: Listed = entry.place
        if key == "task_name":
            return [listed.task_name] if listed.task_name else []
        if key == "task" and listed.told:
            return list(listed.told)
        values = self._column(listed.data, "task_index" if key == "task" else key).to_pylist()
        told = [values[row] for row in self._rows(listed)]
        if key == "task":
            told = [self._meta.tasks.get(number, "") for number in told]
        return list(dict.fromkeys(line.strip() for text in told for line in str(text or "").splitlines() if line.strip()))

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        listed: Listed = entry.place
        if key in self._meta.images:
            return resize(self._pictures(listed, key, rows), size)
        span = listed.videos[key]
        try:
            return decode_frames(span.path, span.first + rows, self._meta.fps, size)
        except VideoError as error:
            raise VideoError(f"{span.path.name}: {error}") from error

    def identity(self, entry: Entry, key: str) -> list[Any]:
        listed: Listed = entry.place
        if key in self._meta.images:
            return [file_identity(listed.data), self._rows(listed).tolist()]
        span = listed.videos[key]
        return video_identity(span.path, span.first, listed.length, self._meta.fps)

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        listed: Listed = entry.place
        for key in cameras:
            if key not in self._meta.images:
                continue
            rows = np.arange(listed.length, dtype=np.int64)
            try:
                shape = self._pictures(listed, key, rows if full else rows[:1]).shape
            except (VideoError, DatasetError) as error:
                return f"its pictures {key} cannot be read: {error}"
            if shape[1:3] != self.cameras[key]:
                there, said = (" x ".join(map(str, sides)) for sides in (shape[1:3], self.cameras[key]))
                return f"its pictures {key} are {there} pixels, meta/info.json says {said}"
        videos = [self._cameras[key] for key in cameras if key not in self._meta.images]
        decode = None if full else self._changed_files(cameras)
        return video_problem(self.root, self._meta.fps, listed, videos, self._look, decode)

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        videos = {listed.videos[key].path for listed in self._meta.listing for key in cameras if key in listed.videos}
        return [*self._meta.files, *self._meta.data_files], sorted(videos)

    def camera_name(self, key: str) -> str:
        return self._cameras[key].name

    def _own_names(self) -> dict[str, list[str]]:
        about, names = self._meta.about, {}
        for key, shape in self.keys.items():
            if len(shape) == 1 and (found := feature_names(self._meta.features[key], shape[0])):
                names[key] = found
        return names | ({STATE: about["proprio"], ACTION: about["actions"]} if about else {})

    def _look(self, path: Path) -> VideoFacts | str:
        if path not in self._facts:
            self._facts[path] = look(path)
        return self._facts[path]

    def _changed_files(self, cameras: Sequence[str]) -> set[Path]:
        with self._lock:
            key = frozenset(cameras)
            if key not in self._changed:
                numbers, videos = self.files(cameras)
                self._changed[key] = changed_files(self.root, self._meta.manifest, {*numbers, *videos})
            return self._changed[key]

    def _rows(self, listed: Listed) -> Int[np.ndarray, " rows"]:
        """Where in its file an episode's rows are, in the order of its frames."""
        episode, frame = (self._column(listed.data, name).to_numpy() for name in ("episode_index", "frame_index"))
        rows = np.flatnonzero(episode == listed.index)
        return rows[np.argsort(frame[rows], kind="stable")]

    def _matrix(self, path: Path, key: str) -> np.ndarray:
        """A feature's column in its own shape."""
        values = matrix(self._column(path, key), path, key)
        shape = self.keys[key]
        if values.shape[1] != int(np.prod(shape)):
            raise DatasetError(f"{path} holds {values.shape[1]} numbers of {key} per row, meta/info.json says {list(shape)}: {AGAIN}")
        return values.reshape(len(values), *shape)

    def _column(self, path: Path, key: str) -> pa.ChunkedArray:
        with self._lock:
            if (path, key) in self._tables:
                self._tables.move_to_end((path, key))
                return self._tables[path, key]
            table = read_parquet(self.root, path, (key,))
            if key not in table.column_names:
                raise DatasetError(f"{path} lacks the column {key}: {AGAIN}")
            self._tables[path, key] = table[key]
            while len({file for file, _ in self._tables}) > KEPT_FILES:
                self._tables.popitem(last=False)
            return table[key]

    def _pictures(self, listed: Listed, key: str, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        """Pictures that are stored in the rows; only the row groups with wanted ones are read."""
        wanted = self._rows(listed)[rows]
        try:
            with pq.ParquetFile(listed.data) as file:
                ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
                groups = np.searchsorted(ends, wanted, side="right") - 1
                found = {}
                for group in np.unique(groups).tolist():
                    column = file.read_row_group(group, columns=[key])[key]
                    found |= {row: column[int(row - ends[group])].as_py() for row in wanted[groups == group].tolist()}
        except (pa.ArrowException, OSError) as error:
            raise VideoError(f"{listed.data.name} is damaged ({str(error).splitlines()[0]})") from error
        return np.stack([_decode_picture(found[row], row) for row in wanted.tolist()])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_tables", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_tables": OrderedDict(), "_lock": threading.Lock()}.items():
            setattr(self, name, value)


def _decode_picture(stored: Any, row: int) -> UInt8[np.ndarray, "height width 3"]:
    content = stored.get("bytes") if isinstance(stored, dict) else stored
    if not content:
        raise VideoError(f"row {row} holds no picture, only a reference to one")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise VideoError(f"the picture in row {row} is damaged ({error})") from error
