"""Checkpoint files that are whole or not there: written aside, hashed, renamed, and verified before they are read."""

import errno
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mimicvideo.hashes import file_sha256


class CheckpointNotSavedError(OSError):
    """The disk took no new checkpoint; those written before are as they were."""


class DamagedCheckpointError(ValueError):
    """The file is not what was written: truncated, or changed since."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe against full disks and damaged files (local paths only)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See `save_checkpoint` of this module."""
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verifies, then loads tensors and plain values only, whatever `weights_only` says.

        Raises:
            FileNotFoundError: If there is no such file.
            DamagedCheckpointError: If it is truncated or has changed.
        """
        verify_checkpoint(path)
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file and its recorded hash."""
        super().remove_checkpoint(path)
        sidecar(path).unlink(missing_ok=True)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Writes `path` and `path.sha256` so that at every moment `path` is either the old whole file or the new whole file.

    The new file is written beside the old one, so the disk must hold both for a moment.

    Raises:
        CheckpointNotSavedError: If the system refuses; nothing half-written stays behind.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Between the two renames a kill leaves the old file without a hash, never a file with another one's hash.
        digest = hashlib.sha256(content).hexdigest()
        with _aside(path) as new, _aside(sidecar(path)) as new_hash:
            _write(new, content)
            _write(new_hash, f"{digest}  {path.name}\n".encode())
            sidecar(path).unlink(missing_ok=True)
            os.replace(new, path)
            os.replace(new_hash, sidecar(path))
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointNotSavedError(error.errno or errno.EIO, _refusal(path, len(content), error)) from error


def verify_checkpoint(path: str | Path) -> str:
    """The SHA-256 of a checkpoint that is as it was written: compared with `path.sha256`, or by the file's own checksums.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If it is truncated or has changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    advice = "copy it again, or use another checkpoint"
    digest = file_sha256(path)
    recorded = sidecar(path.resolve())  # a link last.ckpt -> step=100.ckpt shares the other's hash
    if recorded.is_file():
        expected = recorded.read_text().split()[0]
        if digest != expected:
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: its SHA-256 is {digest}, {recorded} says {expected}; {advice}")
        return digest
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged or no checkpoint: {error}; {advice}") from error
    if damaged:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged in {damaged}: its checksum differs; {advice}")
    return digest


def sidecar(path: str | Path) -> Path:
    """Where the hash of a checkpoint is recorded, in the format of `sha256sum`."""
    return Path(f"{path}.sha256")


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """The name under which a file is written before it takes its place; removed if it never does."""
    new = path.with_name(f".{path.name}.tmp")
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


def _write(path: Path, content: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(path: Path, size: int, error: OSError) -> str:
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    return (
        f"could not save checkpoint {path} ({size / 1e6:.1f} MB; {free / 1e6:.1f} MB are free there): {error.strerror or error}. "
        "Checkpoints saved before are untouched. Free some space or choose another run_dir, then resume with --ckpt_path"
    )
