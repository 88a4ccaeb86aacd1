"""Who describes episodes: this process, or several, each with a model and a reader of its own."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from mimicvideo.data.language import is_empty
from mimicvideo.data.open import open_episodes
from mimicvideo.reason.vision_language import Answer, VisionLanguageModel

TASK = "The robot's task is: {instruction}. "


@dataclass(frozen=True)
class Request:
    """What is asked about every episode, of which model, and where the episodes are; see `caption_tool.captions`."""

    root: str
    cameras: list[str] | None
    spec: str | None
    model: str
    revision: str | None
    prompt: str
    frames: int
    max_new_tokens: int


class Describer:
    """One model that looks at episodes of one dataset."""

    def __init__(self, request: Request, device: str | None) -> None:
        self.request = request
        self.network = VisionLanguageModel(request.model, request.revision, device)
        reader = open_episodes(request.root, request.cameras, spec=request.spec, ram_cache_gb=0)
        self.reader, self.episodes = reader, {episode.index: episode for episode in reader.episodes}

    def __call__(self, indices: Sequence[int]) -> list[Answer]:
        """An answer about each episode."""
        request, episodes = self.request, [self.episodes[index] for index in indices]
        pictures = [self.reader.frames(episode, evenly(episode.length, request.frames)) for episode in episodes]
        asked = [question(request.prompt, episode.instruction) for episode in episodes]
        return self.network.answer(pictures, asked, request.max_new_tokens)


def described(
    request: Request, batches: Sequence[Sequence[int]], device: str | None, processes: int
) -> Iterator[tuple[Sequence[int], list[Answer]]]:
    """Each batch of episodes with its answers, as they are ready. Several processes take the GPUs in turn, if there are any.

    Raises:
        RuntimeError: If one of several processes fails; with one process, whatever it raises.
    """
    processes = min(processes, len(batches))
    if processes <= 1:
        describer = Describer(request, device) if batches else None
        for batch in batches:
            assert describer is not None
            yield batch, describer(batch)
        return
    context, gpus = multiprocessing.get_context("spawn"), torch.cuda.device_count() if device in (None, "cuda") else 0
    devices = context.Queue()
    for number in range(processes):
        devices.put(f"cuda:{number % gpus}" if gpus else device)
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare, initargs=(request, devices, threads))
    try:
        waiting = {pool.submit(_describe, batch): batch for batch in batches}
        for future in as_completed(waiting):
            try:
                answers = future.result()
            except Exception as error:  # of the model, of the reader, or the end of a process
                raise RuntimeError(f"one of {processes} processes failed: {type(error).__name__}: {error}") from error
            yield waiting[future], answers
    finally:
        pool.shutdown(cancel_futures=True)


_own: dict[str, Any] = {}  # of a process of the pool


def _prepare(request: Request, devices: "Queue[str | None]", threads: int) -> None:
    torch.set_num_threads(threads)
    _own.update(request=request, device=devices.get())


def _describe(batch: Sequence[int]) -> list[Answer]:
    if "describer" not in _own:  # not in `_prepare`, whose errors nobody is told
        _own["describer"] = Describer(_own["request"], _own["device"])
    return _own["describer"](batch)


def evenly(length: int, count: int) -> Int[np.ndarray, " frames"]:
    """Rows from the first to the last, each once."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.int64))


def question(prompt: str, instruction: str) -> str:
    """The request about one episode: {task} stands for a sentence with its instruction, or nothing where it has none."""
    task = "" if is_empty(instruction) else TASK.format(instruction=instruction.strip().rstrip("."))
    return prompt.replace("{task}", task)
