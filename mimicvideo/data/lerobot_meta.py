"""What the meta folder of a LeRobotDataset says, in versions 2.0, 2.1 and 3.0: features, episodes and where their rows and videos lie."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mimicvideo.data.episodes import Camera
from mimicvideo.data.errors import DatasetError

VERSIONS = ("v2.0", "v2.1", "v3.0")
ABOUT_VERSION = 1  # of meta/mimicvideo.json
DATA_PATHS = {
    "v2": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATHS = {
    "v2": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
CHUNK_EPISODES = 1000  # in a folder of a v2 dataset that does not say
AGAIN = "copy or download the dataset again"


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are: in `path`, from frame `first` on."""

    path: Path
    first: int


@dataclass(frozen=True)
class Listed:
    """An episode as the meta folder lists it.

    Attributes:
        index: Its number.
        length: Its rows.
        told: Its sentences, if they are listed with it.
        task_name: Its task in its benchmark, which LeRobotWriter adds.
        data: The parquet file with its rows.
        videos: By the key of the camera's feature.
    """

    index: int
    length: int
    told: tuple[str, ...]
    task_name: str | None
    data: Path
    videos: dict[str, VideoSpan] = field(repr=False)


@dataclass(frozen=True)
class Meta:
    """All of the meta folder.

    Attributes:
        root: The dataset's folder.
        features: As info.json describes them.
        fps: Of the video files' time axis.
        total_frames: Rows of all episodes, as info.json says.
        listing: All episodes, by index.
        listed_in: What messages call the file or folder that lists them.
        tasks: Sentences by task index.
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
    listing: list[Listed]
    listed_in: str
    tasks: dict[int, str]
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

    @property
    def manifest(self) -> dict[str, str]:
        """SHA-256 by relative path, as written by LeRobotWriter."""
        return self.about.get("files", {})

    @property
    def data_files(self) -> list[Path]:
        """The files with rows."""
        return sorted({episode.data for episode in self.listing})


def read_meta(root: str | Path) -> Meta:
    """Reads the meta folder of a dataset that LeRobot or LeRobotWriter wrote.

    Raises:
        DatasetError: If the folder is missing, empty, of another version, or truncated.
    """
    root = Path(root).expanduser()
    info = _read_info(root)
    info_file, about_file = root / "meta" / "info.json", root / "meta" / "mimicvideo.json"
    if info["codebase_version"] == "v3.0":
        rows, files = _rows_v3(root)
        tasks_file = root / "meta" / "tasks.parquet"
        tasks, listing, listed_in = _tasks_v3(root, tasks_file), _listing_v3(root, info, rows), "meta/episodes"
    else:
        files, tasks_file = [root / "meta" / "episodes.jsonl"], root / "meta" / "tasks.jsonl"
        rows, listed_in = _read_lines(root, files[0], ("episode_index", "length")), "meta/episodes.jsonl"
        tasks = {int(row["task_index"]): str(row["task"]) for row in _read_lines(root, tasks_file, ("task_index", "task"))}
        listing = _listing_v2(root, info, rows)
    about = _read_about(root, written_by_us=any(row.get("task_name") for row in rows[:1]))
    if len(listing) != info["total_episodes"] or not listing:
        raise DatasetError(
            f"{root} is truncated or empty: meta/info.json says total_episodes {info['total_episodes']}, "
            f"{listed_in} lists {len(listing)}; {AGAIN}"
        )
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


def read_parquet(root: Path, path: Path, prefixes: tuple[str, ...]) -> pa.Table:
    """The columns of a parquet file whose names start with one of the prefixes.

    Raises:
        DatasetError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{root} is truncated: {path.relative_to(root)} is missing; {AGAIN}")
    try:
        with pq.ParquetFile(path) as file:
            return file.read([name for name in file.schema_arrow.names if name.startswith(prefixes)])
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({str(error).splitlines()[0]}): {AGAIN}") from error


