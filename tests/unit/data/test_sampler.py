"""Orders are pure functions of the seed and the position, and visit what they promise to visit."""

import time
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest

from mimicvideo.data.sampler import BatchStream, ClipOrder, FixedBatches, Item, Permutation, WindowOrder, spread

ANCHORS = [100, 10, 40]
TASKS = ["a", "a", "b"]


def orders(seed: int) -> dict[str, ClipOrder | WindowOrder]:
    return {"clips": ClipOrder(ANCHORS, seed), "windows": WindowOrder(ANCHORS, seed), "balanced": WindowOrder(ANCHORS, seed, TASKS)}


@pytest.mark.parametrize("kind", ["clips", "windows", "balanced"])
def test_an_item_depends_on_seed_and_position_alone(kind: str) -> None:
    order = orders(0)[kind]
    items = [order[position] for position in range(1000)]
    assert [item.position for item in items] == list(range(1000))
    again = orders(0)[kind]
    assert [again[position] for position in (999, 3, 500, 151, 149)] == [items[position] for position in (999, 3, 500, 151, 149)]
    assert [orders(1)[kind][position][1:] for position in range(20)] != [item[1:] for item in items[:20]]


def test_clips_are_uniform_over_episodes_then_over_anchors() -> None:
    order = ClipOrder(ANCHORS, seed=0)
    drawn = [order[position] for position in range(12000)]
    counts = Counter(item.episode for item in drawn)
    assert all(abs(counts[episode] - 4000) < 250 for episode in range(3)), counts
    for episode, anchors in enumerate(ANCHORS):
        rows = Counter(item.row for item in drawn if item.episode == episode)
        expected = counts[episode] / anchors
        assert set(rows) == set(range(anchors))
        assert sum((count - expected) ** 2 / expected for count in rows.values()) < anchors + 5 * np.sqrt(2 * anchors)


def test_weights_of_clips() -> None:
    order = ClipOrder(ANCHORS, seed=0, weights=[1, 0, 3])
    counts = Counter(order[position].episode for position in range(4000))
    assert counts[1] == 0 and abs(counts[2] - 3000) < 150
    for wrong in ([1.0, 2.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0]):
        with pytest.raises(ValueError, match="weights must be one for each of 3 episodes"):
            ClipOrder(ANCHORS, 0, wrong)


