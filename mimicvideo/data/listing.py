"""Listing: a dataset's episodes as columns of indices, lengths and tasks, each episode built when it is asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Int


class Listing(Sequence[Any]):
    """Episodes in a row. A million of them are a few arrays.

    Args:
        indices: Their numbers in the dataset.
        lengths: Their rows.
        build: Makes the one at a place of these columns.
        task_names: Names of tasks.
        task_codes: Which of these each episode has.
    """

    def __init__(
        self,
        indices: Int[np.ndarray, " n"],
        lengths: Int[np.ndarray, " n"],
        build: Callable[[int], Any],
        task_names: Sequence[str],
        task_codes: Int[np.ndarray, " n"],
        places: Int[np.ndarray, " m"] | None = None,
    ) -> None:
        self._indices, self._lengths, self._build = np.asarray(indices, np.int64), np.asarray(lengths, np.int64), build
        self.task_names, self._codes = list(task_names), np.asarray(task_codes, np.int32)
        self._places = np.arange(len(self._indices)) if places is None else np.asarray(places, np.int64)

    @classmethod
    def of(cls, episodes: Sequence[Any]) -> "Listing":
        """Of episodes that are there already."""
        names = {name: code for code, name in enumerate(dict.fromkeys(episode.task for episode in episodes))}
        columns = [(episode.index, episode.length, names[episode.task]) for episode in episodes]
        indices, lengths, codes = np.array(columns, np.int64).reshape(-1, 3).T
        return cls(indices, lengths, list(episodes).__getitem__, list(names), codes)

    @property
    def indices(self) -> Int[np.ndarray, " m"]:
        """Numbers in the dataset."""
        return self._indices[self._places]

    @property
    def lengths(self) -> Int[np.ndarray, " m"]:
        """Rows."""
        return self._lengths[self._places]

    @property
    def task_codes(self) -> Int[np.ndarray, " m"]:
        """Places in `task_names`."""
        return self._codes[self._places]

    @property
    def tasks(self) -> list[str]:
        """Their tasks' names."""
        return [self.task_names[code] for code in self.task_codes.tolist()]

    def take(self, places: Int[np.ndarray, " k"]) -> "Listing":
        """Some of them, in this order."""
        return Listing(self._indices, self._lengths, self._build, self.task_names, self._codes, self._places[places])

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> "Listing": ...
    def __getitem__(self, index: Any) -> Any:
        return self.take(np.arange(len(self))[index]) if isinstance(index, slice) else self._build(int(self._places[index]))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Any]:
        return (self._build(place) for place in self._places.tolist())
