"""LeRobotEpisodes: a LeRobotDataset v3.0 on disk as episodes of frames, states and actions. It needs pyarrow and PyAV only."""

import difflib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from mimicvideo.data.decode import decode_frames
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.lerobot_tables import Camera, Episode, Tables, read_tables
from mimicvideo.data.scan import Verify, file_sha256, find_problems, refuse

log = logging.getLogger(__name__)


class LeRobotEpisodes:
    """Reads what LeRobot itself or LeRobotWriter wrote: several episodes per parquet and mp4 file, any camera prefix.

    Args:
        root: The dataset's folder.
        cameras: Names such as `corner2`, for `observation.images.corner2`, from left to right; may be left out if there is one only.
        size: Height and width that each camera's pictures are resized to; None keeps them.
        max_bad_fraction: The share of episodes, in [0, 1], that may be skipped because they cannot be used.
        min_rows: Rows that an episode needs at least. Windows repeat the first and last frame, so that short episodes are sound; give
            `Window.span` to have none repeated.
        verify: `quick` reads numbers, headers and indices of all files, `full` decodes every frame as well.
        ram_cache_gb: Decoded frames that are kept, in 10^9 bytes, in each process that reads.

    Attributes:
        episodes: Those that can be used.
        skipped: What was wrong with the others, by episode index.
        tables: All that is not video.
        cameras: In the order in which they stand side by side, with their size after resizing.

    Raises:
        DatasetError: If the folder is missing, empty, truncated or of another version, a camera is unknown, or too many episodes cannot
            be used: too short, NaN or infinite numbers, a video that is unreadable or shorter than its parquet rows.
    """

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        max_bad_fraction: float = 0.0,
        min_rows: int = 2,
        verify: Verify = "quick",
        ram_cache_gb: float = 2.0,
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in [0, 1], got {max_bad_fraction}")
        self.tables: Tables = read_tables(root)
        self.root = self.tables.root
        stored = _choose_cameras(self.tables, cameras)
        self._stored_cameras, self._size = stored, size
        self.cameras = stored if size is None else [Camera(camera.name, camera.key, *size, camera.view) for camera in stored]
        if len({camera.height for camera in self.cameras}) > 1:
            sizes = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in self.cameras)
            raise DatasetError(f"cameras of {self.root} cannot stand side by side: {sizes}. Set height and width to resize them.")
        self.skipped = find_problems(self.tables, stored, max(1, min_rows), verify)
        refuse(self.root, self.skipped, len(self.tables.episodes), max_bad_fraction)
        if self.skipped:
            text = "; ".join(f"episode {index}: {problem}" for index, problem in self.skipped.items())
            log.warning("skipped %d of %d episodes of %s: %s", len(self.skipped), len(self.tables.episodes), self.root, text)
        self.episodes = [episode for episode in self.tables.episodes if episode.index not in self.skipped]
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes, self._cache_limit = 0, int(ram_cache_gb * 1e9)
        everything = sum(episode.length for episode in self.episodes) * self.frame_bytes
        self._all_fit = everything <= self._cache_limit

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded row, all cameras."""
        return 3 * self.cameras[0].height * sum(camera.width for camera in self.cameras)

    def actions(self, episode: Episode) -> Float32[np.ndarray, "steps action_dim"]:
        """The actions of all control steps, `length * stride` of them."""
        rows = self.tables.actions[episode.start : episode.start + episode.length]
        return rows.reshape(episode.length * self.tables.stride, -1)

    def proprio(self, episode: Episode) -> Float32[np.ndarray, "rows proprio_dim"]:
        """The states at the times of the frames."""
        return self.tables.states[episode.start : episode.start + episode.length]

    def frames(self, episode: Episode, rows: Sequence[int] | Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height tiled_width 3"]:
        """Frames of the given rows, in any order and with repetitions, cameras side by side.

        An episode is decoded once and kept if all episodes fit into the cache, or if most of it is asked for; otherwise only these
        rows are decoded.

        Raises:
            DatasetError: If a video has become unreadable, or is damaged where only `verify: full` looks.
        """
        rows = np.asarray(rows, dtype=np.int64)
        whole = self._cache.get(episode.index)
        if whole is not None:
            self._cache.move_to_end(episode.index)
            return whole[rows]
        wanted, back = np.unique(rows, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= episode.length:
            raise IndexError(f"rows {wanted[0]} ... {wanted[-1]} lie outside episode {episode.index} of {episode.length} rows")
        if self._all_fit or 2 * len(wanted) >= episode.length:
            whole = self._decode(episode, np.arange(episode.length, dtype=np.int64))
            self._keep(episode.index, whole)
            return whole[rows]
        return self._decode(episode, wanted)[back]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of every file that this reads: meta, tables, and the videos of its cameras."""
        videos = {episode.videos[camera.key].path for episode in self.episodes for camera in self.cameras}
        return self._hash([*self.tables.files, *sorted(videos)])

    @cached_property
    def tables_fingerprint(self) -> str:
        """The same without the videos: what numbers depend on."""
        return self._hash(self.tables.files)

    def _hash(self, files: Sequence[Path]) -> str:
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(self.root).as_posix()} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def _decode(self, episode: Episode, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height tiled_width 3"]:
        views = []
        for camera in self._stored_cameras:
            span = episode.videos[camera.key]
            try:
                views.append(decode_frames(span.path, span.first + rows, self.tables.fps, self._size))
            except VideoError as error:
                raise DatasetError(
                    f"episode {episode.index} of {self.root}: {span.path.name} of camera {camera.name} cannot be decoded: {error}. "
                    "Set verify to full to find all such episodes before training, and max_bad_fraction to skip them."
                ) from error
        return views[0] if len(views) == 1 else np.concatenate(views, axis=2)

    def _keep(self, index: int, frames: np.ndarray) -> None:
        if frames.nbytes > self._cache_limit:
            return
        self._cache[index] = frames
        self._cache_bytes += frames.nbytes
        while self._cache_bytes > self._cache_limit:
            self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded frames: another process fills a cache of its own."""
        return {**self.__dict__, "_cache": OrderedDict(), "_cache_bytes": 0}


def _choose_cameras(tables: Tables, names: Sequence[str] | None) -> list[Camera]:
    there = tables.cameras
    if not there:
        raise DatasetError(f"{tables.root} has no video features: LeRobot's image features are not read, convert them to video")
    if names is None:
        if len(there) > 1:
            raise DatasetError(f"{tables.root} has several cameras, say which: cameras=[{', '.join(there)}]")
        names = list(there)
    by_key = {camera.key: camera for camera in there.values()}
    for name in names:
        if name not in there and name not in by_key:
            close = difflib.get_close_matches(name, there, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DatasetError(f"{tables.root} has no camera {name!r}{hint}; it has {', '.join(there)}")
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"cameras must name at least one camera, each once, got {list(names)}")
    return [there[name] if name in there else by_key[name] for name in names]
