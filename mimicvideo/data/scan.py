"""Finds what is wrong with single episodes before training starts: numbers, lengths and videos."""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from mimicvideo.data.decode import VideoFacts, decode_frames, inspect
from mimicvideo.data.episodes import Camera
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.hashes import file_sha256
from mimicvideo.data.lerobot_files import AGAIN
from mimicvideo.data.lerobot_listing import NOWHERE, VideoSpan
from mimicvideo.data.lerobot_meta import Meta
from mimicvideo.data.lerobot_rows import EPISODE, FRAME, LeRobotRows
from mimicvideo.data.remote import awaits

log = logging.getLogger(__name__)

Verify = Literal["quick", "full"]
Opening = Literal["auto", "meta", "quick", "full"]  # what of a dataset is looked at when it is opened; see `LeRobotEpisodes`


def find_problems(meta: Meta, rows: LeRobotRows, keys: Sequence[str], cameras: list[Camera], min_rows: int, full: bool) -> dict[int, str]:
    """What is wrong with which episode, by its index; the first thing found of each.

    Reads all numbers, opens every video file, counts its frames in its index and decodes the first; it decodes a file wholly only if it
    is not the one that LeRobotWriter wrote. With `full` it decodes everything. Files that were changed but are sound are warned of.

    Args:
        meta: Of the dataset.
        rows: Of the same.
        keys: Features whose numbers must be finite.
        cameras: Whose videos are wanted.
        min_rows: That an episode needs.
        full: See above.

    Raises:
        DatasetError: If there are more rows than the meta folder lists, or it contradicts itself.
    """
    listing = meta.listing
    by_rows = {int(listing.indices[place]): text for place, text in _row_problems(meta, rows, keys).items()}
    problems = by_rows | listed_problems(meta, cameras, min_rows)
    videos = listing.video_files([camera.key for camera in cameras])
    changed = changed_files(meta.root, meta.manifest, {*meta.files, *listing.data_files, *videos})
    cached = functools.cache(look)

    def problem(place: int) -> str | None:
        return video_problem(meta, int(listing.lengths[place]), spans(meta, place, cameras), cached, None if full else changed)

    places = np.flatnonzero(~np.isin(listing.indices, list(problems))).tolist()
    with ThreadPoolExecutor(4) as pool:  # FFmpeg and SHA-256 run outside Python's lock
        found = dict(zip(places, pool.map(problem, places), strict=True))
    problems |= {int(listing.indices[place]): text for place, text in found.items() if text}
    return dict(sorted(problems.items()))


def listed_problems(meta: Meta, cameras: Iterable[Camera], min_rows: int) -> dict[int, str]:
    """What the meta folder alone says is wrong with which episode, by its index.

    Raises:
        DatasetError: If it contradicts itself.
    """
    listing = meta.listing
    if (listed := int(listing.lengths.sum())) != meta.total_frames:
        raise DatasetError(
            f"{meta.root} is truncated: meta/info.json says total_frames {meta.total_frames}, {meta.listed_in} lists {listed}; {AGAIN}"
        )
    problems: dict[int, str] = {}
    for camera in cameras:
        videos = listing.videos.get(camera.key)
        without = listing.indices if videos is None else listing.indices[videos[:, 0] == NOWHERE]
        problems = dict.fromkeys(without.tolist(), f"it has no video of camera {camera.name}") | problems
    for place in np.flatnonzero(listing.lengths < min_rows).tolist():
        problems[int(listing.indices[place])] = f"it has {listing.lengths[place]} rows, fewer than {min_rows}"
    return problems


def _row_problems(meta: Meta, rows: LeRobotRows, keys: Sequence[str]) -> dict[int, str]:
    """What is wrong with the rows of which episode, by its place: a file that cannot be read is a fault of those that lie in it.

    Raises:
        DatasetError: If there are rows of no episode that is listed.
    """
    listing, there, problems, strangers = meta.listing, 0, {}, 0
    for places in listing.by_file():
        code, found, bad = int(listing.codes[places[0]]), np.zeros(len(places), np.int64), set()
        try:
            for episode, _, *numbers in rows.stretches(code, [EPISODE, FRAME, *keys]):
                own = np.minimum(np.searchsorted(listing.indices[places], episode[:, 0]), len(places) - 1)
                listed = listing.indices[places[own]] == episode[:, 0]
                found += np.bincount(own[listed], minlength=len(places))
                for values in numbers:
                    if not (finite := np.isfinite(values)).all():
                        bad.update(places[own[listed & ~finite.all(axis=1)]].tolist())
            there += rows.count(code)
            strangers += rows.count(code) - int(found.sum())
            for place in places[found != listing.lengths[places]].tolist():
                own_rows = int(found[places == place][0])
                problems[place] = f"it has {own_rows} rows, {meta.listed_in} says {listing.lengths[place]}; {AGAIN}"
            problems |= {place: not_finite(rows.read(place, keys)) or "" for place in sorted(bad - set(problems))}
        except DatasetError as error:
            problems |= dict.fromkeys(places.tolist(), str(error))
    if strangers and not problems:
        raise DatasetError(f"{meta.root}: the data files hold {there} rows, {strangers} of episodes that {meta.listed_in} lacks; {AGAIN}")
    return problems


def not_finite(numbers: Mapping[str, Shaped[np.ndarray, "rows _"]]) -> str | None:
    """Where the first NaN or infinite number of an episode is."""
    for key, values in sorted(numbers.items()):  # actions first
        bad = ~np.isfinite(values)
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


def spans(meta: Meta, place: int, cameras: Iterable[Camera]) -> list[tuple[Camera, VideoSpan | None]]:
    """Where an episode's pictures of each camera are."""
    return [(camera, meta.listing.video(place, camera.key)) for camera in cameras]


def video_problem(
    meta: Meta,
    length: int,
    videos: Iterable[tuple[Camera, VideoSpan | None]],
    look: Callable[[Path], VideoFacts | str] = look,
    decode: Collection[Path] | None = None,
) -> str | None:
    """What is wrong with the videos of an episode of `length` rows. `decode`: which files to decode wholly; None for all."""
    for camera, span in videos:
        if span is None:
            return f"it has no video of camera {camera.name}"
        if decode is not None and awaits(span.path):
            continue  # the remote folder has it; more is told when it is fetched
        name = f"its video {span.path.relative_to(meta.root).as_posix()}"
        facts = look(span.path)
        if isinstance(facts, str):
            return f"{name} is unreadable: {facts}"
        if facts.frames < span.first + length:
            return f"{name} is shorter than its parquet rows: {max(0, facts.frames - span.first)} of {length} frames"
        if (camera.height, camera.width) != (facts.height, facts.width):
            return f"{name} is {facts.height} x {facts.width} pixels, meta/info.json says {camera.height} x {camera.width}"
        if decode is None or span.path in decode:
            try:
                decode_frames(span.path, range(span.first, span.first + length), meta.fps, strict=True)
            except VideoError as error:
                return f"{name} is damaged: {error}"
    return None
