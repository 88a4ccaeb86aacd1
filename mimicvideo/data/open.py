"""Finds out what format a dataset has and opens it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.spec import DatasetSpec, load_spec
from mimicvideo.data.store import Store

FORMATS = ("lerobot", "rlds", "zarr", "hdf5", "videos")


def open_episodes(
    root: str | Path, cameras: Sequence[str] | None = None, *, spec: DatasetSpec | str | None = None, **options: Any
) -> Episodes:
    """Opens a dataset of any format.

    Args:
        root: Its folder or file.
        cameras: See the class that is returned.
        spec: Its description, a name in conf/dataset, or a yaml file; None does for LeRobot datasets.
        options: `size`, `min_rows`, `max_bad_fraction`, `verify` and `ram_cache_gb`.

    Raises:
        DatasetError: If there is no dataset, or it cannot be used.
    """
    described = load_spec(spec)
    kind = detect(Path(root).expanduser()) if described.format == "auto" else described.format
    if kind == "lerobot" and described in (DatasetSpec(), DatasetSpec(format="lerobot")):
        from mimicvideo.data.lerobot import LeRobotEpisodes

        return LeRobotEpisodes(root, cameras, **options)
    from mimicvideo.data.stored import StoredEpisodes

    return StoredEpisodes(open_store(Path(root).expanduser(), kind, described), described, cameras, **options)


def detect(root: Path) -> str:
    """The format of what lies there, judged by its files; `lerobot` if nothing is known, whose reader says what is missing."""
    if root.is_file():
        return "hdf5" if root.suffix in (".hdf5", ".h5") else "zarr" if root.name.endswith(".zip") else "lerobot"
    if (root / "meta" / "info.json").is_file():
        return "lerobot"
    if any(root.glob("features.json")) or any(root.glob("*/features.json")):
        return "rlds"
    if any(root.glob("*.hdf5")) or any(root.glob("*.h5")):
        return "hdf5"
    if any((folder / mark).is_file() for folder in (root, *_folders(root)) for mark in (".zgroup", ".zattrs", "zarr.json")):
        return "zarr"
    if any(root.rglob("*.mp4")):
        return "videos"
    return "lerobot"


def _folders(root: Path) -> list[Path]:
    return [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []


def open_store(root: Path, kind: str, spec: DatasetSpec) -> Store:
    """The dataset as it lies on disk.

    Raises:
        DatasetError: If the format is unknown or the dataset cannot be opened.
    """
    if kind == "lerobot":
        from mimicvideo.data.lerobot_store import LeRobotStore

        return LeRobotStore(root)
    if kind == "rlds":
        from mimicvideo.data.rlds import RldsStore

        return RldsStore(root, spec.split)
    if kind == "zarr":
        from mimicvideo.data.zarr_store import ZarrStore

        return ZarrStore(root)
    if kind == "hdf5":
        from mimicvideo.data.hdf5_store import Hdf5Store

        return Hdf5Store(root)
    if kind == "videos":
        from mimicvideo.data.video_folder import VideoFolderStore

        return VideoFolderStore(root)
    raise DatasetError(f"unknown dataset format {kind!r}: use auto, {', '.join(FORMATS)}")
