"""Datasets behind a URL (s3://…, gs://…, memory://…): a folder of local copies, fetched through fsspec when they are needed.

Tables and meta files are fetched when the dataset is opened, videos and zarr chunks when they are first read. Copies of the latter are
deleted, those that were not used for the longest time first, as soon as all copies together exceed a limit. A folder of videos alone is
fetched once from end to end when it is opened, since lengths and rates stand in the videos. A copy appears under its name when it is
complete. The folder holds a list of the remote files, so that any process, such as a data worker, can fetch them.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicvideo.data.errors import DatasetError

LISTING = ".remote.json"  # in the folder of copies
DEFAULT_GB = 100.0
DOWNLOADS = 8  # at the same time
_LATER = re.compile(r"(\.mp4|/(c|\d+(\.\d+)*))$")  # videos, chunks of zarr arrays


@dataclass(frozen=True)
class Listing:
    """What is known of a remote dataset.

    Attributes:
        url: Its folder.
        limit: Bytes that all copies in the cache may take.
        files: Size and a mark of the version by path below the folder.
    """

    url: str
    limit: int
    files: dict[str, tuple[int, str]]


def is_remote(root: str | Path) -> bool:
    """Whether a root is a URL."""
    return "://" in str(root)


def local_folder(url: str, cache_dir: str | Path | None = None, limit_gb: float = DEFAULT_GB) -> Path:
    """The folder of copies of a remote dataset, with all files but videos and zarr chunks in it.

    Args:
        url: The dataset's folder.
        cache_dir: Where copies of all datasets lie; None is `mimicvideo/remote` in the user's cache.
        limit_gb: How much they may take, in 10^9 bytes.

    Raises:
        DatasetError: If the folder cannot be listed or is empty, a file cannot be fetched, or what is needed at once exceeds the limit.
    """
    if not limit_gb > 0:
        raise ValueError(f"remote_cache_gb must be positive, got {limit_gb}")
    url = url.rstrip("/")
    cache = Path(cache_dir).expanduser() if cache_dir else _user_cache()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", url.rsplit("/", 1)[-1])
    folder = cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    listing = Listing(url, int(limit_gb * 1e9), _list(url))
    folder.mkdir(parents=True, exist_ok=True)
    for path, (size, mark) in (_read(folder).files if (folder / LISTING).is_file() else {}).items():
        if listing.files.get(path) != (size, mark):  # it was changed or removed there
            (folder / path).unlink(missing_ok=True)
    needed = [path for path in listing.files if not _LATER.search(path)]
    if (size := sum(listing.files[path][0] for path in needed)) > listing.limit:
        raise DatasetError(f"the tables of {url} take {size / 1e9:.2f} GB, the cache {cache} may hold {limit_gb:g}: raise remote_cache_gb")
    content = json.dumps({"url": url, "limit": listing.limit, "files": listing.files})
    _replace(folder / LISTING, lambda temporary: temporary.write_text(content))
    missing = [path for path in needed if not (folder / path).is_file()]
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        copies = pool.map(lambda path: _fetch(folder, path, listing), missing)
        for _ in _progress(copies, len(missing), f"fetching {url}"):
            pass
    return folder


def fetched(path: Path) -> Path:
    """The path, after fetching the file if it is one of a remote dataset that has no copy yet.

    Raises:
        DatasetError: If it cannot be fetched.
    """
    if path.is_file():
        with contextlib.suppress(OSError):
            if _folder_of(path) is not None:
                os.utime(path)  # the time of its last use, by which copies are deleted
        return path
    folder = _folder_of(path)
    if folder is not None and (name := path.relative_to(folder).as_posix()) in (listing := _read(folder)).files:
        _fetch(folder, name, listing)
    return path


def awaits(path: Path) -> bool:
    """Whether a file is one of a remote dataset that has no copy yet."""
    if path.is_file() or (folder := _folder_of(path)) is None:
        return False
    return path.relative_to(folder).as_posix() in _read(folder).files


def is_copy(folder: Path) -> bool:
    """Whether a folder is one of copies, or lies in one."""
    return _folder_of(folder / "any") is not None


def files_below(root: Path) -> list[str]:
    """Paths below a folder of all files in it, sorted, also of those that have no copy yet."""
    folder = _folder_of(root / "any")
    if folder is None:
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    prefix = "" if folder == root else f"{root.relative_to(folder).as_posix()}/"
    return sorted(path.removeprefix(prefix) for path in _read(folder).files if path.startswith(prefix))


def _list(url: str) -> dict[str, tuple[int, str]]:
    system, base = _system(url)
    try:
        found: dict[str, dict[str, Any]] = system.find(base, detail=True)
    except Exception as error:  # whatever the many file systems raise
        raise DatasetError(f"{url} cannot be listed: {type(error).__name__}: {error}") from error
    files = {}
    for name, facts in found.items():
        path = name.removeprefix(base).lstrip("/")
        if not path or ".." in path.split("/"):
            raise DatasetError(f"{url} is no folder, or lists a file outside itself: {name!r}")
        marks = (facts.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
        files[path] = (int(facts.get("size") or 0), str(next((mark for mark in marks if mark), "")))
    if not files:
        raise DatasetError(f"there is no dataset at {url}: the folder is missing or empty")
    return files


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{url} cannot be read: {error}") from error
    return system, base.rstrip("/")


def _fetch(folder: Path, name: str, listing: Listing) -> None:
    size = listing.files[name][0]
    _make_room(folder.parent, size, listing.limit)
    system, base = _system(listing.url)
    try:
        _replace(folder / name, lambda temporary: _download(system, f"{base}/{name}", temporary, size))
    except Exception as error:
        raise DatasetError(f"{listing.url}/{name} cannot be fetched into {folder}: {type(error).__name__}: {error}") from error
    _spent.bytes += size


def _download(system: Any, source: str, target: Path, size: int) -> None:
    system.get_file(source, str(target))
    if (there := target.stat().st_size) != size:
        raise OSError(f"{there} of {size} bytes arrived")


def _replace(path: Path, write: Any) -> None:
    """Writes a file under another name and renames it, so that nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fetching-")
    os.close(handle)
    try:
        write(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Spent:
    """Bytes of all copies, as this process knows them: counted again when they seem to reach the limit."""

    cache: Path | None = None
    bytes: int = 0


_spent = _Spent()


def _make_room(cache: Path, size: int, limit: int) -> None:
    """Deletes copies of videos and chunks, the longest unused first, until `size` more bytes stay below the limit."""
    if _spent.cache == cache and _spent.bytes + size <= limit:
        return
    copies = []
    for place, _, names in os.walk(cache):
        for name in names:
            with contextlib.suppress(OSError):  # another process deleted it
                path = Path(place, name)
                stat = path.stat()
                copies.append((stat.st_mtime, stat.st_size, path))
    _spent.cache, _spent.bytes = cache, sum(size for _, size, _ in copies)
    for _, freed, path in sorted(copies):
        if _spent.bytes + size <= limit * 0.9:  # some more at once: counting takes time
            break
        if _LATER.search(f"/{path.relative_to(cache).as_posix()}"):
            path.unlink(missing_ok=True)
            _spent.bytes -= freed


def _folder_of(path: Path) -> Path | None:
    """The folder of copies in which a path lies."""
    return _marked_parent(path.parent)


@functools.lru_cache(maxsize=65536)
def _marked_parent(place: Path) -> Path | None:
    return next((folder for folder in (place, *place.parents) if (folder / LISTING).is_file()), None)


def _read(folder: Path) -> Listing:
    return _read_listing(folder / LISTING, (folder / LISTING).stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_listing(path: Path, _changed: int) -> Listing:
    content = json.loads(path.read_text())
    return Listing(content["url"], content["limit"], {name: (size, mark) for name, (size, mark) in content["files"].items()})


def _progress(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    from rich.progress import track

    return track(items, text, total, transient=True, disable=total == 0)


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mimicvideo" / "remote"
