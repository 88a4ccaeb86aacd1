"""The pictures of one episode in a summary of bounded size: how they look, whether they move when the robot does, and when they jump."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from mimicvideo.audit.robust import runs
from mimicvideo.audit.signals import MOVING
from mimicvideo.data.episodes import Camera, Episode, Episodes

CHUNK = 64  # frames in memory at once
CELLS = 24  # cells along the longer side
PIXELS = 4  # sampled pixels along a cell's side at most: their mean has a quarter of the codec's noise
SIGNATURE = 8  # cells along a side of the mean picture
BLACK = 12.0  # of 255: video black is 0, noise and compression lift it by a few levels
UNIFORM = 2.0  # levels of standard deviation over a picture: less than the noise of any camera
STILL = 0.5  # levels: no cell's mean changes by what an 8-bit picture could show
CODED = 2.5  # levels: the same where no speed says that something moves; codecs settle on a still picture by up to two
GLIMPSE = 4 * SIGNATURE * SIGNATURE  # luma of the first, last and two middle frames, to tell scenes apart
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def summarise_pictures(reader: Episodes, episode: Episode, speed: np.ndarray) -> dict[str, Any]:
    """By camera. `speed` is that of `signals.summarise_numbers`, or of no length: then pictures that stand still at an end count as idle,
    in between as frozen.

    Raises:
        DatasetError: If a video cannot be read.
    """
    rows = reader.picture_rows(episode)
    if len(speed) != episode.length:
        speed = np.zeros(0)
    else:
        speed = np.append(np.maximum.reduceat(speed, rows)[:-1], 0.0)  # from one picture to the next
    cells: dict[str, list[np.ndarray]] = {camera.name: [] for camera in reader.cameras}
    for frames in _chunks(reader, episode, rows):
        for camera, part in _views(reader.cameras, frames):
            cells[camera.name].append(_cells(part))
    return {name: _summarise(np.concatenate(parts), speed, rows, episode.length) for name, parts in cells.items()}


def _chunks(reader: Episodes, episode: Episode, rows: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "n height tiled_width 3"]]:
    """All frames, at most 2 CHUNK at a time: readers decode a whole episode if they are asked for half of it."""
    size = CHUNK if episode.length > 2 * CHUNK else episode.length
    for start in range(0, len(rows), size):
        yield reader.frames(episode, rows[start : start + size])


def _views(cameras: list[Camera], frames: np.ndarray) -> Iterator[tuple[Camera, np.ndarray]]:
    left = 0
    for camera in cameras:
        yield camera, frames[:, :, left : left + camera.width]
        left += camera.width


def _cells(frames: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n rows columns 3"]:
    """Means over a grid of square cells, of evenly sampled pixels."""
    side = max(frames.shape[1:3])
    step = max(1, side // (CELLS * PIXELS))
    sampled = frames[:, ::step, ::step]
    cell = max(1, min(PIXELS, max(sampled.shape[1:3]) // CELLS, *sampled.shape[1:3]))
    rows, columns = sampled.shape[1] // cell, sampled.shape[2] // cell
    blocks = sampled[:, : rows * cell, : columns * cell].reshape(len(frames), rows, cell, columns, cell, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def _summarise(
    cells: Float32[np.ndarray, "n rows columns 3"], speed: np.ndarray, rows: Int[np.ndarray, " n"], length: int
) -> dict[str, Any]:
    light = cells @ LUMA
    level, contrast = light.mean((1, 2)), light.std((1, 2))
    black, blank = level < BLACK, (contrast < UNIFORM) & (level >= BLACK)
    seen = ~(black | blank)
    steps = np.diff(light, axis=0)
    peak, mean = np.abs(steps).max((1, 2), initial=0.0), np.abs(steps).mean((1, 2))
    numbers = len(speed) == len(light)
    moving = speed[:-1] > MOVING if numbers else np.ones(len(steps), bool)
    # A tenth of what the episode's pictures change at that speed: slow motion and the pulse of key frames stay above and below.
    pace = np.minimum(speed[:-1], 1.0) if numbers else np.ones(len(steps))
    least = STILL if numbers else CODED
    still = peak < np.maximum(least, 0.1 * pace * np.percentile(peak[moving], 75) if moving.any() else least)
    head, tail = _first_change(still), _first_change(still[::-1])
    if not numbers:  # nobody knows whether something should move at the ends; if nothing ever does, the video is frozen
        still[:head] = still[len(still) - tail :] = head == len(still)
    found = [(s, n, int(moving[s : s + n].sum())) for s, n in runs(still) if _repeated(peak, s, n)]
    start, held, within = max(found, key=lambda run: run[2], default=(0, 0, 0))
    ends = [length - 1, length - 1]
    if head < len(still):
        ends = [int(rows[head]), int(length - 1 - rows[len(still) - tail])]
    jumps = _jumps(steps, mean, speed[:-1] if numbers else None, moving)
    return {
        "count": len(cells),
        "signature": _signature(_median(cells[seen] if seen.any() else cells)),
        "glimpse": [
            value for place in np.linspace(0, len(cells) - 1, 4).round().astype(int) for value in _signature(light[place, ..., None])
        ],
        "hash": hashlib.sha256(np.ascontiguousarray(cells).tobytes()).hexdigest()[:16] if peak.max(initial=0.0) > STILL else None,
        "level": round(float(level.mean()), 2),
        "black": [int(black.sum()), int(rows[black.argmax()])],
        "blank": [int(blank.sum()), int(rows[blank.argmax()])],
        "frozen": {
            "share": round(float((still & moving).sum() / max(moving.sum(), 1)), 4),
            "moving": within,
            "rows": held,
            "row": int(rows[min(start + 1, len(rows) - 1)]),
        },
        "still_ends": ends,
        "activity": round(float(np.median(mean[moving])) if moving.any() else 0.0, 4),
        **{name: [value, int(rows[place])] for name, (value, place) in jumps.items()},
    }


def _repeated(peak: Float32[np.ndarray, " steps"], start: int, count: int) -> bool:
    """Whether pictures repeat rather than change little: most are the same, or they stay for long, or a leap then makes up for it."""
    end = start + count
    if end == len(peak) or count >= 0.25 * len(peak) or np.median(peak[start:end]) < STILL:
        return True
    around = max(float(peak[place]) for place in (start - 1, end + 1) if 0 <= place < len(peak)) if len(peak) > count + 1 else 0.0
    return bool(peak[end] > (count + 1) / 2 * around)


def _first_change(still: Bool[np.ndarray, " steps"]) -> int:
    """Steps before the first two in a row that are not still: a codec's correction of a still picture comes alone."""
    changes = ~still
    twice = np.flatnonzero(changes[:-1] & changes[1:])
    return int(twice[0]) if len(twice) else len(still)


