"""What stands between a policy and an environment when the policy learned another representation than the environment's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mimicvideo import planning
from mimicvideo.action.future import DenoisedFuture, NoiseFuture, OracleFuture
from mimicvideo.benchmark.base import ContractError, Task
from mimicvideo.data.rotations import to_matrix
from mimicvideo.execution import Execution
from mimicvideo.noise import Uniform
from mimicvideo.planning import PolicyPlanner, Request, make_planner
from mimicvideo.rollout_workers import Job, Observed
from tests.fakes_rollout import CONTRACT, PointBenchmark, PointPolicy

POSE = {
    "position": {"kind": "position", "dims": [0, 1, 2]},
    "rotation": {"kind": "rotation", "dims": [3, 4, 5], "format": "axis_angle"},
    "gripper": {"kind": "gripper", "dims": [6], "open": 1, "closed": 0},
}
RELATIVE = {
    "proprio": POSE,
    "actions": {name: {**group, "learned": "relative"} if name != "gripper" else group for name, group in POSE.items()},
}


def test_a_relative_chunk_becomes_absolute_commands_in_the_environments_format() -> None:
    state = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.3, 1.0], np.float32)
    chunk = torch.zeros(1, 4, 10)
    turn = to_matrix(np.array([[0.0, 0.0, 0.25]]), "axis_angle")[0]
    chunk[0, :, :3] = torch.tensor([[0.01, 0.0, 0.0], [0.02, 0.0, 0.0], [0.0, 0.03, 0.0], [0.0, 0.0, 0.04]])
    chunk[0, :, 3:9], chunk[0, :, 9] = torch.tensor(turn[:2].reshape(-1)), 0.25
    seen: dict[str, Any] = {}

    def predict_actions(observation: Any, **_: Any) -> torch.Tensor:
        seen.update(observation)
        return chunk

    contract = {"observed": 5, "future": 4, "representation": RELATIVE}
    policy = SimpleNamespace(
        contract=contract,
        future=SimpleNamespace(needs_video=False),
        hparams={},
        backbone=SimpleNamespace(weights_hash=""),
        predict_actions=predict_actions,
    )
    observed = Observed(np.zeros((5, 4, 4, 3), np.uint8), state, None)
    commands = PolicyPlanner(policy, 0).plan([Request(Job(Task("t", "go"), 0, 0, False), 0, observed)])
    start = to_matrix(state[None, 3:6].astype(float), "axis_angle")[0]
    np.testing.assert_allclose(seen["proprio"][0, 0, 3:9], start[:2].reshape(-1), atol=1e-6)
    assert commands.shape == (1, 4, 7) and commands.dtype == np.float32
    for step in range(4):
        np.testing.assert_allclose(commands[0, step, :3], state[:3] + start @ chunk[0, step, :3].double().numpy(), atol=1e-6)
        np.testing.assert_allclose(to_matrix(commands[0, step, None, 3:6].astype(float), "axis_angle")[0], start @ turn, atol=1e-6)
        assert commands[0, step, 6] == pytest.approx(0.25)


def test_a_benchmark_compares_what_crosses_the_border() -> None:
    inside = {**CONTRACT, "proprio": ["place_x"], "actions": ["move_x", "move_y", "move_z"]}
    with pytest.raises(ContractError, match="actions"):
        PointBenchmark().check_contract(inside)
    PointBenchmark().check_contract({**inside, "environment": {"proprio": CONTRACT["proprio"], "actions": CONTRACT["actions"]}})


def test_an_execution_without_its_kernels_is_refused_before_the_checkpoint_is_read() -> None:
    with pytest.raises(RuntimeError, match="execution.fp8 needs an NVIDIA GPU"):
        make_planner("not read", "none", None, [], 0, "cpu", execution=Execution(fp8="row"))


def test_a_future_that_fit_refuses_with_tied_flow_times_is_refused_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PointPolicy()
    policy.flow_times, policy.video_noise = "tied", Uniform()
    monkeypatch.setattr(planning, "load_policy", lambda *given: policy)
    tasks = [Task("left", "go left")]
    for control, future in (("none", DenoisedFuture(tau=0.5)), ("oracle_future", OracleFuture()), ("oracle_future", None)):
        with pytest.raises(ValueError, match="flow_times tied needs a future at the action flow's start"):
            make_planner("policy", control, future, tasks, seed=0, device="cpu")
    make_planner("policy", "none", NoiseFuture(), tasks, seed=0, device="cpu")


def test_the_oracles_noise_level_is_the_policys_own_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, given, tau in ((OracleFuture(0.2), None, 0.2), (OracleFuture(0.2), OracleFuture(0.7), 0.7), (NoiseFuture(), None, 0.4)):
        policy = PointPolicy()
        policy.future = own
        monkeypatch.setattr(planning, "load_policy", lambda *_, policy=policy: policy)
        make_planner("policy", "oracle_future", given, [Task("left", "go left")], seed=0, device="cpu")
        assert isinstance(policy.future, OracleFuture) and policy.future.tau == tau
