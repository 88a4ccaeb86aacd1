"""Finds what is wrong with single episodes before training starts: numbers, lengths and videos."""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from mimicvideo.data.decode import VideoFacts, decode_frames, inspect
from mimicvideo.data.episodes import Camera
from mimicvideo.data.errors import VideoError
from mimicvideo.data.hashes import file_sha256
from mimicvideo.data.lerobot_meta import Listed
from mimicvideo.data.lerobot_tables import ACTION, STATE, LeRobotEpisode, Tables
from mimicvideo.data.remote import awaits

log = logging.getLogger(__name__)

Verify = Literal["quick", "full"]


def find_problems(tables: Tables, cameras: list[Camera], min_rows: int, verify: Verify) -> dict[int, str]:
    """What is wrong with which episode, by its index; the first thing found of each.

    `quick` opens every video file, counts its frames in its index and decodes the first; it decodes a file wholly only if it is not the
    one that LeRobotWriter wrote. `full` decodes everything. Files that were changed but are sound are warned of.
    """
    videos = {episode.videos[camera.key].path for episode in tables.episodes for camera in cameras if camera.key in episode.videos}
    changed = changed_files(tables.root, tables.manifest, {*tables.files, *videos})
    cached = functools.cache(look)
    checks: list[Callable[[LeRobotEpisode], str | None]] = [
        lambda episode: _too_short(episode, min_rows),
        lambda episode: _not_finite(tables, episode),
        lambda episode: video_problem(tables.root, tables.fps, episode, cameras, cached, changed if verify == "quick" else None),
    ]
    with ThreadPoolExecutor(4) as pool:  # FFmpeg and SHA-256 run outside Python's lock
        found = pool.map(lambda episode: next((text for check in checks if (text := check(episode))), None), tables.episodes)
    return {episode.index: text for episode, text in zip(tables.episodes, found, strict=True) if text}


def video_damage(tables: Tables, episode: LeRobotEpisode, cameras: list[Camera]) -> str | None:
    """What is wrong with an episode's videos when every frame is decoded strictly."""
    return video_problem(tables.root, tables.fps, episode, cameras, look, None)


def _too_short(episode: LeRobotEpisode, min_rows: int) -> str | None:
    return f"it has {episode.length} rows, fewer than {min_rows}" if episode.length < min_rows else None


def _not_finite(tables: Tables, episode: LeRobotEpisode) -> str | None:
    for key, table in ((ACTION, tables.actions), (STATE, tables.states)):
        bad = ~np.isfinite(table[episode.start : episode.start + episode.length])
        if bad.any():
            rows = np.flatnonzero(bad.any(axis=1))
            more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
            return f"{key} is NaN or infinite in row {rows[0]}{more}, dimension {int(np.flatnonzero(bad[rows[0]])[0])}"
    return None


def changed_files(root: Path, manifest: Mapping[str, str], files: Collection[Path]) -> set[Path]:
    """Those of the files whose SHA-256 is not the one that was recorded when they were written; a warning names them."""
    recorded = {path: manifest.get(path.relative_to(root).as_posix()) for path in files}
    present = [path for path, digest in recorded.items() if digest is not None and path.is_file()]
    with ThreadPoolExecutor(4) as pool:
        changed = {path for path, digest in zip(present, pool.map(file_sha256, present), strict=True) if digest != recorded[path]}
    if changed:
        names = ", ".join(path.relative_to(root).as_posix() for path in sorted(changed)[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        log.warning("changed since %s was written (see files in meta/mimicvideo.json): %s%s", root, names, more)
    return changed


def look(path: Path) -> VideoFacts | str:
    """What a file holds, or why it cannot be read."""
    try:
        return inspect(path)
    except VideoError as error:
        return str(error)


def video_problem(
    root: Path,
    fps: float,
    episode: LeRobotEpisode | Listed,
    cameras: Iterable[Camera],
    look: Callable[[Path], VideoFacts | str],
    decode: Collection[Path] | None,
) -> str | None:
    """What is wrong with an episode's videos. `decode`: which files to decode wholly; None for all."""
    for camera in cameras:
        span = episode.videos.get(camera.key)
        if span is None:
            return f"it has no video of camera {camera.name}"
        if decode is not None and awaits(span.path):
            continue  # the remote folder has it; more is told when it is fetched
        name = f"its video {span.path.relative_to(root).as_posix()}"
        facts = look(span.path)
        if isinstance(facts, str):
            return f"{name} is unreadable: {facts}"
        if facts.frames < span.first + episode.length:
            there = max(0, facts.frames - span.first)
            return f"{name} is shorter than its parquet rows: {there} of {episode.length} frames"
        if (camera.height, camera.width) != (facts.height, facts.width):
            return f"{name} is {facts.height} x {facts.width} pixels, meta/info.json says {camera.height} x {camera.width}"
        if decode is None or span.path in decode:
            try:
                decode_frames(span.path, range(span.first, span.first + episode.length), fps, strict=True)
            except VideoError as error:
                return f"{name} is damaged: {error}"
    return None
