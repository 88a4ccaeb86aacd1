"""Writes episodes as a LeRobotDataset v3.0 (parquet, mp4, meta), plus meta/mimicvideo.json, which says what robot and cameras they show.

A row is a video frame. It holds the proprioception at the frame's time and the actions of the `stride` control steps until the next
frame, flattened one after the other. The dataset is built in a hidden folder beside its place and renamed at the end, and
meta/mimicvideo.json is written last: what bears the dataset's name is complete.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, UInt8

from mimicvideo.data.feature_statistics import of_histogram, of_values
from mimicvideo.data.lerobot_files import columns_table, tasks_table, umask, write_json, write_table
from mimicvideo.data.video_encoding import EncodedVideo, VideoCodec, encode_video
from mimicvideo.hashes import file_sha256

FORMAT = "v3.0"  # of LeRobotDataset
VERSION = 1  # of meta/mimicvideo.json
CHUNK_FILES = 1000  # files in a chunk folder
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200  # LeRobot's limits for files of many episodes; here a video file holds one episode
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CODEC_NAMES = {"libx264": "h264", "libsvtav1": "av1", "libx265": "hevc"}
PACKAGES = ("mimicvideo", "metaworld", "mujoco", "numpy", "av", "pyarrow")


@dataclass
class _Episode:
    """What is kept of an episode until the tables are written."""

    columns: dict[str, np.ndarray]  # by feature, [rows, dim]
    videos: dict[str, EncodedVideo]  # by camera
    instruction: str
    details: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["index"])


class LeRobotWriter:
    """Builds one dataset. Use it as a context manager: leaving it by an exception removes what was written.

    `folder` is the hidden folder in which the dataset grows; others may put encoded videos into `folder / "incoming"`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        robot: str,
        control_hz: float,
        stride: int,
        cameras: Sequence[Mapping[str, Any]],
        proprio_names: Sequence[str],
        action_names: Sequence[str],
        codec: VideoCodec = VideoCodec(),  # noqa: B008 (frozen)
        overwrite: bool = False,
    ) -> None:
        """
        Args:
            root: Where the dataset shall be.
            robot: What moves, for instance `metaworld-sawyer`.
            control_hz: Control steps per second.
            stride: Control steps per row.
            cameras: `name`, `height`, `width` and `view` (pose, or {}) of each.
            proprio_names: Of the dimensions of `observation.state`.
            action_names: Of the dimensions of one control step's action.
            codec: How videos are stored.
            overwrite: Replaces a dataset at `root`.

        Raises:
            FileExistsError: If something is at `root` that must not be replaced.
            ValueError: If stride is not positive, or the codec cannot store such pictures.
            OSError: If the place cannot be written to.
        """
        if stride < 1:
            raise ValueError(f"stride counts control steps per row and is at least 1, got {stride}")
        for camera in cameras:
            codec.check(camera["height"], camera["width"])
        self.root = Path(root).expanduser().absolute()
        self._check_free(overwrite)
        self.robot, self.control_hz, self.stride, self.codec = robot, float(control_hz), stride, codec
        self.cameras = {camera["name"]: dict(camera) for camera in cameras}
        self.proprio_names, self.action_names = list(proprio_names), list(action_names)
        self.fps = max(1, round(self.control_hz / stride))  # LeRobot wants a whole number; mimicvideo.json has the exact one
        self._episodes: list[_Episode] = []
        self._rows = 0
        self._tasks: dict[str, int] = {}
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.root.name}.", suffix=".partial", dir=self.root.parent))
            self.incoming.mkdir()
        except OSError as error:
            raise OSError(error.errno, f"cannot write a dataset to {self.root}: {error.strerror}") from error

    @property
    def incoming(self) -> Path:
        """A folder for videos that other processes encode: `add_episode` moves them out of it."""
        return self.folder / "incoming"

    def add_episode(
        self,
        frames: Mapping[str, UInt8[np.ndarray, "rows height width 3"] | EncodedVideo],
        proprio: Float32[np.ndarray, "rows proprio_dim"],
        actions: Float32[np.ndarray, "steps action_dim"],
        instruction: str,
        task: str,
        seed: int,
        success: Bool[np.ndarray, " rows"] | None = None,
        **details: Any,
    ) -> int:
        """Adds an episode.

        Args:
            frames: By camera: pictures, or a video that is already encoded with this writer's fps (its file is moved).
            proprio: At the time of each frame.
            actions: rows * stride of them.
            instruction: The sentence that goes with the episode: LeRobot's task.
            task: The task's name in its benchmark.
            seed: Of the episode.
            success: Whether the task was solved by the end of each row; the last row only if left out.
            details: More columns of the episodes' table; the same for each episode.

        Returns:
            The episode's index.

        Raises:
            ValueError: If lengths do not agree, names are missing, or a number is not finite.
            OSError: If a file cannot be written.
        """
        rows, index = len(proprio), len(self._episodes)
        self._check_episode(index, frames, proprio, actions)
        chunk_index, file_index = divmod(index, CHUNK_FILES)
        videos = {}
        for name, video in frames.items():
            place = {"video_key": f"observation.images.{name}", "chunk_index": chunk_index, "file_index": file_index}
            path = self.folder / VIDEO_PATH.format(**place)
            with self.disk():
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(video, EncodedVideo):
                    os.replace(video.path, path)
                else:
                    video = encode_video(path, video, self.fps, self.codec)
            videos[name] = EncodedVideo(path, rows, video.height, video.width, video.histogram)
        frame_index = np.arange(rows, dtype=np.int64)
        columns = {
            "observation.state": proprio,
            "action": actions.reshape(rows, -1),
            "next.success": np.arange(rows) == rows - 1 if success is None else success,
            "timestamp": (frame_index / self.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.full(rows, index, np.int64),
            "index": self._rows + frame_index,
            "task_index": np.full(rows, self._tasks.setdefault(instruction, len(self._tasks)), np.int64),
        }
        columns = {name: values.reshape(rows, -1) for name, values in columns.items()}
        self._episodes.append(_Episode(columns, videos, instruction, {"task_name": task, "seed": seed, **details}))
        self._rows += rows
        return index

    def finish(self, **generator: Any) -> Path:
        """Writes the tables and meta files and puts the dataset in its place.

        Args:
            generator: What else meta/mimicvideo.json shall say: how the episodes were made, and how many were dropped.

        Returns:
            `root`.

        Raises:
            ValueError: If there is no episode.
            OSError: If a file cannot be written; nothing is left behind then.
        """
        if not self._episodes:
            raise ValueError(f"no episode was added to {self.root}")
        with self.disk():
            shutil.rmtree(self.incoming, ignore_errors=True)
            locations = self._write_data()
            self._write_meta(locations)
            about = {
                "version": VERSION,
                "robot": self.robot,
                "control_hz": self.control_hz,
                "stride": self.stride,
                "fps": self.control_hz / self.stride,
                "proprio": self.proprio_names,
                "actions": self.action_names,
                "cameras": list(self.cameras.values()),
                "codec": asdict(self.codec),
                **generator,
                "packages": {name: found for name in PACKAGES if (found := _version(name))},
                "files": {
                    path.relative_to(self.folder).as_posix(): file_sha256(path)
                    for path in sorted(self.folder.rglob("*.*"))
                    if path.is_file()
                },
            }
            write_json(self.folder / "meta/mimicvideo.json", about)
            self.folder.chmod(0o777 & ~umask())  # temporary folders are private
            if self.root.exists():
                old = self.folder.with_suffix(".replaced")
                self.root.rename(old)
                self.folder.rename(self.root)
                shutil.rmtree(old)
            else:
                self.folder.rename(self.root)
        return self.root

    def discard(self) -> None:
        """Removes what was written so far; does nothing after `finish`."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "LeRobotWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()

    def _check_free(self, overwrite: bool) -> None:
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not overwrite:
            raise FileExistsError(f"{self.root} exists and is not empty: choose another root, or replace it with overwrite")
        if not (self.root / "meta/info.json").is_file():
            raise FileExistsError(f"{self.root} is not a dataset (it has no meta/info.json): it is not overwritten; remove it yourself")

    def _check_episode(self, index: int, frames: Mapping[str, Any], proprio: np.ndarray, actions: np.ndarray) -> None:
        rows = len(proprio)
        problems = []
        if rows == 0:
            problems.append("it has no rows")
        if set(frames) != set(self.cameras):
            problems.append(f"cameras {sorted(frames)}, expected {sorted(self.cameras)}")
        if proprio.shape != (rows, len(self.proprio_names)):
            problems.append(f"proprio {list(proprio.shape)}, expected [{rows}, {len(self.proprio_names)}]")
        if actions.shape != (rows * self.stride, len(self.action_names)):
            problems.append(f"actions {list(actions.shape)}, expected [{rows} rows * stride {self.stride}, {len(self.action_names)}]")
        problems += [
            f"{name} is not finite" for name, values in (("proprio", proprio), ("actions", actions)) if not np.isfinite(values).all()
        ]
        for name, video in frames.items():
            shape = (video.frames, video.height, video.width) if isinstance(video, EncodedVideo) else video.shape[:3]
            camera = self.cameras.get(name)
            if camera and shape != (rows, camera["height"], camera["width"]):
                problems.append(f"video of {name} {list(shape)}, expected {[rows, camera['height'], camera['width']]}")
        if problems:
            raise ValueError(f"episode {index} cannot be added to {self.root}: {'; '.join(problems)}")

    def _write_data(self) -> list[dict[str, int]]:
        """Writes the rows, as many episodes to a file as LeRobot's size limit allows; returns where each episode's rows are."""
        files: list[list[_Episode]] = [[]]
        locations, size, start = [], 0, 0
        for episode in self._episodes:
            size += (episode_size := sum(values.nbytes for values in episode.columns.values()))
            if size > DATA_FILE_MB * 2**20 and files[-1]:
                files.append([])
                size = episode_size
            files[-1].append(episode)
            chunk_index, file_index = divmod(len(files) - 1, CHUNK_FILES)
            locations.append(
                {
                    "data/chunk_index": chunk_index,
                    "data/file_index": file_index,
                    "dataset_from_index": start,
                    "dataset_to_index": start + len(episode),
                }
            )
            start += len(episode)
        for number, episodes in enumerate(files):
            columns = {name: np.concatenate([episode.columns[name] for episode in episodes]) for name in episodes[0].columns}
            chunk_index, file_index = divmod(number, CHUNK_FILES)
            write_table(self.folder / DATA_PATH.format(chunk_index=chunk_index, file_index=file_index), columns_table(columns))
        return locations

    def _write_meta(self, locations: Sequence[Mapping[str, int]]) -> None:
        """Writes info.json, stats.json, tasks.parquet and the table of episodes."""
        write_json(self.folder / "meta/info.json", self._info())
        everything = {name: np.concatenate([episode.columns[name] for episode in self._episodes]) for name in self._episodes[0].columns}
        histograms = {name: sum(episode.videos[name].histogram for episode in self._episodes) for name in self.cameras}
        write_json(self.folder / "meta/stats.json", _statistics(everything, histograms, self._rows))
        write_table(self.folder / "meta/tasks.parquet", tasks_table(self._tasks))
        episodes = []
        for index, (episode, location) in enumerate(zip(self._episodes, locations, strict=True)):
            row = {"episode_index": index, "tasks": [episode.instruction], "length": len(episode), **location}
            chunk_index, file_index = divmod(index, CHUNK_FILES)
            for name in self.cameras:
                key = f"videos/observation.images.{name}"
                row |= {f"{key}/chunk_index": chunk_index, f"{key}/file_index": file_index}
                row |= {f"{key}/from_timestamp": 0.0, f"{key}/to_timestamp": len(episode) / self.fps}
            histograms = {name: video.histogram for name, video in episode.videos.items()}
            for feature, statistics in _statistics(episode.columns, histograms, len(episode)).items():
                row |= {f"stats/{feature}/{name}": value for name, value in statistics.items()}
            episodes.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, **episode.details})
        write_table(self.folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))

    def _info(self) -> dict[str, Any]:
        """The schema, as LeRobot has it."""
        actions = self.action_names
        if self.stride > 1:
            actions = [f"{name}_{step}" for step in range(self.stride) for name in self.action_names]
        features: dict[str, Any] = {
            "observation.state": {"dtype": "float32", "shape": [len(self.proprio_names)], "names": self.proprio_names},
            "action": {"dtype": "float32", "shape": [len(actions)], "names": actions},
            "next.success": {"dtype": "bool", "shape": [1], "names": None},
        }
        for name, camera in self.cameras.items():
            features[f"observation.images.{name}"] = {
                "dtype": "video",
                "shape": [camera["height"], camera["width"], 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": camera["height"],
                    "video.width": camera["width"],
                    "video.channels": 3,
                    "video.fps": self.fps,
                    "video.codec": CODEC_NAMES.get(self.codec.name, self.codec.name),
                    "video.pix_fmt": self.codec.pixel_format,
                    "video.is_depth_map": False,
                    "has_audio": False,
                },
            }
        for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
        return {
            "codebase_version": FORMAT,
            "robot_type": self.robot,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }

    @contextmanager
    def disk(self) -> Iterator[None]:
        """Around whatever writes to `folder`: removes the unfinished dataset if that fails, and says so."""
        try:
            yield
        except OSError as error:
            self.discard()
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, f"cannot write the dataset {self.root}: {what}; nothing was left behind") from error


def _statistics(columns: Mapping[str, np.ndarray], histograms: Mapping[str, Any], frames: int) -> dict[str, dict[str, list[Any]]]:
    """LeRobot's statistics of each feature, cameras included."""
    statistics = {name: of_values(values) for name, values in columns.items()}
    return statistics | {f"observation.images.{name}": of_histogram(histogram, frames) for name, histogram in histograms.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
