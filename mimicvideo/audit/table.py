"""The audit on the terminal: samples of each dataset, then what was found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN = 3  # findings of a kind that are printed in full


def print_table(console: Console, content: Mapping[str, Any], out: Path) -> None:
    """Prints the content of audit.json."""
    window = content["window"]
    title = f"windows of {window['observed']} + {window['future']} frames, every {window['frame_interval']} rows"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("dataset", overflow="fold", min_width=8)
    for name in ("episodes", "frames", "hours", "stage 1", "stage 2", "unlabelled", "errors", "warnings", "quarantined"):
        table.add_column(name, justify="right", no_wrap=True)
    datasets = content["datasets"]
    for dataset in datasets:
        if dataset["problem"] is None:
            table.add_row(escape(dataset["name"]), *_cells(dataset))
        else:
            table.add_row(escape(dataset["name"]), "cannot be opened", *[""] * 5, "1", "0", "")
    if len(datasets) > 1:
        table.add_section()
        table.add_row("all", *_sums([dataset for dataset in datasets if dataset["problem"] is None]))
    console.print(table)
    for dataset in datasets:
        _print_findings(console, dataset)
    console.print(f"{out / 'audit.html'}  {out / 'audit.json'}  {out / 'quarantine.json'}", soft_wrap=True, highlight=False)


def samples(dataset: Mapping[str, Any], stage: str) -> int:
    """What training draws from, quarantine left out."""
    return dataset["samples"][stage]["training"]


def _cells(dataset: Mapping[str, Any]) -> list[str]:
    return [
        f"{dataset['episodes']:,}",
        f"{dataset['frames']:,}",
        f"{dataset['hours']:.2f}",
        f"{samples(dataset, 'stage_1'):,}",
        f"{samples(dataset, 'stage_2'):,}",
        f"{1 - dataset['instructions']['coverage']:.1%}",
        f"{dataset['errors']:,}",
        f"{dataset['warnings']:,}",
        f"{dataset['quarantined']:,}",
    ]


def _sums(datasets: list[Mapping[str, Any]]) -> list[str]:
    def total(name: str) -> float:
        return sum(dataset[name] for dataset in datasets)

    without = sum(dataset["instructions"]["episodes_without"] for dataset in datasets)
    stages = [f"{sum(samples(dataset, stage) for dataset in datasets):,}" for stage in ("stage_1", "stage_2")]
    counts = [f"{total(name):,}" for name in ("errors", "warnings", "quarantined")]
    unlabelled = f"{without / max(total('episodes'), 1):.1%}"
    return [f"{total('episodes'):,}", f"{total('frames'):,}", f"{total('hours'):.2f}", *stages, unlabelled, *counts]


def _print_findings(console: Console, dataset: Mapping[str, Any]) -> None:
    if not dataset["counts"]:
        console.print(f"{escape(dataset['name'])}: nothing found", highlight=False)
        return
    shown: dict[str, int] = {}
    for finding in dataset["findings"]:
        kind = finding["kind"]
        shown[kind] = shown.get(kind, 0) + 1
        colour = {"error": "red", "warning": "yellow", "note": "blue"}[finding["severity"]]
        if shown[kind] <= SHOWN:
            where = "all episodes" if finding["episode"] is None else f"episode {finding['episode']}"
            text = f"[{colour}]{finding['severity']:7}[/] {escape(dataset['name'])}, {where}: {kind}: {escape(finding['text'])}"
            console.print(text, soft_wrap=True, highlight=False)
        elif shown[kind] == SHOWN + 1:
            more = dataset["counts"][kind] - SHOWN
            console.print(f"[{colour}]{finding['severity']:7}[/] {escape(dataset['name'])}: {kind} in {more} more", highlight=False)
