"""Episodes that are there twice: equal numbers, equal pictures, or trajectories that almost coincide."""

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from mimicvideo.audit.findings import Findings
from mimicvideo.audit.pictures import GLIMPSE
from mimicvideo.audit.robust import evenly
from mimicvideo.audit.signals import DESCRIPTOR_SIZE, projected
from mimicvideo.data.episodes import Episode, Episodes

CLOSE = 0.02  # of the typical distance of two episodes: candidates. Scripted experts with like goals come as close
SEEN = 0.1  # the same of coarse pictures, for datasets without numbers: these are rounded to a level and another encoding changes them
NOISE = 0.3  # autocorrelation of a difference: that of two motions is smooth, near 1; that of a copy with noise or rounding is near 0
ALIKE = 3.0  # levels of 255 by which a coarse picture of the same scene differs after another encoding
COMPARED = 512  # episodes whose distances are taken as typical

_LINKS = 8  # later neighbours in the sorted order that an episode is compared with


def find_duplicates(summaries: Iterable[dict[str, Any]], count: int, reader: Episodes, findings: Findings) -> None:
    """Adds every episode that repeats an earlier one. What is kept of each, a few hundred bytes, lies in a temporary file."""
    if count < 2:
        return
    robot = bool(reader.action_names or reader.proprio_names)
    with tempfile.TemporaryDirectory() as folder:
        cameras = [camera.name for camera in reader.cameras]
        rows = np.memmap(Path(folder) / "episodes", _columns(len(cameras)), "w+", shape=(count,))
        used = 0
        for summary in summaries:
            rows[used] = _row(summary, cameras, robot)
            used += 1
        rows = rows[np.argsort(rows["index"][:used], kind="stable")]
        limit = _limit(rows, CLOSE if robot else SEEN)
        told = _equal(rows, limit, findings)
        told |= _equal_cameras(rows, cameras, told, findings)
        _near(rows, limit, told, reader, findings)


def _columns(cameras: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("index", "<i8"),
            ("length", "<i8"),
            ("actions", "<u8"),
            ("proprio", "<u8"),
            ("pictures", "<u8"),
            ("cameras", "<u8", (cameras,)),
            ("name", "<u8"),
            ("place", "<f4", (DESCRIPTOR_SIZE,)),
            ("glimpse", "u1", (GLIMPSE,)),
        ]
    )


def _row(summary: dict[str, Any], cameras: list[str], robot: bool) -> tuple[Any, ...]:
    numbers, pictures = summary.get("numbers", {}), summary.get("pictures", {})
    hashes = numbers.get("hash", {})
    seen = [camera["hash"] for camera in pictures.values()]
    together = hash_of("".join(seen)) if seen and all(seen) else 0
    name = int(hashlib.sha256(f"{summary['task']}\n{summary['instructions'][0]}".encode()).hexdigest()[:16], 16)
    first = next(iter(pictures.values()), None)
    glimpse = first["glimpse"] if first else [0] * GLIMPSE
    place = numbers.get("descriptor") or (projected(np.array(glimpse, np.float64)) if first and not robot else [np.nan] * DESCRIPTOR_SIZE)
    return (
        summary["episode"],
        summary["length"],
        hash_of(hashes.get("actions")),
        hash_of(hashes.get("proprio")),
        together,
        [hash_of(pictures[camera]["hash"]) if camera in pictures else 0 for camera in cameras],
        name,
        place,
        glimpse,
    )


def hash_of(digits: str | None) -> int:
    """64 bits of hexadecimal digits; 0 for none. Of several digests joined, a mixture."""
    mixed = 0
    for start in range(0, len(digits or ""), 16):
        mixed = (mixed * 0x9E3779B97F4A7C15 + int((digits or "")[start : start + 16], 16)) % 2**64
    return mixed


def _equal(rows: np.ndarray, limit: float, findings: Findings) -> set[tuple[int, int]]:
    """Adds exact repetitions; returns the pairs, of indices."""
    first = {name: _first(rows[name]) for name in ("actions", "proprio", "pictures")}
    told = set()
    for here in np.flatnonzero(np.any([first[name] >= 0 for name in first], axis=0)).tolist():
        index = int(rows["index"][here])
        same: dict[int, list[str]] = {}
        for name, places in first.items():
            if places[here] >= 0:
                same.setdefault(int(places[here]), []).append(name)
        for there, names in same.items():
            other = int(rows["index"][there])
            told.add((other, index))
            has_numbers = bool(rows["actions"][here] or rows["proprio"][here])
            numbers = [name for name in names if name != "pictures"]
            if "pictures" in names and (numbers or not has_numbers):
                findings.add("duplicate_episode", index, f"it repeats episode {other}: {' and '.join(names)} are the same")
            elif "pictures" in names and np.linalg.norm(rows["place"][here] - rows["place"][there]) <= limit:
                findings.add("duplicate_episode", index, f"it repeats episode {other}: pictures are the same, numbers almost")
            elif "pictures" in names:
                findings.add("copied_pictures", index, f"its pictures are those of episode {other}, its numbers are not")
            elif len(numbers) == _kinds(rows, int(here)) and _alike(rows["glimpse"][here], rows["glimpse"][there]):
                findings.add("duplicate_episode", index, f"it repeats episode {other}: {' and '.join(names)} are the same, pictures almost")
            else:
                findings.add("copied_numbers", index, f"its {' and '.join(names)} are those of episode {other}, its pictures are not")
    return told


