"""The audit of one dataset: opened as training would, every episode summarised, and the summaries judged beside each other."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicvideo.audit.calibration import calibrate
from mimicvideo.audit.duplicates import find_duplicates
from mimicvideo.audit.findings import Findings, kind_of
from mimicvideo.audit.judge import Judge
from mimicvideo.audit.judge_text import Instructions
from mimicvideo.audit.population import Population
from mimicvideo.audit.totals import Dimensions, Rates, count_samples, describe
from mimicvideo.audit.work import fingerprints, read_summaries, results_key, summarise_all
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.scan import Verify
from mimicvideo.data.window import Window


@dataclass
class Audited:
    """What came of one dataset.

    Attributes:
        name: Of the source.
        findings: What is wrong with it.
        content: Numbers for the report, ready for JSON; empty if it could not be opened.
        fingerprint: Its `stored_fingerprint`.
        problem: Why it could not be opened.
        reader: To look at pictures again.
    """

    name: str
    findings: Findings
    content: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str | None = None
    reader: Episodes | None = None


@dataclass(frozen=True)
class Plan:
    """How datasets are audited.

    Attributes:
        window: Of the training configuration.
        verify: `full` decodes every picture strictly.
        language: That instructions should have; `any` accepts all.
        num_workers: Processes; 0 works in this one.
        folder: Where results are kept.
        samples: Arguments of `Window.anchors` by name: which windows are samples.
    """

    window: Window
    verify: Verify
    language: str
    num_workers: int
    folder: Path
    samples: Mapping[str, Any] = field(default_factory=dict)


def audit_dataset(
    name: str, reader: Episodes, held_out: set[int], plan: Plan, done: Callable[[int, bool], None], unlabelled: Collection[int] = ()
) -> Audited:
    """Audits a dataset that is open.

    Summaries go to a file, line by line, and are read from there once for what is usual, once for what is not, and once more for
    repetitions: memory does not grow with the dataset, but for a few bytes per episode.

    Args:
        name: Of the source; also names the file of results.
        reader: The dataset, with all episodes that can be opened.
        held_out: Episodes that validate.
        plan: How.
        done: Called with the frames of each episode that is finished, and whether it was read now.
        unlabelled: Episodes that training does not use because of their captions.

    Raises:
        OSError: If results cannot be written, or a process dies.
    """
    start = time.monotonic()
    _, stored = fingerprints(reader)
    calibration = calibrate(reader)
    path = plan.folder / f"episodes-{_file_name(name)}.jsonl"
    new, before = summarise_all(
        reader, calibration, plan.verify, path, results_key(reader, calibration, plan.verify), plan.num_workers, done
    )
    seconds = time.monotonic() - start
    usable = {episode.index for episode in reader.episodes}

    def summaries() -> Iterator[dict[str, Any]]:
        return (summary for summary in read_summaries(path) if summary["episode"] in usable)

    findings = Findings()
    for index, reason in reader.skipped.items():
        findings.add(kind_of(reason), index, reason)
    for remark in reader.remarks:
        findings.add(kind_of(remark), None, remark)
    usual = Population(summaries(), len(usable))
    judge = Judge(reader, calibration, usual, findings)
    instructions, dimensions, rates = Instructions(plan.language), Dimensions(reader, calibration), Rates(len(usable))
    frames = 0
    for summary in summaries():
        judge.episode(summary)
        instructions.episode(summary, findings)
        dimensions.episode(summary)
        rates.episode(summary)
        frames += summary["length"]
    judge.dataset()
    instructions.strangers(summaries(), findings)
    find_duplicates(summaries(), len(usable), reader, findings)
    content = {
        **describe(reader),
        "skipped": {str(index): reason for index, reason in reader.skipped.items()},
        "samples": count_samples(reader, plan.window, held_out, set(unlabelled), set(findings.quarantined), **plan.samples),
        "timestamps": rates.result(),
        "instructions": {
            "episodes_without": instructions.without,
            "coverage": 1 - instructions.without / max(instructions.episodes, 1),
            "sentences": instructions.sentences,
            "tasks": instructions.tasks,
            "languages": dict(instructions.languages.most_common()),
        },
        "dimensions": dimensions.result(),
        "relations": [
            {"action": reader.action_names[r.action], "state": reader.proprio_names[r.state], "mode": r.mode, "sign": r.sign}
            for r in calibration.relations
        ],
        "action_lag_rows": _number(usual["follow/lag"].median),
        "usual_idle_rows": {end: _number(usual[f"idle/{end}"].median) for end in ("head", "tail")},
        "throughput": {
            "episodes_read": new,
            "episodes_kept_from_before": before,
            "seconds": seconds,
            "frames_per_second": frames / seconds if new and not before else None,
            "frames_per_core_second": frames / dimensions.seconds if dimensions.seconds else None,
        },
    }
    return Audited(name, findings, content, stored, None, reader)


def unopened(name: str, problem: str) -> Audited:
    """A dataset that cannot be opened at all."""
    findings = Findings()
    findings.add("unusable", None, problem)
    return Audited(name, findings, problem=problem)


def _number(value: float) -> float | None:
    return value if value == value else None


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in name)
