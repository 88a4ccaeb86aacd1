"""StoredEpisodes: a dataset of any format and its description become episodes."""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.align import Rows
from mimicvideo.data.described import chosen_keys, described_turns, lacks, named_cameras, readable, rows_per_second, turned_cameras
from mimicvideo.data.episodes import Camera, Episode, Episodes, choose_cameras
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.listing import Listing
from mimicvideo.data.recent import Recent
from mimicvideo.data.scan import Opening
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.standards import Columns, find, needed
from mimicvideo.data.store import Entry, Store

log = logging.getLogger(__name__)


KEPT_BYTES = 2**29  # of numbers, in each process: 5 million rows of 14 float32 numbers and the row's own
TOGETHER = 2**10  # episodes that are read before their results are taken up


@dataclass(frozen=True)
class StoredEpisode(Episode):
    """An episode, and where its data are."""

    entry: Entry


@dataclass(frozen=True)
class Content:
    """The numbers of an episode.

    Attributes:
        kept: The stored row of each row.
        pictures: By key, the picture of each stored row, for cameras with times of their own.
        actions: Float32[steps, action_dim].
        proprio: Float32[rows, proprio_dim].
    """

    kept: np.ndarray
    pictures: dict[str, np.ndarray]
    actions: np.ndarray
    proprio: np.ndarray

    @property
    def nbytes(self) -> int:
        """What it takes in memory, with an allowance for Python's objects."""
        return sum(values.nbytes for values in (self.kept, *self.pictures.values(), self.actions, self.proprio)) + 1024


