"""Datasets behind a URL (s3://…, gs://…, memory://…): a folder of local copies, fetched through fsspec when they are needed.

Videos and zarr chunks are fetched when they are first read, everything else when the dataset is opened: tables and meta files, but also
TFRecord, HDF5 and zip files as a whole. All copies together never exceed a limit; see `bounded` for what is dropped. A folder of videos
alone is fetched once from end to end when it is opened, since lengths and rates stand in the videos. A copy appears under its name when
it is complete and is the version that was listed. The folder holds a list of the remote files, so that any process, such as a data
worker, can fetch them.
"""

import contextlib
import functools
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from mimicvideo.atomic import full_disk, told, whole_file
from mimicvideo.data.bounded import reserved, tidy, use
from mimicvideo.data.errors import DatasetError

LISTING = ".remote.json"  # in the folder of copies
DEFAULT_GB = 100.0
DOWNLOADS = 8  # at the same time
ANSWER_S = 30.0
MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "mtime", "created")  # by what file systems say
ELSEWHERE = "let XDG_CACHE_HOME lead to another disk; remote_cache_gb bounds what all copies take"
AGAIN = 5  # attempts to open a copy that another process drops each time
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
_LATER = re.compile(r"(\.mp4|/(c|\d+(\.\d+)*))$")  # videos, chunks of zarr arrays


T = TypeVar("T")


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
    with told("copies of remote files cannot be written to", cache, ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        use(folder)
    known = _read(folder).files if (folder / LISTING).is_file() else {}
    for path in {*known, *listing.files}:
        if known.get(path) != listing.files.get(path):  # it was changed or removed there
            (folder / path).unlink(missing_ok=True)
    needed = [path for path in listing.files if not _LATER.search(path)]
    if (size := sum(listing.files[path][0] for path in needed)) > listing.limit:
        raise DatasetError(
            f"what is always needed of {url}, everything but videos and zarr chunks, takes {size / 1e9:.2f} GB, the cache {cache} may hold "
            f"{limit_gb:g}: raise remote_cache_gb"
        )
    content = json.dumps({"url": url, "limit": listing.limit, "files": listing.files})
    with told("copies of remote files cannot be written to", cache, ELSEWHERE):
        with whole_file(folder / LISTING) as temporary:
            temporary.write_text(content)
        tidy(folder, listing.limit, _LATER.search)
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
                _touch(path)
        return path
    folder = _folder_of(path)
    if folder is not None and (name := path.relative_to(folder).as_posix()) in (listing := _read(folder)).files:
        _fetch(folder, name, listing)
    return path


def opened(path: Path, opener: Callable[[Path], T]) -> T:
    """What `opener` makes of a file, which is fetched before if need be; again if its copy was dropped in between for others.

    Raises:
        DatasetError: If it cannot be fetched.
        FileNotFoundError: If there is no such file.
    """
    for _ in range(AGAIN):
        try:
            return opener(fetched(path))
        except FileNotFoundError:
            if not awaits(path):
                raise
    return opener(fetched(path))


def remote_mark(path: Path) -> str | None:
    """Names the version of a remote dataset's file, copied or not; None of a local file, or if nothing is known but a size."""
    if (folder := _folder_of(path)) is None:
        return None
    listing, name = _read(folder), path.relative_to(folder).as_posix()
    size, mark = listing.files.get(name, (0, ""))
    return f"{listing.url}/{name} {size} {mark}" if mark else None


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
    answered = _answer(url, lambda: system.info(base))
    if answered.get("type") == "file" and not url.startswith("http"):  # a web server's folders are pages
        raise DatasetError(f"{url} is a file: give the folder of the dataset")
    try:
        system.invalidate_cache()
        listed: dict[str, dict[str, Any]] = system.find(base, detail=True)
        found = {name: facts for name, facts in listed.items() if not name.endswith("/")}  # empty objects that stand for folders
        if url.startswith("http"):  # a web server also links to its pages in another order
            found = {name: facts for name, facts in found.items() if "?" not in name}
        if any(facts.get("size") is None for facts in found.values()):  # a web server's folders say nothing of files
            with ThreadPoolExecutor(DOWNLOADS) as pool:
                found = dict(zip(found, pool.map(system.info, found), strict=True))
    except Exception as error:  # whatever the many file systems raise
        raise DatasetError(_unreachable(url, error)) from error
    files = {}
    for name, facts in found.items():
        path = name.removeprefix(base).lstrip("/")
        path = unquote(path) if url.startswith("http") else path
        if not path or ".." in path.split("/"):
            raise DatasetError(f"{url} is no folder, or lists a file outside itself: {name!r}")
        if facts.get("size") is None:
            raise DatasetError(f"{url} does not say how many bytes {path} has, so that half a copy could not be told from a whole one")
        files[path] = (int(facts["size"]), _mark(facts))
    if not files:
        raise DatasetError(f"there is no dataset at {url}: the folder is missing or empty")
    return files


def _mark(facts: dict[str, Any]) -> str:
    """What tells this version of a file from others, after what it is; empty if the file system says nothing but its size."""
    for kind in MARKS:
        if mark := facts.get(kind):
            value = mark.timestamp() if isinstance(mark, datetime) else mark
            return f"{kind} {str(value).strip(chr(34))}"
    return ""


def _system(url: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.config import conf

    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):  # without them a server that is not there is asked for minutes
        own = conf.get(url.split(":")[0], {}).get("config_kwargs", {})
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}, **own}
    try:
        system, base = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(url.split(":")[0])
        raise DatasetError(f"{url} cannot be read: {error}" + (f" (pip install {package})" if package else "")) from error
    except ValueError as error:
        raise DatasetError(f"{url} cannot be read: {error}") from error
    return system, base.rstrip("/")


