"""Brings the streams of an episode, which may have been taken at different times, to the times of its rows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int, Shaped

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.resample import Places, linear, time_places
from mimicvideo.data.rotations import Format, from_matrix, slerp, to_matrix
from mimicvideo.data.store import Entry, Store

Turn = tuple[list[int], Format]  # the places of a rotation's numbers in a row, and what they are


class Rows:
    """The rows of an entry: the pictures of its first camera.

    Args:
        store: The dataset.
        entry: One of its entries.
        camera: The key of that camera.

    Attributes:
        count: How many.

    Raises:
        DatasetError: If the camera's times cannot be read or do not ascend.
    """

    def __init__(self, store: Store, entry: Entry, camera: str) -> None:
        self._store, self._entry = store, entry
        self._times = self._ascending(camera)
        self.count = entry.rows if self._times is None else len(self._times)

    def numbers(
        self, key: str, values: Shaped[np.ndarray, "own ..."], steady: bool, steps: int = 1, turns: Sequence[Turn] = ()
    ) -> Float64[np.ndarray, "rows_times_steps ..."]:
        """A stream's values at the rows' times.

        Args:
            key: The stream.
            values: As stored.
            steady: Whether values between two stored ones lie between them; else the nearest is taken.
            steps: How many times from each row to the next, evenly; more than one only for streams with times.
            turns: Which of a row's numbers, laid out flat, are rotations, and their format: between two stored ones they turn evenly the
                short way, whereas the mean of two angles on both sides of pi would point the other way.

        Raises:
            DatasetError: If there are not as many values as times, or without times as rows, or a rotation is none.
        """
        values = np.asarray(values, np.float64)
        own = self._ascending(key)
        if own is None or self._times is None:
            if len(values) != self.count:
                raise DatasetError(f"{self._entry.name}: {key} has {len(values)} rows, its pictures {self.count}")
            return values
        if len(values) != len(own):
            raise DatasetError(f"{self._entry.name}: {key} has {len(values)} rows, but {len(own)} times")
        wanted = self._times if steps == 1 else self._between(steps)
        if np.array_equal(own, wanted):
            return values
        places = time_places(own, wanted)
        if not steady:
            return values[places.nearest]
        if values.shape[1:] in ((3, 3), (4, 4)):
            return self._poses(key, values, places)
        flat = values.reshape(len(values), -1)
        result = linear(flat, places)
        for dims, kind in turns:
            result[:, dims] = self._turning(key, flat[:, dims], places, kind)
        return result.reshape(len(wanted), *values.shape[1:])

    def rate(self, key: str) -> float | None:
        """How many values a stream has for each row; None if it or the rows have no times, or too few to tell."""
        own = self._ascending(key)
        if own is None or self._times is None or len(own) < 2 or self.count < 2:
            return None
        return float(np.median(np.diff(self._times)) / np.median(np.diff(own)))

    def pictures(self, key: str) -> Int[np.ndarray, " rows"] | None:
        """Which picture of another camera is nearest to each row; None if it was taken at the rows' times."""
        own = self._ascending(key)
        if own is None or self._times is None or np.array_equal(own, self._times):
            return None
        return time_places(own, self._times).nearest

    def _between(self, steps: int) -> Float64[np.ndarray, " rows_times_steps"]:
        """The rows' times and, evenly between them, those of further steps; the last row lasts as long as most."""
        assert self._times is not None
        lengths = np.diff(self._times)
        lengths = np.append(lengths, np.median(lengths) if len(lengths) else 0.0)
        return (self._times[:, None] + lengths[:, None] * np.arange(steps) / steps).reshape(-1)

    def _poses(self, key: str, values: Float64[np.ndarray, "own side side"], places: Places) -> Float64[np.ndarray, "rows side side"]:
        """Rotations, and poses as 4 x 4 matrices: the rotation turns evenly, the rest moves along lines."""
        result = linear(values.reshape(len(values), -1), places).reshape(len(places.low), *values.shape[1:])
        turned = self._turning(key, values[:, :3, :3].reshape(len(values), 9), places, "matrix")
        result[:, :3, :3] = turned.reshape(-1, 3, 3)
        return result

    def _turning(
        self, key: str, values: Float64[np.ndarray, "own width"], places: Places, kind: Format
    ) -> Float64[np.ndarray, "rows width"]:
        """Rotations at the rows' times; one that is met keeps its numbers."""
        try:
            matrices = to_matrix(values, kind)
        except ValueError as error:
            raise DatasetError(f"{self._entry.name}: {key}: {error}") from error
        following = np.minimum(places.low + 1, len(values) - 1)
        between = from_matrix(slerp(matrices[places.low], matrices[following], places.share), kind)
        return np.where(places.share[:, None] == 0, values[places.low], between)

    def _ascending(self, key: str) -> Float64[np.ndarray, " own"] | None:
        times = self._store.times(self._entry, key)
        if times is not None:
            try:
                time_places(times, np.zeros(0))
            except DatasetError as error:
                raise DatasetError(f"{self._entry.name}: {key}: {error}") from error
        return times
