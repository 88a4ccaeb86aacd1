"""The audit's page: what each dataset holds, what is wrong with it, plots and pictures, in one file that needs no other."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mimicvideo import report_html as page
from mimicvideo.audit.dataset import Audited
from mimicvideo.audit.figures import MOST, dimensions_figure, lengths_figure
from mimicvideo.audit.robust import evenly
from mimicvideo.audit.table import samples
from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.errors import DatasetError

EXAMPLES = 4  # episodes that are shown of every dataset, faulty or not
TIMES = 4  # pictures of each
HEIGHT = 96  # pixels of a thumbnail
LISTED = 200  # findings of a dataset in the page, the first of every kind among them; all are in audit.json


def write_report(path: Path, content: Mapping[str, Any], results: list[Audited], max_thumbnails: int) -> None:
    """Writes the page.

    Args:
        path: Of the HTML file.
        content: Of audit.json.
        results: Whose readers give the pictures.
        max_thumbnails: Faulty episodes that are shown of each dataset.
    """
    datasets = content["datasets"]
    opened = [dataset for dataset in datasets if dataset["problem"] is None]
    window = content["window"]
    head = [
        "<h1>Audit</h1>",
        f'<p class="soft">windows of {window["observed"]} + {window["future"]} frames, {window["frame_interval"]} rows apart: '
        f"{window['rows']} rows</p>",
        page.tiles(
            [
                (f"{sum(samples(dataset, 'stage_1') for dataset in opened):,}", "samples of stage 1 to train on"),
                (f"{sum(samples(dataset, 'stage_2') for dataset in opened):,}", "samples of stage 2 to train on"),
                (f"{sum(dataset['hours'] for dataset in opened):.2f} h", f"{sum(dataset['frames'] for dataset in opened):,} frames"),
                (f"{sum(dataset['errors'] for dataset in datasets):,}", "errors"),
                (f"{sum(dataset['warnings'] for dataset in datasets):,}", "warnings"),
            ]
        ),
        page.code(content["command"]),
    ]
    body = [part for dataset, audited in zip(datasets, results, strict=True) for part in _section(dataset, audited, max_thumbnails)]
    kinds = [[page.escape(kind), entry["severity"], page.escape(entry["means"])] for kind, entry in content["kinds"].items()]
    foot = [page.folded("All kinds of faults that are looked for", page.table(["kind", "severity", "means"], kinds))]
    keys = [[page.escape(key), page.escape(means)] for key, means in content["keys"].items()]
    foot.append(page.folded("What the keys of audit.json mean", page.table(["key", "means"], keys)))
    path.write_text(page.page("Audit", [*head, *body, *foot]), encoding="utf-8")


def _section(dataset: Mapping[str, Any], audited: Audited, max_thumbnails: int) -> list[str]:
    parts = [f"<h2>{page.escape(dataset['name'])}</h2>"]
    if audited.reader is None:
        return [*parts, page.missing([str(dataset["problem"])])]
    parts += [_facts(dataset), "<h3>Samples</h3>", _samples(dataset), "<h3>Findings</h3>", _findings(dataset)]
    shown = _thumbnails(dataset, audited.reader, max_thumbnails)
    if shown:
        parts += ["<h3>Pictures</h3>", *shown]
    parts += ["<h3>Lengths</h3>", page.picture(lengths_figure(dataset["lengths"]["histogram"]), "svg+xml", width=560)]
    for kind, title in (("actions", "Actions"), ("proprio", "States")):
        if dimensions := dataset["dimensions"][kind]:
            more = f", the first {MOST} of {len(dimensions)}" if len(dimensions) > MOST else ""
            caption = f"rows (logarithmic) by value{more}; outermost bars count what lies beyond the range of a sample of the episodes"
            parts += [f"<h3>{title}</h3>", page.picture(dimensions_figure(dimensions), "svg+xml", caption), _numbers(dimensions)]
    return parts


def _facts(dataset: Mapping[str, Any]) -> str:
    told, lengths, rates, through = dataset["instructions"], dataset["lengths"], dataset["timestamps"], dataset["throughput"]
    cameras = ", ".join(f"{camera['name']} {camera['height']} × {camera['width']}" for camera in dataset["cameras"])
    languages = ", ".join(f"{name} {count:,}" for name, count in told["languages"].items()) or "none"
    related = [f"{r['state']} follows {r['action']} ({r['mode']}{', inverted' if r['sign'] < 0 else ''})" for r in dataset["relations"]]
    lag, idle = dataset["action_lag_rows"], dataset["usual_idle_rows"]
    rows = {
        "folder": dataset["root"],
        "robot": dataset["robot"],
        "episodes": f"{dataset['episodes']:,} usable of {dataset['listed']:,}",
        "frames": f"{dataset['frames']:,}, {dataset['hours']:.2f} hours",
        "rates": f"{dataset['frames_per_second']:g} frames and {dataset['control_hz']:g} actions per second"
        + (f"; timestamps {rates['median']:.2f} ({rates['min']:.2f} – {rates['max']:.2f})" if rates else "; no timestamps"),
        "lengths": ", ".join(f"{name} {lengths[name]:.0f}" for name in ("min", "p5", "median", "p95", "max")) + " rows",
        "cameras": cameras,
        "instructions": f"{told['coverage']:.1%} of the episodes; {told['sentences']:,} sentences, {told['tasks']:,} tasks",
        "languages": languages,
        "states and actions": ("; ".join(related) or "no state follows an action")
        + (f"; {lag:+.1f} rows later" if lag is not None else ""),
        "usual rows without motion": f"{idle['head'] or 0:.0f} at the start, {idle['tail'] or 0:.0f} at the end",
        "read": f"{through['episodes_read']:,} episodes in {through['seconds']:.1f} s, {through['episodes_kept_from_before']:,} known"
        + (f"; {through['frames_per_core_second']:.0f} frames/s and core" if through["frames_per_core_second"] else ""),
        "fingerprint": dataset["fingerprint"],
    }
    return page.table([], [[name, page.escape(value)] for name, value in rows.items()])


def _samples(dataset: Mapping[str, Any]) -> str:
    names = {
        "episodes": "episodes",
        "stage_1": "samples of stage 1",
        "stage_2": "samples of stage 2",
        "full": "windows without a repeated frame",
    }
    columns = ("training", "validation", "unlabelled", "quarantined")
    rows = [[title, *(f"{dataset['samples'][name][column]:,}" for column in columns)] for name, title in names.items()]
    return page.table(["", *columns], rows)


def _findings(dataset: Mapping[str, Any]) -> str:
    if not dataset["findings"]:
        return "<p>Nothing was found.</p>"
    counts = page.table(["kind", "found"], [[page.escape(kind), f"{count:,}"] for kind, count in dataset["counts"].items()])
    rows = [
        [
            finding["severity"],
            "all" if finding["episode"] is None else str(finding["episode"]),
            finding["kind"],
            page.escape(finding["text"]),
        ]
        for finding in _some_of_each(dataset["findings"], LISTED)
    ]
    more = sum(dataset["counts"].values()) - len(rows)
    note = f'<p class="soft">and {more:,} more, see audit.json</p>' if more else ""
    return counts + page.table(["severity", "episode", "kind", "what was found"], rows) + note


def _some_of_each(findings: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many findings in their order: as many of a kind that has many as leaves room for those of all others."""
    turn: dict[str, int] = {}
    turns = []
    for place, finding in enumerate(findings):
        turn[finding["kind"]] = turn.get(finding["kind"], 0) + 1
        turns.append((turn[finding["kind"]], place))
    return [findings[place] for place in sorted(place for _, place in sorted(turns)[:most])]


