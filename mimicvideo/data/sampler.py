"""An endless stream of batches, each a pure function of the seed and its number: training resumes anywhere, on any rank."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler


class Item(NamedTuple):
    """One sample: its number in the whole training, and the episode (a place in the training list) and anchor row that it shows."""

    position: int
    episode: int
    row: int


class Order(ABC):
    """Which sample stands at which position, for all positions from 0 on."""

    @abstractmethod
    def __getitem__(self, position: int) -> Item: ...


class ClipOrder(Order):
    """Stage 1: an episode is drawn uniformly (or by weight), then one of its anchors uniformly (paper, stage 1).

    Args:
        anchors: How many anchors each episode has.
        seed: Of all draws.
        weights: Relative probability of each episode; uniform if None.
    """

    def __init__(self, anchors: Sequence[int], seed: int, weights: Sequence[float] | None = None) -> None:
        self._anchors, self._seed = _checked(anchors), seed
        weights = [1.0] * len(anchors) if weights is None else weights
        if len(weights) != len(anchors) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights must be one for each of {len(anchors)} episodes, not negative and not all zero, got {list(weights)}")
        self._cumulative = np.cumsum(weights) / np.sum(weights)

    def __getitem__(self, position: int) -> Item:
        random = np.random.default_rng([self._seed, position])
        episode = min(int(np.searchsorted(self._cumulative, random.random(), side="right")), len(self._anchors) - 1)
        return Item(position, episode, int(random.integers(self._anchors[episode])))


class WindowOrder(Order):
    """Stage 2: every window of every episode once per epoch, shuffled anew in each; no border between epochs.

    Args:
        windows: How many windows each episode has: its rows.
        seed: Of all shuffles.
        groups: The task of each episode, to visit the tasks in turn: each round visits every task once, in an order of its own, and the
            windows of a task come once per epoch of that task. None for one group.
    """

    def __init__(self, windows: Sequence[int], seed: int, groups: Sequence[str] | None = None) -> None:
        windows = _checked(windows)
        members: dict[str, list[int]] = defaultdict(list)
        for episode, group in enumerate(groups if groups is not None else [""] * len(windows)):
            members[group].append(episode)
        self._seed = seed
        self._members = [np.array(members[group]) for group in sorted(members)]
        self._ends = [np.cumsum([windows[episode] for episode in episodes]) for episodes in self._members]
        self._shuffled: dict[int, tuple[int, np.ndarray]] = {}  # group: (epoch, its permutation)

    def __getitem__(self, position: int) -> Item:
        turn, place = divmod(position, len(self._members))
        group = int(np.random.default_rng([self._seed, 1, turn]).permutation(len(self._members))[place]) if len(self._members) > 1 else 0
        ends = self._ends[group]
        epoch, index = divmod(turn, int(ends[-1]))
        if self._shuffled.get(group, (-1,))[0] != epoch:
            self._shuffled[group] = (epoch, np.random.default_rng([self._seed, 0, group, epoch]).permutation(int(ends[-1])))
        window = int(self._shuffled[group][1][index])
        member = int(np.searchsorted(ends, window, side="right"))
        return Item(position, int(self._members[group][member]), window - (int(ends[member - 1]) if member else 0))


class BatchStream(DistributedSampler):
    """Batches of one rank: of the b-th batch of `batch_size * ranks` positions, rank r takes the r-th part.

    It is a DistributedSampler so that Lightning puts none of its own in its place; it has no length, for it does not end.

    Args:
        order: What stands where.
        batch_size: Samples of one rank.
        rank: Which part it takes.
        ranks: How many there are.
        consumed: How many batches are behind; asked whenever an iterator is made.
    """

    def __init__(self, order: Order, batch_size: int, rank: int = 0, ranks: int = 1, consumed: Callable[[], int] = lambda: 0) -> None:
        self._order, self._batch_size, self._consumed = order, batch_size, consumed
        self.rank, self.num_replicas = rank, ranks

    def __iter__(self) -> Iterator[list[Item]]:
        return self._batches(self._consumed())  # asked now, not when the first batch is

    def _batches(self, number: int) -> Iterator[list[Item]]:
        while True:
            first = (number * self.num_replicas + self.rank) * self._batch_size
            yield [self._order[position] for position in range(first, first + self._batch_size)]
            number += 1

    def __len__(self) -> int:
        raise TypeError("the stream of training batches does not end: set trainer.max_steps")


class FixedBatches(DistributedSampler):
    """A finite list of items in batches, split evenly over ranks; the last items repeat where they do not divide."""

    def __init__(self, items: Sequence[Item], batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        missing = -len(items) % ranks
        own = [*items, *(items[number % len(items)] for number in range(missing))][rank::ranks] if items else []
        self._batches = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self.rank, self.num_replicas = rank, ranks

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def spread(episodes: Sequence[int], anchors: Sequence[int], count: int) -> list[Item]:
    """`count` fixed items, the same number (or one less) from each episode, evenly spaced in it; fewer if there are not as many.

    Neighbours in the list come from different episodes, so that every batch shows many.

    Args:
        episodes: Which episodes.
        anchors: How many anchors each has.
        count: How many items.
    """
    shares = [0] * len(episodes)
    remaining = min(count, sum(anchors))
    while remaining:
        for number, share in enumerate(shares):
            if remaining and share < anchors[number]:
                shares[number] += 1
                remaining -= 1
    chosen = [
        (number, place, (2 * number + 1) * anchors[place] // (2 * share)) for place, share in enumerate(shares) for number in range(share)
    ]
    return [Item(position, episodes[place], row) for position, (_, place, row) in enumerate(sorted(chosen))]


def _checked(counts: Sequence[int]) -> list[int]:
    counts = [int(count) for count in counts]
    if not counts or min(counts) < 1:
        raise ValueError("there is nothing to train on: no episode, or one without a row")
    return counts
