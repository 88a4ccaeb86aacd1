"""Which episodes validate: a fair share of every task, the same in both stages and after every restart."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

import numpy as np
from jaxtyping import Int


def validation_episodes(
    indices: Int[np.ndarray, " episodes"],
    codes: Int[np.ndarray, " episodes"],
    tasks: Sequence[str],
    fraction: float,
    count: int | None,
    seed: int,
) -> set[int]:
    """Chooses episodes, task by task in proportion, leaving each task at least one to train on.

    The choice depends on nothing but the arguments: not on the order of episodes or tasks, not on which episodes turn out to be bad, and
    on no random number generator.

    Args:
        indices: Of all episodes of a dataset.
        codes: Which of the tasks each has.
        tasks: Their different names.
        fraction: Share of the episodes, in [0, 1); above zero it is at least one episode.
        count: How many instead, if not None.
        seed: Another seed, another choice.

    Raises:
        ValueError: If the share is out of range or the count leaves a task without an episode.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction must lie in [0, 1), got {fraction}")
    sizes = np.bincount(codes, minlength=len(tasks))
    most = len(indices) - int((sizes > 0).sum())
    if count is not None and not 0 <= count <= most:
        raise ValueError(
            f"validation_episodes must lie in [0, {most}], so that each of the {(sizes > 0).sum()} tasks keeps an episode to train on, "
            f"got {count}"
        )
    total = count if count is not None else min(most, max(1, round(fraction * len(indices)))) if fraction else 0
    if not total:
        return set()
    quotas = total * sizes / len(indices)
    room = np.maximum(sizes - 1, 0)
    chosen = np.minimum(quotas.astype(np.int64), room)
    # Largest remainders; among equals the seed decides.
    remainders = np.floor(quotas) - quotas
    open_tasks = sorted(np.flatnonzero(chosen < room).tolist(), key=lambda code: (remainders[code], _rank(seed, tasks[code])))
    order = np.array(open_tasks, np.int64)
    while (missing := total - int(chosen.sum())) > 0:
        order = order[chosen[order] < room[order]]
        chosen[order[:missing]] += 1
    members = np.split(np.asarray(indices)[np.argsort(codes, kind="stable")], np.cumsum(sizes)[:-1])
    return {
        index
        for code in np.flatnonzero(chosen).tolist()
        for index in nsmallest(int(chosen[code]), members[code].tolist(), key=lambda index: _rank(seed, f"{tasks[code]}/{index}"))
    }


def in_turns(items: Sequence[Any], groups: Sequence[str]) -> list[Any]:
    """The items with their groups in turn, so that the first few come from as many groups as there are."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for place, group in enumerate(groups):
        turns.append((seen[group], place))
        seen[group] += 1
    return [items[place] for _, place in sorted(turns)]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
