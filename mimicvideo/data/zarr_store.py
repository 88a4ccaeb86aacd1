"""ZarrStore: episodes as groups of zarr arrays, each with its own times, as the official mimic-video preprocessing writes them."""

import asyncio
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, UInt8

from mimicvideo.data.decode import resize
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.natural import natural
from mimicvideo.data.remote import AGAIN, awaits, fetched, files_below, is_copy
from mimicvideo.data.store import Entry, Store
from mimicvideo.data.zarr_files import ArrayFacts, Container, DamagedZip, open_container

TIMES = "_timestamps"  # follows the name of the array whose times these are, in ns
METADATA = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")  # of groups
KEPT_ARRAYS = 4096  # whose metadata is not read again
KEPT_ZIPS = 64  # that stay open in each process, which usually may have 1024 files open


class ZarrStore(Store):
    """Reads zarr 2 and 3: one container with many groups, or a folder of containers, each a folder or a zip file.

    A group with arrays is an episode. Arrays of bytes [pictures, height, width, 3] are cameras, other numbers are keys, strings sentences.
    Only the chunks with wanted rows are read.

    Args:
        root: The container, or a folder with containers.

    Raises:
        DatasetError: If there are no readable arrays, an array's codecs could run code (pickle), or zarr is not installed. A damaged zip
            file and a group with damaged metadata are episodes that cannot be used.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise DatasetError("zarr datasets need the package zarr: pip install 'mimicvideo[formats]'") from error
        self.root = Path(root)
        if not self.root.exists():
            raise DatasetError(f"there is no dataset {root}: give a zarr folder or zip file, or a folder of them")
        zips = [self.root] if self.root.is_file() else [self.root / name for name in files_below(self.root) if name.endswith(".zip")]
        self._containers: list[Container] = []
        found: list[tuple[Container, str, dict[str, ArrayFacts], str | None]] = []
        for path in ([] if self.root.is_file() else [self.root]) + zips:
            try:
                container = open_container(path)
                groups, damaged = container.groups()
            except DamagedZip as error:
                container, groups, damaged = Container(path, frozenset()), {}, {"": str(error)}
            self._containers.append(container)
            for group in sorted({*groups, *damaged}, key=natural):
                found.append((container, group, groups.get(group, {}), damaged.get(group)))
        problems = [problem for *_, problem in found if problem]
        if len(problems) == len(found):
            raise DatasetError(problems[0] if problems else f"{root} holds no zarr arrays (.zarray or zarr.json): is it the right folder?")
        self.cameras, self.keys, texts = {}, {}, {}
        for _, _, arrays, _ in found:
            for key, facts in arrays.items():
                if facts.is_video:
                    self.cameras.setdefault(key, (facts.shape[1], facts.shape[2]))
                elif facts.kind == "S":
                    texts.setdefault(key)
                elif facts.kind in "fiub" and facts.shape and not key.endswith(TIMES):
                    self.keys.setdefault(key, facts.shape[1:])
        self.text_keys = list(texts)
        self.defaults = {"instruction": ["language_instruction"] if "language_instruction" in texts else []}
        self.entries = [
            Entry(index, _name(container, group), self._count(arrays), (container, arrays), problem)
            for index, (container, group, arrays, problem) in enumerate(found)
        ]
        self._origins: dict[int, int] = {}
        self._open: dict[int, dict[str, Any]] = {}  # arrays in folders, by process

    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for key in keys:
            facts = self._facts(entry, key)
            if facts.shape[1:] != self.keys[key]:
                raise DatasetError(f"{entry.name}: {key} has rows of shape {facts.shape[1:]}, in other episodes {self.keys[key]}")
            found[key] = np.asarray(self._read(entry, key, slice(None)))
        return found

    def texts(self, entry: Entry, key: str) -> list[str]:
        if key not in entry.place[1]:
            return []
        lines: list[str] = []
        for value in np.asarray(self._read(entry, key, ...)).reshape(-1).tolist():
            try:
                text = bytes(value).rstrip(b"\0").decode() if isinstance(value, bytes | bytearray | memoryview) else str(value)
            except UnicodeDecodeError as error:
                raise DatasetError(f"{entry.name}: {key} is no text: {error}") from error
            lines += [line.strip() for line in text.splitlines() if line.strip()]
        return list(dict.fromkeys(lines))

    def times(self, entry: Entry, key: str) -> Float64[np.ndarray, " rows"] | None:
        arrays: dict[str, ArrayFacts] = entry.place[1]
        if key + TIMES not in arrays:
            return None
        if entry.index not in self._origins:
            first = next(name for name in sorted(arrays) if name.endswith(TIMES) and _is_stream(arrays, name))
            self._origins[entry.index] = int(np.asarray(self._read(entry, first, slice(0, 1)))[0])
        stamps = np.asarray(self._read(entry, key + TIMES, slice(None)))
        return (stamps.astype(np.int64) - self._origins[entry.index]) / 1e9

    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        container: Container = entry.place[0]
        if container.path.is_dir() and not is_copy(container.path):  # zarr takes chunks that have vanished for zeros: black pictures
            for name in self._facts(entry, key).chunk_names(rows):
                if not (container.path / name).is_file():
                    raise VideoError(f"{entry.name}: {key}: there is no such file {name}, the chunk of some of its pictures")
        try:
            step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
            even = bool((np.diff(rows) == step).all())
            wanted = slice(int(rows[0]), int(rows[-1]) + 1, step) if even else rows
            return resize(np.ascontiguousarray(self._read(entry, key, wanted)), size)
        except DatasetError as error:
            raise VideoError(str(error)) from error

    def identity(self, entry: Entry, key: str) -> list[Any]:
        return entry.place[0].identity(self._facts(entry, key))

    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        container: Container = entry.place[0]
        for key in cameras:
            facts: ArrayFacts | None = entry.place[1].get(key)
            if facts is None:
                return f"it has no pictures {key}"
            times = entry.place[1].get(key + TIMES)
            if times is not None and times.shape[:1] != facts.shape[:1]:
                return f"it has {facts.shape[0]} pictures {key}, but {times.shape[0]} times of them"
            # zarr takes chunks that are not there for zeros: black pictures
            missing = [name for name in facts.chunk_names() if name not in container.names]
            if missing:
                return f"chunks of its pictures {key} are missing: {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
            for first in range(0, facts.shape[0] if full else 1, facts.chunks[0]):
                if not full and awaits(container.path / next(facts.chunk_names(), "")):
                    break
                try:
                    self._read(entry, key, slice(first, first + (facts.chunks[0] if full else 1)))
                except DatasetError as error:
                    return f"its pictures are damaged: {error}"
        return None

    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        numbers, pictures = [], []
        for container in self._containers:
            if not container.path.is_dir():
                numbers.append(container.path)
                pictures.append(container.path)
                continue
            places = {facts.path: key for entry in self.entries if entry.place[0] is container for key, facts in entry.place[1].items()}
            for name in sorted(container.names):
                key = next((places[place] for place in _parents(name) if place in places), None)
                if key in cameras:
                    pictures.append(container.path / name)
                base = name.rpartition("/")[2]
                if key in self.cameras and base not in (".zarray", "zarr.json"):
                    continue
                if key is not None or base in METADATA:  # other files, such as our own statistics and captions, are no part of the data
                    numbers.append(container.path / name)
        return numbers, pictures

    def size(self, entry: Entry, key: str) -> tuple[int, int]:
        return self._facts(entry, key).shape[1:3]  # type: ignore[return-value]

    def _count(self, arrays: dict[str, ArrayFacts]) -> int:
        key = next((key for key in (*self.cameras, *self.keys) if key in arrays), None)
        return arrays[key].shape[0] if key else 0

    def _facts(self, entry: Entry, key: str) -> ArrayFacts:
        if key not in entry.place[1]:
            raise DatasetError(f"{entry.name} has no array {key!r}; it has {', '.join(sorted(entry.place[1]))}")
        return entry.place[1][key]

    def _read(self, entry: Entry, key: str, rows: Any) -> Any:
        facts = self._facts(entry, key)
        try:
            array = self._array(entry.place[0], facts)
            return array.oindex[rows] if isinstance(rows, np.ndarray) else array[rows]
        except Exception as error:  # every codec has exceptions of its own
            raise DatasetError(f"{entry.name}: {key} cannot be read: {type(error).__name__}: {error}") from error

    def _array(self, container: Container, facts: ArrayFacts) -> Any:
        """An array, which is not opened again in this process unless it had to make room for others."""
        import zarr
        from zarr.storage import LocalStore

        if container.path.is_dir():
            store, kept = None, self._open.setdefault(os.getpid(), {})
        else:
            stat = container.path.stat()
            store, kept = _zipped(container.path, stat.st_size, stat.st_mtime_ns, os.getpid())
        if (array := kept.get(facts.path)) is None:
            if store is None:
                store = _fetching_store(container.path) if is_copy(container.path) else LocalStore(container.path, read_only=True)
            if len(kept) >= KEPT_ARRAYS:
                kept.clear()
            array = kept[facts.path] = zarr.open_array(store, path=facts.path, mode="r")
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


@functools.lru_cache(maxsize=KEPT_ZIPS)
def _zipped(path: Path, _size: int, _changed: int, _process: int) -> tuple[Any, dict[str, Any]]:
    """An open zip file, and the arrays in it that have been opened. Its position is shared with processes that were forked later."""
    from zarr.storage import ZipStore

    return ZipStore(path, mode="r"), {}


def _fetching_store(root: Path) -> Any:
    """A store of a remote dataset's copies, which fetches chunks when they are asked for."""
    from zarr.storage import LocalStore

    class Fetching(LocalStore):
        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            content = None
            for _ in range(AGAIN):  # another process may drop the copy in between
                await asyncio.to_thread(fetched, self.root / key)
                content = await super().get(key, *args, **kwargs)
                if content is not None or not awaits(self.root / key):
                    return content
            raise DatasetError(f"{self.root / key} is dropped as soon as it is fetched: raise remote_cache_gb")

    return Fetching(root, read_only=True)


def _is_stream(arrays: dict[str, ArrayFacts], name: str) -> bool:
    """Whether these are times of numbers or pictures: sentences may have a time that means nothing."""
    owner = arrays.get(name.removesuffix(TIMES))
    return owner is not None and owner.kind != "S" and arrays[name].shape[0] > 0


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts) - 1, -1, -1)]


def _name(container: Container, group: str) -> str:
    return f"{container.path.name}/{group}" if group else container.path.name
