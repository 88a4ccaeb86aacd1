"""What plans the chunks of a rollout: the policy, the policy with a control applied to it, or chance."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from mimicvideo import provenance
from mimicvideo.action.acting import Acting
from mimicvideo.action.flow_times import check_flow_times
from mimicvideo.action.folder import read_policy
from mimicvideo.action.future import Future, OracleFuture
from mimicvideo.action.load import load_policy
from mimicvideo.action.state import require_kind
from mimicvideo.benchmark.base import Task
from mimicvideo.data.representation import parse_representation
from mimicvideo.evaluation import Latency
from mimicvideo.execution import Execution
from mimicvideo.rollout_workers import Job, Observed
from mimicvideo.types import Observation
from mimicvideo.video.kernels import check_kernels

Control = Literal["none", "zero_context", "shuffle_context", "oracle_future", "random_policy"]


@dataclass(frozen=True)
class Request:
    """An episode that waits for its next actions: which one, the number of plans it has had, and what it sees."""

    job: Job
    plan: int
    seen: Observed


class Planner(Protocol):
    """Turns observations into action chunks. `contract` says which observations and actions.

    Attributes:
        contract: Of the checkpoint.
        observed: Frames it looks at.
        future: Frames of the expert's future that it wants to see.
        latency: Of all calls.
        hashes: SHA-256 of what it is made of, by name.
    """

    contract: dict[str, Any]
    observed: int
    future: int
    latency: Latency
    hashes: dict[str, str]

    def plan(self, requests: Sequence[Request]) -> Float[ndarray, "batch horizon action_dim"]:
        """A chunk for each request."""
        ...


def make_planner(
    checkpoint: str,
    control: Control,
    future: Future | None,
    tasks: Sequence[Task],
    seed: int,
    device: str,
    acting: Acting | None = None,
    execution: Execution | None = None,
    pretrained: str | None = None,
) -> Planner:
    """The planner of a rollout, built from the checkpoint; `acting`, `execution` and `pretrained` replace what it says, if given.

    Raises:
        ValueError: If the control cannot be applied to these tasks or this future, the policy's flow times do not allow this future,
            or the video model has no such execution.
        RuntimeError: If the device is not there, or lacks kernels for the execution.
        FileNotFoundError, DamagedCheckpointError, IncompatibleCheckpointError: See `load_policy`.
    """
    if control == "random_policy":
        return RandomPlanner(load_contract(checkpoint), seed)
    if control == "shuffle_context" and len(tasks) < 2:
        raise ValueError(f"control=shuffle_context exchanges contexts between tasks and needs two of them, got {len(tasks)}")
    oracle = control == "oracle_future"
    if oracle and future is not None and not future.needs_video:
        raise ValueError(f"control=oracle_future needs a future that uses the video, got {type(future).__name__}: leave future out")
    if not oracle and future is not None and future.needs_video:
        raise ValueError(f"{type(future).__name__} needs the expert's future: set control=oracle_future")
    if execution is not None:
        check_kernels(execution, torch.device(device))
    policy: Any = load_policy(checkpoint, device, pretrained)
    if oracle and future is None and not policy.future.needs_video:
        future = OracleFuture()
    if future is not None:
        check_flow_times(policy.flow_times, policy.video_noise, future)
        policy.future = future
    elif policy.future.needs_video and not oracle:
        raise ValueError(f"the policy's own future, {type(policy.future).__name__}, needs control=oracle_future, or set another future")
    if acting is not None:
        policy.act_as(acting)
    if execution is not None:
        policy.backbone.execute(execution)
    if control == "zero_context":
        policy.context_control = "zero"
    if control == "shuffle_context":
        return ShufflingPlanner(policy, seed, [task.name for task in tasks])
    return PolicyPlanner(policy, seed)


def load_contract(checkpoint: str | Path) -> dict[str, Any]:
    """The contract of a policy's checkpoint or folder, without building the policy."""
    return require_kind(read_policy(checkpoint), ["contract"])["contract"]


class PolicyPlanner:
    """Batched inference. Every plan draws its noise from a generator of its own, see `derived_seed`."""

    def __init__(self, policy: Any, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.contract = policy.contract
        self.observed = policy.contract["observed"]
        self.future = policy.contract["future"] if policy.future.needs_video else 0
        self.latency = Latency()
        self.hashes = {"policy_config": provenance.json_sha256(dict(policy.hparams)), "base_weights": policy.backbone.weights_hash}
        description = policy.contract.get("representation")
        self._representation = None if description is None else parse_representation(description)

    def plan(self, requests: Sequence[Request]) -> Float[ndarray, "batch horizon action_dim"]:
        """A chunk for each request: the environment's own commands."""
        proprio = np.stack([request.seen.proprio for request in requests])
        if self._representation is not None:
            proprio = self._representation.proprio.learn({"proprio": proprio}).astype(np.float32)
        contexts: Sequence[Any] = self._contexts(requests)
        observation: Observation = {
            "video": torch.from_numpy(np.stack([context.seen.frames for context in contexts])),
            "proprio": torch.from_numpy(proprio[:, None]),
            "prompt": [context.job.task.instruction for context in contexts],
        }
        future = torch.from_numpy(np.stack([context.seen.future for context in contexts])) if self.future else None
        generators = [torch.Generator().manual_seed(derived_seed("noise", self.seed, request)) for request in requests]
        start = time.perf_counter()
        with torch.inference_mode():
            actions = self.policy.predict_actions(observation, future_video=future, generator=generators)
        actions = actions.float().cpu().numpy()  # waits for a GPU, so this belongs into the time
        self.latency.add(time.perf_counter() - start, len(requests))
        return actions if self._representation is None else self._representation.commands(actions, proprio).astype(np.float32)

    def _contexts(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Whose video and instruction each request's hidden states come from."""
        return requests


class ShufflingPlanner(PolicyPlanner):
    """Control: the hidden states come from an episode of another task, the next one in order; proprio stays one's own."""

    def __init__(self, policy: Any, seed: int, tasks: Sequence[str]) -> None:
        super().__init__(policy, seed)
        self.tasks = list(tasks)
        self._latest: dict[str, Request] = {}

    def _contexts(self, requests: Sequence[Request]) -> Sequence[Request]:
        self._latest |= {request.job.task.name: request for request in requests}
        return [self._other(request.job.task.name) for request in requests]

    def _other(self, task: str) -> Request:
        place = self.tasks.index(task)
        for other in self.tasks[place + 1 :] + self.tasks[:place]:
            if other in self._latest:
                return self._latest[other]
        raise RuntimeError(f"control=shuffle_context found no episode but those of {task}: give it more environments at once")


class RandomPlanner:
    """Control: actions from U[-1, 1], no model."""

    def __init__(self, contract: dict[str, Any], seed: int) -> None:
        self.contract, self.seed = contract, seed
        self.observed = self.future = 0
        self.latency = Latency()
        self.hashes: dict[str, str] = {}

    def plan(self, requests: Sequence[Request]) -> Float[ndarray, "batch horizon action_dim"]:
        """A chunk for each request."""
        names = self.contract.get("environment", self.contract)["actions"]
        shape = self.contract["horizon"], len(names)
        draws = [np.random.default_rng(derived_seed("random", self.seed, request)).uniform(-1, 1, shape) for request in requests]
        return np.stack(draws).astype(np.float32)


def derived_seed(what: str, seed: int, request: Request) -> int:
    """A seed in [0, 2^63) for one plan of one episode: the same whatever else is in its batch."""
    words = f"{what} {seed} {request.job.task.name} {request.job.index} {request.plan}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1
