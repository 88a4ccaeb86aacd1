"""Which episodes validate: a fair share of every task, the same in both stages and after every restart."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def validation_episodes(tasks: Sequence[tuple[int, str]], fraction: float, count: int | None, seed: int) -> set[int]:
    """Chooses episodes, task by task in proportion, leaving each task at least one to train on.

    The choice depends on nothing but the arguments: not on which episodes turn out to be bad, and on no random number generator.

    Args:
        tasks: Index and task of all episodes of a dataset.
        fraction: Share of the episodes, in [0, 1); above zero it is at least one episode.
        count: How many instead, if not None.
        seed: Another seed, another choice.

    Raises:
        ValueError: If the share is out of range or the count leaves a task without an episode.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must lie in [0, 1), got {fraction}")
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, task in tasks:
        by_task[task].append(index)
    most = len(tasks) - len(by_task)
    if count is not None and not 0 <= count <= most:
        raise ValueError(
            f"validation_episodes must lie in [0, {most}], so that each of the {len(by_task)} tasks keeps an episode to train on, "
            f"got {count}"
        )
    total = count if count is not None else min(most, max(1, round(fraction * len(tasks)))) if fraction else 0
    quotas = {task: total * len(members) / len(tasks) for task, members in by_task.items()}
    chosen = {task: min(int(quotas[task]), len(members) - 1) for task, members in by_task.items()}
    # Largest remainders; among equals the seed decides.
    order = sorted(by_task, key=lambda task: (int(quotas[task]) - quotas[task], _rank(seed, task)))
    while sum(chosen.values()) < total:
        for task in order:
            if chosen[task] < len(by_task[task]) - 1 and sum(chosen.values()) < total:
                chosen[task] += 1
    return {
        index
        for task, members in by_task.items()
        for index in sorted(members, key=lambda index: _rank(seed, f"{task}/{index}"))[: chosen[task]]
    }


def in_turns(items: Sequence[Any], groups: Sequence[str]) -> list[Any]:
    """The items with their groups in turn, so that the first few come from as many groups as there are."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for place, group in enumerate(groups):
        turns.append((seen[group], place))
        seen[group] += 1
    return [items[place] for _, place in sorted(turns)]


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
