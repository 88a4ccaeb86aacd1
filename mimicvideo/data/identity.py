"""What tells the pictures in files from others: digests of content, or of a remote file the mark of its version."""

from pathlib import Path
from typing import Any

from mimicvideo.data.errors import VideoError
from mimicvideo.data.hashes import file_sha256
from mimicvideo.data.packets import span_digest
from mimicvideo.data.remote import remote_mark


def file_identity(path: Path) -> str:
    """SHA-256 of a file's content; of a remote one its URL, size and mark of version, so that it need not be fetched to be told.

    Raises:
        OSError: If it cannot be read.
    """
    return remote_mark(path) or file_sha256(path)


def video_identity(path: Path, first: int, count: int, fps: float) -> list[Any]:
    """What frames `first ... first + count - 1` of a video at `fps` frames per second are decoded from.

    Of a remote file that is the whole file: a change anywhere in it is one of all episodes in it.

    Raises:
        VideoError: If it cannot be read.
    """
    if mark := remote_mark(path):
        return [mark, first, count, fps]
    try:
        return [span_digest(path, first, count, fps)]
    except OSError as error:
        raise VideoError(f"it cannot be read: {error}") from error
