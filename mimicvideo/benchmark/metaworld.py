"""Meta-World v3: 50 manipulation tasks of a simulated Sawyer arm, their scripted experts, and the benchmark built of them."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mimicvideo.benchmark.base import Benchmark, Environment, Task
from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.rendering import CameraView, SceneRenderer, import_mujoco, place_cameras, tile, view

ROBOT = "metaworld-sawyer"
CONTROL_HZ = 80.0  # 5 physics steps of 2.5 ms per action
PROPRIO = ["hand_x", "hand_y", "hand_z", "gripper"]  # metres; opening of the gripper in [0, 1]
ACTIONS = ["dx", "dy", "dz", "gripper"]  # each in [-1, 1]; 1 is 1 cm, or a closing gripper
MAX_EPISODE_STEPS = 500  # Meta-World truncates there

_MT10 = "reach push pick-place door-open drawer-open drawer-close button-press-topdown peg-insert-side window-open window-close"
MT10 = [f"{name}-v3" for name in _MT10.split()]
TASK_SETS = {"MT10": MT10, "MT50": list(INSTRUCTIONS), "not-MT10": [name for name in INSTRUCTIONS if name not in MT10]}


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """Full names of tasks (`reach-v3`) from names with or without `-v3`, and from the sets MT10, MT50 and not-MT10.

    Args:
        tasks: One name, several with commas between them, or a list of names.

    Raises:
        ValueError: If a name is unknown (the nearest are listed), comes twice, or there is none.
    """
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    names: list[str] = []
    for name in (name.strip() for name in given):
        if name in TASK_SETS:
            names += TASK_SETS[name]
        elif (full := name if name.endswith("-v3") else f"{name}-v3") in INSTRUCTIONS:
            names.append(full)
        else:
            choices = [*TASK_SETS, *INSTRUCTIONS]
            close = get_close_matches(name, choices, n=3, cutoff=0.5) or get_close_matches(full, choices, n=3, cutoff=0.3)
            raise ValueError(
                f"there is no Meta-World task {name!r}: did you mean {', '.join(close) or 'reach-v3'}? (sets: {', '.join(TASK_SETS)})"
            )
    if not names:
        raise ValueError(f"no tasks are given: name some of Meta-World's, or one of the sets {', '.join(TASK_SETS)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"task {twice[0]} is given twice")
    return names


class MetaWorldEnv(Environment):
    """One Meta-World simulator with its cameras."""

    max_episode_steps = MAX_EPISODE_STEPS
    control_hz = CONTROL_HZ

    def __init__(self, cameras: Sequence[str | Mapping[str, Any] | CameraView], height: int = 128, width: int = 128) -> None:
        """
        Args:
            cameras: Names of VIEWS, or fields of CameraView.
            height: Of each camera's picture, in pixels.
            width: Likewise.

        Raises:
            ValueError: If a camera is unknown or two have the same name.
        """
        self.views = [view(camera) for camera in cameras]
        if not self.views or len({view.name for view in self.views}) < len(self.views):
            raise ValueError(f"cameras must be one or more with different names, got {[view.name for view in self.views]}")
        self._size = (height, width)
        self._task: str | None = None
        self._env: Any = None
        self._expert: Any = None
        self._renderer: SceneRenderer | None = None
        self._observation = np.zeros(39)

    def reset(self, task: str, seed: int) -> None:
        """Starts an episode of a task with object and goal positions drawn from `seed` (any integer >= 0).

        Raises:
            ValueError: If there is no such task, or the seed is negative.
            RuntimeError: If Meta-World or the GL library is missing.
        """
        (name,) = task_names([task])
        if seed < 0:
            raise ValueError(f"seeds are integers >= 0, got {seed}")
        if name != self._task:
            self._load(name)
        self._env.seed(seed)
        self._observation, _ = self._env.reset(seed=seed)
        self._mujoco.mj_forward(self._env.model, self._env.data)  # bodies and cameras that were moved at reset

    def render(self) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """The present picture of each camera, upright and not mirrored."""
        env = self._running()
        if self._renderer is None:
            self._renderer = SceneRenderer(env.model, self.views, *self._size)
        return self._renderer.render(env.data)

    def frame(self) -> UInt8[np.ndarray, "height tiled_width 3"]:
        """The pictures of all cameras side by side."""
        return tile(self.render())

    def proprio(self) -> Float32[np.ndarray, "4"]:
        """Position of the hand in metres and opening of the gripper in [0, 1]."""
        self._running()
        return self._observation[:4].astype(np.float32)

    def step(self, action: Float[np.ndarray, "4"]) -> bool:
        """Runs one control step of 12.5 ms; True if the task is solved now. Values outside [-1, 1] are clipped.

        Raises:
            ValueError: If the action is not four finite numbers.
            RuntimeError: After `max_episode_steps`, or before `reset`.
        """
        env = self._running()
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 4 finite numbers, got {action.tolist()}")
        if env.curr_path_length >= self.max_episode_steps:
            raise RuntimeError(f"the episode is over after {self.max_episode_steps} steps: call reset")
        self._observation, _, _, _, info = env.step(np.clip(action, -1.0, 1.0))
        return bool(info["success"])

    def expert_action(self) -> Float32[np.ndarray, "4"]:
        """What Meta-World's scripted expert would do now, clipped to [-1, 1]."""
        self._running()
        with warnings.catch_warnings():  # it warns when it asks for more than 1
            warnings.simplefilter("ignore")
            action = self._expert.get_action(self._observation)
        return np.clip(np.asarray(action, np.float32), -1.0, 1.0)

    def expert_future(self, frames: int, interval_steps: int) -> UInt8[np.ndarray, "frames height tiled_width 3"]:
        """What the cameras would see after 1, 2, … `frames` times `interval_steps` control steps of the expert.

        The expert acts on a copy of the simulation, past the episode's end if need be; the episode itself stays as it is.
        """
        env = self._running()
        data, observation = env.data, self._observation
        attributes, random_state = dict(env.__dict__), env.np_random.bit_generator.state
        try:
            env.data = copy.copy(data)
            pictures = []
            for _ in range(frames):
                for _ in range(interval_steps):
                    env.curr_path_length = 0
                    self.step(self.expert_action())
                pictures.append(self.frame())
        finally:
            env.__dict__.clear()
            env.__dict__.update(attributes)  # among them the untouched data
            env.np_random.bit_generator.state = random_state
            self._observation = observation
        return np.stack(pictures)

    def render_device(self) -> str:
        """What draws the pictures: the name of a GPU or `llvmpipe` (software)."""
        self.render()
        assert self._renderer is not None
        return self._renderer.device()

    def close(self) -> None:
        """Frees the simulator and its GL context; `reset` makes new ones."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
        self._task = self._env = self._expert = self._renderer = None

    def _running(self) -> Any:
        if self._env is None:
            raise RuntimeError("call reset(task, seed) first")
        return self._env

    def _load(self, name: str) -> None:
        """Builds the simulator of a task: goals visible to the expert, drawn anew at each reset from the environment's own generator."""
        self.close()
        self._mujoco = import_mujoco()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        except ModuleNotFoundError as error:
            raise RuntimeError(f'{error.name} is not installed: pip install "mimicvideo[sim]"') from error
        env = ALL_V3_ENVIRONMENTS[name]()
        # What set_task does for the multi-task benchmarks, without drawing their 50 fixed goals first.
        env._set_task_inner()
        env._partially_observable = False
        del env.sawyer_observation_space
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        place_cameras(env.model, self.views)
        self._env, self._expert, self._task = env, ENV_POLICY_MAP[name](), name


