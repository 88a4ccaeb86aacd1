"""The rows of a LeRobotDataset with one state and one action, read and compared with its meta folder; no video is opened here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from mimicvideo.data.episodes import Camera, Episode
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot_meta import AGAIN, Meta, VideoSpan, feature_names, read_meta, read_parquet

STATE, ACTION = "observation.state", "action"


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
    cameras: dict[str, Camera]  # those with videos
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
    meta = read_meta(root)
    rows = _read_rows(meta.root, meta.data_files, meta.features)
    lengths = _check_lengths(meta, rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    episodes = []
    for number, listed in enumerate(meta.listing):
        start = int(starts[number])
        told = listed.told or ((meta.tasks.get(int(rows["task_index"][start]), ""),) if listed.length else ("",))
        episodes.append(LeRobotEpisode(listed.index, listed.length, told, listed.task_name or told[0], start, listed.videos))
    about, stride = meta.about, meta.stride
    action_width, remainder = divmod(rows[ACTION].shape[1], stride)
    proprio_width = rows[STATE].shape[1]
    for name, width in (("actions", action_width), ("proprio", proprio_width)):
        if about and (remainder or len(about[name]) != width):
            about_file = meta.root / "meta" / "mimicvideo.json"
            raise DatasetError(f"{about_file} names {len(about[name])} {name} and stride {stride}, the rows have another width: {AGAIN}")
    return Tables(
        root=meta.root,
        robot=meta.robot,
        fps=meta.fps,
        control_hz=meta.control_hz,
        stride=stride,
        cameras={name: camera for name, camera in meta.cameras.items() if camera.key not in meta.images},
        proprio_names=about.get("proprio") or _names(meta.features.get(STATE), "state", proprio_width),
        action_names=about.get("actions") or _names(meta.features.get(ACTION), "action", action_width),
        episodes=episodes,
        states=rows[STATE],
        actions=rows[ACTION],
        files=[*meta.files, *meta.data_files],
        manifest=meta.manifest,
    )


def read_timestamps(tables: Tables) -> Float64[np.ndarray, " rows"] | None:
    """The `timestamp` of every row of a dataset, in the order of `tables.states`; None if it has none."""
    parts: dict[str, list[np.ndarray]] = {"episode_index": [], "frame_index": [], "timestamp": []}
    for path in tables.files:
        if "meta" in path.relative_to(tables.root).parts:
            continue
        table = read_parquet(tables.root, path, tuple(parts))
        if "timestamp" not in table.column_names:
            return None
        for name, chunks in parts.items():
            chunks.append(table[name].to_numpy().astype(np.float64))
    episode, frame, timestamp = (np.concatenate(chunks) for chunks in parts.values())
    return timestamp[np.lexsort((frame, episode))]


def _read_rows(root: Path, files: list[Path], features: dict[str, Any]) -> dict[str, np.ndarray]:
    """Columns of all data files, sorted by episode and frame; a feature that the dataset does not have gets width 0."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("episode_index", "frame_index", "task_index", STATE, ACTION)}
    for path in files:
        table = read_parquet(root, path, tuple(parts))
        for name, chunks in parts.items():
            if name not in table.column_names:
                if name not in (STATE, ACTION) or name in features:
                    raise DatasetError(f"{path} lacks the column {name}: {AGAIN}")
                chunks.append(np.zeros((len(table), 0), np.float32))
            elif name in (STATE, ACTION):
                chunks.append(matrix(table[name], path, name).astype(np.float32))
            else:
                chunks.append(table[name].to_numpy())
    rows = {name: np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32) for name, chunks in parts.items()}
    order = np.lexsort((rows["frame_index"], rows["episode_index"]))
    if (np.diff(order) < 0).any():
        rows = {name: values[order] for name, values in rows.items()}
    return rows


def matrix(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    """A column of equally long, perhaps nested lists, or of plain numbers, as [rows, numbers]; null becomes NaN, which the scan reports.

    Raises:
        DatasetError: If rows are missing or not equally long.
    """
    values, rows = column.combine_chunks(), len(column)
    nested = False
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type):
        if values.null_count:
            raise DatasetError(f"{path} has {values.null_count} rows without {name}: {AGAIN}")
        values, nested = values.flatten(), True
    flat = values.to_numpy(zero_copy_only=False)
    if nested and (rows == 0 or len(flat) % rows):
        raise DatasetError(f"{path} holds {len(flat)} numbers of {name} in {rows} rows, which are not equally long: {AGAIN}")
    return flat.reshape(rows, -1)


def _check_lengths(meta: Meta, rows: dict[str, np.ndarray]) -> list[int]:
    """Rows of each listed episode, after comparing info.json, the episodes' table and the rows with each other."""
    lengths = [episode.length for episode in meta.listing]
    if len(rows["episode_index"]) != meta.total_frames or sum(lengths) != meta.total_frames:
        raise DatasetError(
            f"{meta.root} is truncated: meta/info.json says total_frames {meta.total_frames}, {meta.listed_in} lists {sum(lengths)}, "
            f"the data files hold {len(rows['episode_index'])}; {AGAIN}"
        )
    found = dict(zip(*(values.tolist() for values in np.unique(rows["episode_index"], return_counts=True)), strict=True))
    for episode in meta.listing:
        if (count := found.get(episode.index, 0)) != episode.length:
            raise DatasetError(f"{meta.root}: episode {episode.index} has {count} rows, {meta.listed_in} says {episode.length}; {AGAIN}")
    return lengths


def _names(feature: dict[str, Any] | None, prefix: str, dims: int) -> list[str]:
    """Names of a feature's dimensions; numbers where it has none."""
    return feature_names(feature, dims) or [f"{prefix}_{number}" for number in range(dims)]
