"""The command line of the measurements: `tools/benchmark <row> ...`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mimicvideo.speed import inference, training
from mimicvideo.speed.ceilings import Ceilings, measure_ceilings
from mimicvideo.speed.kernels import profile_calls
from mimicvideo.speed.measure import Effort, free
from mimicvideo.speed.models import SIZES, Bench
from mimicvideo.speed.record import Row, Save, show, surroundings, write

ROWS = {
    "hidden_states": inference.hidden_states,
    "chunk": inference.chunk,
    "realtime": inference.realtime,
    "lora_step": training.lora_step,
    "decoder_training": training.decoder_training,
}


def parser() -> argparse.ArgumentParser:
    """Of everything but the row."""
    found = argparse.ArgumentParser(add_help=False)
    found.add_argument("--size", choices=SIZES, default="2b", help="tiny says nothing about speed: it tests the measurement")
    found.add_argument("--device", default="cuda")
    found.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the networks; bfloat16 on a GPU, float32 on a CPU")
    found.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile; by default on a GPU")
    found.add_argument("--calls", type=int, default=1000, help="timed calls of our inference variants; steps of training: at most 50")
    found.add_argument("--reference-calls", type=int, default=20, help="timed calls of the plain variants")
    found.add_argument("--seconds", type=float, default=200.0, help="budget of one variant's timed calls")
    found.add_argument("--ways", type=int, default=8, help="measure at most so many of our variants, the most important first")
    found.add_argument("--only", nargs="+", default=[], help="measure only these of them, by their names in the table")
    found.add_argument("--curve-seconds", type=float, default=0.0, help="decoder_training: train so long, exactly and with reuse")
    found.add_argument("--profile", action="store_true", help="also a table by kernel category for each of our variants")
    found.add_argument("--resume", action="store_true", help="leave rows alone whose file is there already")
    found.add_argument("--out", type=Path, default=Path("experiments/benchmarks"), help="folder of the JSON files")
    return found


def run(names: list[str], arguments: argparse.Namespace) -> None:
    """Measures the rows one after the other; a row's file is written after each of its variants, `complete` at the end.

    Raises:
        SystemExit: If there is no such device, or a number is out of range; before anything is measured.
    """
    if min(arguments.calls, arguments.reference_calls, arguments.ways) < 1 or arguments.seconds <= 0 or arguments.curve_seconds < 0:
        sys.exit("--calls, --reference-calls and --ways must be at least 1, --seconds above 0, --curve-seconds not negative")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is available: use --size tiny --device cpu to test the measurement")
    on_gpu, size = device.type == "cuda", SIZES[arguments.size]
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    bench = Bench(size, device, dtype, on_gpu if arguments.compile is None else arguments.compile)
    only = tuple(arguments.only)
    effort = Effort(arguments.calls, arguments.reference_calls, seconds=arguments.seconds, ways=arguments.ways, only=only)
    if on_gpu:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    place = torch.cuda.get_device_name(device).replace("NVIDIA ", "").split()[0].lower() if on_gpu else device.type
    ceilings: Ceilings | None = None
    for name in names:
        path = arguments.out / f"{name}_{arguments.size}_{place}.json"
        if arguments.resume and path.exists() and json.loads(path.read_text())["complete"]:
            print(f"{path} is complete already")
            continue
        if ceilings is None:
            heads, head_dim = size.transformer["num_attention_heads"], size.transformer["attention_head_dim"]
            ceilings = measure_ceilings(device, getattr(torch, dtype), size.square, size.clip().tokens, heads, head_dim)
        started = time.perf_counter()
        context = {
            "size": arguments.size,
            "dtype": dtype,
            "compile": bench.compile,
            "attention": bench.attention,
            "ceilings": ceilings.record(),
            "effort": vars(effort),
            "surroundings": surroundings(device),
        }

        def save(row: Row, path: Path = path, ceilings: Ceilings = ceilings, context: dict[str, Any] = context) -> None:
            if arguments.profile and row.profiled is not None:
                row.notes.setdefault("profiles", {})[row.variants[-1].name] = profile_calls(row.profiled, device)
            write(path, {**row.record(ceilings), **context, "complete": False})

        record = {**measured(name, bench, effort, ceilings, arguments, save), **context}
        record |= {"seconds": round(time.perf_counter() - started, 1), "complete": True}
        write(path, record)
        show(record)
        print(f"recorded in {path}", flush=True)
        free(device)


def measured(name: str, bench: Bench, effort: Effort, ceilings: Ceilings, arguments: argparse.Namespace, save: Save) -> dict[str, Any]:
    """A row's record, with profiles of our ways and learning curves if they are asked for."""
    row = ROWS[name](bench, effort, save)
    record = row.record(ceilings)
    for way, profile in record.get("profiles", {}).items():
        show_profile(way, profile)
    del row
    if name == "decoder_training" and arguments.curve_seconds:
        free(bench.device)
        draws = {"exact": 1, "reuse": training.DRAWS}
        record["curves"] = {way: training.learning_curve(bench, arguments.curve_seconds, count) for way, count in draws.items()}
    return record


def show_profile(way: str, profile: dict[str, Any]) -> None:
    """Prints where the time of one way goes."""
    table = Table(title=f"{way}: time in kernels, {profile['busy_ms']:.2f} ms a call", title_justify="left")
    for column in ("category", "ms", "share", "launches"):
        table.add_column(column, justify="left" if column == "category" else "right")
    for name, found in profile["categories"].items():
        table.add_row(name, f"{found['ms']:.2f}", f"{found['share']:.1%}", str(found["launches"]))
    Console().print(table)
