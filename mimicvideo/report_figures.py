"""The figures of a report: success with intervals, training curves, validation loss per noise level. All as SVG."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mimicvideo.evaluation import Evaluation

Curve = list[tuple[int, float]]  # (step, value)

COLOURS = ["#0f62ac", "#d1495b", "#8d99a6", "#2e8b57", "#c98a16", "#7b5ea7"]  # told apart by the colour-blind too
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e7eb",
    "axes.edgecolor": "#5b6570",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "mimicvideo",  # the same figure gives the same file
}
TAU = re.compile(r"_tau_([0-9.]+)$")


def success_figure(evaluations: Mapping[str, Evaluation]) -> bytes:
    """Success rate and 95 % interval, a row for each task and a mark for each rollout."""
    tasks = list(dict.fromkeys(task for evaluation in evaluations.values() for task in evaluation.tasks))
    rows = [*tasks, "all tasks"] if len(tasks) > 1 else tasks
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.7 + 0.30 * len(rows) * max(1.0, 0.55 * len(evaluations))), layout="constrained")
        axes = figure.subplots()
        offsets = np.linspace(-0.28, 0.28, len(evaluations)) if len(evaluations) > 1 else [0.0]
        for (label, evaluation), offset, colour in zip(evaluations.items(), offsets, _colours(len(evaluations)), strict=True):
            rates = [evaluation.overall if task == "all tasks" else evaluation.tasks.get(task) for task in rows]
            points = [(row + offset, rate) for row, rate in enumerate(rates) if rate and rate.success_rate is not None]
            axes.hlines([y for y, _ in points], [r.low for _, r in points], [r.high for _, r in points], color=colour, lw=2, alpha=0.45)
            axes.plot(
                [r.success_rate or 0.0 for _, r in points], [y for y, _ in points], "o", color=colour, ms=6, label=label, clip_on=False
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
        axes.set_xlabel("success, 95 % interval")
        axes.grid(axis="y", visible=False)
        if len(evaluations) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        return _svg(figure)


def curves_figure(curves: Mapping[str, Curve]) -> bytes | None:
    """Losses against optimizer steps: of training (raw and smoothed) and validation; then, if there are any, the other metrics."""
    losses = {name: curves[name] for name in ("train/loss", "val/loss") if curves.get(name)}
    others = {name: curve for name, curve in curves.items() if name.startswith("val/") and name != "val/loss" and not TAU.search(name)}
    panels = [panel for panel in (losses, others) if panel]
    if not panels:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.2), layout="constrained")
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for (name, curve), colour in zip(panel.items(), _colours(len(panel)), strict=True):
                _draw(axes, name, curve, colour)
            values = [value for curve in panel.values() for _, value in curve]
            if panel is losses and 0 < min(values) * 5 < max(values):
                axes.set_yscale("log")
            axes.set_xlabel("optimizer step")
            axes.legend()
        return _svg(figure)


def noise_level_figure(curves: Mapping[str, Curve]) -> bytes | None:
    """Validation error at each noise level: against steps, and against tau at the first and the last validation."""
    levels = {float(found[1]): curve for name, curve in curves.items() if name.startswith("val/") and (found := TAU.search(name)) and curve}
    if not levels:
        return None
    quantity = next(name for name in curves if TAU.search(name)).removeprefix("val/").partition("_tau_")[0].replace("_", " ")
    taus = sorted(levels)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for tau in taus:
            shade = (0.06 + 0.72 * (1 - tau), 0.32 + 0.46 * (1 - tau), 0.58 + 0.34 * (1 - tau))  # noise is dark
            left.plot(*zip(*levels[tau], strict=True), color=shade, lw=1.8, marker="o", ms=3, label=f"τ = {tau:g}")
        left.set_xlabel("optimizer step")
        left.set_ylabel(f"validation error ({quantity})")
        left.legend(fontsize=8, ncols=2)
        for place, label, colour in ((0, "first validation", COLOURS[2]), (-1, "last validation", COLOURS[0])):
            right.plot(taus, [levels[tau][place][1] for tau in taus], color=colour, lw=1.8, marker="o", ms=4, label=label)
        right.set_xlabel("noise level τ (0 clean, 1 noise)")
        right.legend()
        return _svg(figure)


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Running mean over up to `window` values; at both ends over as many as there are."""
    kernel = np.ones(min(window, len(values)))
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.convolve(values, kernel, mode="same") / weights


def _draw(axes: Axes, name: str, curve: Curve, colour: str) -> None:
    steps, values = zip(*curve, strict=True)
    if len(curve) < 60:
        axes.plot(steps, values, color=colour, lw=1.8, marker="o", ms=3, label=name)
    else:
        axes.plot(steps, values, color=colour, lw=0.7, alpha=0.3)
        axes.plot(steps, smoothed(values, max(3, len(values) // 40)), color=colour, lw=1.8, label=name)


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
