"""What a million episodes cost before the first picture is read: `python experiments/benchmarks/index.py [--out FILE]`.

Stage 2's data are set up over the meta folders of LeRobot v3.0 datasets whose rows and videos are not there, one with ten thousand and
one with a million different sentences, each in a process of its own, and samples are drawn as four ranks would.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_timing import memory_mb
from synthetic_lerobot import CAMERAS

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.sampler import BatchStream

HERE = Path(__file__).resolve().parent
RANKS, SECONDS = 4, 5.0
PARTS = 10  # of the dataset, by rows, which should be drawn equally often


def opening(root: Path) -> dict[str, Any]:
    """Opens a dataset and draws from it for some seconds."""
    before, wall, cpu = memory_mb(), time.perf_counter(), time.process_time()
    data = DemonstrationData(7, 7, 60, root=str(root), cameras=[CAMERAS[0].rpartition(".")[2]], frame_interval=6)
    data.setup()
    streams = [iter(BatchStream(data._order(), 32, rank, RANKS)) for rank in range(RANKS)]
    items = [item for stream in streams for item in next(stream)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    start, already = time.perf_counter(), len(items)
    while time.perf_counter() - start < SECONDS:
        for stream in streams:
            items += next(stream)
    seconds = time.perf_counter() - start
    ends = np.cumsum(data._training.lengths)
    windows = np.array([ends[item.episode] - data._training.lengths[item.episode] + item.row for item in items])
    counts = np.histogram(windows, PARTS, (0, ends[-1]))[0]
    reader = data.readers["data"]
    return {
        "episodes": len(reader.episodes),
        "frames": int(reader.episodes.lengths.sum()),
        "open_seconds": round(wall, 2),
        "open_cpu_seconds": round(cpu, 2),
        "peak_mb": round(peak),
        "peak_mb_above_imports": round(peak - before),
        "draws": len(items),
        "draws_per_second": round((len(items) - already) / seconds),
        "draws_more_than_once": len(items) - len(np.unique(windows)),
        "share_of_each_tenth": [round(float(share), 4) for share in counts / counts.sum()],
    }


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--episodes", type=int, default=10**6)
    parser.add_argument("--rows", type=int, default=100, help="of an episode on average")
    parser.add_argument("--opening", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.opening:
        print(json.dumps(opening(arguments.opening)))
        return
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    record: dict[str, Any] = {
        "command": f"python experiments/benchmarks/index.py --episodes {arguments.episodes} --rows {arguments.rows}",
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()),
        "cores": os.cpu_count(),
        "datasets": [],
    }
    for sentences in (10**4, 10**6):
        with tempfile.TemporaryDirectory() as root:
            load, counts = round(os.getloadavg()[0], 1), map(str, (arguments.episodes, arguments.rows, sentences))
            subprocess.run([sys.executable, HERE / "synthetic_lerobot.py", root, *counts], check=True)  # its memory is not counted
            command = [sys.executable, __file__, "--opening", root]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        record["datasets"].append({"sentences": min(sentences, arguments.episodes), "load_before": load, **found})
        print(json.dumps(record["datasets"][-1]), flush=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {arguments.out}")


if __name__ == "__main__":
    main()
