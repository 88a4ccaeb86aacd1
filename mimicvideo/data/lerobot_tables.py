"""The tables and meta files of a LeRobotDataset v3.0, read and compared with each other; no video is opened here."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64

from mimicvideo.data.episodes import Camera, Episode
from mimicvideo.data.errors import DatasetError

FORMAT = "v3.0"
ABOUT_VERSION = 1  # of meta/mimicvideo.json
STATE, ACTION = "observation.state", "action"
DEFAULT_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DEFAULT_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
AGAIN = "copy or download the dataset again"


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are: in `path`, from frame `first` on."""

    path: Path
    first: int


@dataclass(frozen=True)
class LeRobotEpisode(Episode):
    """An episode and where its data lie.

    Attributes:
        start: Its first row in the table of all rows.
        videos: By the key of the camera's feature.
    """

    start: int
    videos: dict[str, VideoSpan] = field(repr=False)


@dataclass(frozen=True)
class Tables:
    """All of a dataset but its videos."""

    root: Path
    robot: str
    fps: float  # of the video files' time axis
    control_hz: float
    stride: int  # control steps per row
    cameras: dict[str, Camera]
    proprio_names: list[str]  # empty if there is no observation.state
    action_names: list[str]  # of one control step; empty if there is no action
    episodes: list[LeRobotEpisode]
    states: Float32[np.ndarray, "rows proprio_dim"]
    actions: Float32[np.ndarray, "rows stride_times_action_dim"]
    files: list[Path]  # everything that was read
    manifest: dict[str, str]  # SHA-256 by relative path, as written by LeRobotWriter


