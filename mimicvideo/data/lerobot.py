"""LeRobotEpisodes: a LeRobotDataset on disk as episodes of frames, states and actions. It needs pyarrow and PyAV only."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.decode import decode_frames
from mimicvideo.data.episodes import Camera, Episodes, choose_cameras
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.identity import video_identity
from mimicvideo.data.lerobot_tables import LeRobotEpisode, Tables, read_tables, read_timestamps
from mimicvideo.data.scan import Verify, find_problems, video_damage


class LeRobotEpisodes(Episodes):
    """Reads what LeRobot itself (v2.0 to v3.0) or LeRobotWriter wrote, with any number of episodes per file and any camera prefix.

    This is for datasets with `observation.state`, `action` and videos; LeRobotStore reads others by a description.

    Args:
        root: The dataset's folder.
        cameras: Names such as `corner2`, for `observation.images.corner2`, from left to right; may be left out if there is one only.
        min_rows: Rows that an episode needs at least. Windows repeat the first and last frame, so that short episodes are sound; give
            `Window.span` to have none repeated.
        verify: `quick` reads numbers, headers and indices of all files, `full` decodes every frame as well.
        kwargs: `size`, `max_bad_fraction` and `ram_cache_gb`; see `Episodes`.

    Attributes:
        tables: All that is not video.

    Raises:
        DatasetError: If the folder is missing, empty, truncated or of another version, a camera is unknown, or too many episodes cannot
            be used: too short, NaN or infinite numbers, a video that is unreadable or shorter than its parquet rows.
    """

    def __init__(
        self, root: str | Path, cameras: Sequence[str] | None = None, *, min_rows: int = 2, verify: Verify = "quick", **kwargs: Any
    ) -> None:
        tables: Tables = read_tables(root)
        if not tables.cameras:
            raise DatasetError(f"{tables.root} has no video features: open_episodes also reads pictures that are in the rows")
        stored = choose_cameras(tables.root, tables.cameras, cameras)
        self.tables = tables
        super().__init__(
            tables.root,
            tables.episodes,
            find_problems(tables, stored, max(1, min_rows), verify),
            stored,
            robot=tables.robot,
            control_hz=tables.control_hz,
            stride=tables.stride,
            proprio_names=tables.proprio_names,
            action_names=tables.action_names,
            **kwargs,
        )

    def actions(self, episode: LeRobotEpisode) -> Float32[np.ndarray, "steps action_dim"]:
        rows = self.tables.actions[episode.start : episode.start + episode.length]
        return rows.reshape(episode.length * self.tables.stride, -1)

    def proprio(self, episode: LeRobotEpisode) -> Float32[np.ndarray, "rows proprio_dim"]:
        return self.tables.states[episode.start : episode.start + episode.length]

    def times(self, episode: LeRobotEpisode) -> Float64[np.ndarray, " rows"] | None:
        return None if self._timestamps is None else self._timestamps[episode.start : episode.start + episode.length]

    def damage(self, episode: LeRobotEpisode) -> str | None:
        return video_damage(self.tables, episode, self._stored_cameras)

    @cached_property
    def _timestamps(self) -> Float64[np.ndarray, " rows"] | None:
        return read_timestamps(self.tables)

    def _decode(self, episode: LeRobotEpisode, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        span = episode.videos[camera.key]
        try:
            return decode_frames(span.path, span.first + rows, self.tables.fps, self._size)
        except VideoError as error:
            raise VideoError(f"{span.path.name}: {error}") from error

    def _shown(self, episode: LeRobotEpisode, camera: Camera) -> list[Any]:
        span = episode.videos[camera.key]
        return video_identity(span.path, span.first, episode.length, self.tables.fps)

    def _files(self) -> tuple[list[Path], list[Path]]:
        videos = {episode.videos[camera.key].path for episode in self.episodes for camera in self.cameras}
        return self.tables.files, sorted(videos)
