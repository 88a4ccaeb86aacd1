"""StoredEpisodes: a dataset of any format and its description become episodes."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.align import Rows, Turn
from mimicvideo.data.episodes import Camera, Episode, Episodes, choose_cameras
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.layout import Vector, parse_layout
from mimicvideo.data.scan import Opening
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.standards import Columns, find, needed
from mimicvideo.data.store import Entry, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredEpisode(Episode):
    """An episode with its numbers.

    Attributes:
        entry: Where its pictures are.
        kept: The stored row of each row.
        pictures: By key, the picture of each stored row, for cameras with times of their own.
        actions: Float32[steps, action_dim].
        proprio: Float32[rows, proprio_dim].
    """

    entry: Entry
    kept: np.ndarray = field(repr=False, compare=False)
    pictures: dict[str, np.ndarray] = field(repr=False, compare=False)
    actions: np.ndarray = field(repr=False, compare=False)
    proprio: np.ndarray = field(repr=False, compare=False)


class StoredEpisodes(Episodes):
    """Reads all numbers at once and pictures when they are asked for.

    Rows are the pictures of the first camera. Streams that were taken at other times are brought to its times: numbers that change
    steadily are interpolated, other numbers and the pictures of other cameras are the nearest in time; beyond a stream's ends its first or
    last value holds. Actions that were taken several times as often as pictures make as many control steps per row.

    Args:
        store: The dataset as it lies on disk.
        spec: Its description.
        cameras: Names in the description, or keys, from left to right; may be left out if there is one only.
        min_rows: Rows that an episode needs at least.
        verify: `quick` looks at the headers of pictures, as `auto` does, `full` decodes every one, `meta` looks at none.
        kwargs: `size`, `max_bad_fraction` and `ram_cache_gb`; see `Episodes`.

    Raises:
        DatasetError: If the description does not fit the dataset, or too many episodes cannot be used.
    """

    def __init__(
        self,
        store: Store,
        spec: DatasetSpec,
        cameras: Sequence[str] | None = None,
        *,
        min_rows: int = 2,
        verify: Opening = "auto",
        **kwargs: Any,
    ) -> None:
        self.store, self.spec, self.described_representation = store, spec, spec.representation
        self.remarks = store.remarks
        self._standard = find(spec.standardise) if spec.standardise else None
        self._keys = {name: self._chosen(name) for name in ("proprio", "actions", "instruction")}
        self._steady = set(self._keys["proprio"] if spec.interpolate is None else spec.interpolate)
        self._turns = self._described_turns()
        chosen = choose_cameras(store.root, self._named_cameras(), cameras)
        self._turned = self._turned_cameras()
        self._sized = kwargs.get("size") is not None
        hz = spec.hz or self._measured_hz(chosen[0]) or store.hz
        if hz is None:
            raise DatasetError(f"{store.root} does not say how many rows a second has: give hz in its description")
        self._steps = store.stride if store.stride > 1 else self._measured_steps(chosen[0])
        listed, problems, left_out = [], {}, 0
        with ThreadPoolExecutor(4) as pool:
            for episode, problem in pool.map(lambda entry: self._read(entry, chosen, max(1, min_rows), verify), store.entries):
                if not problem and not episode.length:
                    left_out += 1
                    continue
                listed.append(episode)
                if problem:
                    problems[episode.index] = problem
        if left_out:
            log.warning("%s: standardise %s leaves out %d of %d episodes", store.root, spec.standardise, left_out, len(store.entries))
            if not listed:
                raise DatasetError(f"{store.root}: standardise {spec.standardise!r} leaves out every episode")
        sound = [episode for episode in listed if episode.index not in problems]
        if sound:
            self._check_widths(sound)
        widths = (sound[0].proprio.shape[1], sound[0].actions.shape[1]) if sound else (0, 0)
        super().__init__(
            store.root,
            listed,
            problems,
            chosen,
            robot=spec.robot or store.robot,
            control_hz=hz * self._steps,
            stride=self._steps,
            proprio_names=self._names("proprio", "state", widths[0]) if sound else [],
            action_names=self._names("actions", "action", widths[1]) if sound else [],
            **kwargs,
        )

    def actions(self, episode: StoredEpisode) -> Float32[np.ndarray, "steps action_dim"]:
        return episode.actions

    def proprio(self, episode: StoredEpisode) -> Float32[np.ndarray, "rows proprio_dim"]:
        return episode.proprio

    def times(self, episode: StoredEpisode) -> Float64[np.ndarray, " rows"] | None:
        found = self.store.times(episode.entry, self.cameras[0].key)
        return None if found is None else found[episode.kept]

    def damage(self, episode: StoredEpisode) -> str | None:
        return self.store.problem(episode.entry, [camera.key for camera in self.cameras], True)

    def _decode(self, episode: StoredEpisode, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        wanted, back = episode.kept[rows], None
        if camera.key in episode.pictures:
            wanted, back = np.unique(episode.pictures[camera.key][wanted], return_inverse=True)
        frames = self.store.frames(episode.entry, camera.key, wanted, self._size)
        if camera.key in self._turned:
            frames = np.ascontiguousarray(frames[:, ::-1, ::-1])
        if camera.name in (self.spec.swap_colours or ()):
            frames = np.ascontiguousarray(frames[..., ::-1])
        return frames if back is None else frames[back]

    def _shown(self, episode: StoredEpisode, camera: Camera) -> list[Any]:
        pictures = episode.pictures.get(camera.key)
        wanted = episode.kept if pictures is None else pictures[episode.kept]
        rows = hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest()
        changes = [camera.key in self._turned, camera.name in (self.spec.swap_colours or ())]
        return [self.store.identity(episode.entry, camera.key), rows, changes]

    def _hash(self, files: Iterable[Path]) -> str:
        """With the description, on which everything that is read depends."""
        marks = self.store.marks()
        return hashlib.sha256(f"{super()._hash(files)} {self.spec}{f' {json.dumps(marks)}' if marks else ''}".encode()).hexdigest()

    def _files(self) -> tuple[list[Path], list[Path]]:
        return self.store.files([camera.key for camera in self.cameras])

    def _chosen(self, name: str) -> list[str]:
        """The keys that the description gives for `proprio`, `actions` or `instruction`, or the format's custom."""
        given = getattr(self.spec, name)
        keys = list(self.store.defaults.get(name, ()) if given is None else given)
        there = self.store.text_keys if name == "instruction" else self.store.keys
        for key in keys:
            if key not in there:
                raise DatasetError(f"{self.store.root} has no {name} key {key!r}; it has {', '.join(sorted(there)) or 'none'}")
        return keys

    def _described_turns(self) -> dict[str, list[Turn]]:
        """The rotations within each key's rows, by the description's `representation`; none where a function makes the vectors."""
        turns: dict[str, list[Turn]] = {}
        described = {} if self._standard is not None or self.spec.representation is None else self.spec.representation
        for name in get_args(Vector):
            try:
                groups = parse_layout(described[name], name).groups
            except (ValueError, KeyError, TypeError):
                continue  # `View` says what is wrong with it, if numbers are wanted
            first = 0
            for key in self._keys[name]:
                width = int(np.prod(self.store.keys[key]))
                for group in groups:
                    dims = [dim - first for dim in group.dims]
                    if group.kind == "rotation" and group.source == name and min(dims) >= 0 and max(dims) < width:
                        turns.setdefault(key, []).append((dims, group.format))
                first += width
        return turns

    def _named_cameras(self) -> dict[str, Camera]:
        sizes = self.store.cameras
        short = Counter(self.store.camera_name(key) for key in sizes)
        own = {name if short[name := self.store.camera_name(key)] == 1 else key: key for key in sizes}
        names = self.spec.cameras or own
        for name, key in names.items():
            if key not in sizes:
                raise DatasetError(f"{self.store.root} has no pictures {key!r} for camera {name!r}; it has {', '.join(sizes) or 'none'}")
        if unknown := [name for name in self.spec.swap_colours or () if name not in names]:
            raise DatasetError(f"swap_colours of {self.store.root} names no camera: {unknown[0]!r}; there are {', '.join(names)}")
        return {name: Camera(name, key, *sizes[key], self.store.views.get(key, {})) for name, key in names.items()}

    def _turned_cameras(self) -> set[str]:
        """Keys of the cameras whose pictures are turned."""
        named = self._named_cameras()
        for name in self.spec.rotate_180 or ():
            if name not in named:
                raise DatasetError(f"rotate_180 of {self.store.root} names no camera: {name!r}; it has {', '.join(named)}")
        return {named[name].key for name in self.spec.rotate_180 or ()}

    def _measured_hz(self, camera: Camera) -> float | None:
        """Rows per second by the times of the camera, in the first episode that has several; to three digits after the point."""
        for entry in self._readable():
            try:
                times = self.store.times(entry, camera.key)
            except DatasetError:
                continue  # it is told when the entry is read
            if times is not None and len(times) > 1 and (step := float(np.median(np.diff(times)))) > 0:
                return round(1 / step, 3)
        return None

    def _readable(self) -> Iterable[Entry]:
        return (entry for entry in self.store.entries if entry.problem is None)

    def _measured_steps(self, camera: Camera) -> int:
        """Control steps per row by the times of actions and pictures, in the first episode that has several."""
        for entry in self._readable():
            try:
                rows = Rows(self.store, entry, camera.key)
                rates = [rows.rate(key) for key in self._keys["actions"]]
            except DatasetError:
                continue  # it is told when the entry is read
            known = [rate for rate in rates if rate is not None]
            if rates and not known and rows.count < 2:
                continue
            steps = round(max(known, default=1.0))
            if steps < 2:
                return 1
            if len(known) == len(rates) and max(abs(rate - steps) for rate in known) < 0.1 and self._standard is None:
                return steps
            log.warning(
                "%s has %.3g actions per picture: only the nearest in time to each picture is read, because %s",
                self.store.root,
                max(known),
                "standardise wants one per row" if self._standard else "action keys have no common whole number of them",
            )
            return 1
        return 1

    def _read(self, entry: Entry, cameras: Sequence[Camera], min_rows: int, verify: Opening) -> tuple[StoredEpisode, str | None]:
        """An episode, and why it cannot be used; then it is empty. It is empty and has no problem if the description leaves it out."""
        nothing = np.zeros((0, 0), np.float32)
        empty = StoredEpisode(entry.index, 0, ("",), "", entry, np.zeros(0, np.int64), {}, nothing, nothing)
        if entry.problem:
            return empty, entry.problem
        try:
            rows = Rows(self.store, entry, cameras[0].key)
            columns, kept, told = self._columns(entry, rows)
            pictures = {camera.key: own for camera in cameras[1:] if (own := rows.pictures(camera.key)) is not None}
            if told is None:
                told = list(dict.fromkeys(text for key in self._keys["instruction"] for text in self.store.texts(entry, key)))
            told = told or [""]
            named = self.spec.task or next(iter(self.store.defaults.get("task", ())), None)
            task = next(iter(self.store.texts(entry, named)), "") if named else ""
        except (DatasetError, VideoError) as error:
            return empty, str(error)
        actions, proprio = (columns[name].astype(np.float32) for name in ("actions", "proprio"))
        actions = actions.reshape(len(actions) * self._steps, -1) if actions.size else actions
        episode = StoredEpisode(entry.index, len(kept), tuple(told), task or told[0], entry, kept, pictures, actions, proprio)
        if entry.rows and not columns["keep"].any():
            return episode, None
        if len(kept) < min_rows:
            return episode, f"it has {len(kept)} rows, fewer than {min_rows}"
        for name in ("actions", "proprio"):
            bad = ~np.isfinite(columns[name])
            if bad.any():
                rows = np.flatnonzero(bad.any(axis=1))
                more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
                return episode, f"{name} is NaN or infinite in row {rows[0]}{more}, dimension {int(np.flatnonzero(bad[rows[0]])[0])}"
        for camera in cameras:
            try:
                size = self.store.size(entry, camera.key)
            except DatasetError as error:
                return episode, self.store.problem(entry, [camera.key], False) or str(error)
            if not self._sized and size != (camera.height, camera.width):
                return episode, (
                    f"its pictures of camera {camera.name} are {size[0]} x {size[1]} pixels, others {camera.height} x {camera.width}: "
                    "set height and width to resize all"
                )
        if verify == "meta":
            return episode, None
        return episode, self.store.problem(entry, [camera.key for camera in cameras], verify == "full")

    def _columns(self, entry: Entry, rows: Rows) -> tuple[Columns, Int[np.ndarray, " rows"], list[str] | None]:
        """Standard `proprio`, `actions` and `keep` of an entry, its rows that stay, and its sentences if the standard gives them."""
        named = list(dict.fromkeys([*self._keys["proprio"], *self._keys["actions"]]))
        wanted = [key for key in self._wanted_by_standard() if key not in named]
        raw = self.store.numbers(entry, [*named, *(key for key in wanted if key in self.store.keys)])
        columns: Columns = {
            key: rows.numbers(key, values, key in self._steady, turns=self._turns.get(key, ())) for key, values in raw.items()
        }
        columns |= {key: np.array(self.store.texts(entry, key), np.str_) for key in wanted if key not in self.store.keys}
        for name in ("proprio", "actions"):
            steps = self._steps if name == "actions" and self.store.stride == 1 else 1
            streams = columns
            if steps > 1:
                keys = self._keys[name]
                streams = {key: rows.numbers(key, raw[key], key in self._steady, steps, self._turns.get(key, ())) for key in keys}
            parts = [streams[key].reshape(rows.count * steps, int(np.prod(streams[key].shape[1:]))) for key in self._keys[name]]
            joined = np.concatenate(parts, axis=1) if parts else np.zeros((rows.count, 0))
            columns[name] = joined.reshape(rows.count, joined.shape[1] * steps) if parts else joined
        if self._standard is not None and rows.count:
            try:
                columns = self._standard(columns)
            except (ValueError, IndexError, KeyError) as error:
                raise DatasetError(f"{entry.name}: standardise {self.spec.standardise!r} does not fit its columns: {error}") from error
        keep = np.asarray(columns.get("keep", np.ones(rows.count)), bool)
        kept = np.flatnonzero(keep)
        kept = kept[(kept >= self.spec.drop_first) & (kept < rows.count - self.spec.drop_last)]
        told = columns["instructions"].tolist() if "instructions" in columns else None
        return {"keep": keep, **{name: columns[name][kept] for name in ("proprio", "actions")}}, kept, told

    def _wanted_by_standard(self) -> Sequence[str]:
        """Keys that a standardisation function asks for; see `standards.needs`."""
        if self._standard is None:
            return ()
        wanted = needed(self._standard)
        for key in wanted:
            if key not in self.store.keys and key not in self.store.text_keys:
                raise DatasetError(f"standardise {self.spec.standardise!r} needs the key {key!r}, which {self.store.root} does not have")
        return wanted

    def _check_widths(self, episodes: Sequence[StoredEpisode]) -> None:
        for name in ("actions", "proprio"):
            first = getattr(episodes[0], name).shape[1]
            for episode in episodes:
                if (width := getattr(episode, name).shape[1]) != first:
                    raise DatasetError(
                        f"{self.store.root}: {name} of {episode.entry.name} have {width} numbers, those of {episodes[0].entry.name} {first}"
                    )

    def _names(self, which: str, prefix: str, width: int) -> list[str]:
        """Names of the numbers of `proprio` or `actions`: as described, or the format's own if nothing is made of the numbers."""
        names = self.spec.proprio_names if which == "proprio" else self.spec.action_names
        if names is None and self._standard is None and all(key in self.store.names for key in self._keys[which]):
            names = [name for key in self._keys[which] for name in self.store.names[key]]
        if names is None:
            return [f"{prefix}_{number}" for number in range(width)]
        if len(names) != width:
            raise DatasetError(f"{self.store.root} has {width} numbers for {which}, but {len(names)} names: {', '.join(names)}")
        return list(names)