def test_every_window_comes_once_per_epoch_in_a_new_order() -> None:
    order, total = WindowOrder(ANCHORS, seed=0), sum(ANCHORS)
    everything = {(episode, row) for episode, anchors in enumerate(ANCHORS) for row in range(anchors)}
    epochs = [[order[position][1:] for position in range(epoch * total, (epoch + 1) * total)] for epoch in range(3)]
    assert all(set(epoch) == everything and len(epoch) == total for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_tasks_in_turn() -> None:
    order = WindowOrder(ANCHORS, seed=0, groups=TASKS)
    drawn = [order[position][1:] for position in range(2 * 110 * 2)]
    for turn in range(0, len(drawn), 2):
        assert {TASKS[episode] for episode, _ in drawn[turn : turn + 2]} == {"a", "b"}
    counts = Counter(drawn)
    assert {counts[0, row] for row in range(100)} == {2} and {counts[1, row] for row in range(10)} == {2}
    assert {counts[2, row] for row in range(40)} == {5, 6}, "220 turns of 40 windows"


@pytest.mark.parametrize("kind", ["clips", "windows", "balanced"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch(kind: str, ranks: int) -> None:
    whole = list(islice(BatchStream(orders(0)[kind], 4 * ranks), 5))
    parts = [list(islice(BatchStream(orders(0)[kind], 4, rank, ranks), 5)) for rank in range(ranks)]
    assert [list(chain(*(part[number] for part in parts))) for number in range(5)] == whole


def test_a_stream_starts_where_it_is_told_and_asks_each_time() -> None:
    order, consumed = WindowOrder([3, 2], seed=0), [0]
    stream = BatchStream(order, batch_size=4, start=lambda: 4 * consumed[0])
    batches = list(islice(stream, 30))
    assert [item.position for batch in batches for item in batch] == list(range(120))
    epochs = Counter(item[1:] for batch in batches for item in batch)
    assert set(epochs.values()) == {24}, "120 samples of 5 windows in batches of 4 that cross the epochs' borders"
    consumed[0] = 7
    iterator = iter(stream)
    consumed[0] = 0
    assert list(islice(iterator, 3)) == batches[7:10], "asked when the iterator was made"
    with pytest.raises(TypeError, match="set trainer.max_steps"):
        len(stream)


def test_nothing_to_train_on() -> None:
    for wrong in ([], [3, 0]):
        with pytest.raises(ValueError, match="nothing to train on"):
            WindowOrder(wrong, 0)


def test_fixed_batches_give_ranks_the_same_number() -> None:
    items = [Item(number, 0, number) for number in range(7)]
    parts = [list(FixedBatches(items, 2, rank, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2] == [len(FixedBatches(items, 2, rank, 2)) for rank in range(2)]
    assert [item.row for batch in parts[0] for item in batch] == [0, 2, 4, 6]
    assert [item.row for batch in parts[1] for item in batch] == [1, 3, 5, 0]


def test_spread_visits_every_episode_evenly() -> None:
    items = spread([5, 6, 7], [100, 2, 50], 9)
    assert [item.position for item in items] == list(range(9))
    assert [item.episode for item in items[:3]] == [5, 6, 7]
    rows = {episode: [item.row for item in items if item.episode == episode] for episode in (5, 6, 7)}
    assert rows == {5: [12, 37, 62, 87], 6: [0, 1], 7: [8, 25, 41]}
    assert len(spread([0], [3], 10)) == 3, "there are no more"
    assert spread([], [], 4) == []


# ---- large datasets -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 257, 5000])
def test_a_permutation_without_a_table_is_one(size: int) -> None:
    first, second = (Permutation(size, [0, key]) for key in (1, 2))
    assert sorted(map(first, range(size))) == list(range(size))
    if size > 16:
        assert list(map(first, range(size))) != list(map(second, range(size)))


def test_a_permutation_without_a_table_looks_random() -> None:
    size, bins, keys = 1000, 10, 200
    counts = np.zeros((bins, bins))  # where the first and last tenths of the places are sent, over many keys
    for key in range(keys):
        permutation = Permutation(size, [key])
        for place in range(0, size, 5):
            counts[place * bins // size, permutation(place) * bins // size] += 1
    expected = keys * size / 5 / bins**2
    assert ((counts - expected) ** 2 / expected).sum() < 81 + 5 * np.sqrt(2 * 81)
    permutation = [Permutation(size, [7])(place) for place in range(size)]
    assert abs(np.corrcoef(permutation[:-1], permutation[1:])[0, 1]) < 0.12, "neighbours are not sent to neighbours"


def test_large_datasets_are_shuffled_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimicvideo.data.sampler.LARGEST_TABLE", 100)
    order, total = WindowOrder(ANCHORS, seed=0), sum(ANCHORS)
    everything = {(episode, row) for episode, anchors in enumerate(ANCHORS) for row in range(anchors)}
    epochs = [[order[position][1:] for position in range(epoch * total, (epoch + 1) * total)] for epoch in range(2)]
    assert all(set(epoch) == everything and len(epoch) == total for epoch in epochs) and epochs[0] != epochs[1]
    again = WindowOrder(ANCHORS, seed=0)
    assert [again[position][1:] for position in (200, 3)] == [epochs[1][50], epochs[0][3]]


@pytest.mark.parametrize("exhaustive", [True, False])
def test_an_index_of_many_episodes_is_uniform_and_ranks_do_not_overlap(exhaustive: bool) -> None:
    lengths = np.random.default_rng(0).integers(50, 151, 50_000)
    started = time.process_time()
    order = WindowOrder(lengths, 0) if exhaustive else ClipOrder(lengths, 0, lengths)
    parts = [list(chain(*islice(BatchStream(order, 64, rank, 4), 40))) for rank in range(4)]
    assert time.process_time() - started < 10
    positions = [item.position for part in parts for item in part]
    assert sorted(positions) == list(range(4 * 64 * 40))
    items = [item for part in parts for item in part]
    assert all(0 <= item.row < lengths[item.episode] for item in items)
    if exhaustive:
        assert len({item[1:] for item in items}) == len(items), "no window twice in an epoch"
    counts = np.bincount([item.episode * 20 // len(lengths) for item in items], minlength=20)
    shares = np.add.reduceat(lengths, np.arange(0, len(lengths), len(lengths) // 20)) / lengths.sum() * len(items)
    assert ((counts - shares) ** 2 / shares).sum() < 19 + 5 * np.sqrt(2 * 19)
