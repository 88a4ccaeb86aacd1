"""Claims: processes that do the same list of jobs at once, on one machine or on several that share a disk, divide it among them."""

import contextlib
import fcntl
import os
from pathlib import Path


class Claims:
    """Exclusive claims on names, which end with the process that holds them, however it ends.

    They only save work: what is claimed must also be safe to do twice, since some network disks have no locks. There every claim is
    granted.

    Args:
        folder: Where the lock files are; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str) -> bool:
        """Whether nobody else holds the claim; then this process does."""
        handle = self._open(self.folder / name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # no locks on this disk
            pass
        self._held[name] = handle
        return True

    def _open(self, path: Path) -> int:
        while True:
            try:
                return os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            except FileNotFoundError:  # the last of the others has just removed the folder
                self.folder.mkdir(parents=True, exist_ok=True)

    def release(self, name: str) -> None:
        """Gives a claim back."""
        (self.folder / name).unlink(missing_ok=True)
        os.close(self._held.pop(name))

    def release_all(self) -> None:
        """Gives all back, and removes the folder if nobody else uses it."""
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # others hold claims
            self.folder.rmdir()
