"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # the ending of files that are being written
_FULL = re.compile(rf"(\[Errno|\(os error) ({errno.ENOSPC}|{errno.EDQUOT})[\])]")  # as shutil.copytree and safetensors word it
ABANDONED_S = 3600.0  # a partial file that has not grown for so long was left by a process that was killed


@contextlib.contextmanager
def whole_file(path: Path, note: str = "") -> Iterator[Path]:
    """A temporary path beside `path`: what is written there takes the name `path` when the block ends, and is deleted if it fails.

    Folders that lead there are made. The temporary path ends with `.NOTE.RANDOM` and `PARTIAL`. A process that is killed may leave it.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.{note}.", suffix=PARTIAL)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's are for this user alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_old(partial: Path) -> bool:
    """Whether a partial file seems to have no writer any more. Raises OSError if it is gone."""
    return time.time() - partial.stat().st_mtime > ABANDONED_S


def full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk that an error is, or that led to it; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if _FULL.search(str(error)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def told(what: str, folder: Path, remedy: str) -> Iterator[None]:
    """Says in plain words that a file could not be written: `what`, where, why, and what to do about it, or else the `remedy`."""
    try:
        yield
    except OSError as error:
        mend = "make it writable" if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else "free some space"
        raise OSError(f"{what} {folder} ({error.strerror or error}): {mend}, or {remedy}") from error
