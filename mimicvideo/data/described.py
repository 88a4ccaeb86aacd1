"""What a description says of a dataset, checked against what the dataset has: keys, cameras, rate and rotations."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import get_args

import numpy as np

from mimicvideo.data.align import Turn
from mimicvideo.data.episodes import Camera
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.layout import Vector, parse_layout
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.store import Entry, Store
from mimicvideo.messages import similar


def chosen_keys(store: Store, spec: DatasetSpec, name: str) -> list[str]:
    """The keys that the description gives for `proprio`, `actions` or `instruction`, or the format's custom.

    Raises:
        DatasetError: If the dataset lacks one.
    """
    given = getattr(spec, name)
    keys = list(store.defaults.get(name, ()) if given is None else given)
    there = store.text_keys if name == "instruction" else store.keys
    for key in keys:
        if key not in there:
            raise lacks(store, name, key, there)
    return keys


def lacks(store: Store, name: str, key: str, there: Iterable[str]) -> DatasetError:
    """What to raise where a description names a key that the dataset does not have."""
    return DatasetError(f"{store.root} has no {name} key {key!r}{similar(key, there)}; it has {', '.join(sorted(there)) or 'none'}")


def rows_per_second(store: Store, spec: DatasetSpec, camera: Camera) -> float:
    """The described rate, or the dataset's own one; the latter is measured where real times have jitter, so that it may be off.

    Raises:
        DatasetError: If there is none, or the two contradict each other.
    """
    described, own = spec.hz, _measured_hz(store, camera) or store.hz
    if described is None and own is None:
        raise DatasetError(f"{store.root} does not say how many rows a second has: give hz in its description")
    if described is not None and own is not None and abs(described - own) > own / 10:
        raise DatasetError(f"hz of the description is {described:g}, but {store.root} has {own:g} rows a second: remove hz, or correct it")
    return described or own or 0.0


def described_turns(store: Store, spec: DatasetSpec, keys: Mapping[str, Sequence[str]]) -> dict[str, list[Turn]]:
    """The rotations within each key's rows, by the description's `representation`; none where a function makes the vectors."""
    turns: dict[str, list[Turn]] = {}
    described = {} if spec.standardise or spec.representation is None else spec.representation
    for name in get_args(Vector):
        try:
            groups = parse_layout(described[name], name).groups
        except (ValueError, KeyError, TypeError):
            continue  # `View` says what is wrong with it, if numbers are wanted
        first = 0
        for key in keys[name]:
            width = int(np.prod(store.keys[key]))
            for group in groups:
                dims = [dim - first for dim in group.dims]
                if group.kind == "rotation" and group.source == name and min(dims) >= 0 and max(dims) < width:
                    turns.setdefault(key, []).append((dims, group.format))
            first += width
    return turns


def named_cameras(store: Store, spec: DatasetSpec) -> dict[str, Camera]:
    """The cameras of the description, or all that the dataset has, by name.

    Raises:
        DatasetError: If the dataset lacks one, or `swap_colours` names another.
    """
    sizes = store.cameras
    short = Counter(store.camera_name(key) for key in sizes)
    own = {name if short[name := store.camera_name(key)] == 1 else key: key for key in sizes}
    names = spec.cameras or own
    for name, key in names.items():
        if key not in sizes:
            raise DatasetError(f"{store.root} has no pictures {key!r} for camera {name!r}; it has {', '.join(sizes) or 'none'}")
    if unknown := [name for name in spec.swap_colours or () if name not in names]:
        raise DatasetError(f"swap_colours of {store.root} names no camera: {unknown[0]!r}; there are {', '.join(names)}")
    return {name: Camera(name, key, *sizes[key], store.views.get(key, {})) for name, key in names.items()}


def turned_cameras(store: Store, spec: DatasetSpec) -> set[str]:
    """Keys of the cameras whose pictures are turned. Raises DatasetError if `rotate_180` names another."""
    named = named_cameras(store, spec)
    for name in spec.rotate_180 or ():
        if name not in named:
            raise DatasetError(f"rotate_180 of {store.root} names no camera: {name!r}; it has {', '.join(named)}")
    return {named[name].key for name in spec.rotate_180 or ()}


def _measured_hz(store: Store, camera: Camera) -> float | None:
    """Rows per second by the times of the camera, in the first episode that has several; to three digits after the point."""
    for entry in readable(store):
        try:
            times = store.times(entry, camera.key)
        except DatasetError:
            continue  # it is told when the entry is read
        if times is not None and len(times) > 1 and (step := float(np.median(np.diff(times)))) > 0:
            return round(1 / step, 3)
    return None


def readable(store: Store) -> Iterator[Entry]:
    """The entries of which nothing bad is known."""
    return (entry for entry in store.entries if entry.problem is None)
