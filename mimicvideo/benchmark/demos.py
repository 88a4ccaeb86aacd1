"""The verb `demos`: Meta-World's scripted experts generate demonstrations, in parallel, as a LeRobotDataset v3.0."""

import hashlib
import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.metaworld import ACTIONS, CONTROL_HZ, MAX_EPISODE_STEPS, PROPRIO, ROBOT, MetaWorldEnv, task_names
from mimicvideo.benchmark.rendering import CameraView, view
from mimicvideo.data.lerobot_writer import LeRobotWriter
from mimicvideo.data.video_encoding import EncodedVideo, VideoCodec, encode_video

EPISODES_PER_UNIT = 10  # what a worker does in one go: building a simulator costs as much as a short episode


@dataclass(frozen=True)
class _Recipe:
    """What all episodes have in common."""

    seed: int
    views: tuple[CameraView, ...]
    height: int
    width: int
    stride: int
    action_noise: float
    noise_smoothness: float
    noise_probability: float
    start_noise_steps: int
    tail_steps: int
    max_steps: int
    max_attempts: int
    keep_failed: bool
    codec: VideoCodec
    fps: int
    folder: Path


@dataclass
class _Demonstration:
    """An episode as a worker hands it over."""

    videos: dict[str, EncodedVideo]
    proprio: Float32[np.ndarray, "rows 4"]
    actions: Float32[np.ndarray, "steps 4"]
    success: Bool[np.ndarray, " rows"]
    details: dict[str, Any]


@dataclass
class _Slot:
    """One of the episodes asked for: what came of it after how many attempts."""

    task: str
    index: int
    attempts: int
    demonstration: _Demonstration | None


