"""What a benchmark is: tasks with instructions, simulators to run them in, and a contract that policies must fit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8


class ContractError(ValueError):
    """A policy's observations or actions are not those of the benchmark."""


@dataclass(frozen=True)
class Task:
    """A task: its name in the benchmark, and the sentence that the policy is given."""

    name: str
    instruction: str


class Environment(ABC):
    """One simulator. Made and used in one process; not picklable."""

    max_episode_steps: int

    @abstractmethod
    def reset(self, task: str, seed: int) -> None:
        """Starts an episode. The same task and seed give the same scene, whatever was run before."""

    @abstractmethod
    def render(self) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """The present picture of each camera."""

    @abstractmethod
    def frame(self) -> UInt8[np.ndarray, "height tiled_width 3"]:
        """The pictures of all cameras side by side, which is what a policy sees."""

    @abstractmethod
    def proprio(self) -> Float32[np.ndarray, " proprio_dim"]:
        """The robot's own state, in dataset units."""

    @abstractmethod
    def step(self, action: Float[np.ndarray, " action_dim"]) -> bool:
        """Runs one control step; True if the task is solved now."""

    @abstractmethod
    def expert_action(self) -> Float32[np.ndarray, " action_dim"]:
        """What the scripted expert would do now."""

    @abstractmethod
    def expert_future(self, frames: int, interval_steps: int) -> UInt8[np.ndarray, "frames height tiled_width 3"]:
        """What the cameras would see every `interval_steps` control steps if the expert took over; changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the simulator holds."""


class Benchmark(ABC):
    """A set of tasks. Holds plain data only, so that it can be sent to worker processes, where `make_env` builds simulators."""

    @property
    @abstractmethod
    def contract(self) -> dict[str, Any]:
        """What the benchmark offers: `robot`, `control_hz`, `proprio` and `actions` (names), `max_episode_steps`."""

    @abstractmethod
    def tasks(self) -> list[Task]:
        """The tasks, in a fixed order."""

    @abstractmethod
    def make_env(self, contract: Mapping[str, Any]) -> Environment:
        """A simulator with the cameras that a policy's contract asks for.

        Raises:
            ContractError: If it cannot have them.
        """

    @abstractmethod
    def camera_problem(self, camera: Mapping[str, Any]) -> str | None:
        """Why a camera of a policy's contract (`name`, `height`, `width`, `view`) cannot be had; None if it can."""

    def check_contract(self, contract: Mapping[str, Any]) -> None:
        """Compares what a policy was trained on with what the benchmark offers.

        Args:
            contract: A policy's, as its checkpoint holds it.

        Raises:
            ContractError: Naming each field that differs, both values and what to do about it.
        """
        problems = []
        # A policy may learn another representation than the environment's; then the contract says what it takes and gives there.
        outside = {**contract, **(contract.get("environment") or {})}
        for field, fix in FIXES.items():
            wants, has = outside.get(field), self.contract[field]
            same = abs(float(wants) - has) < 1e-3 if isinstance(wants, (int, float)) and isinstance(has, (int, float)) else wants == has
            if not same:
                problems.append(f"{field}: the policy has {wants!r}, the benchmark {has!r}; {fix}")
        cameras = contract.get("cameras") or []
        if not cameras:
            problems.append("cameras: the policy names none; train it on a dataset with at least one camera")
        problems += [problem for camera in cameras if (problem := self.camera_problem(camera))]
        if len(sizes := {(camera.get("height"), camera.get("width")) for camera in cameras}) > 1:
            problems.append(f"cameras: pictures of different sizes {sorted(sizes, key=str)}; render all cameras at one size")
        if problems:
            raise ContractError(f"the policy does not fit {type(self).__name__}:\n  " + "\n  ".join(problems))


FIXES = {
    "robot": "choose the benchmark of the robot that the policy was trained for",
    "control_hz": "train on demonstrations recorded at the benchmark's rate",
    "proprio": "train on demonstrations with the benchmark's proprioception, in this order",
    "actions": "train on demonstrations with the benchmark's actions, in this order",
}
