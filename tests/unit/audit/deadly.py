"""A dataset whose pictures kill the process that reads them, in a module of its own: other processes import it."""

import os
import signal
from pathlib import Path

import numpy as np

from mimicvideo.data.episodes import Camera, Episode
from tests.short_episodes import ShortEpisodes


class Deadly(ShortEpisodes):
    """Any number of them."""

    def __init__(self, root: Path, count: int) -> None:
        super().__init__(root, ["Push the block."] * count)

    def proprio(self, episode: Episode) -> np.ndarray:
        return np.random.default_rng(episode.index).normal(size=(6, 2)).astype(np.float32)

    actions = proprio

    def _decode(self, episode: Episode, camera: Camera, rows: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead")

    def _files(self) -> tuple[list[Path], list[Path]]:
        return [], []