class MetaWorld(Benchmark):
    """Meta-World tasks as a benchmark for policies. Success is Meta-World's own flag, at any of 500 control steps."""

    def __init__(self, tasks: list[str] | str = "MT10") -> None:
        """
        Args:
            tasks: Task names (`reach` or `reach-v3`), or MT10, MT50, not-MT10.

        Raises:
            ValueError: If a name is unknown; the nearest are listed.
        """
        self._names = task_names(tasks)

    @property
    def contract(self) -> dict[str, Any]:
        """What Meta-World offers; any camera and size can be had."""
        return {
            "robot": ROBOT,
            "control_hz": CONTROL_HZ,
            "proprio": list(PROPRIO),
            "actions": list(ACTIONS),
            "max_episode_steps": MAX_EPISODE_STEPS,
        }

    def tasks(self) -> list[Task]:
        """The chosen tasks with their instructions."""
        return [Task(name, INSTRUCTIONS[name]) for name in self._names]

    def make_env(self, contract: Mapping[str, Any]) -> MetaWorldEnv:
        """A simulator with the cameras of a policy's contract.

        Raises:
            ContractError: If the policy does not fit; see `check_contract`.
        """
        self.check_contract(contract)
        cameras = contract["cameras"]
        return MetaWorldEnv([_camera_view(camera) for camera in cameras], cameras[0]["height"], cameras[0]["width"])

    def camera_problem(self, camera: Mapping[str, Any]) -> str | None:
        """Why a camera cannot be had: an unknown name without a pose, an incomplete pose, or no size."""
        if not all(isinstance(camera.get(side), int) and camera[side] > 0 for side in ("height", "width")):
            return f"camera {camera.get('name')!r}: height and width must be given in pixels, got {dict(camera)}"
        try:
            _camera_view(camera)
        except ValueError as error:
            return str(error)
        return None


def _camera_view(camera: Mapping[str, Any]) -> CameraView:
    """The view of a camera of a contract: its pose if it has one, else the view of its name."""
    pose = camera.get("view")
    return view({"name": camera.get("name"), **pose} if pose else camera.get("name", ""))
