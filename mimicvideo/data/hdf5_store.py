"""Hdf5Store: demonstrations in HDF5 files as robomimic and LIBERO write them: `data/demo_i` with `actions` and `obs`."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from mimicvideo.data.decode import resize
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.natural import natural
from mimicvideo.data.remote import files_below, opened
from mimicvideo.data.store import Entry, Store

SUFFIXES = (".hdf5", ".h5")
HASHED_ROWS = 64  # at once
INSTRUCTION = "instruction"  # the key of what a file's attributes or its name say


class DamagedFile(DatasetError):
    """A file that HDF5 cannot read."""


class Hdf5Store(Store):
    """Reads one file, or all files in a folder: LIBERO has one per task.

    Keys are the names of data sets in a demonstration, such as `actions` and `obs/ee_pos`. Data sets of bytes [steps, height, width, 3] are
    cameras, those of strings sentences. `instruction` is what LIBERO takes for it: `language_instruction` in the attribute `problem_info`,
    or else the file's name without scene and `_demo`.
    A damaged file counts as one episode that cannot be used: nobody knows how many it held.

    Args:
        root: The file or folder.

    Raises:
        DatasetError: If there is no such file, all are damaged, or one holds links to other files, references, Python objects or records;
            or h5py is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            import h5py  # noqa: F401
        except ImportError as error:
            raise DatasetError("HDF5 datasets need the package h5py: pip install 'mimicvideo[formats]'") from error
        self.root = Path(root)
        if not self.root.exists():
            raise DatasetError(f"there is no dataset {root}: give an HDF5 file, or a folder of them")
        names = [name for name in files_below(self.root) if name.endswith(SUFFIXES)] if self.root.is_dir() else []
        self._files = [self.root] if self.root.is_file() else [self.root / name for name in sorted(names, key=natural)]
        self.cameras: dict[str, tuple[int, int]] = {}
        self.keys: dict[str, tuple[int, ...]] = {}
        self.entries: list[Entry] = []
        texts: dict[str, None] = {INSTRUCTION: None}
        self._told: dict[Path, list[str]] = {}
        rates, robots = set(), set()
        for path in self._files:
            before = len(self.entries)
            try:
                with _opened(path) as file:
                    data = _demonstrations(file, path)
                    env = _json(data.attrs.get("env_args"))
                    kwargs = env.get("env_kwargs") or {}
                    rates.add(kwargs.get("control_freq"))
                    robot = kwargs.get("robots")
                    robots.add(robot if isinstance(robot, str) else "+".join(map(str, robot)) if robot else None)
                    self._told[path] = _instruction(data, path)
                    for name in sorted(data, key=natural):
                        self._add(path, data, name, texts)
            except DamagedFile as error:
                self.entries[before:] = [Entry(before, path.name, 0, problem=str(error))]
        if not self.entries:
            raise DatasetError(f"{root} holds no demonstrations: it has no .hdf5 or .h5 file with groups below data/")
        if all(entry.problem for entry in self.entries):
            raise DatasetError(str(self.entries[0].problem))
        if len(rates) == 1 and (rate := rates.pop()):
            self.hz = float(rate)
        if len(robots) == 1 and (robot := robots.pop()):
            self.robot = robot
        self.text_keys = list(texts)
        self.defaults = {"actions": ["actions"] if "actions" in self.keys else [], "instruction": [INSTRUCTION]}

    def _add(self, path: Path, data: Any, name: str, texts: dict[str, None]) -> None:
        """Adds a demonstration to `entries`, and what it holds to `cameras`, `keys` and `texts`."""
        _own(data, name, f"{path}: data/{name}")
        shapes: dict[str, tuple[int, ...]] = {}
        for key, dataset in _datasets(data[name], path, name):
            shapes[key] = dataset.shape
            kind = dataset.dtype.kind
            if dataset.dtype == np.uint8 and dataset.ndim == 4 and dataset.shape[-1] == 3:
                self.cameras.setdefault(key, dataset.shape[1:3])
            elif kind in "OS":
                texts.setdefault(key)
            elif kind in "fiub" and dataset.ndim:
                self.keys.setdefault(key, dataset.shape[1:])
        self.entries.append(Entry(len(self.entries), f"{path.name}:{name}", self._count(shapes), (path, f"data/{name}", shapes)))

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        with self._group(entry) as group:
            for key in keys:
                shape = self._shape(entry, key)
                if shape[1:] != self.keys[key]:
                    raise DatasetError(f"{entry.name}: {key} has rows of shape {shape[1:]}, in other demonstrations {self.keys[key]}")
                found[key] = group[key][()]
        return found

    def texts(self, entry: Entry, key: str) -> list[str]:
        if key == INSTRUCTION and INSTRUCTION not in entry.place[2]:
            return self._told[entry.place[0]]
        if key not in entry.place[2]:
            return []
        with self._group(entry) as group:
            values = np.asarray(group[key].asstr()[()], dtype=object).reshape(-1)
        return list(dict.fromkeys(line.strip() for value in values for line in str(value).splitlines() if line.strip()))

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
        even = bool((np.diff(rows) == step).all())  # a slice is much faster than a list of rows
        try:
            with self._group(entry) as group:
                return resize(group[key][slice(int(rows[0]), int(rows[-1]) + 1, step) if even else rows], size)
        except DatasetError as error:
            raise VideoError(str(error)) from error

    def identity(self, entry: Entry, key: str) -> list[Any]:
        shape, digest = self._shape(entry, key), hashlib.sha256()
        with self._group(entry) as group:
            for first in range(0, shape[0], HASHED_ROWS):
                digest.update(group[key][first : first + HASHED_ROWS])
        return [shape, digest.hexdigest()]

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        for key in cameras:
            shape = entry.place[2].get(key)
            if shape is None:
                return f"it has no pictures {key}"
            if shape[0] != entry.rows:
                return f"it has {shape[0]} pictures {key}, but {entry.rows} steps"
            try:
                if shape[0]:
                    self.frames(entry, key, np.arange(shape[0] if full else 1), None)
            except VideoError as error:
                return f"its pictures {key} cannot be read: {error}"
        return None

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        return list(self._files), list(self._files)

    def size(self, entry: Entry, key: str) -> tuple[int, int]:
        return self._shape(entry, key)[1:3]  # type: ignore[return-value]

    def _count(self, shapes: dict[str, tuple[int, ...]]) -> int:
        key = next((key for key in (*self.cameras, "actions", *self.keys) if key in shapes), None)
        return shapes[key][0] if key else 0

    def _shape(self, entry: Entry, key: str) -> tuple[int, ...]:
        if key not in entry.place[2]:
            raise DatasetError(f"{entry.name} has no data set {key!r}; it has {', '.join(entry.place[2])}")
        return entry.place[2][key]

    @contextmanager
    def _group(self, entry: Entry) -> Iterator[Any]:
        """The demonstration. Files are opened for each reading: handles do not survive a fork."""
        path, group, _ = entry.place
        with _opened(path) as file:
            yield file[group]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with opened(path, lambda there: h5py.File(there, "r")) as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged or truncated ({error}): copy it again") from error


