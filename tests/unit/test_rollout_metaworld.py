"""The closed loop in Meta-World itself: the scripted expert reaches success through it, chance does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicvideo import planning
from mimicvideo.benchmark.metaworld import MetaWorld, MetaWorldEnv
from mimicvideo.media import read_mp4
from mimicvideo.rollout import rollout
from tests.fakes_rollout import PointPolicy, point_checkpoint

pytestmark = pytest.mark.simulator

CONTRACT = {
    "robot": "metaworld-sawyer",
    "control_hz": 80.0,
    "cameras": [{"name": "corner2", "height": 64, "width": 64, "view": {}}],
    "observed": 5,
    "future": 8,
    "frame_interval_steps": 4,
    "proprio": ["hand_x", "hand_y", "hand_z", "gripper"],
    "actions": ["dx", "dy", "dz", "gripper"],
    "horizon": 24,
}


class ExpertEnv:
    """The simulator with its expert at the controls: what a perfect policy's actions would be."""

    def __init__(self, env: MetaWorldEnv) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, action: np.ndarray) -> bool:
        assert action.shape == (4,)
        return self.env.step(self.env.expert_action())


class ExpertMetaWorld(MetaWorld):
    """Meta-World whose environments do what the expert says."""

    def make_env(self, contract: Mapping[str, Any]) -> Any:
        return ExpertEnv(super().make_env(contract))


class StillPolicy(PointPolicy):
    """Looks at everything and does nothing."""

    def predict_actions(self, observation: Any, *, future_video: Any = None, generator: Any = None) -> torch.Tensor:
        assert observation["video"].shape[1:] == (5, 64, 64, 3) and observation["proprio"].shape[1:] == (1, 4)
        self.seen.append({**observation, "future": future_video})
        return torch.zeros(len(observation["prompt"]), 24, 4)


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    given = {"episodes": 3, "num_workers": 2, "videos": 1, "device": "cpu", "run_dir": str(tmp_path / "run")}
    return {"policy": point_checkpoint(tmp_path, CONTRACT), **given}


def test_the_expert_succeeds_through_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    policy = StillPolicy(CONTRACT)
    monkeypatch.setattr(planning, "load_policy", lambda path, device, pretrained: policy)
    evaluation = rollout(benchmark=ExpertMetaWorld(["reach", "drawer-open"]), **arguments)
    assert evaluation.overall.successes == evaluation.overall.episodes == 6
    assert all(10 < episode.steps < 250 for episode in evaluation.episodes)
    frames = torch.cat([seen["video"].flatten(0, 1) for seen in policy.seen])
    assert frames.float().std() > 20  # pictures, not one colour
    film = read_mp4(tmp_path / "run/videos/reach-v3_000_success.mp4")
    assert len(film) == -(-evaluation.episodes[0].steps // 4) + 1
    assert (tmp_path / "run/videos/grid.mp4").exists()


def test_the_oracle_sees_the_expert_go_on(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    policy = StillPolicy(CONTRACT)
    monkeypatch.setattr(planning, "load_policy", lambda path, device, pretrained: policy)
    arguments |= {"episodes": 1, "num_workers": 1}
    rollout(benchmark=MetaWorld(["reach"]), control="oracle_future", max_steps=16, **arguments)
    future = policy.seen[0]["future"][0].float()
    assert future.shape == (8, 64, 64, 3)
    assert (future[0] - future[-1]).abs().max() > 50  # the expert moves, by 0.1 m and more
    before, after = (seen["proprio"][0, 0, :3] for seen in policy.seen)
    assert (after - before).norm() < 0.03  # the policy did not: what the expert does is tried out, not done


def test_chance_does_not(arguments: dict[str, Any]) -> None:
    evaluation = rollout(benchmark=MetaWorld(["drawer-open", "pick-place"]), control="random_policy", max_steps=100, **arguments)
    assert evaluation.overall.episodes == 6 and evaluation.overall.successes == 0
