"""The records of a split's files: found once, counted, remembered, and read one at a time."""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from mimicvideo.atomic import whole_file
from mimicvideo.data.rlds.example import Damaged, Read, Span, find_features
from mimicvideo.data.rlds.tfrecord import FOOTER, find_records, is_intact

log = logging.getLogger(__name__)

VERSION = 1  # of the remembered index


@dataclass(frozen=True)
class Record:
    """One episode's bytes: how to read some of them, and how many there are."""

    read: Read
    size: int

    @functools.cached_property
    def features(self) -> dict[str, Span]:
        """Where its features lie, by name.

        Raises:
            Damaged: If it is no Example.
        """
        return find_features(self.read, self.size)


@dataclass(frozen=True)
class Shard:
    """One file of records.

    Attributes:
        path: Where it lies.
        stamp: Its size and time of change when it was indexed.
        starts: Where each record's content starts; zeros in array_record files, whose library knows.
        lengths: Bytes of each record; likewise.
        rows: Steps of each record; -1 where it cannot be read.
        problem: Why there are fewer records than there should be.
    """

    path: Path
    stamp: tuple[int, int]
    starts: Int64[np.ndarray, " records"]
    lengths: Int64[np.ndarray, " records"]
    rows: Int32[np.ndarray, " records"]
    problem: str | None

    def record(self, number: int) -> Record:
        """The bytes of a record. Files are opened when they are needed, in each process anew, and a few stay open.

        Raises:
            Damaged: If the file or the record is not there, or the file changed since it was indexed.
        """
        if number >= len(self.rows):
            raise Damaged(self.problem or f"it has {len(self.rows)} records")
        try:
            if _stamp(self.path) != self.stamp:
                raise Damaged("it changed since it was indexed: open the dataset anew")
            if _is_array_record(self.path):
                content = _array_records(self.path, self.stamp, os.getpid()).read([number])[0]
                return Record(lambda start, count: content[start : start + count], len(content))
            return _record(self.path, self.stamp, int(self.starts[number]), int(self.lengths[number]))
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise error if isinstance(error, Damaged) else Damaged(f"it cannot be read: {error}") from error

    def is_intact(self, number: int) -> bool:
        """Whether a record is what was written; array_record files check that by themselves when they are read."""
        if not self.starts[number]:
            return self.record(number).size >= 0
        length = int(self.lengths[number]) + FOOTER
        content = os.pread(_opened(self.path, self.stamp).descriptor, length, int(self.starts[number]))
        return len(content) == length and is_intact(content)


def index_shards(root: Path, split: str, shards: Sequence[tuple[Path, int]], count_rows: Callable[[Record], int]) -> list[Shard]:
    """What the files of a split hold. The index is kept in `<root>/.mimicvideo`, or in the user's cache if that cannot be written.

    Args:
        root: The dataset's version folder.
        split: Its name.
        shards: Files and how many records each should have; a file may be missing.
        count_rows: Steps of a record; raises `Damaged` if it cannot be read.
    """
    name = f"records-{hashlib.sha256(json.dumps([VERSION, str(root.resolve()), split]).encode()).hexdigest()[:32]}.npz"
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimicvideo"
    places = [root / ".mimicvideo" / name, fallback / name]
    known = next((found for place in places if (found := _load(place))), {})
    with ThreadPoolExecutor(4) as pool:  # they wait for the disk
        indexed = list(pool.map(lambda shard: _index(shard[0], shard[1], known, count_rows), shards))
    if any(known.get(shard.path.name) is None or known[shard.path.name].stamp != shard.stamp for shard in indexed if shard.stamp[1]):
        for place in places:
            try:
                _save(place, [shard for shard in indexed if shard.stamp[1]])
                break
            except OSError as error:
                log.info("the index of %s is not kept in %s: %s", root, place.parent, error)
    return indexed


def _index(path: Path, expected: int, known: dict[str, Shard], count_rows: Callable[[Record], int]) -> Shard:
    """One file; what is remembered of it holds if it did not change."""
    none = np.zeros(0, np.int64)
    try:
        stamp = _stamp(path)
        if (shard := known.get(path.name)) is not None and shard.stamp == stamp:
            shard = replace(shard, path=path, rows=shard.rows.copy())
        else:
            if _is_array_record(path):
                starts = np.zeros(_array_records(path, stamp, os.getpid()).num_records(), np.int64)
                lengths, problem = starts, None
            else:
                starts, lengths, problem = find_records(path)
            if len(starts) < expected and problem is None:
                problem = f"it ends after {len(starts)} of {expected} records"
            shard = Shard(path, stamp, starts, lengths, np.full(len(starts), -1, np.int32), problem)
    except FileNotFoundError:
        return Shard(path, (0, 0), none, none, none.astype(np.int32), "there is no such file")
    except (OSError, RuntimeError, ValueError) as error:
        return Shard(path, (0, 0), none, none, none.astype(np.int32), f"it cannot be read: {error}")
    for number in np.flatnonzero(shard.rows < 0).tolist():
        try:
            shard.rows[number] = count_rows(shard.record(number))
        except Damaged as error:
            log.debug("%s record %d: %s", path, number, error)  # told again, as a problem, when it is read
    return shard


def _is_array_record(path: Path) -> bool:
    return ".array_record" in path.name


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class _File:
    """An open file that is closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(maxsize=64)
def _opened(path: Path, stamp: tuple[int, int]) -> _File:
    return _File(path)


@functools.lru_cache(maxsize=64)
def _record(path: Path, stamp: tuple[int, int], first: int, size: int) -> Record:
    """A record of a TFRecord file; of the last ones it is known where their features lie."""
    return Record(functools.partial(_part, _opened(path, stamp), first, size), size)


def _part(file: _File, first: int, size: int, start: int, count: int) -> bytes:
    """Bytes of a record; `pread` has no position that threads or forked processes could share."""
    try:
        return os.pread(file.descriptor, max(0, min(count, size - start)), first + start)
    except OSError as error:
        raise Damaged(f"it cannot be read: {error}") from error


@functools.lru_cache(maxsize=16)
def _array_records(path: Path, stamp: tuple[int, int], process: int) -> Any:
    """A reader of an array_record file for this process: a forked one cannot use its parent's."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), options="readahead_buffer_size:0,max_parallelism:0")


def _load(place: Path) -> dict[str, Shard]:
    """The remembered index by file name; nothing if there is none or it is damaged."""
    try:
        with np.load(place, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            ends = np.cumsum([fact["records"] for fact in facts])[:-1]
            starts, lengths, rows = (np.split(kept[name], ends) for name in ("starts", "lengths", "rows"))
        return {
            fact["name"]: Shard(Path(fact["name"]), (fact["stamp"][0], fact["stamp"][1]), *arrays, problem=fact["problem"])
            for fact, *arrays in zip(facts, starts, lengths, rows, strict=True)
        }
    except FileNotFoundError:
        return {}
    except Exception as error:  # whatever a damaged zip file makes NumPy raise
        log.warning("%s is damaged (%s): the records are indexed anew", place, error)
        return {}


def _save(place: Path, shards: Sequence[Shard]) -> None:
    facts = [{"name": s.path.name, "stamp": s.stamp, "records": len(s.rows), "problem": s.problem} for s in shards]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in shards]) for name in ("starts", "lengths", "rows")}
    with whole_file(place) as temporary, temporary.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