def demos(
    root: str,
    tasks: list[str] | str = "MT10",
    episodes_per_task: int = 5,
    seed: int = 0,
    resolution: tuple[int, int] = (128, 128),
    cameras: list[str | dict[str, Any]] = ["corner2"],  # noqa: B006 (jsonargparse wants the literal; it is not changed)
    stride: int = 4,
    action_noise: float = 0.0,
    noise_smoothness: float = 0.0,
    noise_probability: float = 1.0,
    start_noise_steps: int = 0,
    tail_steps: int = 0,
    max_steps: int = MAX_EPISODE_STEPS,
    max_attempts: int = 10,
    keep_failed: bool = False,
    num_workers: int | None = None,
    codec: VideoCodec = VideoCodec(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> Path:
    """Generates demonstrations of Meta-World tasks with the scripted experts.

    An episode's randomness comes from (seed, task, episode, attempt) alone: the dataset is the same for any number of workers, and an
    episode is the same whatever else is generated.

    Args:
        root: Folder of the dataset.
        tasks: Task names (`reach` or `reach-v3`, several with commas between them), or MT10, MT50, not-MT10.
        episodes_per_task: Successful episodes of each task.
        seed: Any integer >= 0. Rollouts draw from other seeds.
        resolution: Height and width of each camera's pictures, in pixels.
        cameras: Names of views (corner, corner2, corner3, corner4, topview, behindGripper, gripperPOV, workspace), or a free camera:
            {"name": …, "lookat": [x, y, z], "distance": …, "azimuth": …, "elevation": …, "fovy": …} in metres and degrees.
        stride: Control steps (of 1/80 s) per stored frame.
        action_noise: Standard deviation of Gaussian noise added to the hand's motion, in units of the action ([-1, 1]). What is stored
            is the expert's own action in the state that the noise led to, so that a policy learns to recover. The gripper has no noise.
        noise_smoothness: Correlation of the noise from one control step to the next, in [0, 1): 0 is white, 0.9 lasts about 10 steps.
        noise_probability: Fraction of the episodes that get action noise.
        start_noise_steps: Before the recording starts, the open hand wanders at random for 0 to so many control steps.
        tail_steps: Control steps that are recorded after the first success.
        max_steps: Control steps after which an episode has failed; at most 500.
        max_attempts: How often a failed episode is tried again with the next seed before it is given up.
        keep_failed: Stores failed episodes too instead of trying again.
        num_workers: Processes; None is one per CPU core.
        codec: How videos are stored.
        overwrite: Replaces a dataset at `root`.

    Returns:
        The dataset's folder. Its meta/mimicvideo.json has these settings, and how many attempts failed per task.

    Raises:
        ValueError: If an argument is out of its range or a task unknown.
        FileExistsError: If `root` is not empty.
        OSError: If the dataset cannot be written; nothing is left behind.
        RuntimeError: If Meta-World or the GL library is missing, a worker dies, or no attempt at a task succeeds.
    """
    settings = {key: value for key, value in locals().items() if key not in ("root", "num_workers", "overwrite", "codec")}
    names, views = task_names(tasks), tuple(view(camera) for camera in cameras)
    _check(settings)
    height, width = resolution
    cameras_meta = [{"name": view.name, "height": height, "width": width, "view": view.spec()} for view in views]
    names_of = {"robot": ROBOT, "control_hz": CONTROL_HZ, "proprio_names": PROPRIO, "action_names": ACTIONS}
    with LeRobotWriter(root, stride=stride, cameras=cameras_meta, codec=codec, overwrite=overwrite, **names_of) as writer:
        recipe = _Recipe(
            seed=seed,
            views=views,
            height=height,
            width=width,
            stride=stride,
            action_noise=action_noise,
            noise_smoothness=noise_smoothness,
            noise_probability=noise_probability,
            start_noise_steps=start_noise_steps,
            tail_steps=tail_steps,
            max_steps=max_steps,
            max_attempts=1 if keep_failed else max_attempts,
            keep_failed=keep_failed,
            codec=codec,
            fps=writer.fps,
            folder=writer.incoming,
        )
        with writer.disk():
            slots, device = _generate_all(recipe, names, episodes_per_task, num_workers or os.cpu_count() or 1)
        for slot in slots:
            if slot.demonstration:
                given = slot.demonstration
                writer.add_episode(
                    given.videos, given.proprio, given.actions, INSTRUCTIONS[slot.task], slot.task, success=given.success, **given.details
                )
        counts = _counts(slots, names)
        if hopeless := [task for task in names if not counts[task]["episodes"]]:
            raise RuntimeError(
                f"no attempt at {', '.join(hopeless)} succeeded ({recipe.max_attempts} per episode): use less action_noise "
                f"({action_noise}) or start_noise_steps ({start_noise_steps}), more max_steps ({max_steps}), or keep_failed"
            )
        place = writer.finish(generator={**settings, "cameras": list(settings["cameras"])}, counts=counts, rendered_by=device)
    _report(counts, place)
    return place


def _check(settings: dict[str, Any]) -> None:
    """Raises ValueError for a number out of its range."""
    ranges = {
        "episodes_per_task": (1, np.inf),
        "seed": (0, np.inf),
        "stride": (1, settings["max_steps"]),
        "action_noise": (0, np.inf),
        "noise_smoothness": (0, np.nextafter(1, 0)),
        "noise_probability": (0, 1),
        "start_noise_steps": (0, MAX_EPISODE_STEPS // 2),
        "tail_steps": (0, MAX_EPISODE_STEPS),
        "max_steps": (1, MAX_EPISODE_STEPS),
        "max_attempts": (1, np.inf),
    }
    for name, (low, high) in ranges.items():
        if not low <= settings[name] <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {settings[name]}")


def _generate_all(recipe: _Recipe, names: Sequence[str], episodes_per_task: int, num_workers: int) -> tuple[list[_Slot], list[str]]:
    """All episodes in the order of tasks and indices, and what drew them."""
    numbers = range(0, episodes_per_task, EPISODES_PER_UNIT)
    units = [(name, range(start, min(start + EPISODES_PER_UNIT, episodes_per_task))) for name in names for start in numbers]
    slots: list[_Slot] = []
    devices: set[str] = set()
    # Not forked: GL hangs in a process that was forked off one which has rendered.
    with ProcessPoolExecutor(min(num_workers, len(units)), get_context("spawn"), _start_worker) as pool, _progress() as progress:
        bar = progress.add_task("demonstrations", total=len(names) * episodes_per_task, dropped=0)
        futures = [pool.submit(_generate, recipe, name, numbers) for name, numbers in units]
        try:
            for future in as_completed(futures):
                done, device = future.result()
                slots += done
                devices.add(device)
                dropped = sum(slot.attempts - (slot.demonstration is not None) for slot in slots)
                progress.update(bar, completed=len(slots), dropped=dropped)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died: out of memory, a crash of the GL driver, or demos() was called by a script "
                "without `if __name__ == '__main__':`"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(slots, key=lambda slot: (names.index(slot.task), slot.index)), sorted(devices)


_env: MetaWorldEnv | None = None  # a worker's simulator: kept from one unit of work to the next


def _start_worker() -> None:
    """Runs first in each worker: Ctrl-C is the parent's business, and workers side by side take one thread each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")


def _generate(recipe: _Recipe, task: str, numbers: range) -> tuple[list[_Slot], str]:
    """Some episodes of one task. Runs in a worker."""
    global _env
    if _env is None:
        _env = MetaWorldEnv(recipe.views, recipe.height, recipe.width)
    slots = [_Slot(task, index, 0, None) for index in numbers]
    for slot in slots:
        while slot.demonstration is None and slot.attempts < recipe.max_attempts:
            slot.demonstration = _demonstrate(_env, recipe, task, slot.index, attempt=slot.attempts)
            slot.attempts += 1
    return slots, _env.render_device()


def _demonstrate(env: MetaWorldEnv, recipe: _Recipe, task: str, index: int, attempt: int) -> _Demonstration | None:
    """One attempt at an episode; None if it failed and failures are not kept."""
    seed = episode_seed(recipe.seed, task, index, attempt)
    rng = np.random.default_rng([seed, 1])  # another stream than the simulator's, which is seeded with `seed`
    env.reset(task, seed)
    noisy = recipe.action_noise > 0 and rng.random() < recipe.noise_probability
    start = int(rng.integers(0, recipe.start_noise_steps + 1))
    for move in itertools.islice(_noise(rng, smoothness=0.9), start):
        if env.step(np.array([*move, -1.0], np.float32)):
            return None  # there is nothing left to demonstrate
    noise = _noise(rng, recipe.noise_smoothness)
    scale = recipe.action_noise if noisy else 0.0
    images, proprio, actions, success = [], [], [], []
    solved_at, steps = None, 0
    while steps + recipe.stride <= MAX_EPISODE_STEPS - start:
        images.append(env.render())
        proprio.append(env.proprio())
        for _ in range(recipe.stride):
            actions.append(env.expert_action())
            disturbance = np.array([*(scale * next(noise)), 0.0], np.float32)
            solved = env.step(actions[-1] + disturbance)
            steps += 1
            if solved and solved_at is None and steps <= recipe.max_steps:
                solved_at = steps
        success.append(solved_at is not None)
        if steps >= (recipe.max_steps if solved_at is None else solved_at + recipe.tail_steps):
            break
    if solved_at is None and not recipe.keep_failed:
        return None
    videos = {name: _encode(recipe, f"{task}-{index}-{name}.mp4", [image[name] for image in images]) for name in images[0]}
    details = {
        "seed": seed,
        "attempt": attempt,
        "noisy": noisy,
        "start_steps": start,
        "success_step": -1 if solved_at is None else solved_at,
    }
    return _Demonstration(videos, np.stack(proprio), np.stack(actions), np.array(success), details)


def episode_seed(seed: int, task: str, index: int, attempt: int) -> int:
    """A 63-bit seed of its own for each attempt at each episode; small seeds, which rollouts use, do not come up."""
    digest = hashlib.sha256(f"{seed}/{task}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _noise(rng: np.random.Generator, smoothness: float) -> Iterator[np.ndarray]:
    """An endless sequence of 3 normal numbers each, with variance 1 and the given correlation from one to the next."""
    state = rng.standard_normal(3)
    while True:
        yield state
        state = smoothness * state + (1 - smoothness**2) ** 0.5 * rng.standard_normal(3)


def _encode(recipe: _Recipe, name: str, images: list[np.ndarray]) -> EncodedVideo:
    try:
        return encode_video(recipe.folder / name, np.stack(images), recipe.fps, recipe.codec)
    except OSError as error:  # FFmpeg's own kinds cannot be sent to another process
        raise OSError(error.errno, f"cannot write the video {name}: {error.strerror}") from None


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[dropped]} dropped"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _counts(slots: Sequence[_Slot], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Per task: episodes stored, how many of them failed, attempts that were dropped, episodes given up."""
    counts = {name: {"episodes": 0, "failed": 0, "dropped": 0, "given_up": 0} for name in names}
    for slot in slots:
        stored, count = slot.demonstration, counts[slot.task]
        count["episodes"] += stored is not None
        count["failed"] += stored is not None and stored.details["success_step"] < 0
        count["dropped"] += slot.attempts - (stored is not None)
        count["given_up"] += stored is None
    return counts


def _report(counts: dict[str, dict[str, int]], place: Path) -> None:
    console = Console(stderr=True)
    total = {key: sum(count[key] for count in counts.values()) for key in ("episodes", "failed", "dropped", "given_up")}
    console.print(f"{total['episodes']} episodes of {len(counts)} tasks in {place}")
    for task, count in counts.items():
        if any(told := [f"{count[key]} {key.replace('_', ' ')}" for key in ("failed", "dropped", "given_up") if count[key]]):
            console.print(f"  {task}: {count['episodes']} episodes, {', '.join(told)}")
