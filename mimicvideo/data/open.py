"""Finds out what format a dataset has and opens it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.remote import DEFAULT_GB, files_below, is_remote, local_folder
from mimicvideo.data.spec import DatasetSpec, load_spec
from mimicvideo.data.store import Store

FORMATS = ("lerobot", "rlds", "zarr", "hdf5", "videos")
PICKLES = {".npz", ".npy", ".pkl", ".pickle"}


def open_episodes(
    root: str | Path,
    cameras: Sequence[str] | None = None,
    *,
    spec: DatasetSpec | str | None = None,
    remote_cache_gb: float = DEFAULT_GB,
    **options: Any,
) -> Episodes:
    """Opens a dataset of any format.

    Args:
        root: Its folder or file, or a folder's URL that fsspec knows, such as s3://…; see `remote`.
        cameras: See the class that is returned.
        spec: Its description, a name in conf/dataset, or a yaml file; None does for LeRobot datasets.
        remote_cache_gb: What copies of remote files may take on disk, in 10^9 bytes.
        options: `size`, `min_rows`, `max_bad_fraction`, `verify` and `ram_cache_gb`.

    Raises:
        DatasetError: If there is no dataset, or it cannot be used.
    """
    described = load_spec(spec)
    path = local_folder(str(root), limit_gb=remote_cache_gb) if is_remote(root) else Path(root).expanduser()
    kind = detect(path) if described.format == "auto" else described.format
    if kind == "lerobot" and described in (DatasetSpec(), DatasetSpec(format="lerobot")):
        from mimicvideo.data.lerobot import LeRobotEpisodes
        from mimicvideo.data.lerobot_meta import read_meta

        meta = read_meta(path)
        if not meta.images:
            return LeRobotEpisodes(meta, cameras, **options)
    from mimicvideo.data.stored import StoredEpisodes

    return StoredEpisodes(open_store(path, kind, described), described, cameras, **options)


def detect(root: Path) -> str:
    """The format of what lies there, judged by its files; `lerobot` if there is nothing, whose reader says what is missing.

    Raises:
        DatasetError: If there are files of other kinds only.
    """
    if root.is_file():
        return "hdf5" if root.suffix in (".hdf5", ".h5") else "zarr" if root.suffix == ".zip" else "lerobot"
    if (root / "meta" / "info.json").is_file():
        return "lerobot"
    if any(root.glob("features.json")) or any(root.glob("*/features.json")):
        return "rlds"
    endings: dict[str, tuple[str, ...]] = {
        "hdf5": (".hdf5", ".h5"),
        "zarr": (".zgroup", ".zarray", "zarr.json", ".zarr.zip"),
        "videos": (".mp4",),
    }
    names = files_below(root) if root.is_dir() else []
    found = next((kind for kind, ends in endings.items() if any(name.endswith(ends) for name in names)), "lerobot")
    if found == "lerobot" and names and not (root / "meta").is_dir():
        there = sorted({Path(name).suffix or Path(name).name for name in names})
        pickles = " .npz, .npy and .pkl files may hold pickles, which run code, and are never loaded." if PICKLES & set(there) else ""
        raise DatasetError(
            f"{root} is no dataset that is read ({', '.join(FORMATS)}): it holds {', '.join(there[:8])} files.{pickles} Convert them, or "
            "give the folder of the dataset itself"
        )
    return found


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

        return VideoFolderStore(root, spec.hz)
    raise DatasetError(f"unknown dataset format {kind!r}: use auto, {', '.join(FORMATS)}")
