"""The simulator side of a rollout: processes that reset, step and film environments, and know nothing of models."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from mimicvideo.benchmark.base import Benchmark, Task
from mimicvideo.media import write_mp4

# One process per core renders and steps in one thread: more of them only get in each other's way.
ONE_THREAD = {name: "1" for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Protocol:
    """What all episodes of a rollout have in common.

    Attributes:
        contract: The policy's.
        execute: Control steps from one observation to the next.
        observed: Frames of an observation; 0 if the policy looks at nothing.
        interval: Control steps between them.
        future: Frames of the expert's future that each observation brings along; 0 for none.
        max_steps: Control steps after which an episode has failed.
        film_every: Control steps between two frames of a recorded video.
        fps: Of a recorded video.
        videos: Folder for them.
        timeout: Seconds to wait for an environment before it counts as hung: its process is ended and a new one started.
    """

    contract: dict[str, Any]
    execute: int
    observed: int
    interval: int
    future: int
    max_steps: int
    film_every: int
    fps: float
    videos: Path
    timeout: float


@dataclass(frozen=True)
class Job:
    """One episode to play."""

    task: Task
    index: int
    seed: int
    film: bool


@dataclass(frozen=True)
class Observed:
    """What a policy needs to plan the next steps."""

    frames: UInt8[ndarray, "observed height width 3"] | None
    proprio: Float[ndarray, " proprio_dim"]
    future: UInt8[ndarray, "future height width 3"] | None


@dataclass(frozen=True)
class Finished:
    """The end of an episode."""

    success: bool = False
    steps: int = 0
    error: str | None = None
    details: str = ""  # the error's traceback
    video: str | None = None


def is_observed(step: int, execute: int, interval: int, observed: int) -> bool:
    """Whether some plan made at a multiple T of `execute`, T >= step, looks at the frame of control step `step`.

    A plan at T looks at the frames T, T - interval, ..., T - (observed - 1) * interval; of those before the start, at frame 0.
    """
    first = -(-step // execute) * execute
    return any((plan - step) % interval == 0 for plan in range(first, step + (observed - 1) * interval + 1, execute))


class Player:
    """Plays episodes, one after the other, in one environment."""

    def __init__(self, benchmark: Benchmark, protocol: Protocol) -> None:
        self.env = benchmark.make_env(protocol.contract)
        self.protocol = protocol
        self.job: Job
        self.step = 0
        self.frames: dict[int, ndarray] = {}  # by control step: those that a later plan looks at
        self.film: list[ndarray] = []

    def start(self, job: Job) -> Observed:
        """Resets to a job's first state."""
        self.job, self.step, self.frames, self.film = job, 0, {}, []
        self.env.reset(job.task.name, job.seed)
        self._look()
        return self._observation()

    def act(self, actions: Float[ndarray, "execute action_dim"]) -> Observed | Finished:
        """Executes actions until they are used up, the task has succeeded, or time is over."""
        for action in actions:
            success = self.env.step(action)
            self.step += 1
            if success or self.step == self.protocol.max_steps:
                return self._finish(success)
            self._look()
        return self._observation()

    def close(self) -> None:
        self.env.close()

    def _look(self) -> None:
        """Renders if anybody will look at this step's frame."""
        protocol = self.protocol
        observed = protocol.observed and is_observed(self.step, protocol.execute, protocol.interval, protocol.observed)
        filmed = self.job.film and self.step % protocol.film_every == 0
        if not (observed or filmed):
            return
        frame = self.env.frame()
        if observed:
            self.frames[self.step] = frame
        if filmed:
            self.film.append(frame)

    def _observation(self) -> Observed:
        protocol = self.protocol
        steps = [max(0, self.step - back * protocol.interval) for back in reversed(range(protocol.observed))]
        self.frames = {step: frame for step, frame in self.frames.items() if step == 0 or step >= steps[0]} if steps else {}
        return Observed(
            np.stack([self.frames[step] for step in steps]) if steps else None,
            np.asarray(self.env.proprio(), dtype=np.float32),
            self.env.expert_future(protocol.future, protocol.interval) if protocol.future else None,
        )

    def _finish(self, success: bool) -> Finished:
        video = None
        if self.job.film:
            self.film.append(self.env.frame())
            video = f"{self.job.task.name}_{self.job.index:03d}_{'success' if success else 'failure'}.mp4"
            write_mp4(self.protocol.videos / video, np.stack(self.film), self.protocol.fps)
        return Finished(success, self.step, video=video)


