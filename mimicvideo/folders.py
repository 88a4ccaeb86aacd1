"""Folders that are whole or not there: written aside, listed with their SHA-256 in a manifest, verified before they are read."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mimicvideo.atomic import told
from mimicvideo.checkpoint import DamagedCheckpointError
from mimicvideo.hashes import file_sha256

MANIFEST = "manifest.json"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place if the block succeeds and vanishes if it fails.

    Raises:
        OSError: If nothing can be written there.
    """
    folder = folder.absolute()
    with told("cannot make", folder, "choose another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def check_free(folder: Path) -> None:
    """Raises FileExistsError if something is there already, which `replacing` would remove, and OSError if it could not be made there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty: choose another folder for out, or remove it first")
    if folder.is_mount():
        raise OSError(f"{folder} is a mount point, whose place no other folder can take: choose a folder in it for out")
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fault = "not writable" if there.is_dir() else "no folder"
        raise OSError(f"{folder} cannot be made, since {there} is {fault}: choose another folder for out")


def write_manifest(folder: Path) -> None:
    """Records the SHA-256 of every file of `folder` in its manifest.json."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n")


def check_listed(folder: Path, recorded: Mapping[str, str]) -> None:
    """Raises DamagedCheckpointError if the manifest lacks a file that a reader may open; a `.gitattributes` or a picture may lie there."""
    read = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and path.name != MANIFEST)
    if unlisted := [name for name in read if name not in recorded]:
        raise DamagedCheckpointError(
            f"{folder / MANIFEST} does not list {', '.join(unlisted[:5])}, whose content nobody can vouch for: copy the whole folder again"
        )


def verify_manifest(folder: Path) -> str:
    """The SHA-256 of a folder's manifest, and so of all its files, each of which is as it was written.

    Raises:
        FileNotFoundError: If the manifest, or a file that it lists, is missing.
        DamagedCheckpointError: If a file differs from its SHA-256, is not listed though it would be read, or the manifest cannot be read.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} is missing: copy the whole folder again, or export it again")
    try:
        recorded = dict(json.loads(manifest.read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{manifest} is damaged ({error!r}): copy the whole folder again") from None
    check_listed(folder, recorded)
    for name, expected in recorded.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though {MANIFEST} lists it: copy the whole folder again")
        if (digest := file_sha256(path)) != expected:
            raise DamagedCheckpointError(
                f"{path} is damaged or was changed: its SHA-256 is {digest}, {MANIFEST} says {expected}; copy the whole folder again"
            )
    return file_sha256(manifest)
