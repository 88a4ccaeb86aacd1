"""LeRobot's part of data.py, run in lerobot's own environment: `make` writes a dataset, `time` draws windows with LeRobotDataset."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]
from loader_timing import timed
from scene import scene

CAMERA = "observation.images.front"


def make(root: str, height: int, width: int, episodes: int, rows: int, codec: str) -> None:
    """Written by lerobot itself, with its own encoder settings."""
    features = {
        CAMERA: {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (7,), "names": [f"s{k}" for k in range(7)]},
        "action": {"dtype": "float32", "shape": (7,), "names": [f"a{k}" for k in range(7)]},
    }
    dataset = LeRobotDataset.create("local/benchmark", 30, features, root=root, robot_type="arm", vcodec=codec)
    for episode in range(episodes):
        random = np.random.default_rng(episode)
        for picture in scene(height, width, rows, episode):
            numbers = {key: random.normal(size=7).astype(np.float32) for key in ("observation.state", "action")}
            dataset.add_frame({CAMERA: picture, **numbers, "task": "move the block"})
        dataset.save_episode()
    dataset.finalize()


def measure(
    root: str, frames: int, interval: int, batch_size: int, workers: int, backend: str, seconds: float, step: float
) -> dict[str, Any]:
    """Random windows of `frames` frames, `interval` rows apart, and the actions after the fifth."""
    deltas = [(k - 4) * interval / 30 for k in range(frames)]
    chunk = [k / 30 for k in range(60)]
    stamps = {CAMERA: deltas, "observation.state": [0.0], "action": chunk}
    dataset = LeRobotDataset("local/benchmark", root=root, delta_timestamps=stamps, video_backend=backend)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**6, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"prefetch_factor": 2, "persistent_workers": True} if workers else {}
    loader = torch.utils.data.DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, **options)
    return timed(lambda: iter(loader), batch_size, frames, seconds, step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    job, arguments = sys.argv[1], json.loads(sys.argv[2])
    if job == "make":
        make(**arguments)
    else:
        result = measure(**arguments)
        Path(sys.argv[3]).write_text(json.dumps(result))