NOTHING = Content(np.zeros(0, np.int64), {}, np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


@dataclass(frozen=True)
class _Found:
    """What opening finds of an entry: nothing of it is wrong if there is no problem, and it is left out if it has no rows then."""

    content: Content = NOTHING
    told: tuple[str, ...] = ("",)
    task: str = ""
    problem: str | None = None


class StoredEpisodes(Episodes):
    """Reads all numbers once, to see whether they are sound, and pictures when they are asked for.

    The numbers of the episodes that were used last stay in memory, up to `KEPT_BYTES`; those of others are read again.

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
        self._keys = {name: chosen_keys(store, spec, name) for name in ("proprio", "actions", "instruction")}
        self._steady = set(self._keys["proprio"] if spec.interpolate is None else spec.interpolate)
        for key in spec.interpolate or ():
            if key not in store.keys:
                raise lacks(store, "interpolate", key, store.keys)
        if spec.task is not None and spec.task not in store.text_keys:
            raise lacks(store, "task", spec.task, store.text_keys)
        self._turns = described_turns(store, spec, self._keys)
        chosen = choose_cameras(store.root, named_cameras(store, spec), cameras)
        self._turned = turned_cameras(store, spec)
        self._sized = kwargs.get("size") is not None
        hz = rows_per_second(store, spec, chosen[0])
        self._steps = store.stride if store.stride > 1 else self._measured_steps(chosen[0])
        self._contents: Recent[Content] = Recent(KEPT_BYTES)
        self._cameras_read = chosen
        listed, problems, widths = self._scanned(max(1, min_rows), verify)
        super().__init__(
            store.root,
            listed,
            problems,
            chosen,
            robot=spec.robot or store.robot,
            control_hz=hz * self._steps,
            stride=self._steps,
            proprio_names=[] if widths is None else self._names("proprio", "state", widths["proprio"]),
            action_names=[] if widths is None else self._names("actions", "action", widths["actions"]),
            **kwargs,
        )

    def actions(self, episode: StoredEpisode) -> Float32[np.ndarray, "steps action_dim"]:
        return self._content(episode).actions

    def proprio(self, episode: StoredEpisode) -> Float32[np.ndarray, "rows proprio_dim"]:
        return self._content(episode).proprio

    def _scanned(self, min_rows: int, verify: Opening) -> tuple[Listing, dict[int, str], dict[str, int] | None]:
        """All episodes that are not left out, what is wrong with which, and how many numbers the sound ones have."""
        entries, labels = self.store.entries, {}
        places, lengths, codes, problems = array("q"), array("q"), array("q"), {}
        first: tuple[str, dict[str, int]] | None = None  # the first sound episode and its widths
        with ThreadPoolExecutor(4) as pool:
            for start in range(0, len(entries), TOGETHER):
                own = entries[start : start + TOGETHER]
                for place, (entry, found) in enumerate(
                    zip(own, pool.map(lambda one: self._read(one, min_rows, verify), own), strict=True), start
                ):
                    if not found.problem and not len(found.content.kept):
                        continue
                    places.append(place)
                    lengths.append(len(found.content.kept))
                    codes.append(labels.setdefault((found.told, found.task), len(labels)))
                    if found.problem:
                        problems[entry.index] = found.problem
                        continue
                    self._contents.keep(entry.index, found.content, found.content.nbytes)
                    widths = {name: getattr(found.content, name).shape[1] for name in ("actions", "proprio")}
                    first = first or (entry.name, widths)
                    self._check_widths(entry.name, widths, *first)
        if left_out := len(entries) - len(places):
            name = self.spec.standardise
            log.warning("%s: standardise %s leaves out %d of %d episodes", self.store.root, name, left_out, len(entries))
            if not places:
                raise DatasetError(f"{self.store.root}: standardise {name!r} leaves out every episode")
        self._labels, self._label_codes = list(labels), np.array(codes, np.int32)
        self._places, self._lengths = np.array(places, np.int64), np.array(lengths, np.int64)
        tasks = {task: code for code, task in enumerate(dict.fromkeys(task for _, task in labels))}
        task_codes = np.array([tasks[task] for _, task in labels], np.int32)[self._label_codes]
        indices = np.array([entries[place].index for place in places], np.int64)
        return Listing(indices, self._lengths, self._made, list(tasks), task_codes), problems, first and first[1]

    def _made(self, number: int) -> StoredEpisode:
        entry, (told, task) = self.store.entries[int(self._places[number])], self._labels[self._label_codes[number]]
        return StoredEpisode(entry.index, int(self._lengths[number]), told, task, entry)

    def _content(self, episode: StoredEpisode) -> Content:
        """The numbers of an episode.

        Raises:
            DatasetError: If they cannot be read any more, or have become others.
        """
        if not episode.length:
            return NOTHING
        if (content := self._contents.get(episode.index)) is None:
            try:
                content = self._numbers(episode.entry)[0]
            except VideoError as error:
                raise DatasetError(str(error)) from error
            if len(content.kept) != episode.length:
                raise DatasetError(f"{episode.entry.name} had {episode.length} rows and has {len(content.kept)}: open the dataset anew")
            self._contents.keep(episode.index, content, content.nbytes)
        return content

    def times(self, episode: StoredEpisode) -> Float64[np.ndarray, " rows"] | None:
        found = self.store.times(episode.entry, self.cameras[0].key)
        return None if found is None else found[self._content(episode).kept]

    def damage(self, episode: StoredEpisode) -> str | None:
        return self.store.problem(episode.entry, [camera.key for camera in self.cameras], True)

    def _decode(self, episode: StoredEpisode, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        content = self._content(episode)
        wanted, back = content.kept[rows], None
        if camera.key in content.pictures:
            wanted, back = np.unique(content.pictures[camera.key][wanted], return_inverse=True)
        frames = self.store.frames(episode.entry, camera.key, wanted, self._size)
        if camera.key in self._turned:
            frames = np.ascontiguousarray(frames[:, ::-1, ::-1])
        if camera.name in (self.spec.swap_colours or ()):
            frames = np.ascontiguousarray(frames[..., ::-1])
        return frames if back is None else frames[back]

    def _shown(self, episode: StoredEpisode, camera: Camera) -> list[Any]:
        content = self._content(episode)
        pictures = content.pictures.get(camera.key)
        wanted = content.kept if pictures is None else pictures[content.kept]
        rows = hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest()
        changes = [camera.key in self._turned, camera.name in (self.spec.swap_colours or ())]
        return [self.store.identity(episode.entry, camera.key), rows, changes]

    def _hash(self, files: Iterable[Path]) -> str:
        """With the description, on which everything that is read depends."""
        marks = self.store.marks()
        return hashlib.sha256(f"{super()._hash(files)} {self.spec}{f' {json.dumps(marks)}' if marks else ''}".encode()).hexdigest()

    def _files(self) -> tuple[list[Path], list[Path]]:
        return self.store.files([camera.key for camera in self.cameras])

    def _measured_steps(self, camera: Camera) -> int:
        """Control steps per row by the times of actions and pictures, in the first episode that has several."""
        for entry in readable(self.store):
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

    def _numbers(self, entry: Entry) -> tuple[Content, list[str] | None, bool]:
        """An entry's numbers, its sentences if a function gives them, and whether that leaves it out.

        Raises:
            DatasetError, VideoError: If they cannot be read.
        """
        cameras = self._cameras_read
        rows = Rows(self.store, entry, cameras[0].key)
        columns, kept, told = self._columns(entry, rows)
        pictures = {camera.key: own for camera in cameras[1:] if (own := rows.pictures(camera.key)) is not None}
        actions, proprio = (columns[name].astype(np.float32) for name in ("actions", "proprio"))
        actions = actions.reshape(len(actions) * self._steps, -1) if actions.size else actions
        return Content(kept, pictures, actions, proprio), told, bool(entry.rows) and not columns["keep"].any()

    def _read(self, entry: Entry, min_rows: int, verify: Opening) -> _Found:
        if entry.problem:
            return _Found(problem=entry.problem)
        try:
            content, told, left_out = self._numbers(entry)
            if told is None:
                told = list(dict.fromkeys(text for key in self._keys["instruction"] for text in self.store.texts(entry, key)))
            told = told or [""]
            named = self.spec.task or next(iter(self.store.defaults.get("task", ())), None)
            task = next(iter(self.store.texts(entry, named)), "") if named else ""
        except (DatasetError, VideoError) as error:
            return _Found(problem=str(error))
        if left_out:
            return _Found()
        return _Found(content, tuple(told), task or told[0], self._problem(entry, content, min_rows, verify))

    def _problem(self, entry: Entry, content: Content, min_rows: int, verify: Opening) -> str | None:
        """Why an episode whose numbers can be read cannot be used."""
        if len(content.kept) < min_rows:
            return f"it has {len(content.kept)} rows, fewer than {min_rows}"
        for name in ("actions", "proprio"):
            bad = ~np.isfinite(getattr(content, name).reshape(len(content.kept), -1))
            if bad.any():
                rows = np.flatnonzero(bad.any(axis=1))
                more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
                return f"{name} is NaN or infinite in row {rows[0]}{more}, dimension {int(np.flatnonzero(bad[rows[0]])[0])}"
        cameras = self._cameras_read
        for camera in cameras:
            try:
                size = self.store.size(entry, camera.key)
            except DatasetError as error:
                return self.store.problem(entry, [camera.key], False) or str(error)
            if not self._sized and size != (camera.height, camera.width):
                return (
                    f"its pictures of camera {camera.name} are {size[0]} x {size[1]} pixels, others {camera.height} x {camera.width}: "
                    "set height and width to resize all"
                )
        if verify == "meta":
            return None
        return self.store.problem(entry, [camera.key for camera in cameras], verify == "full")

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

    def _check_widths(self, name: str, widths: dict[str, int], first: str, others: dict[str, int]) -> None:
        for which, width in widths.items():
            if width != others[which]:
                raise DatasetError(f"{self.store.root}: {which} of {name} have {width} numbers, those of {first} {others[which]}")

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
