"""Exact statistics of actions and states over all training windows, per horizon step and pooled; kept by content hash."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mimicvideo.atomic import whole_file
from mimicvideo.data.representation import Representation
from mimicvideo.data.window import EVERY_ROW, Anchors, Tail, Window, fill_tail
from mimicvideo.normalize import CLIP_FACTOR

log = logging.getLogger(__name__)

VERSION = 1  # of what is computed: another number, another cache file
PERCENTILES = {"p2": 2.0, "p98": 98.0, "q01": 1.0, "q99": 99.0}

Statistics = dict[str, Any]


def window_statistics(
    actions: Sequence[Float32[np.ndarray, "_ action_dim"]],
    proprio: Sequence[Float32[np.ndarray, "_ proprio_dim"]],
    window: Window,
    tail: Tail,
    hold_dims: tuple[int, ...] = (),
    history: int = 1,
    representation: Representation | None = None,
    where: Anchors = EVERY_ROW,
) -> Statistics:
    """Statistics over every window of the given episodes: one for each row.

    Args:
        actions: By episode.
        proprio: By episode.
        window: Horizon and stride count.
        tail: What actions beyond an episode's end are; these count too, as in training.
        hold_dims: See `fill_tail`.
        history: States per window.
        representation: What each window's actions are made with; `hold_dims` are then its own.
        where: At which rows there are windows, if not at all.

    Returns:
        `actions` and `proprio`, each with `per_step` (steps, dims) and `pooled` (dims): mean, std, min, max, the percentiles p2, p98,
        q01 and q99, and mean and std after clipping to mean + 1.5 (p2 - mean) ... mean + 1.5 (p98 - mean), which `Normalizer` uses
        (std divides by the number of values). Also `windows`, their number. float64 arrays.

    Raises:
        ValueError: If there is no episode.
    """
    if not actions:
        raise ValueError("there is no training episode to compute statistics from")
    rows = np.array([len(states) for states in proprio])
    windows = where.counts(rows)
    row = np.concatenate([where.rows(count) for count in rows])  # of each window, in its episode
    count, first = np.repeat(rows, windows), np.repeat(np.cumsum(rows) - rows, windows)
    all_actions, all_states = np.concatenate(actions), np.concatenate(proprio)

    chunks = None if representation is None else _chunks(actions, proprio, window, tail, representation, where)

    def action(step: int) -> Float32[np.ndarray, "windows action_dim"]:
        if chunks is not None:
            return chunks[:, step]
        wanted, last = row * window.stride + step, count * window.stride - 1
        values = all_actions[first * window.stride + np.minimum(wanted, last)]
        return fill_tail(values, wanted > last, tail, hold_dims)

    def state(step: int) -> Float32[np.ndarray, "windows proprio_dim"]:
        return all_states[first + np.maximum(row - (history - 1 - step), 0)]

    return {
        "windows": len(row),
        "actions": _both([action(step) for step in range(window.horizon)]),
        "proprio": _both([state(step) for step in range(history)]),
    }


def _chunks(
    actions: Sequence[np.ndarray],
    proprio: Sequence[np.ndarray],
    window: Window,
    tail: Tail,
    representation: Representation,
    where: Anchors,
) -> Float32[np.ndarray, "windows horizon action_dim"]:
    """The actions of every window, as training sees them."""
    chunks = []
    for steps, states in zip(actions, proprio, strict=True):
        rows = where.rows(len(states))
        places = [window.action_steps(row, len(states)) for row in rows]
        wanted, beyond = (np.stack(parts) for parts in zip(*places, strict=True))
        chunks.append(representation.windows(steps[wanted], beyond, states[rows], tail).astype(np.float32))
    return np.concatenate(chunks)


def cached(root: Path, cache_dir: str | Path | None, key: Sequence[Any], compute: Any) -> Statistics:
    """`compute()`, or what it returned when it was last called with the same key.

    The file lies in `<root>/.mimicvideo`, or where that cannot be written in `cache_dir`, by default `$XDG_CACHE_HOME/mimicvideo`. It
    holds its own SHA-256: a damaged one is computed anew.

    Args:
        root: The dataset.
        cache_dir: Where instead, if not None.
        key: All that the result depends on, as JSON.
        compute: Called without arguments.
    """
    name = f"statistics-{hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:32]}.json"
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mimicvideo"
    folders = [Path(cache_dir).expanduser()] if cache_dir is not None else [root / ".mimicvideo", fallback]
    for folder in folders:
        if (folder / name).is_file():
            try:
                return _parse((folder / name).read_text())
            except (ValueError, KeyError, OSError) as error:
                log.warning("%s is damaged (%s): computing the statistics anew", folder / name, error)
    statistics = compute()
    for folder in folders:
        try:
            _write(folder / name, statistics)
            break
        except OSError as error:
            log.info("statistics are not kept in %s: %s", folder, error)
    return statistics


def _both(steps: list[Float32[np.ndarray, "_ dims"]]) -> dict[str, dict[str, np.ndarray]]:
    per_step = [_summary(values) for values in steps]
    dims = range(steps[0].shape[1])
    pooled = [_summary(np.stack([values[:, dim] for values in steps]).reshape(-1, 1)) for dim in dims]
    return {
        "per_step": {name: np.stack([one[name] for one in per_step]) for name in per_step[0]},
        "pooled": {name: np.concatenate([one[name] for one in pooled]) for name in per_step[0]},
    }


def _summary(values: Float32[np.ndarray, "values dims"]) -> dict[str, np.ndarray]:
    values = values.astype(np.float64)
    mean = values.mean(0)
    percentiles = dict(zip(PERCENTILES, np.percentile(values, list(PERCENTILES.values()), axis=0), strict=True))
    clipped = values.clip(mean + CLIP_FACTOR * (percentiles["p2"] - mean), mean + CLIP_FACTOR * (percentiles["p98"] - mean))
    summary = {"mean": mean, "std": values.std(0), "min": values.min(0), "max": values.max(0), **percentiles}
    return summary | {"clipped_mean": clipped.mean(0), "clipped_std": clipped.std(0)}


def _write(path: Path, statistics: Statistics) -> None:
    content = json.dumps(statistics, default=lambda array: array.tolist())
    digest = hashlib.sha256(content.encode()).hexdigest()
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({"sha256": digest, "statistics": content}))


def _parse(text: str) -> Statistics:
    saved = json.loads(text)
    if hashlib.sha256(saved["statistics"].encode()).hexdigest() != saved["sha256"]:
        raise ValueError("its SHA-256 does not match")
    statistics = json.loads(saved["statistics"])
    for name in ("actions", "proprio"):
        statistics[name] = {kind: {key: np.asarray(value) for key, value in values.items()} for kind, values in statistics[name].items()}
    return statistics