def _median(cells: Float32[np.ndarray, "n rows columns 3"]) -> Float32[np.ndarray, "rows columns 3"]:
    """The median picture over time, which moving things do not disturb."""
    return np.median(cells[:: max(1, len(cells) // 64)], axis=0)


def _signature(picture: Float32[np.ndarray, "rows columns channels"]) -> list[int]:
    """A picture's means over SIGNATURE x SIGNATURE cells."""
    for axis in (0, 1):
        edges = np.linspace(0, picture.shape[axis], SIGNATURE + 1).astype(int)
        starts = np.minimum(edges[:-1], picture.shape[axis] - 1)  # pictures of fewer cells repeat them
        sums = np.add.reduceat(picture, starts, axis=axis)
        picture = sums / np.expand_dims(np.maximum(np.diff(edges), 1), tuple(a for a in range(3) if a != axis))
    return picture.round().astype(int).ravel().tolist()


def _jumps(steps: np.ndarray, mean: np.ndarray, speed: np.ndarray | None, moving: np.ndarray) -> dict[str, Any]:
    """The largest change of brightness that all of the picture shares, and the largest change for the speed at which the robot moves.

    `flash` is the median change of the cells in levels, where at least nine tenths of them change the same way; `leap` the natural
    logarithm of the change per speed over the episode's median. Both with the row in which they are.
    """
    if not len(steps):
        return {"flash": [0.0, 0], "leap": [0.0, 0]}
    middle = np.median(steps, axis=(1, 2))
    together = (np.sign(steps) == np.sign(middle)[:, None, None]).mean((1, 2)) >= 0.9
    flash = np.where(together, np.abs(middle), 0.0)
    change = np.where(moving, mean if speed is None else mean / (speed + MOVING), 0.0)
    usual = float(np.median(change[change > 0])) if (change > 0).any() else 0.0
    leap = np.log(np.maximum(change, 1e-6) / usual) if usual > 0 else np.zeros(len(change))
    return {
        "flash": [round(float(flash.max()), 2), int(flash.argmax()) + 1],
        "leap": [round(float(leap.max()), 4), int(leap.argmax()) + 1],
    }