def _demonstrations(file: Any, path: Path) -> Any:
    import h5py

    data = _own(file, "data", f"{path}: data") if "data" in file else None
    if not isinstance(data, h5py.Group):
        raise DatasetError(f"{path} has no group data/ with demonstrations, as robomimic and LIBERO write them; it has {', '.join(file)}")
    return data


def _datasets(group: Any, path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """All data sets below a demonstration; whatever leads out of the file or is more than numbers and text is refused."""
    import h5py

    if not isinstance(group, h5py.Group):
        raise DatasetError(f"{path}: data/{name} is no group with a demonstration")
    for key in map(str, group):
        where = f"{path}: data/{name}/{key}"
        item = _own(group, key, where)
        if isinstance(item, h5py.Group):
            yield from ((f"{key}/{inner}", dataset) for inner, dataset in _datasets(item, path, f"{name}/{key}"))
            continue
        if item.external or item.is_virtual:
            raise DatasetError(f"{where} keeps its values in other files, which is refused: copy them into this one (h5repack)")
        if item.dtype.kind == "O" and h5py.check_string_dtype(item.dtype) is None:
            what = "references" if h5py.check_ref_dtype(item.dtype) else "objects of any length"
            raise DatasetError(f"{where} holds {what}, which is refused: store numbers or text")
        if item.dtype.kind == "V":
            raise DatasetError(f"{where} holds records or opaque bytes ({item.dtype}), which is refused: store numbers or text")
        yield key, item


def _own(group: Any, key: str, where: str) -> Any:
    """What a group holds under a name; links, which may lead out of the file, are refused."""
    import h5py

    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        target = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
        raise DatasetError(f"{where} is a link to {target}, which is refused: copy the data to its place")
    item = group[key]
    if not isinstance(item, h5py.Group | h5py.Dataset):
        raise DatasetError(f"{where} is a {type(item).__name__}, neither a group nor a data set")
    return item


def _instruction(data: Any, path: Path) -> list[str]:
    """As LIBERO has it: `problem_info` of the file, or its name: KITCHEN_SCENE1_open_the_drawer_demo is `open the drawer`."""
    told = _json(data.attrs.get("problem_info")).get("language_instruction")
    if told:
        text = told if isinstance(told, str) else "".join(map(str, told))
    else:
        text = re.sub(r"^([A-Z0-9_]+_)?SCENE\d+_", "", path.stem.removesuffix("_demo")).replace("_", " ")
    return [line.strip().strip('"') for line in text.splitlines() if line.strip()]


def _json(attribute: Any) -> dict[str, Any]:
    """An attribute with a JSON object; empty if it is missing or something else."""
    if isinstance(attribute, bytes):
        attribute = attribute.decode(errors="replace")
    try:
        content = json.loads(attribute) if isinstance(attribute, str) else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
