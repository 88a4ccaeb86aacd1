"""A policy in a benchmark: parallel episodes with batched inference, replanned every few steps → success, interval, videos."""

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mimicvideo import provenance
from mimicvideo.action.acting import Acting
from mimicvideo.action.folder import verify_policy
from mimicvideo.action.future import Future
from mimicvideo.benchmark.base import Benchmark, Task
from mimicvideo.evaluation import RESULTS, Episode, Evaluation
from mimicvideo.execution import Execution
from mimicvideo.media import grid, read_mp4, write_mp4
from mimicvideo.planning import Control, Planner, Request, make_planner
from mimicvideo.rollout_workers import Finished, Job, Protocol, Workers

FILM_EVERY = 4  # control steps between two frames of a recorded video
GRID_COLUMNS = 5


def rollout(
    policy: str,
    benchmark: Benchmark,
    episodes: int = 50,
    execute: int = 8,
    seed: int = 0,
    control: Control = "none",
    future: Future | None = None,
    acting: Acting | None = None,
    execution: Execution | None = None,
    pretrained: str | None = None,
    max_steps: int | None = None,
    num_workers: int | None = None,
    envs_per_worker: int = 2,
    simulator_timeout: float = 300.0,
    device: str = "auto",
    videos: int = 2,
    run_dir: str = "runs/rollout",
    overwrite: bool = False,
) -> Evaluation:
    """Runs `episodes` episodes of every task and writes what came of it to `run_dir`.

    Written are `results.json` (success with 95 % Wilson interval, every episode's seed, latency, hashes, versions, hardware),
    `episodes.jsonl` as episodes end, `metrics.json`, `rollout.yaml` (which `--config` takes again) and `videos/`.

    The seed of an episode follows from `seed`, task and index, see `evaluation_seed`, and is never one of a demonstration. The
    noise of a plan follows from these and the plan's number, so an episode does not depend on which others run beside it, but
    for rounding: sums over a batch of another size may be taken in another order.

    Args:
        policy: A stage-2 checkpoint, or the folder that `mimicvideo export` made of one; nothing else of its training is needed.
        benchmark: Where it acts.
        episodes: Per task.
        execute: Control steps of each chunk that are executed before the next is planned.
        seed: Of all episodes and plans.
        control: `zero_context` and `shuffle_context` give the decoder no hidden states, or those of another task's episode;
            `oracle_future` films the scripted expert's future, which is noised as `future` or the checkpoint's own says, or to
            tau 0.4 if neither uses it; `random_policy` draws actions from U[-1, 1] and needs no model.
        future: What the backbone sees of the future, in place of what the checkpoint says.
        acting: How the decoder runs and how much of the future the video model is shown, in place of what the checkpoint says.
        execution: How the video model runs, likewise: `--execution='{}'` is the fast way.
        pretrained: Where the base weights lie, a folder or a hub id, if not where they lay in training.
        max_steps: Control steps after which an episode has failed; the benchmark's own limit by default.
        num_workers: Simulator processes; one for each core by default.
        envs_per_worker: Environments in each. With two or more and a GPU, half of them step while it plans for the other half; on
            a CPU, planning and stepping would only take the cores from each other.
        simulator_timeout: Seconds without an answer after which a simulator counts as hung; its episode ends with an error.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        videos: Episodes of each task that are recorded, the first ones.
        run_dir: Where everything is written.
        overwrite: Whether results that are already there may go.

    Raises:
        FileExistsError: If `run_dir` holds results and `overwrite` is not set.
        ValueError: If the policy does not fit the benchmark, or an argument is out of range; before any simulation.
        RuntimeError: If no environment starts, or, when all is written, if any episode ended with an error.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("benchmark", "future", "acting", "execution")}
    tasks = benchmark.tasks()
    arguments["benchmark"] = provenance.config_of(benchmark, tasks=[task.name for task in tasks])
    arguments["future"] = provenance.config_of(future) if future else None
    arguments["acting"] = asdict(acting) if acting else None
    arguments["execution"] = asdict(execution) if execution else None
    limit = benchmark.contract["max_episode_steps"]
    steps = check_range("max_steps", limit if max_steps is None else max_steps, limit)
    check_range("episodes", episodes)
    workers = check_range("num_workers", len(os.sched_getaffinity(0)) if num_workers is None else num_workers)
    check_range("envs_per_worker", envs_per_worker)
    if not simulator_timeout > 0:
        raise ValueError(f"simulator_timeout must be positive seconds, got {simulator_timeout}")
    folder = Path(run_dir)
    if (folder / RESULTS).exists() and not overwrite:
        raise FileExistsError(f"{folder} holds the results of another rollout: choose another run_dir, or set overwrite=true")

    started = time.perf_counter()
    device = choose_device(device)
    checkpoint_sha256 = verify_policy(policy)
    planner = make_planner(policy, control, future, tasks, seed, device, acting, execution, pretrained)
    contract = planner.contract
    benchmark.check_contract(contract)
    check_range("execute", execute, contract["horizon"])

    clean(folder)
    (folder / "rollout.yaml").write_text(yaml.safe_dump(arguments, sort_keys=False))
    interval, fps = contract["frame_interval_steps"], contract["control_hz"] / FILM_EVERY
    seen = (planner.observed, interval, planner.future)
    protocol = Protocol(contract, execute, *seen, steps, FILM_EVERY, fps, folder / "videos", simulator_timeout)
    jobs = Jobs(tasks, episodes, seed, videos)
    together = control == "shuffle_context" or device == "cpu"
    finished = play(benchmark, protocol, planner, jobs, workers, envs_per_worker, together, folder)

    record = {
        "arguments": arguments,
        "contract": contract,
        "sha256": {"checkpoint": checkpoint_sha256, **planner.hashes, "rollout_config": provenance.json_sha256(arguments)},
        "versions": provenance.package_versions(),
        "hardware": provenance.hardware(device),
        "command": provenance.command_line(),
        "wall_seconds": time.perf_counter() - started,
    }
    evaluation = Evaluation.of(control, [task.name for task in tasks], finished, planner.latency.summary(), record)
    evaluation.write(folder)
    write_grid(folder / "videos", evaluation.episodes, fps)
    Console().print(success_table(evaluation))
    if evaluation.overall.errors:
        first = next(episode for episode in evaluation.episodes if episode.error)
        raise RuntimeError(
            f"{evaluation.overall.errors} of {len(evaluation.episodes)} episodes ended with an error, the first of them {first.task} "
            f"number {first.index}: {first.error}. All are named in {folder / 'episodes.jsonl'}"
        )
    return evaluation


def evaluation_seed(seed: int, task: str, index: int) -> int:
    """The seed with which an episode's environment is reset: in [2^63, 2^64), while those of demonstrations lie below 2^63."""
    digest = hashlib.sha256(f"rollout {seed} {task} {index}".encode()).digest()
    return 2**63 + (int.from_bytes(digest[:8], "little") >> 1)


