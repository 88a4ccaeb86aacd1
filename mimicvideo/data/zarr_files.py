"""What lies in a zarr container, a folder or a zip file: its arrays by group, told from their metadata without decoding anything."""

import functools
import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.identity import file_identity
from mimicvideo.data.remote import fetched, files_below

# Codecs that turn bytes into numbers and nothing else. `pickle` runs what it reads; anything unknown may.
COMPRESSORS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}
FILTERS = {"adler32", "astype", "bitround", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32", "jenkins_lookup3"}
FILTERS |= {"packbits", "quantize", "shuffle"}
TEXTS = {"vlen-bytes", "vlen-utf8"}
CODECS = {"bytes", "transpose", "sharding_indexed", "crc32c"}  # of zarr 3 beside the above

# Of damaged files and zip files.
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)


class DamagedZip(DatasetError):
    """A zip file that cannot be read."""


@dataclass(frozen=True)
class ArrayFacts:
    """An array's metadata.

    Attributes:
        path: Of the array in its container.
        shape: Its sides.
        kind: `f`, `i`, `u`, `b` for numbers, `S` for sentences.
        chunks: Sides of the pieces that are stored as one file.
        dtype: The name of its type.
        prefix: What the names of its chunks begin with.
        separator: What stands between the numbers in these names.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    chunks: tuple[int, ...] = field(repr=False)
    dtype: str
    prefix: str = field(repr=False)
    separator: str = field(repr=False)

    @property
    def is_video(self) -> bool:
        """Whether it holds pictures: bytes with a last axis of three colours."""
        return self.dtype in ("|u1", "uint8") and len(self.shape) == 4 and self.shape[-1] == 3

    def chunk_names(self, rows: Iterable[int] | None = None) -> Iterator[str]:
        """Names in the container of its chunks: of all, or of those that hold some rows."""
        first, *others = (range(-(-side // chunk)) for side, chunk in zip(self.shape, self.chunks, strict=True))
        if rows is not None:
            first = sorted({int(row) // self.chunks[0] for row in rows})
        for place in itertools.product(first, *others):
            yield self.prefix + self.separator.join(map(str, place))


@dataclass(frozen=True)
class Container:
    """A folder or zip file and the names of the files in it."""

    path: Path
    names: frozenset[str] = field(repr=False)

    def groups(self) -> tuple[dict[str, dict[str, ArrayFacts]], dict[str, str]]:
        """Arrays by name, by the path of the group that they are in; and what is wrong with groups whose metadata are damaged.

        Raises:
            DatasetError: If an array's codecs could run code.
        """
        found: dict[str, dict[str, ArrayFacts]] = {}
        damaged: dict[str, str] = {}
        files = [name for name in sorted(self.names) if name.rpartition("/")[2] in (".zarray", "zarr.json")]
        for name, read in self._contents(files):
            place = name.rpartition("/")[0]
            group, _, key = place.rpartition("/")
            where = f"array {place!r} of {self.path}"
            try:
                meta = json.loads(read())
                if name.endswith("zarr.json") and meta["node_type"] != "array":
                    continue
                facts = _facts_v3(place, meta, where) if name.endswith("zarr.json") else _facts_v2(place, meta, where)
            except (ValueError, KeyError, TypeError, *UNREADABLE) as error:
                if isinstance(error, DatasetError):
                    raise
                damaged.setdefault(group, f"the metadata of {where} are damaged ({type(error).__name__}: {error}): copy them again")
                continue
            found.setdefault(group, {})[key] = facts
        return found, damaged

    def identity(self, facts: ArrayFacts) -> list[Any]:
        """What an array is decoded from: its metadata and chunks, hashed; of remote folders, the marks of their versions.

        Raises:
            DatasetError: If a file cannot be read.
        """
        files = [name for name in (f"{_prefix(facts.path)}{end}" for end in (".zarray", "zarr.json")) if name in self.names]
        files += [name for name in facts.chunk_names() if name in self.names]
        inner = [name.removeprefix(_prefix(facts.path)) for name in files]
        try:
            if self.path.is_dir():
                return [inner, [file_identity(self.path / name) for name in files]]
            return [inner, [hashlib.sha256(read()).hexdigest() for _, read in self._contents(files)]]
        except UNREADABLE as error:
            raise DatasetError(f"array {facts.path!r} of {self.path} cannot be read: {error}") from error

    def _contents(self, names: list[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Files by name, and what reads each; one of `UNREADABLE` is raised if it cannot be."""
        if self.path.is_dir():
            yield from ((name, (self.path / name).read_bytes) for name in names)
            return
        with zipfile.ZipFile(self.path) as file:
            yield from ((name, functools.partial(file.read, name)) for name in names)


