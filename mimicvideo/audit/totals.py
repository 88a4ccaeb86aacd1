"""Sums over a dataset's episodes: samples under the given configuration, frames, hours, histograms; of bounded size."""

from typing import Any

import numpy as np

from mimicvideo.audit.calibration import BINS, Calibration
from mimicvideo.audit.robust import evenly, usual
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.window import Window

KEPT_LENGTHS = 100_000  # lengths that the percentiles are taken from


def count_samples(
    reader: Episodes,
    window: Window,
    held_out: set[int],
    unlabelled: set[int],
    quarantined: set[int],
    anchor_interval: int = 1,
    repeat_first: bool = True,
    repeat_last: bool = True,
) -> dict[str, Any]:
    """Samples that one pass of each stage draws from a dataset, before and after its quarantine.

    Stage 1 has an anchor for every row and for those whose observed frames reach beyond the end, stage 2 one for every row; see
    `Window.anchors`. `full` are those that repeat no frame.

    Args:
        reader: The dataset.
        window: Of the training.
        held_out: Episodes that validate.
        unlabelled: Episodes that are not used because of their captions.
        quarantined: Episodes with errors.
        anchor_interval: See `Window.anchors`.
        repeat_first: Likewise.
        repeat_last: Likewise.
    """
    listed, lengths = reader.episodes.indices, reader.episodes.lengths
    samples = {
        "stage_1": window.anchors(True, anchor_interval, repeat_first, repeat_last).counts(lengths),
        "stage_2": window.anchors(False, anchor_interval, repeat_first, repeat_last).counts(lengths),
        "full": window.anchors(False, anchor_interval, False, False).counts(lengths),
        "episodes": np.ones_like(lengths),
    }
    bad, without, validates = (np.isin(listed, list(indices)) for indices in (quarantined, unlabelled, held_out))
    chosen = {
        "training": ~(bad | without | validates),
        "validation": validates & ~(bad | without),
        "unlabelled": without & ~bad,
        "quarantined": bad,
    }
    return {stage: {name: int(counts[which].sum()) for name, which in chosen.items()} for stage, counts in samples.items()}


def describe(reader: Episodes) -> dict[str, Any]:
    """What a dataset holds, told without reading its pictures."""
    lengths = reader.episodes.lengths
    rate = reader.control_hz / reader.stride
    frames = int(lengths.sum())
    sampled = lengths[evenly(len(lengths), KEPT_LENGTHS)]
    counts, edges = np.histogram(sampled, bins=min(30, max(1, int(sampled.max(initial=1) - sampled.min(initial=1)) + 1)))
    names = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
    return {
        "root": str(reader.root),
        "robot": reader.robot,
        "episodes": len(lengths),
        "listed": len(reader.listed),
        "frames": frames,
        "hours": frames / rate / 3600,
        "frames_per_second": rate,
        "control_hz": reader.control_hz,
        "cameras": [{"name": camera.name, "height": camera.height, "width": camera.width} for camera in reader.cameras],
        "actions": reader.action_names,
        "proprio": reader.proprio_names,
        "lengths": {
            **{name: float(np.percentile(lengths, percent)) for name, percent in names.items() if len(lengths)},
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        },
    }


class Dimensions:
    """Histograms and extremes of each dimension of actions and states."""

    def __init__(self, reader: Episodes, calibration: Calibration) -> None:
        self.names = {"actions": reader.action_names, "proprio": reader.proprio_names}
        self.ranges = calibration.ranges
        self.counts = {kind: np.zeros((len(names), BINS + 2), np.int64) for kind, names in self.names.items()}
        self.low = {kind: np.full(len(names), np.inf) for kind, names in self.names.items()}
        self.high = {kind: np.full(len(names), -np.inf) for kind, names in self.names.items()}
        self.sums = {kind: np.zeros((2, len(names))) for kind, names in self.names.items()}
        self.limits = {kind: np.zeros(len(names)) for kind, names in self.names.items()}
        self.rows = 0
        self.seconds = 0.0

    def episode(self, summary: dict[str, Any]) -> None:
        """Adds an episode's numbers."""
        self.seconds += summary["seconds"]
        numbers = summary.get("numbers", {})
        if "actions" not in numbers:
            return
        self.rows += summary["length"]
        for kind in self.names:
            table = numbers[kind]
            if not table["min"]:
                continue
            self.counts[kind] += np.array(table["histogram"])
            self.low[kind] = np.minimum(self.low[kind], table["min"])
            self.high[kind] = np.maximum(self.high[kind], table["max"])
            mean, std = np.array(table["mean"]), np.array(table["std"])
            self.sums[kind] += summary["length"] * np.stack([mean, std**2 + mean**2])
            self.limits[kind] += summary["length"] * np.array(table["at_limit"])

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """Per kind and dimension: name, extremes, mean, deviation, the share of rows at their episode's limits, and the histogram."""
        found: dict[str, list[dict[str, Any]]] = {}
        for kind, names in self.names.items():
            rows = max(self.rows, 1)
            mean = self.sums[kind][0] / rows
            std = np.sqrt(np.maximum(self.sums[kind][1] / rows - mean**2, 0))
            found[kind] = [
                {
                    "name": name,
                    "min": float(self.low[kind][dim]) if self.rows else None,
                    "max": float(self.high[kind][dim]) if self.rows else None,
                    "mean": float(mean[dim]),
                    "std": float(std[dim]),
                    "at_limit": float(self.limits[kind][dim] / rows),
                    "histogram": {"range": self.ranges[kind][dim], "counts": self.counts[kind][dim].tolist()},
                }
                for dim, name in enumerate(names)
            ]
        return found


class Rates:
    """Rows per second as timestamps tell, of a sample of the episodes."""

    def __init__(self, count: int) -> None:
        self._chosen = set(evenly(count, KEPT_LENGTHS).tolist())
        self._found: list[float] = []
        self._place = 0

    def episode(self, summary: dict[str, Any]) -> None:
        """Adds an episode's timestamps."""
        times = summary.get("numbers", {}).get("times")
        if self._place in self._chosen and times and times["step"] > 0:
            self._found.append(1 / times["step"])
        self._place += 1

    def result(self) -> dict[str, float] | None:
        """Median, least and greatest rate; None if there are no timestamps."""
        if not self._found:
            return None
        return {"median": usual(self._found).median, "min": min(self._found), "max": max(self._found)}
