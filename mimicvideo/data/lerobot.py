"""LeRobotEpisodes: a LeRobotDataset on disk as episodes of frames, states and actions. It needs pyarrow and PyAV only."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.decode import decode_frames
from mimicvideo.data.episodes import Camera, Episode, Episodes, choose_cameras
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.identity import video_identity
from mimicvideo.data.lerobot_files import AGAIN
from mimicvideo.data.lerobot_listing import first_sentences
from mimicvideo.data.lerobot_meta import ACTION, STATE, Meta, feature_names, read_meta
from mimicvideo.data.lerobot_rows import LeRobotRows
from mimicvideo.data.listing import Listing
from mimicvideo.data.scan import Opening, find_problems, listed_problems, not_finite, spans, video_problem

log = logging.getLogger(__name__)

LARGE = 100_000  # episodes beyond which `auto` opens no file of rows or pictures: that would take minutes


@dataclass(frozen=True)
class LeRobotEpisode(Episode):
    """An episode and its place in the listing, from where its data are found."""

    place: int


class LeRobotEpisodes(Episodes):
    """Reads what LeRobot itself (v2.0 to v3.0) or LeRobotWriter wrote, with any number of episodes per file and any camera prefix.

    This is for datasets with `observation.state`, `action` and videos; LeRobotStore reads others by a description. Nothing but the meta
    folder stays in memory: an episode is made when it is asked for, and its numbers are read then; see `LeRobotRows`.

    Args:
        root: The dataset's folder, or its meta folder as it was read.
        cameras: Names such as `corner2`, for `observation.images.corner2`, from left to right; may be left out if there is one only.
        min_rows: Rows that an episode needs at least. Windows repeat the first and last frame, so that short episodes are sound.
        verify: `meta` reads the meta folder and tells what is wrong with numbers and videos when they are read; `quick` reads numbers,
            headers and indices of all files now, `full` decodes every frame as well. `auto` is `quick` up to 100,000 episodes, then
            `meta`, which is said.
        kwargs: `size`, `max_bad_fraction` and `ram_cache_gb`; see `Episodes`.

    Raises:
        DatasetError: If the folder is missing, empty, truncated or of another version, a camera is unknown, or too many episodes cannot
            be used: too short, NaN or infinite numbers, a video that is unreadable or shorter than its parquet rows.
    """

    def __init__(
        self,
        root: str | Path | Meta,
        cameras: Sequence[str] | None = None,
        *,
        min_rows: int = 2,
        verify: Opening = "auto",
        **kwargs: Any,
    ) -> None:
        self._meta = meta = root if isinstance(root, Meta) else read_meta(root)
        there = {name: camera for name, camera in meta.cameras.items() if camera.key not in meta.images}
        if not there:
            raise DatasetError(f"{meta.root} has no video features: open_episodes also reads pictures that are in the rows")
        stored = choose_cameras(meta.root, there, cameras)
        self._rows = LeRobotRows(meta)
        self._newest: tuple[int, dict[str, np.ndarray]] = (-1, {})
        self._widths = {key: prod(meta.features[key]["shape"]) if key in meta.features else 0 for key in (STATE, ACTION)}
        proprio_names, action_names = self._names()
        if verify == "auto" and len(meta.listing) > LARGE:
            text = "%s has %d episodes: their numbers and videos are looked at when they are read; set verify to quick to do so before"
            log.warning(text, meta.root, len(meta.listing))
        self._looked_at = verify in ("quick", "full") or (verify == "auto" and len(meta.listing) <= LARGE)
        keys = [key for key, width in self._widths.items() if width]
        problems = (
            find_problems(meta, self._rows, keys, stored, max(1, min_rows), verify == "full")
            if self._looked_at
            else listed_problems(meta, stored, max(1, min_rows))
        )
        super().__init__(
            meta.root,
            self._listed(problems),
            problems,
            stored,
            robot=meta.robot,
            control_hz=meta.control_hz,
            stride=meta.stride,
            proprio_names=proprio_names,
            action_names=action_names,
            **kwargs,
        )

    def actions(self, episode: LeRobotEpisode) -> Float32[np.ndarray, "steps action_dim"]:
        return self._numbers(episode)[ACTION].reshape(episode.length * self.stride, -1)

    def proprio(self, episode: LeRobotEpisode) -> Float32[np.ndarray, "rows proprio_dim"]:
        return self._numbers(episode)[STATE]

    def times(self, episode: LeRobotEpisode) -> Float64[np.ndarray, " rows"] | None:
        if "timestamp" not in self._rows.names(episode.place):
            return None
        return self._rows.read(episode.place, ["timestamp"])["timestamp"][:, 0].astype(np.float64)

    def damage(self, episode: LeRobotEpisode) -> str | None:
        return video_problem(self._meta, episode.length, spans(self._meta, episode.place, self._stored_cameras))

    def _numbers(self, episode: LeRobotEpisode) -> dict[str, np.ndarray]:
        """State and action of all rows; those of the newest episode are kept, since both are wanted one after the other."""
        place, numbers = self._newest
        if place != episode.place:
            keys = [key for key, width in self._widths.items() if width]
            numbers = {key: np.zeros((episode.length, 0), np.float32) for key in self._widths}
            numbers |= {key: values.astype(np.float32, copy=False) for key, values in self._rows.read(episode.place, keys).items()}
            if not self._looked_at and (problem := not_finite(numbers)):
                raise DatasetError(f"episode {episode.index} of {self.root}: {problem}")
            self._newest = (episode.place, numbers)
        return numbers

    def _listed(self, problems: Collection[int]) -> Listing:
        """The episodes with their tasks: what LeRobotWriter says, or the first sentence."""
        listing = self._meta.listing
        first, self._told_in_rows = first_sentences(listing.told), {}
        if first.null_count:
            bad = np.isin(listing.indices, list(problems))
            self._told_in_rows = {
                place: "" if bad[place] else self._sentence_in_rows(place) for place in np.flatnonzero(first.is_null()).tolist()
            }
            told = pa.array([self._told_in_rows.get(place) for place in range(len(listing))], first.type)
            first = pc.fill_null(first, told)
        if listing.task_names is not None:
            first = pc.fill_null(listing.task_names.cast(first.type), first)
        tasks = first.dictionary_encode()
        names, codes = tasks.dictionary.to_pylist(), tasks.indices.to_numpy()
        del first, tasks
        pa.default_memory_pool().release_unused()  # 120 MB after a million different sentences
        return Listing(listing.indices, listing.lengths, self._made, names, codes)

    def _made(self, place: int) -> LeRobotEpisode:
        listing = self._meta.listing
        told = listing.sentences(place) or (self._told_in_rows[place],)
        task = listing.task_name(place) or told[0]
        return LeRobotEpisode(int(listing.indices[place]), int(listing.lengths[place]), told, task, place)

    def _sentence_in_rows(self, place: int) -> str:
        """By the number of its task in the first row of an episode with which no sentence is listed; empty if there is none."""
        numbers = self._rows.read(place, ["task_index"])["task_index"][:1, 0].tolist()
        return self._meta.sentence(numbers[0]) if numbers else ""

    def _names(self) -> tuple[list[str], list[str]]:
        """Names of the numbers of a state and of one control step's action; numbers where there are none."""
        meta, about, names = self._meta, self._meta.about, []
        for key, told, prefix, stride in ((STATE, "proprio", "state", 1), (ACTION, "actions", "action", meta.stride)):
            width, remainder = divmod(self._widths[key], stride)
            if about and (remainder or len(about[told]) != width):
                raise DatasetError(
                    f"{meta.root / 'meta' / 'mimicvideo.json'} names {len(about[told])} {told} and stride {meta.stride}, "
                    f"meta/info.json gives {key} another width: {AGAIN}"
                )
            own = feature_names(meta.features.get(key), width) or [f"{prefix}_{number}" for number in range(width)]
            names.append(about.get(told) or own)
        return names[0], names[1]

    def _decode(self, episode: LeRobotEpisode, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        span = self._meta.listing.video(episode.place, camera.key)
        if span is None:
            raise VideoError("there is none")
        try:
            return decode_frames(span.path, span.first + rows, self._meta.fps, self._size)
        except VideoError as error:
            raise VideoError(f"{span.path.name}: {error}") from error

    def _shown(self, episode: LeRobotEpisode, camera: Camera) -> list[Any]:
        span = self._meta.listing.video(episode.place, camera.key)
        return ["none"] if span is None else video_identity(span.path, span.first, episode.length, self._meta.fps)

    def _files(self) -> tuple[list[Path], list[Path]]:
        listing = self._meta.listing
        usable = np.searchsorted(listing.indices, self.episodes.indices)
        return [*self._meta.files, *listing.data_files], listing.video_files([camera.key for camera in self.cameras], usable)

    def _picture_files(self) -> list[Path]:
        return self._meta.listing.video_files([camera.key for camera in self.cameras])
