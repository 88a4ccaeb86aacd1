"""A dataset whose pictures kill the process that reads them, in a module of its own: other processes import it."""

import os
import signal
from pathlib import Path

import numpy as np

from mimicvideo.data.episodes import Camera, Episode, Episodes


class Deadly(Episodes):
    """Short episodes of two numbers."""

    def __init__(self, root: Path, count: int) -> None:
        super().__init__(
            root,
            [Episode(index, 6, ("Push the block.",), "push") for index in range(count)],
            {},
            [Camera("front", "front", 8, 8, {})],
            robot="test-arm",
            control_hz=10.0,
            stride=1,
            proprio_names=["x", "y"],
            action_names=["dx", "dy"],
            ram_cache_gb=0.0,
        )

    def proprio(self, episode: Episode) -> np.ndarray:
        return np.random.default_rng(episode.index).normal(size=(6, 2)).astype(np.float32)

    actions = proprio

    def _decode(self, episode: Episode, camera: Camera, rows: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead")

    def _files(self) -> tuple[list[Path], list[Path]]:
        return [], []
