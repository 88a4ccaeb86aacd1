"""Episodes that are too short for the windows of a training."""

import numpy as np
from jaxtyping import Bool

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

    def reasons(which: Bool[np.ndarray, " episodes"], why: str) -> dict[int, str]:
        chosen = reader.episodes.take(np.flatnonzero(which))
        pairs = zip(chosen.indices.tolist(), chosen.lengths.tolist(), strict=True)
        return {index: f"it has {rows} rows, {why}" for index, rows in pairs}

    if require_full:
        short = reasons(reader.episodes.lengths < window.span, f"fewer than {window.span}")
        faulty = {index: reason for index, reason in reader.skipped.items() if index not in reader.left_out}
        refuse(reader.root, faulty | short, len(reader.listed), max_bad_fraction)
        reader.leave_out(short, "require_full_windows", decided=False)
    if without := reasons(anchors.counts(reader.episodes.lengths) == 0, "too few for a window"):
        reader.leave_out(without, "repeat_first and repeat_last")
