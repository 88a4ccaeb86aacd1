"""Members: the episodes of all sources that are trained or validated on, as columns; objects are made when they are asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.split import in_turns, validation_episodes


@dataclass(frozen=True)
class Member:
    """An episode of a list that is trained or validated on.

    Attributes:
        source: The dataset that it comes from.
        episode: Its place there.
        number: Its number over all sources; with one source, its index in the dataset.
        dataset: The name of its source.
    """

    source: Episodes
    episode: Episode
    number: int
    dataset: str


class Members(Sequence[Member]):
    """Episodes of several datasets in one list.

    Args:
        readers: The datasets by name.
        source: The dataset of each member, counted from 0.
        place: Its place in the dataset's `listed`.

    Attributes:
        lengths: Rows of each member.
        source: As given.
    """

    def __init__(self, readers: Mapping[str, Episodes], source: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"]) -> None:
        self.readers, self.source = dict(readers), np.asarray(source, np.int32)
        self._names, self._readers, self._place = list(readers), list(readers.values()), np.asarray(place, np.int64)
        offsets = np.cumsum([0, *(1 + int(reader.listed.indices.max(initial=0)) for reader in self._readers)])
        self.lengths, self._numbers = np.zeros(len(self.source), np.int64), np.zeros(len(self.source), np.int64)
        for number, reader in enumerate(self._readers):
            own = self.source == number
            self.lengths[own] = reader.listed.lengths[self._place[own]]
            self._numbers[own] = offsets[number] + reader.listed.indices[self._place[own]]

    @property
    def numbers(self) -> Int[np.ndarray, " n"]:
        """Their numbers over all sources."""
        return self._numbers

    @property
    def tasks(self) -> list[str]:
        """Their tasks' names."""
        tasks = [reader.listed.tasks for reader in self._readers]
        return [tasks[source][place] for source, place in zip(self.source.tolist(), self._place.tolist(), strict=True)]

    def take(self, places: Sequence[int] | Int[np.ndarray, " m"]) -> "Members":
        """Some of them, in this order."""
        chosen = np.asarray(places, np.int64)
        return Members(self.readers, self.source[chosen], self._place[chosen])

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> "Members": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        source = self.source[index]
        reader = self._readers[source]
        return Member(reader, reader.listed[int(self._place[index])], int(self._numbers[index]), self._names[source])

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Member]:
        return (self[number] for number in range(len(self)))


def held_out(reader: Episodes, split: Mapping[str, Any]) -> set[int]:
    """Indices of a dataset's episodes that validate, whether they can be used or not.

    Args:
        reader: The dataset.
        split: `fraction`, `count` and `seed` of `validation_episodes`.
    """
    listed = reader.listed
    return validation_episodes(listed.indices, listed.task_codes, listed.task_names, **split)


def divide(readers: Mapping[str, Episodes], split: Mapping[str, Any], skipped: Mapping[str, Iterable[int]]) -> tuple[Members, Members]:
    """The episodes that train, and those that validate with their tasks in turn.

    Args:
        readers: The datasets by name.
        split: What every dataset is divided by; see `held_out`.
        skipped: Indices of episodes to leave out, by dataset.
    """
    everything, validates = [], []
    for number, (name, reader) in enumerate(readers.items()):
        indices = reader.listed.indices
        usable = np.flatnonzero((reader.listed.lengths > 0) & ~np.isin(indices, list(skipped[name])))
        everything.append(np.stack([np.full(len(usable), number), usable]))
        validates.append(np.isin(indices[usable], list(held_out(reader, split))))
    members, held = Members(readers, *np.concatenate(everything, axis=1)), np.concatenate(validates)
    validating = members.take(np.flatnonzero(held))
    return members.take(np.flatnonzero(~held)), validating.take(in_turns(range(len(validating)), validating.tasks))
