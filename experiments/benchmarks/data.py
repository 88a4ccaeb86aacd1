"""How fast windows come out of datasets, beside lerobot's own LeRobotDataset on the same files: `tools/benchmark data`.

Four parts, all by default: `index` opens a synthetic index of a million episodes, `latents` reads cached latents, `lerobot` draws random
windows of 61 frames at 5 fps out of 30 fps video from datasets that lerobot wrote with its own encoder settings, ours and lerobot one
after the other, and `formats` draws such windows from every format that is read. Lerobot gets an environment of its own, which is made
once; its torchcodec finds FFmpeg in the wheel of PyAV.

Rates depend on the machine and on what else it does; what counts is the ratio of neighbours. A row that fails is recorded with its
error, and the others are measured.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import data_formats
import data_ours
import numpy as np
import torch
from data_ours import ACTIONS, FRAMES, INTERVAL, LATENTS_BATCH
from loader_timing import memory_mb

from mimicvideo.provenance import package_versions, processor

HERE = Path(__file__).resolve().parent
LEROBOT = "lerobot==0.4.4"
PARTS = ("index", "latents", "lerobot", "formats")
STEP, LEROBOT_SECONDS = 0.5, 1200  # a training step's pretended length; how long one job of lerobot's may take

Row = dict[str, Any]


def lerobot_python(environment: Path) -> Path:
    """The interpreter of lerobot's environment, which is made if it is not there."""
    python = environment / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    if subprocess.run([python, "-c", "import lerobot"], capture_output=True).returncode:
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
    """Runs data_lerobot.py there. Raises RuntimeError with what it said if it fails."""
    command = [lerobot_python(environment), HERE / "data_lerobot.py", job, *map(str, arguments)]
    done = subprocess.run(command, env=lerobot_environment(environment), capture_output=True, text=True, timeout=LEROBOT_SECONDS)
    if done.returncode:
        raise RuntimeError(f"lerobot's part failed: {done.stderr[-1500:]}")


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a process of its own, whose memory starts anew and whose death is an error of one row."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(work, *arguments).result()


def scale(episodes: int, rows: int) -> Row:
    """Opens a synthetic index of `episodes` episodes of about `rows` rows and draws from it on four ranks."""
    from synthetic_index import SyntheticData

    torch.set_num_threads(1)
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


def row(told: Row, measure: Callable[[], Row]) -> Row:
    """A measurement, or why there is none."""
    try:
        return {**told, **measure()}
    except Exception as error:  # the other rows are worth having
        return {**told, "error": f"{type(error).__name__}: {error}"}


