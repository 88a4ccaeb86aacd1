"""One audit from open datasets to files: progress, table, JSON, quarantine, report."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mimicvideo.atomic import whole_file
from mimicvideo.audit.dataset import Audited, Plan, audit_dataset, unopened
from mimicvideo.audit.findings import KINDS
from mimicvideo.audit.keys import KEYS
from mimicvideo.audit.report import write_report
from mimicvideo.audit.sources import open_all
from mimicvideo.audit.table import print_table
from mimicvideo.audit.work import writing
from mimicvideo.data.claims import Claims
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from mimicvideo.data.quarantine import write_quarantine
from mimicvideo.data.scan import Verify
from mimicvideo.provenance import command_line

VERSION = 1  # of audit.json
WIDTH = 110  # of the table where there is no terminal


def run_audit(data: ClipData, out: Path, num_workers: int, verify: Verify, language: str, max_thumbnails: int) -> list[Audited]:
    """Audits the datasets of a configuration one after the other and writes `audit.json`, `audit.html` and `quarantine.json` into `out`.

    Raises:
        DatasetError: If none of them can be opened.
        OSError: If results cannot be written, or another audit is writing there.
    """
    with writing(out):
        claims = Claims(out / ".audit")
    try:
        if not claims.take("running"):
            raise OSError(f"another audit is writing to {out}: wait for it, or choose another folder with --out")
        return _run(data, out, num_workers, verify, language, max_thumbnails)
    finally:
        claims.release_all()


def _run(data: ClipData, out: Path, num_workers: int, verify: Verify, language: str, max_thumbnails: int) -> list[Audited]:
    window, console = data.window, Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    results: list[Audited] = []
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeElapsedColumn()]
    for name in data.source_names:
        try:
            reader = open_all(data, name)  # beside no progress bar: readers import libraries that change imports while they do so
        except DatasetError as error:
            results.append(unopened(name, str(error)))
            continue
        plan = Plan(window, verify, language, num_workers, out, data.samples)
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(name, total=sum(episode.length for episode in reader.episodes))
            try:
                unlabelled = data.unlabelled(name, reader)
                results.append(audit_dataset(name, reader, data.held_out(reader), plan, _advance(progress, task), unlabelled))
            except DatasetError as error:
                results.append(unopened(name, str(error)))
    opened = {audited.name: audited for audited in results if audited.problem is None}
    if not opened:
        raise DatasetError("; ".join(f"{audited.name}: {audited.problem}" for audited in results))
    content = to_json(results, data)
    quarantine = {
        name: {"root": one.content["root"], "fingerprint": one.fingerprint, "episodes": one.findings.quarantined}
        for name, one in opened.items()
    }
    with writing(out):
        # What an earlier audit left stays whole if the disk is full.
        with whole_file(out / "audit.json") as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with whole_file(out / "quarantine.json") as path:
            write_quarantine(path, quarantine)
        with whole_file(out / "audit.html") as path:
            write_report(path, content, results, max_thumbnails)
    print_table(console, content, out)
    return results


def to_json(results: list[Audited], data: ClipData) -> dict[str, Any]:
    """The content of audit.json."""
    window = data.window
    return {
        "version": VERSION,
        "command": command_line(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "window": {
            "observed": window.observed,
            "future": window.future,
            "frame_interval": window.frame_interval,
            "horizon": window.horizon,
            "rows": window.span,
            **data.samples,
        },
        "datasets": [
            {
                "name": audited.name,
                **audited.content,
                "fingerprint": audited.fingerprint,
                "problem": audited.problem,
                "counts": dict(audited.findings.counts),
                "errors": audited.findings.number("error"),
                "warnings": audited.findings.number("warning"),
                "quarantined": len(audited.findings.quarantined),
                "findings": [
                    {"kind": finding.kind, "severity": finding.severity, "episode": finding.episode, "text": finding.text}
                    for finding in audited.findings
                ],
            }
            for audited in results
        ],
        "kinds": {kind: {"severity": severity, "means": means} for kind, (severity, means) in KINDS.items()},
        "keys": KEYS,
    }


def _advance(progress: Progress, task: TaskID) -> Callable[[int, bool], None]:
    def advance(frames: int, new: bool) -> None:
        if not new:  # what was read before says nothing about how long the rest takes
            progress.update(task, total=(progress.tasks[task].total or 0) - frames)
        else:
            progress.advance(task, frames)

    return advance
