"""What the meta folder of a LeRobotDataset says, in versions 2.0, 2.1 and 3.0: features, episodes and where their rows and videos lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mimicvideo.data.episodes import Camera
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot_files import AGAIN, read_json, read_lines, read_parquet
from mimicvideo.data.lerobot_listing import EpisodeTable, read_v2, read_v3

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATE, ACTION = "observation.state", "action"
ABOUT_VERSION = 1  # of meta/mimicvideo.json


@dataclass(frozen=True)
class Meta:
    """All of the meta folder.

    Attributes:
        root: The dataset's folder.
        features: As info.json describes them.
        fps: Of the video files' time axis.
        total_frames: Rows of all episodes, as info.json says.
        listing: All episodes.
        listed_in: What messages call the file or folder that lists them.
        tasks: Sentences with their task indices.
        about: What meta/mimicvideo.json says; empty for datasets of others.
        robot: Its name.
        cameras: By short name, those whose pictures are in videos and those whose pictures are in the rows.
        images: Keys of the latter.
        files: Everything that was read here.
    """

    root: Path
    features: dict[str, Any]
    fps: float
    total_frames: int
    listing: EpisodeTable
    listed_in: str
    tasks: pa.Table
    about: dict[str, Any]
    robot: str
    cameras: dict[str, Camera]
    images: frozenset[str]
    files: list[Path]

    @property
    def stride(self) -> int:
        """Control steps per row."""
        return self.about.get("stride", 1)

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return float(self.about.get("control_hz", self.fps * self.stride))

    def sentence(self, task_index: int) -> str:
        """The sentence of a task index; empty if there is none."""
        place = pc.index(self.tasks["task_index"], task_index).as_py()
        return "" if place < 0 else str(self.tasks["task"][place].as_py() or "")

    @property
    def manifest(self) -> dict[str, str]:
        """SHA-256 by relative path, as written by LeRobotWriter."""
        return self.about.get("files", {})


def read_meta(root: str | Path) -> Meta:
    """Reads the meta folder of a dataset that LeRobot or LeRobotWriter wrote.

    Raises:
        DatasetError: If the folder is missing, empty, of another version, or truncated.
    """
    root = Path(root).expanduser()
    info = _read_info(root)
    info_file, about_file = root / "meta" / "info.json", root / "meta" / "mimicvideo.json"
    if info["codebase_version"] == "v3.0":
        tasks_file, listed_in = root / "meta" / "tasks.parquet", "meta/episodes"
        tasks = _tasks_v3(root, tasks_file)
        listing, files = read_v3(root, info)
    else:
        tasks_file, listed_in = root / "meta" / "tasks.jsonl", "meta/episodes.jsonl"
        listing, files = read_v2(root, info)
        lines = [(int(row["task_index"]), str(row["task"])) for row in read_lines(root, tasks_file, ("task_index", "task"))]
        numbers, texts = pa.array([number for number, _ in lines], pa.int64()), pa.array([text for _, text in lines], pa.string())
        tasks = pa.table({"task_index": numbers, "task": texts})
    about = _read_about(root, written_by_us=len(listing) > 0 and listing.task_name(0) is not None)
    _check_listing(root, info, listing, listed_in)
    return Meta(
        root=root,
        features=info["features"],
        fps=float(info["fps"]),
        total_frames=int(info["total_frames"]),
        listing=listing,
        listed_in=listed_in,
        tasks=tasks,
        about=about,
        robot=str(about.get("robot") or info.get("robot_type") or "unknown"),
        cameras=_cameras(info["features"], about),
        images=frozenset(key for key, feature in info["features"].items() if feature.get("dtype") == "image"),
        files=[info_file, *([about_file] if about else []), tasks_file, *files],
    )


def feature_names(feature: Mapping[str, Any] | None, dims: int) -> list[str] | None:
    """Names of a feature's dimensions: LeRobot has a list, or lists by group; None where it has none that fit."""
    names: Any = (feature or {}).get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return [str(name) for name in names] if isinstance(names, list) and len(names) == dims else None