def read_tables(root: str | Path) -> Tables:
    """Reads a dataset that LeRobot or LeRobotWriter wrote.

    Without meta/mimicvideo.json a row is one control step, and names come from info.json.

    Raises:
        DatasetError: If the folder is missing, empty, of another version, or truncated.
    """
    root = Path(root).expanduser()
    info = _read_info(root)
    features = info["features"]
    episode_files = sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not episode_files:
        raise DatasetError(f"{root} is truncated: it has no meta/episodes/chunk-*/file-*.parquet; {AGAIN}")
    wanted = ("episode_index", "length", "tasks", "task_name", "data/", "videos/")
    listing = [row for path in episode_files for row in _read_parquet(root, path, wanted).to_pylist()]
    listing.sort(key=lambda row: row["episode_index"])
    about = _read_about(root, written_by_us="task_name" in listing[0] if listing else False)
    stride = about.get("stride", 1)

    data_path = info.get("data_path") or DEFAULT_DATA_PATH
    places = sorted({(row["data/chunk_index"], row["data/file_index"]) for row in listing})
    data_files = [root / data_path.format(chunk_index=chunk, file_index=file) for chunk, file in places]
    rows = _read_rows(root, data_files, features)
    lengths = _check_lengths(root, info, listing, rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tasks_file = root / "meta" / "tasks.parquet"
    tasks = _read_tasks(root, tasks_file)
    cameras = _cameras(features, about)
    fps = float(info["fps"])
    video_path = info.get("video_path") or DEFAULT_VIDEO_PATH

    def span(row: dict[str, Any], key: str) -> VideoSpan:
        place = {"chunk_index": row[f"videos/{key}/chunk_index"], "file_index": row[f"videos/{key}/file_index"]}
        return VideoSpan(root / video_path.format(video_key=key, **place), round(row[f"videos/{key}/from_timestamp"] * fps))

    episodes = []
    for number, row in enumerate(listing):
        start = int(starts[number])
        told = tuple(row.get("tasks") or ()) or ((tasks.get(int(rows["task_index"][start]), ""),) if lengths[number] else ("",))
        videos = {camera.key: span(row, camera.key) for camera in cameras.values() if f"videos/{camera.key}/chunk_index" in row}
        task = row.get("task_name") or told[0]
        episodes.append(LeRobotEpisode(int(row["episode_index"]), int(lengths[number]), told, task, start, videos))
    about_file = root / "meta" / "mimicvideo.json"
    action_width, remainder = divmod(rows[ACTION].shape[1], stride)
    for name, width in (("actions", action_width), ("proprio", rows[STATE].shape[1])):
        if about and (remainder or len(about[name]) != width):
            raise DatasetError(f"{about_file} names {len(about[name])} {name} and stride {stride}, the rows have another width: {AGAIN}")
    return Tables(
        root=root,
        robot=str(about.get("robot") or info.get("robot_type") or "unknown"),
        fps=fps,
        control_hz=float(about.get("control_hz", fps * stride)),
        stride=stride,
        cameras=cameras,
        proprio_names=about.get("proprio") or _names(features.get(STATE), "state", rows[STATE].shape[1]),
        action_names=about.get("actions") or _names(features.get(ACTION), "action", action_width),
        episodes=episodes,
        states=rows[STATE],
        actions=rows[ACTION],
        files=[root / "meta" / "info.json", *([about_file] if about else []), tasks_file, *episode_files, *data_files],
        manifest=about.get("files", {}),
    )


def read_timestamps(tables: Tables) -> Float64[np.ndarray, " rows"] | None:
    """The `timestamp` of every row of a dataset, in the order of `tables.states`; None if it has none."""
    parts: dict[str, list[np.ndarray]] = {"episode_index": [], "frame_index": [], "timestamp": []}
    for path in tables.files:
        if "meta" in path.relative_to(tables.root).parts:
            continue
        table = _read_parquet(tables.root, path, tuple(parts))
        if "timestamp" not in table.column_names:
            return None
        for name, chunks in parts.items():
            chunks.append(table[name].to_numpy().astype(np.float64))
    episode, frame, timestamp = (np.concatenate(chunks) for chunks in parts.values())
    return timestamp[np.lexsort((frame, episode))]


def _read_info(root: Path) -> dict[str, Any]:
    fix = "give the folder of a LeRobotDataset v3.0, or make one: mimicvideo demos --root FOLDER"
    if not root.is_dir():
        raise DatasetError(f"there is no dataset folder {root}: {fix}")
    if not any(root.iterdir()):
        raise DatasetError(f"the dataset folder {root} is empty: {fix}")
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise DatasetError(f"{root} is no LeRobotDataset, or truncated: it has no meta/info.json; {fix}")
    info = _read_json(path)
    version = info.get("codebase_version")
    if version != FORMAT:
        older = isinstance(version, str) and version.startswith(("v1.", "v2."))
        how = (
            f"convert it with LeRobot's script convert_dataset_v21_to_v30{'' if version == 'v2.1' else ', after the one to v2.1'}"
            if older
            else "use a version of mimicvideo that knows it, or write the dataset as v3.0"
        )
        raise DatasetError(f"{root} is a LeRobotDataset of version {version!r}, this reads {FORMAT}: {how}")
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is damaged: it holds no JSON object; {AGAIN}")
    return content


def _read_parquet(root: Path, path: Path, prefixes: tuple[str, ...]) -> pa.Table:
    """The columns of a parquet file whose names start with one of the prefixes."""
    if not path.is_file():
        raise DatasetError(f"{root} is truncated: {path.relative_to(root)} is missing; {AGAIN}")
    try:
        with pq.ParquetFile(path) as file:
            return file.read([name for name in file.schema_arrow.names if name.startswith(prefixes)])
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({str(error).splitlines()[0]}): {AGAIN}") from error


def _read_tasks(root: Path, path: Path) -> dict[int, str]:
    table = _read_parquet(root, path, ("",)).to_pydict()
    texts = table.get("task") or table.get("__index_level_0__")  # LeRobot stores the text as a pandas index
    if texts is None or "task_index" not in table:
        raise DatasetError(f"{path} has columns {sorted(table)}, expected task_index and task: {AGAIN}")
    return dict(zip(table["task_index"], texts, strict=True))


def _read_rows(root: Path, files: list[Path], features: dict[str, Any]) -> dict[str, np.ndarray]:
    """Columns of all data files, sorted by episode and frame; a feature that the dataset does not have gets width 0."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("episode_index", "frame_index", "task_index", STATE, ACTION)}
    for path in files:
        table = _read_parquet(root, path, tuple(parts))
        for name, chunks in parts.items():
            if name not in table.column_names:
                if name not in (STATE, ACTION) or name in features:
                    raise DatasetError(f"{path} lacks the column {name}: {AGAIN}")
                chunks.append(np.zeros((len(table), 0), np.float32))
            elif name in (STATE, ACTION):
                chunks.append(_matrix(table[name], path, name))
            else:
                chunks.append(table[name].to_numpy())
    rows = {name: np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32) for name, chunks in parts.items()}
    order = np.lexsort((rows["frame_index"], rows["episode_index"]))
    if (np.diff(order) < 0).any():
        rows = {name: values[order] for name, values in rows.items()}
    return rows


def _matrix(column: pa.ChunkedArray, path: Path, name: str) -> Float32[np.ndarray, "rows dim"]:
    """A column of equally long lists, or of plain numbers, as float32; null becomes NaN, which the scan reports."""
    values = column.combine_chunks()
    if not (pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type)):
        return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 1)
    if values.null_count:
        raise DatasetError(f"{path} has {values.null_count} rows without {name}: {AGAIN}")
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(values) == 0 or len(flat) % len(values):
        raise DatasetError(f"{path} holds {len(flat)} numbers of {name} in {len(values)} rows, which are not equally long: {AGAIN}")
    return flat.reshape(len(values), -1)


def _check_lengths(root: Path, info: dict[str, Any], listing: list[dict[str, Any]], rows: dict[str, np.ndarray]) -> list[int]:
    """Rows of each listed episode, after comparing info.json, the episodes' table and the rows with each other."""
    if len(listing) != info["total_episodes"] or not listing:
        raise DatasetError(
            f"{root} is truncated or empty: meta/info.json says total_episodes {info['total_episodes']}, "
            f"meta/episodes lists {len(listing)}; {AGAIN}"
        )
    lengths = [int(row["length"]) for row in listing]
    if len(rows["episode_index"]) != info["total_frames"] or sum(lengths) != info["total_frames"]:
        raise DatasetError(
            f"{root} is truncated: meta/info.json says total_frames {info['total_frames']}, meta/episodes lists {sum(lengths)}, "
            f"the data files hold {len(rows['episode_index'])}; {AGAIN}"
        )
    found = dict(zip(*(values.tolist() for values in np.unique(rows["episode_index"], return_counts=True)), strict=True))
    for row, length in zip(listing, lengths, strict=True):
        if (count := found.get(row["episode_index"], 0)) != length:
            raise DatasetError(f"{root}: episode {row['episode_index']} has {count} rows, meta/episodes says {length}; {AGAIN}")
    return lengths


def _cameras(features: dict[str, Any], about: dict[str, Any]) -> dict[str, Camera]:
    """Cameras by short name: what follows `observation.images.` in the key."""
    views = {camera["name"]: camera.get("view") or {} for camera in about.get("cameras", [])}
    cameras = {}
    for key, feature in features.items():
        if feature.get("dtype") != "video":
            continue
        name = key.removeprefix("observation.images.").removeprefix("observation.")
        names = [str(axis) for axis in feature.get("names") or ("height", "width", "channels")]
        sizes = dict(zip(names, feature["shape"], strict=False))
        cameras[name] = Camera(name, key, int(sizes.get("height", 0)), int(sizes.get("width", 0)), views.get(name, {}))
    return cameras


def _names(feature: dict[str, Any] | None, prefix: str, dims: int) -> list[str]:
    """Names of a feature's dimensions: LeRobot has a list, or lists by group; numbers where it has none."""
    names: Any = (feature or {}).get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if isinstance(names, list) and len(names) == dims:
        return [str(name) for name in names]
    return [f"{prefix}_{number}" for number in range(dims)]
