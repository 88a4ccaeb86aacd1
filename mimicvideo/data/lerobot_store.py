"""LeRobotStore: a LeRobotDataset of any number of states, actions and cameras, with pictures in videos or in the rows themselves."""

import io
import threading
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
from mimicvideo.data.lerobot_meta import ACTION, STATE, Meta, feature_names, read_meta
from mimicvideo.data.lerobot_rows import LeRobotRows
from mimicvideo.data.listing import Listing
from mimicvideo.data.scan import changed_files, look, spans, video_problem
from mimicvideo.data.store import Entry, Store

NUMBERS = ("float", "int", "uint", "bool")


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
        none = np.zeros(len(meta.listing), np.int32)  # a store's entries have no tasks yet
        self.entries = Listing(meta.listing.indices, meta.listing.lengths, self._entry, [""], none)
        self._rows = LeRobotRows(meta)
        self._cameras = {camera.key: camera for camera in meta.cameras.values()}
        self.cameras = {key: (camera.height, camera.width) for key, camera in self._cameras.items()}
        self.views = {key: camera.view for key, camera in self._cameras.items()}
        self.keys = {
            key: tuple(int(side) for side in feature["shape"])
            for key, feature in meta.features.items()
            if str(feature.get("dtype")).rstrip("0123456789") in NUMBERS
        }
        named = meta.listing.task_names is not None and meta.listing.task_names.null_count < len(meta.listing)
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
        self._lock = threading.Lock()

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = self._rows.read(entry.place, keys)
        return {key: values.reshape(len(values), *self.keys[key]).copy() for key, values in found.items()}  # others are kept

    def texts(self, entry: Entry, key: str) -> list[str]:
        listing = self._meta.listing
        if key == "task_name":
            return [name] if (name := listing.task_name(entry.place)) else []
        if key == "task":
            if told := listing.sentences(entry.place):
                return list(told)
            numbers = self._rows.read(entry.place, ["task_index"])["task_index"][:, 0].tolist()
            told = [self._meta.sentence(number) for number in dict.fromkeys(numbers)]
        else:
            told = self._rows.read(entry.place, [key])[key].to_pylist()
        return list(dict.fromkeys(line.strip() for text in told for line in str(text or "").splitlines() if line.strip()))

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        if key in self._meta.images:
            return resize(self._pictures(entry.place, key, rows), size)
        span = self._meta.listing.video(entry.place, key)
        if span is None:
            raise VideoError("there is none")
        try:
            return decode_frames(span.path, span.first + rows, self._meta.fps, size)
        except VideoError as error:
            raise VideoError(f"{span.path.name}: {error}") from error

    def identity(self, entry: Entry, key: str) -> list[Any]:
        listing = self._meta.listing
        if key in self._meta.images:
            rows = self._rows.rows(entry.place)
            return [
                file_identity(listing.file(int(listing.codes[entry.place]))),
                [rows.start, rows.stop] if isinstance(rows, slice) else rows.tolist(),
            ]
        span = listing.video(entry.place, key)
        return ["none"] if span is None else video_identity(span.path, span.first, entry.rows, self._meta.fps)

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        for key in cameras:
            if key not in self._meta.images:
                continue
            rows = np.arange(entry.rows, dtype=np.int64)
            try:
                shape = self._pictures(entry.place, key, rows if full else rows[:1]).shape
            except (VideoError, DatasetError) as error:
                return f"its pictures {key} cannot be read: {error}"
            if shape[1:3] != self.cameras[key]:
                there, said = (" x ".join(map(str, sides)) for sides in (shape[1:3], self.cameras[key]))
                return f"its pictures {key} are {there} pixels, meta/info.json says {said}"
        videos = [self._cameras[key] for key in cameras if key not in self._meta.images]
        decode = None if full else self._changed_files(cameras)
        return video_problem(self._meta, entry.rows, spans(self._meta, entry.place, videos), self._look, decode)

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        return [*self._meta.files, *self._meta.listing.data_files], self._meta.listing.video_files(cameras)

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

    def _entry(self, place: int) -> Entry:
        index, length = int(self._meta.listing.indices[place]), int(self._meta.listing.lengths[place])
        return Entry(index, f"episode {index}", length, place)

    def _pictures(self, place: int, key: str, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        """Pictures that are stored in the rows; only the row groups with wanted ones are read."""
        own, path = self._rows.rows(place), self._meta.listing.file(int(self._meta.listing.codes[place]))
        wanted = own.start + rows if isinstance(own, slice) else own[rows]
        try:
            with pq.ParquetFile(path) as file:
                ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
                groups = np.searchsorted(ends, wanted, side="right") - 1
                found = {}
                for group in np.unique(groups).tolist():
                    column = file.read_row_group(group, columns=[key])[key]
                    found |= {row: column[int(row - ends[group])].as_py() for row in wanted[groups == group].tolist()}
        except (pa.ArrowException, OSError) as error:
            raise VideoError(f"{path.name} is damaged ({str(error).splitlines()[0]})") from error
        return np.stack([_decode_picture(found[row], row) for row in wanted.tolist()])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**state, "_lock": threading.Lock()}.items():
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
