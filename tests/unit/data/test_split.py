"""The split is fair to every task and depends on nothing but its arguments."""

from collections import Counter

import numpy as np
import pytest

from mimicvideo.data import split
from mimicvideo.data.split import in_turns

TASKS = [(index, task) for index, task in enumerate(["a"] * 50 + ["b"] * 30 + ["c"] * 20)]


def validation_episodes(tasks: list[tuple[int, str]], fraction: float, count: int | None, seed: int) -> set[int]:
    names, codes = np.unique([task for _, task in tasks], return_inverse=True)
    return split.validation_episodes(np.array([index for index, _ in tasks]), codes, names.tolist(), fraction, count, seed)


def by_task(chosen: set[int]) -> Counter[str]:
    return Counter(dict(TASKS)[index] for index in chosen)


def test_every_task_gives_its_share() -> None:
    assert by_task(validation_episodes(TASKS, 0.1, None, 0)) == {"a": 5, "b": 3, "c": 2}
    shares = by_task(validation_episodes(TASKS, 0.0, 7, 0))  # 3.5, 2.1 and 1.4 of 7
    assert shares == {"a": 4, "b": 2, "c": 1}


def test_the_same_arguments_give_the_same_episodes() -> None:
    first = validation_episodes(TASKS, 0.1, None, 3)
    assert first == validation_episodes(list(reversed(TASKS)), 0.1, None, 3)
    assert first != validation_episodes(TASKS, 0.1, None, 4)


def test_a_task_always_keeps_an_episode() -> None:
    few = [(0, "a"), (1, "b"), (2, "b"), (3, "c")]
    assert validation_episodes(few, 0.9, None, 0) in ({1}, {2})
    assert validation_episodes([(0, "a")], 0.5, None, 0) == set()
    with pytest.raises(ValueError, match="validation_episodes must lie in \\[0, 1\\], so that each of the 3 tasks keeps .* got 2"):
        validation_episodes(few, 0.0, 2, 0)


def test_none_and_few() -> None:
    assert validation_episodes(TASKS, 0.0, None, 0) == set() == validation_episodes(TASKS, 0.5, 0, 0)
    assert len(validation_episodes(TASKS, 0.001, None, 0)) == 1, "a share above zero is at least one episode"
    assert len({index for seed in range(200) for index in validation_episodes(TASKS, 0.01, 1, seed)}) > 40
    with pytest.raises(ValueError, match="validation_fraction must lie in \\[0, 1\\), got 1.0"):
        validation_episodes(TASKS, 1.0, None, 0)


def test_the_choice_is_that_of_the_first_versions() -> None:
    """Checkpoints of any age hold out the same episodes."""
    assert validation_episodes(TASKS, 0.1, None, 3) == {10, 11, 27, 28, 32, 50, 63, 75, 88, 93}


def test_as_many_tasks_as_a_large_dataset_has() -> None:
    many = [(index, f"task {index % 100_000}") for index in range(250_000)]
    chosen = validation_episodes(many, 0.1, None, 0)
    assert len(chosen) == 25_000 and len({index % 100_000 for index in chosen}) == 25_000


def test_groups_in_turn() -> None:
    assert in_turns([1, 2, 3, 4, 5, 6], ["a", "a", "a", "b", "c", "c"]) == [1, 4, 5, 2, 6, 3]
