"""A bounded folder of copies that several processes fill at once: who may add how much, and what is dropped for it."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mimicvideo.atomic import PARTIAL, is_old, whole_file
from mimicvideo.data.errors import DatasetError

TOTAL = ".bytes"  # in the folder: what all copies together take, at most; locked while room is made
IN_USE = ".in-use"  # in each dataset's folder: locked by the processes that read it
FREED = 0.9  # of the limit is left after dropping copies, since counting takes time

_held: dict[Path, IO[bytes]] = {}  # locks of the datasets that this process reads; they end with it and those that it forks


def use(folder: Path) -> None:
    """Keeps what a dataset always needs from being dropped while this process lives."""
    if folder not in _held or not (folder / IN_USE).is_file():  # somebody may have deleted the copies
        file = (folder / IN_USE).open("ab")
        with contextlib.suppress(OSError):  # no locks on this disk
            fcntl.flock(file, fcntl.LOCK_SH)
        _held[folder] = file


@contextlib.contextmanager
def reserved(path: Path, size: int, limit: int, is_spare: Callable[[str], Any]) -> Iterator[Path]:
    """A temporary file that becomes `path`, in the folder of a dataset below that of all copies, which never take more than `limit`.

    Copies that were not used for the longest time are dropped if there is no room: spare ones of any dataset, and all of a dataset that no
    process on this machine uses.

    Args:
        path: `<copies>/<dataset>/...`.
        size: Bytes that it will have.
        limit: Bytes that all copies may take.
        is_spare: Whether a copy, by its path from the dataset's folder on, may be dropped while the dataset is read.

    Raises:
        DatasetError: If there is no room.
        OSError: If the disk is full.
    """
    dataset = next(folder for folder in path.parents if (folder / IN_USE).is_file())
    copies = dataset.parent
    with contextlib.ExitStack() as writer, contextlib.ExitStack() as renaming, contextlib.ExitStack() as partial:
        with _locked(copies / TOTAL) as ledger:
            _make_room(ledger, copies, size, limit, is_spare)
            temporary = partial.enter_context(whole_file(path, str(size)))  # from here on it is counted by its name
            held = writer.enter_context(temporary.open("ab"))
            with contextlib.suppress(OSError):  # no locks on this disk
                fcntl.flock(held, fcntl.LOCK_EX)  # tells others that it has a writer, until it has its name
        partial.callback(lambda: renaming.enter_context(_locked(copies / TOTAL)))  # whoever counts would see neither name
        yield temporary


def tidy(dataset: Path, limit: int, is_spare: Callable[[str], Any]) -> None:
    """Deletes what killed processes left half-written in a dataset's folder, and drops copies of any dataset until all take no more than
    `limit`, which may be another one than last time; see `reserved`.

    Raises:
        DatasetError: If what is in use takes more.
    """
    copies = dataset.parent
    with _locked(copies / TOTAL) as ledger:
        for path in dataset.rglob(f".*{PARTIAL}"):
            if _is_abandoned(path):
                path.unlink(missing_ok=True)
        _make_room(ledger, copies, 0, limit, is_spare)


def _make_room(ledger: IO[str], copies: Path, size: int, limit: int, is_spare: Callable[[str], Any]) -> None:
    """Adds `size` to the total in the ledger. Copies are counted only if there may be too many: their total is known, or too high."""
    content = ledger.read()
    total = int(content) if content.isdigit() else limit + 1
    if total + size > limit:
        total = _drop(copies, size, limit, is_spare)
    ledger.seek(0)
    ledger.truncate()
    ledger.write(str(total + size))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("a+") as file:
        with contextlib.suppress(OSError):  # no locks on this disk
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file  # closing it writes what is in it, and then unlocks it


def _drop(copies: Path, size: int, limit: int, is_spare: Callable[[str], Any]) -> int:
    """Drops copies until there is room for `size` more bytes; what is left."""
    found = [(stat, path) for path, stat in _files(copies)]
    total = sum(_counted(path, stat) for stat, path in found)
    if total + size <= limit * FREED:
        return total
    with contextlib.ExitStack() as stack:
        free: dict[Path, bool] = {}
        for stat, path in sorted(found, key=lambda item: item[0].st_atime_ns):
            if total + size <= limit * FREED:
                break
            dataset = copies / path.relative_to(copies).parts[0]
            if path.name.endswith(PARTIAL):
                droppable = _is_abandoned(path)
            elif path.name.startswith("."):  # lists and locks
                continue
            else:
                if dataset not in free:
                    free[dataset] = _is_free(dataset, stack)
                droppable = free[dataset] or is_spare(f"/{path.relative_to(dataset).as_posix()}")
            if droppable:
                path.unlink(missing_ok=True)
                total -= _counted(path, stat)
    if total + size > limit:
        raise DatasetError(
            f"there is no room for {size / 1e9:.3g} GB more in {copies}: {total / 1e9:.3g} of {limit / 1e9:.3g} GB are taken by files that "
            "are in use; raise remote_cache_gb"
        )
    return total


def _files(copies: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, _, names in os.walk(copies):
        for name in names:
            with contextlib.suppress(OSError):  # it was renamed or deleted meanwhile
                yield (path := Path(place, name)), path.stat()


def _counted(path: Path, stat: os.stat_result) -> int:
    """Bytes of a copy; of one that is being fetched, those that it will have."""
    parts = path.name.split(".")
    return int(parts[-3]) if path.name.endswith(PARTIAL) and len(parts) > 3 and parts[-3].isdigit() else stat.st_size


def _is_abandoned(partial: Path) -> bool:
    """Whether nobody writes a partial file any more."""
    try:
        with partial.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    except OSError:  # no locks on this disk
        return is_old(partial)


def _is_free(dataset: Path, stack: contextlib.ExitStack) -> bool:
    """Whether no process reads a dataset; then none can begin to until the stack is closed."""
    if dataset in _held or not dataset.is_dir():
        return False
    try:
        file = stack.enter_context((dataset / IN_USE).open("ab"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