def _check_listing(root: Path, info: dict[str, Any], listing: EpisodeTable, listed_in: str) -> None:
    """Raises DatasetError if there are other episodes than info.json says, or one twice."""
    if len(listing) != info["total_episodes"] or not len(listing):
        raise DatasetError(
            f"{root} is truncated or empty: meta/info.json says total_episodes {info['total_episodes']}, "
            f"{listed_in} lists {len(listing)}; {AGAIN}"
        )
    if not (differences := np.diff(listing.indices)).all():
        twice = listing.indices[np.flatnonzero(differences == 0)[0]]
        raise DatasetError(f"{root} is damaged: {listed_in} lists episode {twice} twice; {AGAIN}")


def _read_info(root: Path) -> dict[str, Any]:
    fix = "give the folder of a LeRobotDataset, or make one: mimicvideo demos --root FOLDER"
    if not root.is_dir():
        raise DatasetError(f"there is no dataset folder {root}: {fix}")
    if not any(root.iterdir()):
        raise DatasetError(f"the dataset folder {root} is empty: {fix}")
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise DatasetError(f"{root} is no LeRobotDataset, or truncated: it has no meta/info.json; {fix}")
    info = read_json(path)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        older = isinstance(version, str) and version.startswith("v1.")
        how = "convert it with LeRobot's script convert_dataset_v1_to_v2" if older else "use a version of mimicvideo that knows it, or v3.0"
        raise DatasetError(f"{root} is a LeRobotDataset of version {version!r}, this reads {', '.join(VERSIONS)}: {how}")
    missing = [key for key in ("features", "fps", "total_episodes", "total_frames") if key not in info]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}: {AGAIN}")
    if not (isinstance(info["fps"], int | float) and 0 < info["fps"] < float("inf")):
        raise DatasetError(f"{path} says fps {info['fps']!r}, which is no rate: {AGAIN}")
    return info


def _read_about(root: Path, written_by_us: bool) -> dict[str, Any]:
    """What LeRobotWriter says beyond the format: stride, rates, names, poses. Empty for datasets of others."""
    path = root / "meta" / "mimicvideo.json"
    if not path.is_file():
        if written_by_us:
            raise DatasetError(f"{root} is truncated: it was written by mimicvideo demos but lacks meta/mimicvideo.json; {AGAIN}")
        return {}
    about = read_json(path)
    if about.get("version") != ABOUT_VERSION:
        raise DatasetError(f"{path} is of version {about.get('version')!r}, this reads {ABOUT_VERSION}: make the dataset again")
    missing = [key for key in ("robot", "control_hz", "stride", "proprio", "actions", "cameras") if key not in about]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}: {AGAIN}")
    return about


def _tasks_v3(root: Path, path: Path) -> pa.Table:
    table = read_parquet(root, path)
    text = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)  # LeRobot's is a pandas index
    if text is None or "task_index" not in table.column_names:
        raise DatasetError(f"{path} has columns {sorted(table.column_names)}, expected task_index and task: {AGAIN}")
    return pa.table({"task_index": table["task_index"], "task": table[text]})


def _cameras(features: dict[str, Any], about: dict[str, Any]) -> dict[str, Camera]:
    """Cameras by short name: what follows `observation.images.` in the key."""
    views = {camera["name"]: camera.get("view") or {} for camera in about.get("cameras", [])}
    cameras = {}
    for key, feature in features.items():
        if feature.get("dtype") not in ("video", "image"):
            continue
        name = key.removeprefix("observation.images.").removeprefix("observation.")
        names = [str(axis) for axis in feature.get("names") or ("height", "width", "channels")]
        sizes = dict(zip(names, feature["shape"], strict=False))
        cameras[name] = Camera(name, key, int(sizes.get("height", 0)), int(sizes.get("width", 0)), views.get(name, {}))
    return cameras
