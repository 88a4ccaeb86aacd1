"""What a row of measurements says: a table for people, JSON for later, and the versions that it holds for."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mimicvideo import provenance
from mimicvideo.atomic import whole_file
from mimicvideo.speed.ceilings import Ceilings
from mimicvideo.speed.flops import Work
from mimicvideo.speed.measure import Timing


@dataclass
class Variant:
    """One way of doing a row's work.

    Attributes:
        name: Of the way.
        timing: Of one call.
        work: Of one call, by formula.
        agreement: With the plain way; None for the plain way itself.
        extra: What else was found.
    """

    name: str
    timing: Timing
    work: Work
    agreement: dict[str, float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def record(self, ceilings: Ceilings) -> dict[str, Any]:
        seconds = self.timing.p50_ms / 1000
        return {
            "name": self.name,
            **self.timing.record(),
            "tflop": round(self.work.total / 1e12, 4),
            "tflop_per_s": round(self.work.total / 1e12 / seconds, 3),
            "roofline_fraction": round(ceilings.least_seconds(self.work) / seconds, 4),
            "agreement": self.agreement,
            **self.extra,
        }


Save = Callable[["Row"], None]


@dataclass
class Row:
    """One row of the table: the same work, done in several ways.

    Attributes:
        name: Of the row, and of its file.
        work: In words.
        goal_ms, accept_ms: For ours, at the true size on one H200; None where the goal is a rate.
        variants: The plain way first.
        notes: What else the file should say.
        profiled: What `--profile` runs, if the latest way offers it.
        save: Called after each variant, so that nothing is lost if time ends.
    """

    name: str
    work: str
    goal_ms: float | None = None
    accept_ms: float | None = None
    variants: list[Variant] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    profiled: Callable[[], Any] | None = None
    save: Save = lambda row: None

    def add(self, variant: Variant, profiled: Callable[[], Any] | None = None) -> None:
        """Appends a way of doing it and saves the row; `profiled` does it once more."""
        self.variants.append(variant)
        self.profiled = profiled
        self.save(self)

    def record(self, ceilings: Ceilings) -> dict[str, Any]:
        goals = {} if self.goal_ms is None else {"goal_ms": self.goal_ms, "accept_ms": self.accept_ms}
        return {
            "row": self.name,
            "work": self.work,
            **goals,
            "variants": [variant.record(ceilings) for variant in self.variants],
            **self.notes,
        }


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes JSON as a whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Versions of packages, CUDA, cuDNN and driver, the hardware, and the command."""
    found: dict[str, Any] = {
        "command": provenance.command_line(),
        "versions": provenance.package_versions(),
        "hardware": provenance.hardware(str(device)),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def show(record: dict[str, Any]) -> None:
    """Prints a row's table."""
    goal = f"; goal {record['goal_ms']} ms on an H200" if "goal_ms" in record else ""
    table = Table(title=f"{record['row']}: {record['work']}{goal}", title_justify="left")
    for column in ("way", "p50 ms", "p99 ms", "calls", "first ms", "peak GiB", "TFLOP/s", "roofline", "relative rms"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for variant in record["variants"]:
        agreement = variant["agreement"]
        table.add_row(
            variant["name"],
            f"{variant['p50_ms']:.2f}",
            f"{variant['p99_ms']:.2f}",
            str(variant["calls"]),
            f"{variant['first_ms']:.0f}",
            "-" if variant["peak_gib"] is None else f"{variant['peak_gib']:.1f}",
            f"{variant['tflop_per_s']:.4g}",
            f"{variant['roofline_fraction']:.1%}",
            "-" if agreement is None else f"{agreement['relative_rms']:.1e}",
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    known = {
        "row",
        "work",
        "goal_ms",
        "accept_ms",
        "variants",
        "profiles",
        "surroundings",
        "ceilings",
        "size",
        "dtype",
        "compile",
        "attention",
        "effort",
        "complete",
    }
    for name, value in record.items():
        if name not in known:
            console.print(f"{name}: {value}")
