"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"  # the ending of files that are being written


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


@contextlib.contextmanager
def told(what: str, folder: Path, remedy: str) -> Iterator[None]:
    """Says in plain words that a file could not be written: `what`, where, why, and what to do beside freeing space."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} {folder} ({error.strerror or error}): free some space, or {remedy}") from error
