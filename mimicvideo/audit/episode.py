"""One episode becomes a summary: a dictionary of plain numbers and text of bounded size, which a line of JSON holds."""

import time
from typing import Any

from mimicvideo.audit.calibration import Calibration
from mimicvideo.audit.pictures import summarise_pictures
from mimicvideo.audit.signals import summarise_numbers
from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.scan import Verify

VERSION = 3  # of the summary: another number, and results that are kept are made again


def summarise(reader: Episodes, episode: Episode, calibration: Calibration, verify: Verify) -> dict[str, Any]:
    """Reads all of an episode. What cannot be read is said in `problem`, which is None otherwise.

    Args:
        reader: The dataset.
        episode: One of it.
        calibration: See `calibrate`.
        verify: `full` also decodes every picture strictly; without it, damage that a decoder paints over may pass.
    """
    start = time.perf_counter()
    summary: dict[str, Any] = {
        "episode": episode.index,
        "length": episode.length,
        "instructions": list(episode.instructions),
        "task": episode.task,
        "problem": None,
    }
    try:
        numbers, speed = summarise_numbers(reader, episode, calibration)
        summary["numbers"] = numbers
        summary["problem"] = reader.damage(episode) if verify == "full" else None
        if summary["problem"] is None:
            summary["pictures"] = summarise_pictures(reader, episode, speed)
            if not reader.action_names and not reader.proprio_names:
                numbers["idle"] = [min(pictures["still_ends"][end] for pictures in summary["pictures"].values()) for end in (0, 1)]
    except (DatasetError, OSError) as error:
        summary["problem"] = str(error)
    return {**summary, "seconds": round(time.perf_counter() - start, 4)}
