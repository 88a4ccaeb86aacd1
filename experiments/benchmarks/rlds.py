"""How fast RLDS episodes are read on one core: `PYTHONPATH=. python experiments/benchmarks/rlds.py [--out FILE]`.

Makes 50 episodes of 38 steps in the schema of bridge_dataset, four cameras of 256 x 256 pixels as JPEG, and 20 of 90 steps, and reads them
several times: numbers and sentences of every episode without its pictures, and windows of 61 different frames of one camera. Every
repetition is kept: other programs on the machine slow some of them down.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mimicvideo.data.rlds import RldsStore, records
from mimicvideo.provenance import processor
from tests.rlds_episodes import make_rlds

EPISODES, STEPS, SIZE, WINDOW = 50, 38, (256, 256), 61


def per_second(work: Callable[[], int], repetitions: int = 6) -> dict[str, list[float]]:
    """How much was done each time, per second of the clock and per second of this process's CPU time."""
    wall, cpu = [], []
    for _ in range(repetitions):
        start, used = time.perf_counter(), time.process_time()
        done = work()
        wall.append(round(done / (time.perf_counter() - start), 1))
        cpu.append(round(done / (time.process_time() - used), 1))
    return {"per_second": wall, "per_cpu_second": cpu}


def make(folder: Path) -> None:
    """Writes the datasets `many` and `long`."""
    make_rlds(folder / "many", [STEPS] * EPISODES, shards=5, size=SIZE)
    make_rlds(folder / "long", [90] * 20, shards=2, size=SIZE)


def measure(folder: Path) -> dict[str, object]:
    """All figures, of datasets that are made in a folder."""
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder,))  # its memory is not counted
    maker.start()
    maker.join()
    RldsStore(folder / "long")  # imports
    start = time.perf_counter()
    store = RldsStore(folder / "many")
    opened = time.perf_counter() - start
    start = time.perf_counter()
    store = RldsStore(folder / "many")
    opened_again = time.perf_counter() - start
    long = RldsStore(folder / "long")
    random = np.random.default_rng(0)

    def parse() -> int:
        records._record.cache_clear()  # where features lie is remembered of the last records, which a real pass does not come back to
        for entry in store.entries:
            store.numbers(entry, ["action", "observation/state"])
            store.texts(entry, "language_instruction")
        return len(store.entries)

    def windows(size: tuple[int, int] | None) -> int:
        records._record.cache_clear()
        for entry in long.entries:
            first = random.integers(entry.rows - WINDOW + 1)
            long.frames(entry, "observation/image_0", np.arange(first, first + WINDOW), size)
        return len(long.entries)

    parse()  # files come into memory
    windows(None)
    return {
        "episodes": EPISODES,
        "steps": STEPS,
        "bytes_of_a_picture": round(sum(path.stat().st_size for path in (folder / "many").glob("*tfrecord*")) / (EPISODES * STEPS * 4)),
        "seconds_to_open_and_index": round(opened, 3),
        "seconds_to_open_again": round(opened_again, 4),
        "episodes_parsed_without_pictures": per_second(parse),
        "windows_of_61_frames": per_second(lambda: windows(None)),
        "windows_of_61_frames_resized_to_128": per_second(lambda: windows((128, 128))),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out = parser.parse_args().out
    load = os.getloadavg()[0]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    figures["load_after"] = round(os.getloadavg()[0], 2)
    facts = {
        "command": "PYTHONPATH=. python experiments/benchmarks/rlds.py",
        "cpu": processor(),
        "cores_used": 1,
        "load_before": round(load, 2),
    }
    out.write_text(json.dumps({**facts, **figures}, indent=2) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
