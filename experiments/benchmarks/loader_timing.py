"""Times any loader the same way, in our environment and in lerobot's: rate, CPU, memory, and how long a training step would wait."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def tree() -> list[int]:
    """This process and all that come from it."""
    found, queue = [], [os.getpid()]
    while queue:
        found.append(queue.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                queue += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds() -> float:
    """User and system time of the process tree, with what has ended."""
    total = 0.0
    for process in tree():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15]) / TICK
    return total


def memory_mb() -> float:
    """Proportional memory of the process tree, in 10^6 bytes: shared pages count once."""
    total = 0
    for process in tree():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total * 1024 / 1e6


def timed(batches: Callable[[], Iterator[Any]], batch_size: int, frames: int, seconds: float, step: float) -> dict[str, float]:
    """Draws batches for about `seconds`, then again with a training step of `step` seconds after each.

    Args:
        batches: Makes an endless iterator; the first batch, which starts workers, is not timed.
        batch_size: Samples of a batch.
        frames: Frames of a sample.
        seconds: How long to draw.
        step: How long the step pretends to compute.
    """
    iterator = batches()
    next(iterator)
    count, cpu, start = 0, cpu_seconds(), time.perf_counter()
    while time.perf_counter() - start < seconds or count < 3:
        next(iterator)
        count += 1
    wall, cpu, memory = time.perf_counter() - start, cpu_seconds() - cpu, memory_mb()
    waited, start, steps = 0.0, time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 2 or steps < 3:
        before = time.perf_counter()
        next(iterator)
        waited += time.perf_counter() - before
        time.sleep(step)
        steps += 1
    samples = count * batch_size
    return {
        "samples": samples,
        "samples_per_second": round(samples / wall, 3),
        "frames_per_second": round(samples * frames / wall, 1),
        "cpu_seconds_per_sample": round(cpu / samples, 4),
        "memory_mb": round(memory),
        "step_seconds": step,
        "share_of_step_waiting": round(waited / (time.perf_counter() - start), 3),
    }