def latents_rows(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Cached latents of a small dataset."""
    root, (height, width) = work / "latents-source", (480, 640)
    told: Row = {"reader": "mimicvideo", "format": f"cached latents of {FRAMES} frames", "height": height, "width": width}
    made = row(told, lambda: {"spec": apart(data_formats.make, "LeRobot v3.0, h264", root, 2, 120, height, width)})
    if "error" in made:
        yield made
        return
    for workers in arguments.workers:
        given = (root, made["spec"], work / "cache", workers, arguments.seconds)
        yield row({**told, "workers": workers, "batch_size": LATENTS_BATCH}, lambda: apart(data_ours.cached_latents, *given))  # noqa: B023


def lerobot_rows(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Datasets of lerobot's, read by both."""
    environment, out = arguments.lerobot, work / "lerobot.json"
    for height, width in arguments.sizes:
        for codec in arguments.codecs:
            root = work / f"{codec}-{height}x{width}"
            about = {"height": height, "width": width, "episodes": arguments.episodes, "rows": arguments.rows, "codec": codec}
            named = {"format": f"LeRobot v3.0, {codec}, by lerobot", "height": height, "width": width}
            made = row(named, lambda root=root, about=about: lerobot(environment, "make", json.dumps({"root": str(root), **about})) or {})
            if "error" in made:
                yield made
                continue
            for workers in arguments.workers:
                told: Row = {**named, "workers": workers, "batch_size": arguments.batch_size}
                mine: list[Row] = []
                for decoder in arguments.decoders:
                    given = (root, None, True, decoder, arguments.batch_size, workers, arguments.seconds, STEP)
                    mine.append(row({"reader": f"mimicvideo, {decoder}", **told}, lambda: apart(data_ours.windows, *given)))  # noqa: B023
                yield from mine
                for backend in ("torchcodec", "pyav"):
                    options = {"root": str(root), "frames": FRAMES, "interval": INTERVAL, "backend": backend, "workers": workers}
                    options |= {"batch_size": arguments.batch_size, "seconds": arguments.seconds, "step": STEP}

                    def theirs(options: Row = options) -> Row:
                        lerobot(environment, "time", json.dumps(options), out)
                        return json.loads(out.read_text())

                    yield compared(row({"reader": f"{LEROBOT}, {backend}", **told}, theirs), mine[0])


def compared(theirs: Row, mine: Row) -> Row:
    """Lerobot's row with its ratios to ours."""
    if "error" in theirs or "error" in mine:
        return theirs
    rates = mine["samples_per_second"] / theirs["samples_per_second"]
    cpu = theirs["cpu_seconds_per_sample"] / mine["cpu_seconds_per_sample"]
    return {**theirs, "ours_over_this": round(rates, 2), "this_cpu_over_ours": round(cpu, 2)}


def format_rows(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    """The same episodes in every format; each dataset is removed when it has been read."""
    for height, width in arguments.format_sizes:
        for name in data_formats.FORMATS:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                root, told = Path(folder) / "data", {"reader": "mimicvideo", "format": name, "height": height, "width": width}
                shape = (arguments.episodes, arguments.rows, height, width)
                made = row(told, lambda: {"spec": apart(data_formats.make, name, root, *shape)})  # noqa: B023
                if "error" in made:
                    yield made
                    continue
                for workers in arguments.workers:
                    numbers = name != "video folder, h264"
                    given = (root, made["spec"], numbers, "PyAV", arguments.batch_size, workers, arguments.seconds, STEP)
                    measured = {**told, "workers": workers, "batch_size": arguments.batch_size}
                    yield row(measured, lambda: apart(data_ours.windows, *given))  # noqa: B023


def size(text: str) -> tuple[int, int]:
    """480x640 as numbers."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def command(arguments: argparse.Namespace) -> str:
    """How to measure the same again, wherever lerobot's environment is."""
    lists: dict[str, list[Any]] = {name: getattr(arguments, name) for name in ("parts", "sizes", "format_sizes", "codecs", "workers")}
    lists |= {name: [getattr(arguments, name)] for name in ("seconds", "episodes", "rows", "batch_size")}
    words = ["tools/benchmark data"]
    for name, values in lists.items():
        words += [f"--{name}", *("x".join(map(str, value)) if isinstance(value, tuple) else f"{value}" for value in values)]
    return " ".join(words)


def parsed() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", type=Path, default=Path(".cache/lerobot"), help="lerobot's environment; made if it is not there")
    parser.add_argument("--out", type=Path, default=HERE / "data.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, and half as many of its waiting")
    parser.add_argument("--sizes", type=size, nargs="+", default=[(480, 640)], help="of lerobot's datasets, height x width")
    parser.add_argument("--format_sizes", type=size, nargs="+", default=[(256, 256), (480, 640)], help="of those of `formats`")
    parser.add_argument("--codecs", nargs="+", default=["libsvtav1", "h264"], help="lerobot's default is libsvtav1")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=450, help="of each episode; a whole window covers 361")
    parser.add_argument("--batch_size", type=int, default=2)
    arguments = parser.parse_args()
    arguments.lerobot = arguments.lerobot.resolve()
    arguments.decoders = ["PyAV", *(["torchcodec"] if data_ours.torchcodec_is_there() else [])]
    return arguments


def main() -> None:
    """Measures and records."""
    arguments = parsed()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    multiprocessing.set_forkserver_preload(["data_ours", "data_formats"])  # imported once, not in each of the processes
    record: Row = {
        "command": command(arguments),
        "window": f"{FRAMES} frames, every {INTERVAL}th of 30 fps video; {ACTIONS} actions",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "versions": package_versions(),
        "load_before": round(os.getloadavg()[0], 2),
        "note": "rates depend on what else the machine did: compare rows with their neighbours, and CPU seconds rather than rates",
    }
    start = time.perf_counter()
    if "index" in arguments.parts:
        record["index"] = row({}, lambda: apart(scale, 10**6, 100))
        print(json.dumps(record["index"]), flush=True)
    record["rows"] = rows = []
    parts = {"latents": latents_rows, "lerobot": lerobot_rows, "formats": format_rows}
    with tempfile.TemporaryDirectory() as work:
        for name in parts:
            for measured in parts[name](arguments, Path(work)) if name in arguments.parts else ():
                print(json.dumps(measured), flush=True)
                rows.append({**measured, "load_after": round(os.getloadavg()[0], 1)})
                record["wall_seconds"] = round(time.perf_counter() - start)
                arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    record["wall_seconds"] = round(time.perf_counter() - start)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    failed = [measured for measured in [record.get("index", {}), *rows] if "error" in measured]
    print(f"recorded in {arguments.out}")
    if failed:
        sys.exit(f"{len(failed)} rows failed; their errors are recorded")


if __name__ == "__main__":
    main()