def open_container(path: Path) -> Container:
    """A folder, or a zip file of which nothing is unpacked.

    Raises:
        DamagedZip: If it cannot be read.
    """
    if path.is_dir():
        return Container(path, frozenset(files_below(path)))
    try:
        with zipfile.ZipFile(fetched(path)) as file:
            return Container(path, frozenset(file.namelist()))
    except UNREADABLE as error:
        raise DamagedZip(f"{path} is damaged or truncated ({error}): copy it again") from error


def _facts_v2(place: str, meta: dict[str, Any], where: str) -> ArrayFacts:
    codecs = [codec["id"] for codec in (*(meta.get("filters") or ()), *([meta["compressor"]] if meta.get("compressor") else ()))]
    dtype = meta["dtype"]
    if isinstance(dtype, list):
        raise DatasetError(f"{where} holds records, not numbers: {dtype}")
    kind = np.dtype(dtype).kind
    if kind == "O" and (not codecs or codecs[0] not in TEXTS):
        raise DatasetError(_refusal(where, "object", "Python objects"))
    _check(where, codecs)
    if kind == "O" or kind == "U":
        kind = "S"
    shape = tuple(int(side) for side in meta["shape"])
    return ArrayFacts(place, shape, kind, tuple(meta["chunks"]), dtype, _prefix(place), meta.get("dimension_separator", "."))


def _facts_v3(place: str, meta: dict[str, Any], where: str) -> ArrayFacts:
    _check(where, _names_v3(meta["codecs"]))
    dtype = meta["data_type"] if isinstance(meta["data_type"], str) else meta["data_type"]["name"]
    if dtype in ("string", "bytes", "variable_length_bytes", "null_terminated_bytes", "fixed_length_utf32"):
        kind = "S"
    else:
        try:
            kind = np.dtype(dtype).kind
        except TypeError as error:
            raise DatasetError(f"{where} holds {dtype!r}, neither numbers nor sentences") from error
    encoding: dict[str, Any] = meta.get("chunk_key_encoding") or {"name": "default"}
    separator = (encoding.get("configuration") or {}).get("separator", "/" if encoding["name"] == "default" else ".")
    prefix = _prefix(place) + (f"c{separator}" if encoding["name"] == "default" else "")
    chunks = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
    return ArrayFacts(place, tuple(meta["shape"]), kind, chunks, dtype, prefix, separator)


def _names_v3(codecs: list[dict[str, Any]]) -> list[str]:
    """Names of codecs and of those inside them."""
    names = []
    for codec in codecs:
        names.append(codec["name"].removeprefix("numcodecs."))
        inner = codec.get("configuration") or {}
        names += _names_v3(inner.get("codecs", [])) + _names_v3(inner.get("index_codecs", []))
    return names


def _check(where: str, codecs: list[str]) -> None:
    for codec in codecs:
        if codec not in COMPRESSORS | FILTERS | TEXTS | CODECS:
            raise DatasetError(_refusal(where, codec, f"something encoded with {codec!r}"))


def _refusal(where: str, codec: str, what: str) -> str:
    reads = ", ".join(sorted(COMPRESSORS | FILTERS | TEXTS))
    danger = "reading them could run code from the dataset" if codec in ("pickle", "object") else "it is none of the known harmless codecs"
    return f"{where} holds {what}, which is refused: {danger}. Store it as numbers or text; codecs that are read: {reads}"


def _prefix(place: str) -> str:
    return f"{place}/" if place else ""