def _equal_cameras(rows: np.ndarray, cameras: list[str], told: set[tuple[int, int]], findings: Findings) -> set[tuple[int, int]]:
    """Adds pictures of single cameras that are those of another episode; returns the pairs, of indices."""
    pairs: dict[tuple[int, int], list[str]] = {}
    for number, camera in enumerate(cameras):
        places = _first(rows["cameras"][:, number])
        for here in np.flatnonzero(places >= 0).tolist():
            pair = int(rows["index"][places[here]]), int(rows["index"][here])
            if pair not in told:
                pairs.setdefault(pair, []).append(camera)
    for (other, index), names in sorted(pairs.items(), key=lambda item: item[0][1]):
        findings.add("copied_pictures", index, f"its pictures of camera {', '.join(names)} are those of episode {other}")
    return set(pairs)


def _kinds(rows: np.ndarray, here: int) -> int:
    """How many kinds of numbers an episode has that could be repeated."""
    return int(rows["actions"][here] > 0) + int(rows["proprio"][here] > 0)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= ALIKE)


def _first(hashes: np.ndarray) -> Int[np.ndarray, " rows"]:
    """For each row the first earlier one with the same hash; -1 if there is none."""
    found = np.full(len(hashes), -1, np.int64)
    order = np.argsort(hashes, kind="stable")
    start = 0
    for place in range(1, len(order)):
        if hashes[order[place]] != hashes[order[start]]:
            start = place
        elif hashes[order[place]]:
            found[order[place]] = order[start]
    return found


def _near(rows: np.ndarray, limit: float, told: set[tuple[int, int]], reader: Episodes, findings: Findings) -> None:
    """Adds trajectories that almost coincide, if their names differ or the difference is noise; of videos alone, those that look alike.

    Neighbours are sought along the direction in which episodes differ most; candidates are read again.
    """
    rows = rows[np.isfinite(rows["place"]).all(1)]
    if len(rows) < 2:
        return
    places: Float32[np.ndarray, "rows size"] = np.ascontiguousarray(rows["place"])
    widest = places[:, places.std(0).argmax()]
    order = np.argsort(widest, kind="stable")
    pairs = set()
    for step in range(1, min(_LINKS, len(order) - 1) + 1):
        one, other = order[:-step], order[step:]
        near = (np.abs(widest[other] - widest[one]) <= limit) & (rows["length"][one] == rows["length"][other])
        one, other = one[near], other[near]
        close = np.linalg.norm(places[one] - places[other], axis=1) <= limit
        pairs |= {(min(a, b), max(a, b)) for a, b in zip(one[close].tolist(), other[close].tolist(), strict=True)}
    place_of = {index: place for place, index in enumerate(reader.episodes.indices.tolist())} if pairs else {}
    for a, b in sorted(pairs):
        earlier, later = int(rows["index"][a]), int(rows["index"][b])
        if (earlier, later) in told:
            continue
        if not (reader.action_names or reader.proprio_names):
            if _alike(rows["glimpse"][a], rows["glimpse"][b]):
                findings.add("near_duplicate", later, f"its pictures are almost those of episode {earlier}")
        elif rows["name"][a] != rows["name"][b]:
            findings.add("near_duplicate", later, f"its motion is almost that of episode {earlier}, which has another task or instruction")
        elif _is_noise(reader, reader.episodes[place_of[earlier]], reader.episodes[place_of[later]]):
            findings.add("near_duplicate", later, f"its motion is that of episode {earlier} but for noise")


def _is_noise(reader: Episodes, one: Episode, other: Episode) -> bool:
    """Whether states, or actions where there are none, differ by noise: without correlation from one row to the next."""
    read = reader.proprio if reader.proprio_names else reader.actions
    difference = np.asarray(read(one), np.float64) - np.asarray(read(other), np.float64)
    difference -= difference.mean(0)
    power = float((difference * difference).sum())
    return power == 0 or float((difference[1:] * difference[:-1]).sum()) < NOISE * power


def _limit(rows: np.ndarray, share: float) -> float:
    """How close two trajectories must be to be compared again: a share of the median distance of a sample."""
    places = rows["place"][np.isfinite(rows["place"]).all(1)]
    if len(places) < 3:
        return 0.0
    sample = places[evenly(len(places), COMPARED)].astype(np.float64)
    norms = (sample * sample).sum(1)
    squares = norms[:, None] + norms[None] - 2 * sample @ sample.T
    return share * float(np.sqrt(np.maximum(np.median(squares[np.triu_indices(len(squares), 1)]), 0)))
