"""SHA-256 of a dataset's files, which may have to be fetched first."""

from pathlib import Path

from mimicvideo.data.remote import fetched
from mimicvideo.hashes import known_sha256


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits; computed once per process and state of the file."""
    fetched(path)
    return known_sha256(path)