def _read_info(root: Path) -> dict[str, Any]:
    fix = "give the folder of a LeRobotDataset, or make one: mimicvideo demos --root FOLDER"
    if not root.is_dir():
        raise DatasetError(f"there is no dataset folder {root}: {fix}")
    if not any(root.iterdir()):
        raise DatasetError(f"the dataset folder {root} is empty: {fix}")
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise DatasetError(f"{root} is no LeRobotDataset, or truncated: it has no meta/info.json; {fix}")
    info = _read_json(path)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        older = isinstance(version, str) and version.startswith("v1.")
        how = "convert it with LeRobot's script convert_dataset_v1_to_v2" if older else "use a version of mimicvideo that knows it, or v3.0"
        raise DatasetError(f"{root} is a LeRobotDataset of version {version!r}, this reads {', '.join(VERSIONS)}: {how}")
    missing = [key for key in ("features", "fps", "total_episodes", "total_frames") if key not in info]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}: {AGAIN}")
    return info


def _read_about(root: Path, written_by_us: bool) -> dict[str, Any]:
    """What LeRobotWriter says beyond the format: stride, rates, names, poses. Empty for datasets of others."""
    path = root / "meta" / "mimicvideo.json"
    if not path.is_file():
        if written_by_us:
            raise DatasetError(f"{root} is truncated: it was written by mimicvideo demos but lacks meta/mimicvideo.json; {AGAIN}")
        return {}
    about = _read_json(path)
    if about.get("version") != ABOUT_VERSION:
        raise DatasetError(f"{path} is of version {about.get('version')!r}, this reads {ABOUT_VERSION}: make the dataset again")
    missing = [key for key in ("robot", "control_hz", "stride", "proprio", "actions", "cameras") if key not in about]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}: {AGAIN}")
    return about


def _rows_v3(root: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{root} is truncated: it has no meta/episodes/chunk-*/file-*.parquet; {AGAIN}")
    wanted = ("episode_index", "length", "tasks", "task_name", "data/", "videos/")
    rows = [row for path in files for row in read_parquet(root, path, wanted).to_pylist()]
    return sorted(rows, key=lambda row: row["episode_index"]), files


def _listing_v3(root: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> list[Listed]:
    data_path, video_path = info.get("data_path") or DATA_PATHS["v3"], info.get("video_path") or VIDEO_PATHS["v3"]
    keys = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]

    def listed(row: dict[str, Any]) -> Listed:
        data = root / data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        videos = {}
        for key in keys:
            if f"videos/{key}/chunk_index" in row:
                place = {"chunk_index": row[f"videos/{key}/chunk_index"], "file_index": row[f"videos/{key}/file_index"]}
                first = round(row[f"videos/{key}/from_timestamp"] * float(info["fps"]))
                videos[key] = VideoSpan(root / video_path.format(video_key=key, **place), first)
        return Listed(int(row["episode_index"]), int(row["length"]), _told(row), row.get("task_name"), data, videos)

    return [listed(row) for row in rows]


def _listing_v2(root: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> list[Listed]:
    """One parquet file, and one mp4 file per camera, for each episode."""
    data_path, video_path = info.get("data_path") or DATA_PATHS["v2"], info.get("video_path") or VIDEO_PATHS["v2"]
    keys = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]
    size = int(info.get("chunks_size") or CHUNK_EPISODES)

    def listed(row: dict[str, Any]) -> Listed:
        index = int(row["episode_index"])
        place = {"episode_chunk": index // size, "episode_index": index}
        videos = {key: VideoSpan(root / video_path.format(video_key=key, **place), 0) for key in keys}
        return Listed(index, int(row["length"]), _told(row), None, root / data_path.format(**place), videos)

    return sorted((listed(row) for row in rows), key=lambda episode: episode.index)


def _told(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(text) for text in row.get("tasks") or ())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is damaged: it holds no JSON object; {AGAIN}")
    return content


def _read_lines(root: Path, path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file, one per line."""
    if not path.is_file():
        raise DatasetError(f"{root} is truncated: {path.relative_to(root)} is missing; {AGAIN}")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path} is damaged or truncated in line {number} ({error}): {AGAIN}") from error
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise DatasetError(f"{path} lacks {' or '.join(keys)} in line {number}: {AGAIN}")
        rows.append(row)
    return rows


def _tasks_v3(root: Path, path: Path) -> dict[int, str]:
    table = read_parquet(root, path, ("",)).to_pydict()
    texts = table.get("task") or table.get("__index_level_0__")  # LeRobot stores the text as a pandas index
    if texts is None or "task_index" not in table:
        raise DatasetError(f"{path} has columns {sorted(table)}, expected task_index and task: {AGAIN}")
    return dict(zip(table["task_index"], texts, strict=True))


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
