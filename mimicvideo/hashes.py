"""SHA-256 of files: read now, or once per process and state of the file."""

import functools
import hashlib
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same for large files that are asked for again: read once per process, size and time of change."""
    stat = path.stat()
    return _known_sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _known_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)
