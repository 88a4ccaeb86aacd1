"""Episodes that are too short for the windows of a training."""

import numpy as np

from mimicvideo.data.episodes import Episodes, refuse
from mimicvideo.data.window import Anchors, Window


def leave_out_short(reader: Episodes, window: Window, anchors: Anchors, require_full: bool, max_bad_fraction: float) -> None:
    """Leaves out the episodes in which there is no anchor.

    Args:
        reader: At the rate of the windows, which need not be the stored one.
        window: Of the training.
        anchors: Where its samples lie.
        require_full: Whether those that are shorter than one window cannot be used either, and count towards `max_bad_fraction`.
        max_bad_fraction: See `Episodes`.

    Raises:
        DatasetError: If too many cannot be used, or none is left.
    """
    if require_full:
        rows, span = zip(reader.episodes.indices.tolist(), reader.episodes.lengths.tolist(), strict=True), window.span
        short = {index: f"it has {count} rows, fewer than {span}" for index, count in rows if count < span}
        faulty = {index: reason for index, reason in reader.skipped.items() if index not in reader.left_out}
        refuse(reader.root, faulty | short, len(reader.listed), max_bad_fraction)
        reader.leave_out(short, "require_full_windows", decided=False)
    lengths = reader.episodes.lengths
    without = np.flatnonzero(anchors.counts(lengths) == 0)
    reasons = {
        int(index): f"it has {count} rows, too few for a window"
        for index, count in zip(reader.episodes.indices[without], lengths[without], strict=True)
    }
    if reasons:
        reader.leave_out(reasons, "repeat_first and repeat_last")
