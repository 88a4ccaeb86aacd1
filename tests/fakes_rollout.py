"""A benchmark and a policy for tests of the rollout loop: a point that must reach a red square, in pictures of 32 x 32.

Worker processes import this file, so torch is imported only where it is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mimicvideo.benchmark.base import Benchmark, Environment, Task

if TYPE_CHECKING:
    import torch

SIZE, REACH, SPEED = 32, 0.12, 0.1  # pixels; distance that counts as success; distance per control step at full action
GOALS = {"left": (-0.7, 0.0), "right": (0.7, 0.0), "up": (0.0, -0.7)}
CONTRACT = {
    "robot": "point",
    "control_hz": 20.0,
    "cameras": [{"name": "above", "height": SIZE, "width": SIZE, "view": {}}],
    "observed": 5,
    "future": 4,
    "frame_interval_steps": 3,
    "proprio": ["x", "y"],
    "actions": ["dx", "dy"],
    "horizon": 6,
}


class PointEnv(Environment):
    """The point starts near the middle; the goal belongs to the task. The red square can be hidden."""

    max_episode_steps = 60

    def __init__(self, benchmark: PointBenchmark) -> None:
        self.benchmark = benchmark
        self.renders = 0

    def reset(self, task: str, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.task, self.seed, self.steps = task, seed, 0
        self.position = generator.uniform(-0.2, 0.2, 2)
        self.goal = np.array(GOALS[task]) + generator.uniform(-0.1, 0.1, 2)

    def render(self) -> dict[str, np.ndarray]:
        return {"above": self.frame()}

    def frame(self) -> np.ndarray:
        self.renders += 1
        picture = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        picture[..., 2] = min(self.steps, 255)  # blue tells the time
        if not self.benchmark.hidden:
            self._draw(picture, self.goal, 0)
        self._draw(picture, self.position, 1)
        return picture

    def _draw(self, picture: np.ndarray, place: np.ndarray, channel: int) -> None:
        column, row = ((np.clip(place, -1, 1) + 1) / 2 * (SIZE - 3)).round().astype(int)
        picture[row : row + 3, column : column + 3, channel] = 255

    def proprio(self) -> np.ndarray:
        return self.position.astype(np.float32)

    def step(self, action: np.ndarray) -> bool:
        trouble = self.benchmark.trouble.get(self.task)
        if trouble and self.steps == 4:
            if trouble == "raise":
                raise RuntimeError("the simulation is unstable")
            if trouble == "hang":
                time.sleep(600)
            os._exit(7)
        self.steps += 1
        self.position = self.position + SPEED * np.clip(action, -1, 1)
        return bool(np.linalg.norm(self.position - self.goal) < REACH)

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.position) / SPEED, -1, 1).astype(np.float32)

    def expert_future(self, frames: int, interval_steps: int) -> np.ndarray:
        position, steps = self.position, self.steps
        pictures = []
        for _ in range(frames):
            for _ in range(interval_steps):
                self.position, self.steps = self.position + SPEED * self.expert_action(), self.steps + 1
            pictures.append(self.frame())
        self.position, self.steps = position, steps
        return np.stack(pictures)

    def close(self) -> None: ...


class PointBenchmark(Benchmark):
    """`trouble` says in which task an environment raises, takes its process down or hangs; `gl` whether pictures can be made at all."""

    def __init__(
        self, tasks: list[str] | None = None, hidden: bool = False, trouble: dict[str, str] | None = None, gl: bool = True
    ) -> None:
        self.names, self.hidden, self.trouble, self.gl = tasks or list(GOALS), hidden, trouble or {}, gl

    @property
    def contract(self) -> dict[str, Any]:
        return {name: CONTRACT[name] for name in ("robot", "control_hz", "proprio", "actions")} | {"max_episode_steps": 60}

    def tasks(self) -> list[Task]:
        return [Task(name, f"go {name}") for name in self.names]

    def make_env(self, contract: Mapping[str, Any]) -> PointEnv:
        if not self.gl:
            raise RuntimeError("no GL library: apt-get install libegl1")
        return PointEnv(self)

    def camera_problem(self, camera: Mapping[str, Any]) -> str | None:
        return None if camera["name"] == "above" else f"there is no camera {camera['name']!r}"


class PointPolicy:
    """Goes to the red square of the last picture or, if it uses the future, to where the point is in the last future picture."""

    def __init__(self, contract: dict[str, Any] | None = None, oracle: bool = False) -> None:
        self.contract = contract or CONTRACT
        self.future = SimpleNamespace(needs_video=oracle)
        self.flow_times, self.video_noise = "decoupled", None
        self.backbone = SimpleNamespace(weights_hash="0" * 64)
        self.hparams = {"block": 1}
        self.context_control = "none"
        self.seen: list[dict[str, Any]] = []

    def predict_actions(self, observation: Any, *, future_video: Any = None, generator: Any = None) -> torch.Tensor:
        import torch

        self.seen.append({**observation, "future": future_video})
        actions = []
        for sample, one in enumerate(generator):
            picture, channel = (observation["video"][sample, -1], 0) if future_video is None else (future_video[sample, -1], 1)
            position = observation["proprio"][sample, 0]
            target = None if self.context_control == "zero" else centre(picture, channel)
            plan = []
            for _ in range(self.contract["horizon"]):
                action = torch.zeros(2) if target is None else ((target - position) / SPEED).clamp(-1, 1)
                position = position + SPEED * action
                plan.append(action + 0.05 * torch.randn(2, generator=one))
            actions.append(torch.stack(plan))
        return torch.stack(actions)


def centre(picture: torch.Tensor, channel: int) -> torch.Tensor | None:
    """Middle of what is bright in a channel, in coordinates [-1, 1]; None if nothing is."""
    import torch

    rows, columns = (picture[..., channel] > 200).nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    return torch.stack([columns.float().mean() - 1, rows.float().mean() - 1]) / (SIZE - 3) * 2 - 1


def point_checkpoint(folder: Path, contract: dict[str, Any] | None = None) -> str:
    """A file with all that a rollout reads of a checkpoint itself; `PointPolicy` stands in for what it would build."""
    from mimicvideo.checkpoint import save_checkpoint

    path = folder / "policy.ckpt"
    save_checkpoint({"mimicvideo": {"kind": "ActionPolicy", "contract": contract or CONTRACT}}, path)
    return str(path)
