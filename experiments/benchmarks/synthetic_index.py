"""A dataset that is an index only, to see what a million episodes cost before the first picture is read."""

from pathlib import Path
from typing import Any

import numpy as np

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.episodes import Camera, Episode, Episodes
from mimicvideo.data.listing import Listing
from mimicvideo.data.sampler import BatchStream


class SyntheticEpisodes(Episodes):
    """Episodes of given lengths and a hundred tasks; nothing can be read from them.

    Args:
        lengths: Rows of each.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        tasks = [f"task {number}" for number in range(100)]
        codes = np.arange(len(lengths)) % len(tasks)
        build = lambda place: Episode(place, int(lengths[place]), (tasks[codes[place]],), tasks[codes[place]])  # noqa: E731
        listed = Listing(np.arange(len(lengths)), lengths, build, tasks, codes)
        names = [f"n{number}" for number in range(7)]
        camera = Camera("front", "front", 480, 640, {})
        super().__init__(
            Path(), listed, {}, [camera], robot="arm", control_hz=30.0, stride=1, proprio_names=names, action_names=names, ram_cache_gb=0.0
        )

    def actions(self, episode: Any) -> np.ndarray:
        raise NotImplementedError

    def proprio(self, episode: Any) -> np.ndarray:
        raise NotImplementedError

    def _decode(self, episode: Any, camera: Camera, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _files(self) -> tuple[list[Path], list[Path]]:
        return [], []


class _Opened:
    """Stands for a configured source."""

    weight = 1.0

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def open(self, *_: Any, **__: Any) -> SyntheticEpisodes:
        return SyntheticEpisodes(self.lengths)


class SyntheticData(DemonstrationData):
    """Stage 2's data over such an index.

    Args:
        lengths: Rows of each episode.
        kwargs: See DemonstrationData.
    """

    def __init__(self, lengths: np.ndarray, **kwargs: Any) -> None:
        super().__init__(7, 7, 60, root=".", frame_interval=6, **kwargs)
        self._sources = {"data": _Opened(lengths)}  # type: ignore[assignment]

    def stream(self, rank: int, ranks: int) -> BatchStream:
        """What the rank's loader would be asked for."""
        return BatchStream(self._order(), self._batch_size, rank, ranks)