def _numbers(dimensions: list[Mapping[str, Any]]) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    rows = [
        [page.escape(d["name"]), *(number(d[key]) for key in ("min", "max", "mean", "std")), f"{d['at_limit']:.0%}"] for d in dimensions
    ]
    return page.folded("numbers", page.table(["dimension", "min", "max", "mean", "std", "steps at the episode's limits"], rows))


def _thumbnails(dataset: Mapping[str, Any], reader: Episodes, max_thumbnails: int) -> list[str]:
    """Pictures of some sound episodes and of faulty ones, each with what was found."""
    indices = reader.episodes.indices
    there = set(indices.tolist())
    found = [finding for finding in dataset["findings"] if finding["episode"] in there]
    texts: dict[int, list[str]] = {}
    for finding in _some_of_each(found, max_thumbnails):
        texts.setdefault(finding["episode"], [])
    for finding in found:
        if finding["episode"] in texts:
            texts[finding["episode"]].append(finding["kind"])
    chosen = {reader.episodes[place].index: "" for place in evenly(len(reader.episodes), EXAMPLES)}
    chosen |= {index: f": {', '.join(dict.fromkeys(kinds))}" for index, kinds in texts.items()}
    parts = []
    for index, text in chosen.items():
        if (picture := _strip(reader, reader.episodes[int(np.flatnonzero(indices == index)[0])])) is not None:
            parts.append(page.picture(picture, "png", f"episode {index}{text}", pixels=True))
    return parts


def _strip(reader: Episodes, episode: Episode) -> bytes | None:
    """A few pictures of an episode side by side; None if they cannot be read, which is a finding."""
    try:
        frames = reader.frames(episode, evenly(episode.length, TIMES))
    except (DatasetError, OSError):
        return None
    strip = Image.fromarray(np.concatenate(list(frames), axis=1))
    strip = strip.resize((max(1, strip.width * HEIGHT // strip.height), HEIGHT))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
