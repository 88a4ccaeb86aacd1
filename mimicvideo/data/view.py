"""View: episodes as a policy wants them: at its rates of frames and actions, and with numbers in its representation."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.episodes import Camera, Episode, Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.listing import Listing
from mimicvideo.data.recent import Recent
from mimicvideo.data.representation import parse_representation
from mimicvideo.data.resample import rate, rate_places, resample

KEPT_BYTES = 2**29  # of converted numbers, in each process: 9 million rows of 14 float32 numbers


@dataclass(frozen=True)
class ViewedEpisode(Episode):
    """An episode of a view, and the one of the dataset that it shows."""

    source: Episode


class View(Episodes):
    """A dataset seen through rates and a representation. Pictures are the nearest stored ones; nothing is written.

    Args:
        source: The dataset.
        frame_hz: Rows per second; None keeps the dataset's.
        control_hz: Control steps per second, a multiple of `frame_hz`; None keeps the dataset's.
        representation: See `parse_representation`; None keeps the numbers, which then cannot be brought to another rate.
        numbers: Whether states and actions are wanted; stage 1 needs none.

    Raises:
        DatasetError: If a rate does not fit, or the representation does not fit the dataset's numbers.
    """

    def __init__(
        self,
        source: Episodes,
        frame_hz: float | None = None,
        control_hz: float | None = None,
        representation: Mapping[str, Any] | None = None,
        numbers: bool = True,
    ) -> None:
        self.source, self.root, self.robot, self.cameras = source, source.root, source.robot, source.cameras
        self.remarks = source.remarks
        self._stored_hz = rate(source.control_hz) / source.stride
        self._frame_hz = self._stored_hz if frame_hz is None else rate(frame_hz)
        numbers = numbers and bool(source.action_names or source.proprio_names)
        self._control_hz = rate(control_hz or source.control_hz) if numbers else self._frame_hz
        stride = self._control_hz / self._frame_hz
        if stride.denominator != 1:
            raise DatasetError(
                f"{source.root}: {float(self._control_hz):g} control steps per second are no whole number for each of "
                f"{float(self._frame_hz):g} frames: set control_hz to a multiple of frame_hz"
            )
        self.control_hz, self.stride = float(self._control_hz), int(stride)
        self.description = None if representation is None else dict(representation)
        self.stored_names = {"proprio": list(source.proprio_names), "actions": list(source.action_names)}
        self.proprio_names, self.action_names = (list(names) if numbers else [] for names in self.stored_names.values())
        if representation is not None:
            try:
                self.representation = parse_representation(representation, len(source.action_names), len(source.proprio_names))
            except ValueError as error:
                raise DatasetError(f"{source.root}: representation: {error}") from error
            self.proprio_names, self.action_names = self.representation.proprio.names, self.representation.actions.names
        elif numbers and (self._frame_hz, self._control_hz) != (self._stored_hz, rate(source.control_hz)):
            raise DatasetError(
                f"{source.root} has {float(self._stored_hz):g} rows and {source.control_hz:g} control steps per second: its numbers can be "
                "brought to other rates only if it is known what they are: give representation"
            )
        faster = self._frame_hz / self._stored_hz
        stored = source.listed.lengths
        self._lengths = np.where(stored > 0, (stored - 1) * faster.numerator // faster.denominator + 1, 0)
        self.listed = Listing(source.listed.indices, self._lengths, self._viewed, source.listed.task_names, source.listed.task_codes)
        self.skipped, self.left_out = dict(source.skipped), source.left_out
        self.episodes = self.listed.take(np.flatnonzero(~np.isin(self.listed.indices, list(self.skipped))))
        self._numbers: Recent[tuple[np.ndarray, np.ndarray]] = Recent(KEPT_BYTES)

    def interface(self) -> dict[str, Any]:
        """What a policy's contract says of the representation: its description, and the names of what an environment gives and takes."""
        if self.representation is None:
            return {}
        return {
            "representation": self.description,
            "environment": {
                "proprio": self.stored_names["proprio"],
                "actions": self.representation.actions.command_names(self.stored_names["actions"]),
            },
        }

    @property
    def frame_bytes(self) -> int:
        return self.source.frame_bytes

    def actions(self, episode: ViewedEpisode) -> Float32[np.ndarray, "steps action_dim"]:
        """Of all control steps, in learnable form; relative ones and deltas are still absolute, see `Representation.windows`."""
        return self._both(episode)[0]

    def proprio(self, episode: ViewedEpisode) -> Float32[np.ndarray, "rows proprio_dim"]:
        return self._both(episode)[1]

    def frames(self, episode: ViewedEpisode, rows: Sequence[int] | Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height tiled_width 3"]:
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < episode.length:
            raise IndexError(f"rows {rows.min()} ... {rows.max()} lie outside episode {episode.index} of {episode.length} rows")
        return self.source.frames(episode.source, self._stored_rows(episode)[rows])

    def times(self, episode: ViewedEpisode) -> Float64[np.ndarray, " rows"] | None:
        """Of a view at the dataset's own rate; at another, rows are where the rate wants them."""
        return self.source.times(episode.source) if self._frame_hz == self._stored_hz else None

    def picture_rows(self, episode: ViewedEpisode) -> Int[np.ndarray, " pictures"]:
        return np.unique(self._stored_rows(episode), return_index=True)[1]

    def damage(self, episode: ViewedEpisode) -> str | None:
        return self.source.damage(episode.source)

    def picture_key(self, episode: ViewedEpisode) -> str:
        rows = self._stored_rows(episode).astype("<i8").tobytes()
        return hashlib.sha256(self.source.picture_key(episode.source).encode() + rows).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        return self._marked(self.source.fingerprint)

    @cached_property
    def tables_fingerprint(self) -> str:
        return self._marked(self.source.tables_fingerprint)

    @property
    def stored_fingerprint(self) -> str:
        return self.source.stored_fingerprint

    def _marked(self, fingerprint: str) -> str:
        settings = [fingerprint, str(self._frame_hz), str(self._control_hz), self.description]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _viewed(self, place: int) -> ViewedEpisode:
        episode, length = self.source.listed[place], int(self._lengths[place])
        return ViewedEpisode(episode.index, length, episode.instructions, episode.task, episode)

    def _both(self, episode: ViewedEpisode) -> tuple[np.ndarray, np.ndarray]:
        if (found := self._numbers.get(episode.index)) is None:
            found = self._converted(episode)
            self._numbers.keep(episode.index, found, sum(values.nbytes for values in found))
        return found

    def _converted(self, episode: ViewedEpisode) -> tuple[np.ndarray, np.ndarray]:
        actions, proprio = self.source.actions(episode.source), self.source.proprio(episode.source)
        if self.representation is None:
            return actions, proprio
        try:
            learned = self.representation.learn(actions, proprio)
        except ValueError as error:
            raise DatasetError(f"{self.root}, episode {episode.index}: {error}") from error
        layouts = self.representation
        steps = self._at(layouts.actions, learned["actions"], rate(self.source.control_hz), self._control_hz, episode.length * self.stride)
        states = self._at(layouts.proprio, learned["proprio"], self._stored_hz, self._frame_hz, episode.length)
        return steps.astype(np.float32), states.astype(np.float32)

    @staticmethod
    def _at(layout: Any, values: np.ndarray, source: Fraction, target: Fraction, count: int) -> np.ndarray:
        return values if source == target and len(values) == count else resample(layout, values, source, target, count)

    def _stored_rows(self, episode: ViewedEpisode) -> Int[np.ndarray, " rows"]:
        return rate_places(episode.source.length, self._stored_hz, self._frame_hz, episode.length).nearest

    def _decode(self, episode: ViewedEpisode, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        return self.source._decode(episode.source, camera, self._stored_rows(episode)[rows])

    def _picture_files(self) -> list[Path]:
        return self.source._picture_files()

    def _files(self) -> tuple[list[Path], list[Path]]:
        return self.source._files()


def viewed(
    source: Episodes, frame_hz: float | None, control_hz: float | None, representation: Mapping[str, Any] | None, numbers: bool
) -> Episodes:
    """A view of a dataset, or the dataset itself if nothing about it is to be different."""
    if frame_hz is None and control_hz is None and representation is None:
        return source
    return View(source, frame_hz, control_hz, representation, numbers)
