"""A stand-in for a simulator that counts steps, and the recipe of demonstrations in it."""

from pathlib import Path

import numpy as np

from mimicvideo.benchmark.base import Environment
from mimicvideo.benchmark.demonstration import Recipe
from mimicvideo.data.video_encoding import VideoCodec

ACTION = np.array([0.5, -1.0, 0.25, 0.75], np.float32)


class CountingEnv(Environment):
    """Stands in for a simulator: solved after a number of steps, and remembers what was executed."""

    max_episode_steps = 500

    def __init__(self, solved_at: int | list[int]) -> None:
        self.solved_at = [solved_at] if isinstance(solved_at, int) else solved_at
        self.resets: list[int] = []
        self.executed: list[np.ndarray] = []

    def reset(self, task: str, seed: int) -> None:
        self.resets.append(seed)
        self.executed = []

    def render(self):
        return {"top": np.full((8, 8, 3), len(self.executed) % 256, np.uint8)}

    def proprio(self):
        return np.full(4, len(self.executed), np.float32)

    def expert_action(self):
        return ACTION.copy()

    def step(self, action) -> bool:
        self.executed.append(action)
        assert len(self.executed) <= 500
        return len(self.executed) >= self.solved_at[min(len(self.resets), len(self.solved_at)) - 1]

    def frame(self):
        return self.render()["top"]

    def expert_future(self, frames: int, interval_steps: int):
        raise NotImplementedError

    def close(self) -> None:
        pass


def recipe(folder: Path, **changes) -> Recipe:
    """What `demos` hands to its workers."""
    plain = {"seed": 0, "views": (), "height": 8, "width": 8, "stride": 4, "max_steps": 500, "max_attempts": 1, "keep_failed": False}
    noise = {"action_noise": 0.0, "noise_smoothness": 0.0, "noise_probability": 1.0, "start_noise_steps": 0, "tail_steps": 0}
    return Recipe(**{**plain, **noise, "codec": VideoCodec(), "fps": 20, "folder": folder, **changes})