def work(benchmark: Benchmark, protocol: Protocol, connection: Connection) -> None:
    """Body of a worker process: answers every (slot, Job or actions) with (slot, Observed or Finished), in order; None ends it.

    A slot is an environment of its own. Whatever an environment raises ends its episode, not the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on ctrl-c the main process ends this one
    players: dict[int, Player] = {}
    while True:
        try:
            command = connection.recv()
        except EOFError:  # the main process is gone
            return
        if command is None:
            break
        slot, request = command
        try:
            if isinstance(request, Job):
                player = players[slot] = players.get(slot) or Player(benchmark, protocol)
                reply = player.start(request)
            elif slot in players:
                reply = players[slot].act(request)
            else:
                reply = Finished(error="the episode was lost when another one ended the simulator's process")
        except Exception as error:  # whatever a simulator may raise
            steps = players[slot].step if slot in players else 0
            reply = Finished(steps=steps, error=f"{type(error).__name__}: {error}", details=traceback.format_exc())
            with suppress(Exception):
                players.pop(slot).close()  # it may be broken: the next episode gets a new one
        connection.send((slot, reply))
    for player in players.values():
        player.close()


class Workers:
    """A fixed number of slots, spread over processes started by spawn: a renderer does not survive fork.

    Args:
        benchmark: Sent to every process, which makes its environments from it.
        protocol: The same.
        num_workers: Processes.
        slots: Environments; slot s lives in process s % num_workers.
    """

    def __init__(self, benchmark: Benchmark, protocol: Protocol, num_workers: int, slots: int) -> None:
        self._arguments, self._timeout = (benchmark, protocol), protocol.timeout
        self._context = multiprocessing.get_context("spawn")
        self._of_slot = [slot % num_workers for slot in range(slots)]
        self._waiting: list[list[int]] = [[] for _ in range(num_workers)]  # slots that owe a reply
        self._replies: dict[int, Observed | Finished] = {}
        self._processes: list[Any] = [None] * num_workers
        self._connections: list[Any] = [None] * num_workers
        for worker in range(num_workers):
            self._spawn(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            with suppress(OSError):  # it may be gone already
                connection.send(None)
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()

    def send(self, slot: int, request: Job | Float[ndarray, "execute action_dim"]) -> None:
        """Asks a slot to start an episode or to go on with it."""
        worker = self._of_slot[slot]
        self._waiting[worker].append(slot)
        try:
            self._connections[worker].send((slot, request))
        except OSError:  # it died since its last reply
            self._bury(worker)

    def receive(self, slot: int) -> Observed | Finished:
        """Waits for a slot's reply. If its process has died or hangs, the episodes in it are finished with an error."""
        worker = self._of_slot[slot]
        while slot not in self._replies:
            try:
                hangs = not self._connections[worker].poll(self._timeout)
                other, reply = (slot, None) if hangs else self._connections[worker].recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            if reply is None:
                self._processes[worker].kill()
                self._bury(worker, f"the simulator did not answer for {self._timeout:g} s (simulator_timeout) and was ended")
            else:
                self._waiting[worker].remove(other)
                self._replies[other] = reply
        return self._replies.pop(slot)

    def _spawn(self, worker: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(target=work, args=(*self._arguments, there), daemon=True, name=f"rollout-{worker}")
        with _environment(ONE_THREAD):
            process.start()
        there.close()
        self._processes[worker], self._connections[worker] = process, here

    def _bury(self, worker: int, error: str | None = None) -> None:
        process = self._processes[worker]
        process.join(5)
        error = error or f"the simulator's process died with exit code {process.exitcode}"
        for slot in self._waiting[worker]:
            self._replies[slot] = Finished(error=error)
        self._waiting[worker] = []
        self._spawn(worker)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started in the `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
