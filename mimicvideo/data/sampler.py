"""An endless stream of batches, each a pure function of the seed and its number: training resumes anywhere, on any rank."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import DistributedSampler

from mimicvideo.data.window import EVERY_ROW, Anchors

LARGEST_TABLE = 2**22  # windows whose shuffle is a table, 32 MB
Counts = Sequence[int] | Int[np.ndarray, " episodes"]


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
    """With replacement: an episode is drawn uniformly (or by weight), then one of its anchors uniformly (paper, stage 1).

    Args:
        anchors: How many anchors each episode has.
        seed: Of all draws.
        weights: Relative probability of each episode; uniform if None.
        where: At which rows the anchors lie.
    """

    def __init__(self, anchors: Counts, seed: int, weights: Sequence[float] | np.ndarray | None = None, where: Anchors = EVERY_ROW) -> None:
        self._anchors, self._seed, self._where = _checked(anchors), seed, where
        weights = np.ones(len(anchors)) if weights is None else np.asarray(weights, np.float64)
        if len(weights) != len(anchors) or not (weights.min() >= 0 and 0 < weights.sum() < np.inf):
            raise ValueError(f"weights must be one for each of {len(anchors)} episodes, not negative and not all zero, got {weights}")
        self._cumulative = np.cumsum(weights) / np.sum(weights)

    def __getitem__(self, position: int) -> Item:
        random = np.random.default_rng([self._seed, position])
        episode = min(int(np.searchsorted(self._cumulative, random.random(), side="right")), len(self._anchors) - 1)
        return Item(position, episode, self._where.row(int(random.integers(self._anchors[episode]))))


class WindowOrder(Order):
    """Exhaustive: every window of every episode once per epoch, shuffled anew in each; no border between epochs.

    Args:
        windows: How many windows each episode has: its rows in stage 2.
        seed: Of all shuffles.
        groups: The task of each episode, to visit the tasks in turn: each round visits every task once, in an order of its own, and the
            windows of a task come once per epoch of that task. None for one group.
        where: At which rows their anchors lie.
    """

    def __init__(self, windows: Counts, seed: int, groups: Sequence[str] | None = None, where: Anchors = EVERY_ROW) -> None:
        windows = _checked(windows)
        codes = np.zeros(len(windows), np.int64) if groups is None else np.unique(list(groups), return_inverse=True)[1]
        self._members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        self._ends = [np.cumsum(windows[episodes]) for episodes in self._members]
        self._seed, self._where = seed, where
        self._tabled = int(windows.sum()) <= LARGEST_TABLE
        self._shuffled: dict[int, tuple[int, Callable[[int], int]]] = {}  # group: (epoch, its permutation)

    def __getitem__(self, position: int) -> Item:
        turn, place = divmod(position, len(self._members))
        group = int(np.random.default_rng([self._seed, 1, turn]).permutation(len(self._members))[place]) if len(self._members) > 1 else 0
        ends = self._ends[group]
        epoch, index = divmod(turn, int(ends[-1]))
        if self._shuffled.get(group, (-1,))[0] != epoch:
            key, size = [self._seed, 0, group, epoch], int(ends[-1])
            table = np.random.default_rng(key).permutation(size).__getitem__ if self._tabled else Permutation(size, key)
            self._shuffled[group] = (epoch, table)
        window = int(self._shuffled[group][1](index))
        member = int(np.searchsorted(ends, window, side="right"))
        first = int(ends[member - 1]) if member else 0
        return Item(position, int(self._members[group][member]), self._where.row(window - first))


class Permutation:
    """A pseudo-random permutation of 0 ... size - 1 without a table: a Feistel network whose values beyond the size are sent round again.

    A table of 10^8 windows would take 800 MB in every process and seconds in every epoch.

    Args:
        size: Of the set.
        key: Numbers that choose the permutation.
    """

    ROUNDS = 8

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self._size = size
        bits = max(2, (size - 1).bit_length())  # fewer than 2 * size values, so that less than two goes are needed on average
        self._halves = (bits // 2, bits - bits // 2)
        self._keys = [int(word) for word in np.random.SeedSequence(list(key)).generate_state(self.ROUNDS, np.uint64)]

    def __call__(self, index: int) -> int:
        value = int(index)
        while True:
            value = self._once(value)
            if value < self._size:
                return value

    def _once(self, value: int) -> int:
        low, high = self._halves  # bits of the right and of the left part; they change places in every round
        left, right = value >> low, value & ((1 << low) - 1)
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & ((1 << high) - 1))
            low, high = high, low
        return (left << low) | right


def _mixed(value: int) -> int:
    """64 bits stirred: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


class BatchStream(DistributedSampler):
    """Batches of one rank: of each next `batch_size * ranks` positions, rank r takes the r-th part.

    The order of positions is that of the whole training, whatever the ranks: a training that goes on with other ranks or batches loses
    nothing and repeats nothing. It is a DistributedSampler so that Lightning puts none of its own in its place; it has no length, for
    it does not end.

    Args:
        order: What stands where.
        batch_size: Samples of one rank.
        rank: Which part it takes.
        ranks: How many there are.
        start: How many positions are behind; asked whenever an iterator is made.
    """

    def __init__(self, order: Order, batch_size: int, rank: int = 0, ranks: int = 1, start: Callable[[], int] = lambda: 0) -> None:
        self._order, self._batch_size, self._start = order, batch_size, start
        self.rank, self.num_replicas = rank, ranks

    def __iter__(self) -> Iterator[list[Item]]:
        return self._batches(self._start())  # asked now, not when the first batch is

    def _batches(self, start: int) -> Iterator[list[Item]]:
        first = start + self.rank * self._batch_size
        while True:
            yield [self._order[position] for position in range(first, first + self._batch_size)]
            first += self.num_replicas * self._batch_size

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


def spread(episodes: Counts, anchors: Counts, count: int, where: Anchors = EVERY_ROW) -> list[Item]:
    """`count` fixed items, the same number (or one less) from each episode, evenly spaced in it; fewer if there are not as many.

    Neighbours in the list come from different episodes, so that every batch shows many.

    Args:
        episodes: Which episodes.
        anchors: How many anchors each has.
        count: How many items.
        where: At which rows they lie.
    """
    shares, anchors = [0] * len(episodes), [int(number) for number in anchors]
    remaining = min(count, sum(anchors))
    while remaining:
        for number, share in enumerate(shares):
            if remaining and share < anchors[number]:
                shares[number] += 1
                remaining -= 1
    chosen = [
        (number, place, (2 * number + 1) * anchors[place] // (2 * share)) for place, share in enumerate(shares) for number in range(share)
    ]
    return [Item(position, int(episodes[place]), where.row(row)) for position, (_, place, row) in enumerate(sorted(chosen))]


def _checked(counts: Counts) -> Int[np.ndarray, " episodes"]:
    counts = np.asarray(counts, np.int64)
    if not len(counts) or counts.min() < 1:
        raise ValueError("there is nothing to train on: no episode, or one without a row")
    return counts
