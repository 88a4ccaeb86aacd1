"""StoredEpisodes: a dataset of any format and its description become episodes."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.episodes import Camera, Episode, Episodes, choose_cameras
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.scan import Verify
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
        actions: Float32[rows, action_dim].
        proprio: Float32[rows, proprio_dim].
    """

    entry: Entry
    kept: np.ndarray = field(repr=False, compare=False)
    actions: np.ndarray = field(repr=False, compare=False)
    proprio: np.ndarray = field(repr=False, compare=False)


class StoredEpisodes(Episodes):
    """Reads all numbers at once and pictures when they are asked for.

    Args:
        store: The dataset as it lies on disk.
        spec: Its description.
        cameras: Names in the description, or keys, from left to right; may be left out if there is one only.
        min_rows: Rows that an episode needs at least.
        verify: `quick` looks at headers, `full` decodes every picture.
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
        verify: Verify = "quick",
        **kwargs: Any,
    ) -> None:
        self.store, self.spec = store, spec
        self._standard = find(spec.standardise) if spec.standardise else None
        self._keys = {name: self._chosen(name) for name in ("proprio", "actions", "instruction")}
        chosen = choose_cameras(store.root, self._named_cameras(), cameras)
        hz = spec.hz or store.hz
        if hz is None:
            raise DatasetError(f"{store.root} does not say how many rows a second has: give hz in its description")
        listed, problems = [], {}
        with ThreadPoolExecutor(4) as pool:
            for episode, problem in pool.map(lambda entry: self._read(entry, chosen, max(1, min_rows), verify == "full"), store.entries):
                listed.append(episode)
                if problem:
                    problems[episode.index] = problem
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
            control_hz=hz,
            stride=1,
            proprio_names=self._names("proprio_names", "state", widths[0]),
            action_names=self._names("action_names", "action", widths[1]),
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
        return self.store.frames(episode.entry, camera.key, episode.kept[rows], self._size)

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

    def _named_cameras(self) -> dict[str, Camera]:
        sizes = self.store.cameras
        names = self.spec.cameras or {key.rsplit("/", 1)[-1]: key for key in sizes}
        for name, key in names.items():
            if key not in sizes:
                raise DatasetError(f"{self.store.root} has no pictures {key!r} for camera {name!r}; it has {', '.join(sizes) or 'none'}")
        return {name: Camera(name, key, *sizes[key], {}) for name, key in names.items()}

    def _read(self, entry: Entry, cameras: Sequence[Camera], min_rows: int, full: bool) -> tuple[StoredEpisode, str | None]:
        """An episode, and why it cannot be used; then it is empty."""
        nothing = np.zeros((0, 0), np.float32)
        empty = StoredEpisode(entry.index, 0, ("",), "", entry, np.zeros(0, np.int64), nothing, nothing)
        try:
            columns, kept = self._columns(entry)
            told = list(dict.fromkeys(text for key in self._keys["instruction"] for text in self.store.texts(entry, key))) or [""]
            task = next(iter(self.store.texts(entry, self.spec.task)), "") if self.spec.task else ""
        except (DatasetError, VideoError) as error:
            return empty, str(error)
        numbers = [columns[name].astype(np.float32) for name in ("actions", "proprio")]
        episode = StoredEpisode(entry.index, len(kept), tuple(told), task or told[0], entry, kept, *numbers)
        if len(kept) < min_rows:
            return episode, f"it has {len(kept)} rows, fewer than {min_rows}"
        for name in ("actions", "proprio"):
            bad = ~np.isfinite(columns[name])
            if bad.any():
                rows = np.flatnonzero(bad.any(axis=1))
                more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
                return episode, f"{name} is NaN or infinite in row {rows[0]}{more}, dimension {int(np.flatnonzero(bad[rows[0]])[0])}"
        return episode, self.store.problem(entry, [camera.key for camera in cameras], full)

    def _columns(self, entry: Entry) -> tuple[Columns, Int[np.ndarray, " rows"]]:
        """Standard `proprio` and `actions` of an entry, and its rows that stay."""
        named = list(dict.fromkeys([*self._keys["proprio"], *self._keys["actions"]]))
        extra = [key for key in self._wanted_by_standard() if key not in named]
        raw = self.store.numbers(entry, [*named, *extra])
        for key, values in raw.items():
            if len(values) != entry.rows:
                raise DatasetError(f"{entry.name}: {key} has {len(values)} rows, its pictures {entry.rows}")
        columns: Columns = {key: np.asarray(values, np.float64) for key, values in raw.items()}
        for name in ("proprio", "actions"):
            parts = [columns[key].reshape(entry.rows, -1) for key in self._keys[name]]
            columns[name] = np.concatenate(parts, axis=1) if parts else np.zeros((entry.rows, 0))
        if self._standard is not None:
            columns = self._standard(columns)
        kept = np.flatnonzero(columns.get("keep", np.ones(entry.rows, bool)))
        kept = kept[(kept >= self.spec.drop_first) & (kept < entry.rows - self.spec.drop_last)]
        return {name: columns[name][kept] for name in ("proprio", "actions")}, kept

    def _wanted_by_standard(self) -> Sequence[str]:
        """Keys that a standardisation function asks for; see `standards.needs`."""
        if self._standard is None:
            return ()
        wanted = needed(self._standard)
        for key in wanted:
            if key not in self.store.keys:
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
        names = getattr(self.spec, which)
        if names is None:
            return [f"{prefix}_{number}" for number in range(width)]
        if len(names) != width:
            raise DatasetError(f"{which} of {self.store.root} has {len(names)} names for {width} numbers")
        return names
