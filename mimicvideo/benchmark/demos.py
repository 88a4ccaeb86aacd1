"""The verb `demos`: Meta-World's scripted experts generate demonstrations, in parallel, as a LeRobotDataset v3.0."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mimicvideo.benchmark.base import Environment
from mimicvideo.benchmark.demonstration import Demonstration, Recipe, demonstrate
from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.metaworld import ACTIONS, CONTROL_HZ, MAX_EPISODE_STEPS, PROPRIO, ROBOT, MetaWorldEnv, task_names
from mimicvideo.benchmark.rendering import view
from mimicvideo.data.lerobot_writer import LeRobotWriter
from mimicvideo.data.video_encoding import VideoCodec

EPISODES_PER_UNIT = 10  # what a worker does in one go: building a simulator costs as much as a short episode


@dataclass
class Slot:
    """One of the episodes asked for: what came of it after how many attempts."""

    task: str
    index: int
    attempts: int
    demonstration: Demonstration | None


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
    height, width = resolution
    num_workers = os.cpu_count() or 1 if num_workers is None else num_workers
    _check({**settings, "num_workers": num_workers, "resolution (height)": height, "resolution (width)": width})
    cameras_meta = [{"name": view.name, "height": height, "width": width, "view": view.spec()} for view in views]
    names_of = {"robot": ROBOT, "control_hz": CONTROL_HZ, "proprio_names": PROPRIO, "action_names": ACTIONS}
    writing = LeRobotWriter(root, stride=stride, cameras=cameras_meta, codec=codec, overwrite=overwrite, **names_of)
    with _sigterm_raises(), writing as writer:
        recipe = Recipe(
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
            slots, device = _generate_all(recipe, names, episodes_per_task, num_workers)
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
        "num_workers": (1, np.inf),
        "resolution (height)": (1, np.inf),
        "resolution (width)": (1, np.inf),
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


def _generate_all(recipe: Recipe, names: Sequence[str], episodes_per_task: int, num_workers: int) -> tuple[list[Slot], list[str]]:
    """All episodes in the order of tasks and indices, and what drew them."""
    numbers = range(0, episodes_per_task, EPISODES_PER_UNIT)
    units = [(name, range(start, min(start + EPISODES_PER_UNIT, episodes_per_task))) for name in names for start in numbers]
    slots: list[Slot] = []
    devices: set[str] = set()
    context = get_context("spawn")  # GL hangs in a process that was forked off one which has rendered
    stop = context.Event()
    with ProcessPoolExecutor(min(num_workers, len(units)), context, _start_worker, (stop,)) as pool, _progress() as progress:
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
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(slots, key=lambda slot: (names.index(slot.task), slot.index)), sorted(devices)


_env: MetaWorldEnv | None = None  # a worker's simulator: kept from one unit of work to the next
_stop: Event | None = None  # set when the parent does not want any more episodes


def _start_worker(stop: Event) -> None:
    """Runs first in each worker: Ctrl-C is the parent's business, and workers side by side take one thread each."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _generate(recipe: Recipe, task: str, numbers: range) -> tuple[list[Slot], str]:
    """Some episodes of one task. Runs in a worker."""
    global _env
    if _env is None:
        _env = MetaWorldEnv(recipe.views, recipe.height, recipe.width)
    slots = []
    for index in numbers:
        if _stop is not None and _stop.is_set():
            raise InterruptedError("no more episodes are wanted")
        slots.append(_fill(_env, recipe, task, index))
    return slots, _env.render_device()


def _fill(env: Environment, recipe: Recipe, task: str, index: int) -> Slot:
    """One episode, tried until it succeeds or `max_attempts` are used up."""
    slot = Slot(task, index, 0, None)
    while slot.demonstration is None and slot.attempts < recipe.max_attempts:
        slot.demonstration = demonstrate(env, recipe, task, index, attempt=slot.attempts)
        slot.attempts += 1
    return slot


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets a polite kill clean up like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[dropped]} dropped"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _counts(slots: Sequence[Slot], names: Sequence[str]) -> dict[str, dict[str, int]]:
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
