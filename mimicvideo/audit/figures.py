"""The figures of an audit's report, as SVG: lengths, and a histogram of each dimension."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from mimicvideo.report_figures import COLOURS, STYLE

COLUMNS = 5
MOST = 60  # dimensions that are drawn


def lengths_figure(histogram: Mapping[str, Any]) -> bytes:
    """Episodes by their length in rows."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 2.2), layout="constrained")
        axes = figure.subplots()
        axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=COLOURS[0])
        axes.set_xlabel("rows")
        axes.set_ylabel("episodes")
        return _svg(figure)


def dimensions_figure(dimensions: Sequence[Mapping[str, Any]]) -> bytes:
    """A small histogram for each dimension, logarithmic; what lies outside is counted in the outermost bars."""
    dimensions = dimensions[:MOST]
    rows = math.ceil(len(dimensions) / COLUMNS)
    with rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(2.1 * COLUMNS, 1.5 * rows), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes, dimension in zip(grid, dimensions, strict=False):
            counts = np.array(dimension["histogram"]["counts"])
            low, high = dimension["histogram"]["range"]
            width = (high - low) / (len(counts) - 2)
            axes.stairs(counts, np.linspace(low - width, high + width, len(counts) + 1), fill=True, color=COLOURS[0])
            if counts.any():
                axes.set_yscale("log")
            axes.set_yticks([])
            axes.minorticks_off()
            axes.set_title(dimension["name"], fontsize=8)
        for axes in grid[len(dimensions) :]:
            axes.set_visible(False)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
