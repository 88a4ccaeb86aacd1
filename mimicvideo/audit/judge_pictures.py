"""Findings in pictures: dark, frozen, dropped, exchanged, mirrored; each beside the usual of the camera."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from mimicvideo.audit.findings import Findings
from mimicvideo.audit.pictures import SIGNATURE
from mimicvideo.audit.population import Population, distance, repeats

HALF = 0.5  # a change of the pictures explains that they differ from the usual if it halves the difference
NOTICED = 4.0  # levels of difference below which a scene is the usual one
OTHER = 30.0  # levels: another place, not another object on the table
FLASH = 10.0  # levels of brightness: 4 % of the range, more than flicker
LEAP = math.log(2)  # twice the usual leap: a frame is missing

_Picture = Float64[np.ndarray, "rows columns 3"]
_CHANGES: list[tuple[str, str, Callable[[_Picture], _Picture]]] = [
    ("swapped_channels", "with red and blue exchanged", lambda picture: picture[..., ::-1]),
    ("flipped_pictures", "mirrored left to right", lambda picture: picture[:, ::-1]),
    ("flipped_pictures", "upside down", lambda picture: picture[::-1]),
    ("flipped_pictures", "turned by 180 degrees", lambda picture: picture[::-1, ::-1]),
]


def judge_pictures(pictures: dict[str, Any], index: int, usual: Population, findings: Findings, robot: bool) -> None:
    """Adds what is wrong with the pictures of one episode.

    Args:
        pictures: Summaries by camera.
        index: Of the episode.
        usual: Of the dataset.
        findings: Where they are added.
        robot: Whether the dataset's numbers say when a robot moves.
    """
    for camera, summary in pictures.items():
        dark = _dark(camera, summary, index, usual, findings)
        if not dark:
            broken = _motion(camera, summary, index, usual, findings, robot)
            _look(camera, summary, index, usual, findings, broken)


def _dark(camera: str, summary: dict[str, Any], index: int, usual: Population, findings: Findings) -> bool:
    found, length = False, summary["count"]
    for name, what in (("black", "black"), ("blank", "of one colour")):
        count, row = summary[name]
        told = usual[f"{camera}/{name}"]
        if count and (count == length or not told.known or told.far_above(count, 0.5)):
            findings.add(f"{name}_frames", index, f"camera {camera}: {count} of {length} pictures are {what}, from row {row}")
            found = True
    return found


def _motion(camera: str, summary: dict[str, Any], index: int, usual: Population, findings: Findings, robot: bool) -> bool:
    """Returns whether frames repeat, jump or are missing."""
    frozen, (flash, flash_row), (leap, leap_row) = summary["frozen"], summary["flash"], summary["leap"]
    broken = False
    while_moving, speed = (" while the robot moves", " for the robot's speed") if robot else ("", "")
    # One or two repeated pictures may be a slow moment, three are not. Where there is nothing to compare with, a quarter must.
    most = max(6, 0.25 * summary["count"])
    long = frozen["rows"] >= most or frozen["share"] > 0.5
    alone = not usual[f"{camera}/repeats"].known and (frozen["moving"] >= most or frozen["share"] > 0.5)
    if alone or usual[f"{camera}/repeats"].far_above(repeats(frozen), 1.5):
        broken = True
        if long:
            text = f"camera {camera}: {frozen['share']:.0%} of the pictures stand still{while_moving}, from row {frozen['row']} on"
            findings.add("frozen_video", index, text)
        else:
            text = f"camera {camera}: {frozen['rows']} pictures from row {frozen['row']} on repeat the one before{while_moving}"
            findings.add("dropped_frames", index, text)
    if usual[f"{camera}/flash"].far_above(flash, FLASH):
        broken = True
        findings.add("exposure_jump", index, f"camera {camera}: the brightness jumps by {flash:.0f} of 255 at row {flash_row}")
    if not broken and usual[f"{camera}/leap"].far_above(leap, LEAP):
        broken = True
        text = f"camera {camera}: at row {leap_row} the picture changes {math.exp(leap):.1f} times as much as usual{speed}"
        findings.add("dropped_frames", index, text)
    return broken


def _look(camera: str, summary: dict[str, Any], index: int, usual: Population, findings: Findings, broken: bool) -> None:
    """Whether the pictures are those of the camera after some change, or of another camera."""
    signature, expected = np.array(summary["signature"], np.float64), usual.signatures[camera]
    off = distance(signature, expected)
    if not usual.distances[camera].far_above(off, NOTICED):
        return
    picture = signature.reshape(SIGNATURE, SIGNATURE, 3)
    tried = [(distance(change(picture).ravel(), expected), kind, text) for kind, text, change in _CHANGES]
    tried += [
        (distance(signature, other), "swapped_cameras", f"as camera {name}") for name, other in usual.signatures.items() if name != camera
    ]
    best, kind, text = min(tried)
    if best < HALF * off:
        findings.add(kind, index, f"camera {camera}: its pictures look {text} (difference {best:.0f} levels of 255 instead of {off:.0f})")
    elif not broken and not usual.varied and off - usual.distances[camera].median > OTHER:
        findings.add("other_scene", index, f"camera {camera}: its pictures differ by {off:.0f} levels of 255 from the usual")