def _answer(url: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file system says first, if it does so in time: many wait and try again for minutes where there is no network."""
    answer: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()

    def asking() -> None:
        try:
            answer.put(ask())
        except BaseException as error:
            answer.put(error)

    threading.Thread(target=asking, daemon=True).start()
    try:
        answered = answer.get(timeout=ANSWER_S)
    except queue.Empty:
        raise DatasetError(f"{url} did not answer within {ANSWER_S:g} s: check the network, the address and the credentials") from None
    if isinstance(answered, BaseException):
        raise DatasetError(_unreachable(url, answered)) from answered
    return answered


def _unreachable(url: str, error: BaseException) -> str:
    if "Connect" in type(error.__cause__).__name__:  # of a web server that does not answer, the file is said to be missing
        error = error.__cause__ or error
    if isinstance(error, FileNotFoundError):
        return f"there is no dataset at {url}: the folder is missing or empty ({error or type(error).__name__})"
    advice = ""
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        advice = ": check the credentials and what they allow"
    elif isinstance(error, OSError) or "Connect" in type(error).__name__:
        advice = ": check the network and the address"
    return f"{url} cannot be listed{advice} ({type(error).__name__}: {str(error).strip()})"


def _fetch(folder: Path, name: str, listing: Listing) -> None:
    size, mark = listing.files[name]
    system, base = _system(listing.url)
    try:
        with reserved(folder / name, size, listing.limit, _LATER.search) as temporary:
            source = f"{base}/{quote(name) if listing.url.startswith('http') else name}"
            _download(system, source, temporary, size, mark)
    except DatasetError:
        raise
    except Exception as error:
        remedy = f". Free some space, or {ELSEWHERE}" if full_disk(error) else ""
        raise DatasetError(f"{listing.url}/{name} cannot be fetched into {folder}: {type(error).__name__}: {error}{remedy}") from error


def _download(system: Any, source: str, target: Path, size: int, mark: str) -> None:
    system.get_file(source, str(target))
    if (there := target.stat().st_size) != size:
        raise OSError(f"{there} of {size} bytes arrived")
    system.invalidate_cache()
    now = _mark(system.info(source))
    if now != mark and now.split(" ")[0] == mark.split(" ")[0]:  # some lists tell another mark than the file itself
        raise OSError(f"it changed since the dataset was opened (then {mark}, now {now}): start again")


def _touch(path: Path) -> None:
    """Notes the time of its last use, by which copies are dropped; that of its last change stays, by which content is known."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


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
