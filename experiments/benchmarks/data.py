"""How fast windows come out of datasets, beside lerobot's own LeRobotDataset on the same files: `python experiments/benchmarks/data.py`.

Lerobot gets an environment of its own, which is made once. It writes the datasets, with its own encoder settings, and both then
draw random windows of 61 frames at 5 fps out of 30 fps video, one after the other in the same run. Its torchcodec finds FFmpeg in the
wheel of PyAV. Rates depend on the machine and on what else it does; what counts is the ratio of neighbours.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_timing import memory_mb, timed
from torch import Tensor

from mimicvideo.data.demonstration_data import DemonstrationData

HERE = Path(__file__).resolve().parent
FRAMES, OBSERVED, INTERVAL = 61, 5, 6
LEROBOT = "lerobot==0.4.4"


def lerobot_python(environment: Path) -> Path:
    """The interpreter of lerobot's environment, which is made if it is not there."""
    python = environment / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", LEROBOT], check=True)
    return python


def lerobot_environment(environment: Path) -> dict[str, str]:
    """Names under which torchcodec looks for FFmpeg's libraries, as links to those in the wheel of PyAV."""
    site = next((environment / "lib").glob("python3.*")) / "site-packages"
    links = environment / "ffmpeg"
    links.mkdir(exist_ok=True)
    for library in (site / "av.libs").glob("lib[as]*.so.*"):
        stem, _, version = library.name.partition(".so.")
        link = links / f"{stem.rpartition('-')[0]}.so.{version.split('.')[0]}"
        if not link.exists():
            link.symlink_to(library)
    path = ":".join(map(str, (links, site / "av.libs")))
    return {**os.environ, "LD_LIBRARY_PATH": path, "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def lerobot(environment: Path, job: str, *arguments: Any) -> None:
    """Runs data_lerobot.py there."""
    command = [lerobot_python(environment), HERE / "data_lerobot.py", job, *map(str, arguments)]
    done = subprocess.run(command, env=lerobot_environment(environment), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lerobot's part failed:\n{done.stderr[-3000:]}")


def ours(root: Path, batch_size: int, workers: int, seconds: float, step: float) -> dict[str, Any]:
    """The same windows from the same files. No decoded frame is kept from one to the next."""
    data = DemonstrationData(
        7, 7, 60, root=str(root), observed=OBSERVED, future=FRAMES - OBSERVED, frame_interval=INTERVAL, batch_size=batch_size,
        num_workers=workers, validation_fraction=0.0, ram_cache_gb=0.0,
    )  # fmt: skip
    data.setup()
    return timed(lambda: iter(data.train_dataloader()), batch_size, FRAMES, seconds, step)


def cached_latents(root: Path, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Windows whose latents are on disk: 16 x 16 x 60 x 80 bfloat16, those of 61 frames of 480 x 640 pixels, 2.5 MB each."""
    data = DemonstrationData(
        7, 7, 60, root=str(root), observed=OBSERVED, future=FRAMES - OBSERVED, frame_interval=INTERVAL, batch_size=32,
        num_workers=workers, validation_fraction=0.0,
    )  # fmt: skip

    def encode(video: Tensor) -> Tensor:
        return video[:, ::4, ::8, ::8, :1].permute(0, 4, 1, 2, 3).float().expand(-1, 16, -1, -1, -1)

    data.attach_latents(encode, "benchmark", str(folder))
    return timed(lambda: iter(data.train_dataloader()), 32, FRAMES, seconds, 0.1)


def scale(episodes: int, rows: int) -> dict[str, Any]:
    """Opens a synthetic index of `episodes` episodes of about `rows` rows in a process of its own, and draws from it on four ranks."""
    command = [sys.executable, HERE / "data.py", "--scale", str(episodes), str(rows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def open_synthetic(episodes: int, rows: int) -> dict[str, Any]:
    """What `scale` runs: setting up both stages' data over an index in memory."""
    from synthetic_index import SyntheticData

    before = memory_mb()
    start = time.perf_counter()
    lengths = np.random.default_rng(0).integers(rows // 2, 3 * rows // 2 + 1, episodes)
    data = SyntheticData(lengths)
    data.setup()
    streams = [iter(data.stream(rank, 4)) for rank in range(4)]
    first = [next(stream) for stream in streams]
    opened = time.perf_counter() - start
    start, drawn = time.perf_counter(), 0
    positions = {item.position for batch in first for item in batch}
    while time.perf_counter() - start < 5:
        for stream in streams:
            batch = next(stream)
            positions |= {item.position for item in batch}
            drawn += len(batch)
    wall = time.perf_counter() - start
    return {
        "episodes": episodes,
        "frames": int(lengths.sum()),
        "open_seconds": round(opened, 2),
        "peak_mb_above_imports": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "draws_per_second": round(drawn / wall),
        "overlap_of_ranks": drawn + sum(map(len, first)) - len(positions),
    }


def rows_of_the_table(arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Every measurement, printed as it comes."""
    environment, height, width = arguments.lerobot, 480, 640
    root = work / "latents-source"
    about = {"root": str(root), "height": height, "width": width, "episodes": 2, "rows": 120, "codec": "h264"}
    lerobot(environment, "make", json.dumps(about))
    for workers in arguments.workers:
        told = {"format": "cached latents of 61 frames", "height": height, "width": width, "workers": workers, "batch_size": 32}
        yield {"reader": "mimicvideo", **told, **cached_latents(root, work / "cache", workers, arguments.seconds)}
    for height, width in arguments.sizes:
        for codec in arguments.codecs:
            root = work / f"{codec}-{height}x{width}"
            about = {"height": height, "width": width, "episodes": arguments.episodes, "rows": arguments.rows, "codec": codec}
            lerobot(environment, "make", json.dumps({"root": str(root), **about}))
            for workers in arguments.workers:
                common: dict[str, Any] = {"batch_size": 2, "workers": workers, "seconds": arguments.seconds, "step": 0.5}
                told = {"format": f"LeRobot v3.0, {codec}", "height": height, "width": width, "workers": workers, "batch_size": 2}
                mine = ours(root, **common)
                yield {"reader": "mimicvideo", **told, **mine}
                for backend in ("torchcodec", "pyav"):
                    out = work / "lerobot.json"
                    options = {"root": str(root), "frames": FRAMES, "interval": INTERVAL, "backend": backend, **common}
                    lerobot(environment, "time", json.dumps(options), out)
                    theirs = json.loads(out.read_text())
                    rates = mine["samples_per_second"] / theirs["samples_per_second"]
                    cpu = theirs["cpu_seconds_per_sample"] / mine["cpu_seconds_per_sample"]
                    compared = {"ours_over_this": round(rates, 2), "this_cpu_over_ours": round(cpu, 2)}
                    yield {"reader": f"{LEROBOT}, {backend}", **told, **theirs, **compared}


def size(text: str) -> tuple[int, int]:
    """480x640 as numbers."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def command(arguments: argparse.Namespace) -> str:
    """How to measure the same again, wherever lerobot's environment is."""
    sizes = " ".join(f"{height}x{width}" for height, width in arguments.sizes)
    lists = f"--sizes {sizes} --codecs {' '.join(arguments.codecs)} --workers {' '.join(map(str, arguments.workers))}"
    amounts = f"--seconds {arguments.seconds:g} --episodes {arguments.episodes} --rows {arguments.rows}"
    return f"python experiments/benchmarks/data.py {lists} {amounts}"


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", type=Path, default=Path(".cache/lerobot"), help="lerobot's environment; made if it is not there")
    parser.add_argument("--out", type=Path, default=HERE / "data.json")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(480, 640), (240, 320)])
    parser.add_argument("--codecs", nargs="+", default=["libsvtav1", "h264"], help="lerobot's default is libsvtav1")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--rows", type=int, default=450)
    parser.add_argument("--scale", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.lerobot = arguments.lerobot.resolve()
    torch.set_num_threads(1)
    if arguments.scale:
        print(json.dumps(open_synthetic(*arguments.scale)))
        return
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    record: dict[str, Any] = {
        "command": command(arguments),
        "window": f"{FRAMES} frames, every {INTERVAL}th of 30 fps video; 60 actions",
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "note": "rates depend on what else the machine did: compare rows with their neighbours, and CPU seconds rather than rates",
        "index": scale(10**6, 100),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as work:
        for row in rows_of_the_table(arguments, Path(work)):
            print(json.dumps(row), flush=True)
            record["rows"].append({**row, "load_after": round(os.getloadavg()[0], 1)})
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {arguments.out}")


if __name__ == "__main__":
    main()