class Jobs:
    """The episodes still to be played.

    A slot stays with its task while there are episodes of it, since another task means another simulation model; otherwise
    it gets the task with the most episodes left, so that the tasks in play stay mixed.
    """

    def __init__(self, tasks: Sequence[Task], episodes: int, seed: int, videos: int) -> None:
        self.total = len(tasks) * episodes
        self._left = {
            task: deque(Job(task, index, evaluation_seed(seed, task.name, index), index < videos) for index in range(episodes))
            for task in tasks
        }

    def next(self, before: Task | None) -> Job | None:
        """The next episode for a slot that has played task `before`; None if there is none."""
        task = before if before and self._left[before] else max(self._left, key=lambda task: len(self._left[task]))
        return self._left[task].popleft() if self._left[task] else None


def play(
    benchmark: Benchmark,
    protocol: Protocol,
    planner: Planner,
    jobs: Jobs,
    num_workers: int,
    envs_per_worker: int,
    together: bool,
    folder: Path,
) -> list[Episode]:
    """Plays all jobs. Slots form two groups that take turns, so that one steps while the other's plans are made, or one group.

    A group's plans are made when all of it has answered: which observations share a batch never depends on timing.

    Args:
        together: Keep all slots in one group.

    Raises:
        RuntimeError: If every slot's first episode fails before it shows anything, with the first error.
    """
    slots = min(num_workers * envs_per_worker, jobs.total)
    num_workers = min(num_workers, slots)
    turns = 1 if together else min(2, -(-slots // num_workers))
    groups = [[slot for slot in range(slots) if slot // num_workers % turns == turn] for turn in range(turns)]
    current: dict[int, Job] = {}
    plans: dict[int, int] = {}
    episodes: list[Episode] = []
    seen_any = False

    with Workers(benchmark, protocol, num_workers, slots) as workers, progress_bar() as bar, open(folder / "episodes.jsonl", "w") as log:
        counter = bar.add_task("", total=jobs.total, successes=0)

        def start(slot: int, before: Task | None = None) -> None:
            current.pop(slot, None)
            if job := jobs.next(before):
                current[slot], plans[slot] = job, 0
                workers.send(slot, job)

        def finish(slot: int, end: Finished) -> None:
            job = current[slot]
            episode = Episode(job.task.name, job.index, job.seed, end.success, end.steps, end.error, end.video)
            episodes.append(episode)
            log.write(json.dumps(asdict(episode) | ({"details": end.details} if end.details else {})) + "\n")
            log.flush()
            bar.update(counter, advance=1, successes=sum(episode.success for episode in episodes))
            start(slot, job.task)

        for slot in range(slots):
            start(slot)
        while current:
            for group in groups:
                requests: dict[int, Request] = {}
                while waiting := [slot for slot in group if slot in current and slot not in requests]:
                    for slot in waiting:
                        reply = workers.receive(slot)
                        if isinstance(reply, Finished):
                            finish(slot, reply)
                        else:
                            seen_any = True
                            requests[slot] = Request(current[slot], plans[slot], reply)
                    if not seen_any and len(episodes) >= slots:
                        raise RuntimeError(f"no environment could be started: {episodes[0].error}")
                if requests:
                    chunks = planner.plan(list(requests.values()))[:, : protocol.execute]
                    for slot, chunk in zip(requests, chunks, strict=True):
                        plans[slot] += 1
                        workers.send(slot, chunk)
    return episodes


def choose_device(device: str) -> str:
    """`cuda` or `cpu` for `auto`, otherwise what was given."""
    import torch

    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def check_range(name: str, value: int, most: int | None = None) -> int:
    """Returns `value`; raises ValueError unless it lies in [1, most]."""
    if value < 1 or (most is not None and value > most):
        raise ValueError(f"{name} must be at least 1" + (f" and at most {most}" if most is not None else "") + f", got {value}")
    return value


def clean(folder: Path) -> None:
    """An empty place for results: those of an earlier rollout go, other files stay."""
    for name in (RESULTS, "metrics.json", "episodes.jsonl", "rollout.yaml"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "videos", ignore_errors=True)
    (folder / "videos").mkdir(parents=True)


def write_grid(folder: Path, episodes: Iterable[Episode], fps: float) -> None:
    """`grid.mp4`: the first recorded episode of every task, all at once."""
    first = {episode.task: episode.video for episode in reversed(list(episodes)) if episode.video}
    films = [read_mp4(folder / video) for video in reversed(first.values()) if video]
    if films:
        write_mp4(folder / "grid.mp4", grid(films, min(GRID_COLUMNS, len(films))), fps)


def progress_bar() -> Progress:
    """Episodes done, successes, time."""
    counts = TextColumn("{task.fields[successes]} successes")
    return Progress(TextColumn("rollout"), BarColumn(), MofNCompleteColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn())


def success_table(evaluation: Evaluation) -> Table:
    """Success by task."""
    table = Table(title=f"success (control: {evaluation.control})")
    for column in ("task", "successes", "rate", "95 % interval", "steps to success"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, rate in (evaluation.tasks | {"all": evaluation.overall}).items():
        steps = "–" if rate.mean_steps_to_success is None else f"{rate.mean_steps_to_success:.0f}"
        share = "–" if rate.success_rate is None else f"{rate.success_rate:.0%}"
        table.add_row(name, f"{rate.successes}/{rate.episodes}", share, f"{rate.low:.0%} – {rate.high:.0%}", steps)
    return table
