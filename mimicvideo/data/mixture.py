"""How likely each dataset of a mixture is, what that means for each of its episodes, and a table of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int

from mimicvideo.data.members import Members

WeightBy = Literal["dataset", "episodes", "frames", "temperature"]


@dataclass(frozen=True)
class Share:
    """What a mixture takes from one dataset.

    Attributes:
        name: Of the dataset.
        episodes: That train.
        frames: Rows of these.
        weight: As configured.
        probability: Of a sample to come from it.
        skipped: Episodes that are not used because of a fault.
        quarantined: Episodes that are not used because they are on a quarantine list.
    """

    name: str
    episodes: int
    frames: int
    weight: float
    probability: float
    skipped: int = 0
    quarantined: int = 0


def probabilities(
    weights: Sequence[float],
    episodes: Sequence[int] | np.ndarray,
    frames: Sequence[int] | np.ndarray,
    weight_by: WeightBy,
    temperature: float = 1.0,
) -> Float64[np.ndarray, " sources"]:
    """Of a sample to come from each dataset: its weight times a size, divided by the sum over all.

    Args:
        weights: As configured.
        episodes: How many each has.
        frames: How many each has.
        weight_by: The size: 1 for `dataset`, `episodes`, `frames`, or frames^(1 / temperature) for `temperature`.
        temperature: 1 is `frames`; the larger, the more equal datasets are.

    Raises:
        ValueError: If every dataset with a weight is empty.
    """
    sizes = {
        "dataset": np.minimum(episodes, 1),
        "episodes": np.asarray(episodes),
        "frames": np.asarray(frames),
        "temperature": np.asarray(frames, np.float64) ** (1 / temperature),
    }[weight_by]
    masses = np.asarray(weights, np.float64) * sizes
    if not masses.sum() > 0:
        raise ValueError("no source with a weight has an episode to train on")
    return masses / masses.sum()


def episode_weights(
    probability: Float64[np.ndarray, " sources"],
    source: Int[np.ndarray, " episodes"],
    within: Float64[np.ndarray, " episodes"],
) -> Float64[np.ndarray, " episodes"]:
    """Probability of each episode: of its dataset, times its share `within` that, which need not sum to one.

    Args:
        probability: Of each dataset.
        source: The dataset of each episode.
        within: One for each to make a dataset's episodes equally likely, the number of windows to make windows so.
    """
    totals = np.bincount(source, within, minlength=len(probability))
    return probability[source] * within / totals[source]


def balanced(tasks: Sequence[str], weights: Float64[np.ndarray, " episodes"]) -> Float64[np.ndarray, " episodes"]:
    """The weights scaled so that each task has the same total; a task without any weight keeps none."""
    codes = np.unique(list(tasks), return_inverse=True)[1]
    totals = np.bincount(codes, weights)
    return weights / np.where(totals > 0, totals, 1.0)[codes]


@dataclass(frozen=True)
class Mixture:
    """How samples are chosen among datasets and episodes.

    Args:
        weights: Of the datasets by name.
        weight_by: See `probabilities`; None is the stage's own.
        temperature: See `probabilities`.
        exhaustive: Whether every window comes once per epoch.
        task_balanced: Whether tasks are equally likely: each of all datasets, or with `weight_by` each within its dataset.
        by_window: Whether the windows of a dataset are equally likely (stage 2), or its episodes (stage 1).
    """

    weights: dict[str, float]
    weight_by: WeightBy | None
    temperature: float
    exhaustive: bool
    task_balanced: bool
    by_window: bool

    def episode_weights(self, members: Members, windows: Int[np.ndarray, " episodes"]) -> Float64[np.ndarray, " episodes"]:
        """The probability of a sample to come from each episode.

        Args:
            members: All that train.
            windows: How many each has.
        """
        source = members.source
        within = windows.astype(np.float64) if self.by_window or self.exhaustive else np.ones(len(source))
        if self.exhaustive:
            weights = within
        else:
            episodes = np.bincount(source, minlength=len(self.weights))
            frames = np.bincount(source, members.lengths, minlength=len(self.weights))
            by = self.weight_by or ("frames" if self.by_window else "episodes")
            probability = probabilities(list(self.weights.values()), episodes.tolist(), frames.tolist(), by, self.temperature)
            if self.task_balanced and self.weight_by is not None:
                within = balanced([f"{number}/{task}" for number, task in zip(source.tolist(), members.tasks, strict=True)], within)
            weights = episode_weights(probability, source, within)
        if self.task_balanced and self.weight_by is None:
            weights = balanced(members.tasks, weights)
        return weights / weights.sum()

    def shares(self, members: Members, windows: Int[np.ndarray, " episodes"]) -> list[Share]:
        """What the mixture takes from each dataset."""
        count = len(self.weights)
        probability = np.bincount(members.source, self.episode_weights(members, windows), minlength=count).tolist()
        episodes = np.bincount(members.source, minlength=count).tolist()
        frames = np.bincount(members.source, members.lengths, minlength=count).astype(int).tolist()
        shares = []
        for number, (name, reader) in enumerate(members.readers.items()):
            set_aside = len(reader.left_out)
            faulty = len(reader.skipped) - set_aside
            shares.append(Share(name, episodes[number], frames[number], self.weights[name], probability[number], faulty, set_aside))
        return shares


def checked_mixture(
    weights: dict[str, float], weight_by: WeightBy | None, temperature: float, exhaustive: bool | None, task_balanced: bool, by_window: bool
) -> Mixture:
    """The mixture that arguments of `ClipData` define.

    Raises:
        ValueError: If they define none.
    """
    if weight_by is not None and weight_by not in get_args(WeightBy):
        raise ValueError(f"weight_by must be one of {', '.join(get_args(WeightBy))}, got {weight_by!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if temperature != 1 and weight_by != "temperature":
        raise ValueError(f"temperature {temperature} has no effect with weight_by: {weight_by}: set weight_by: temperature")
    for name, weight in weights.items():
        if not 0 <= weight < np.inf:
            raise ValueError(f"sources.{name}.weight must not be negative, got {weight}")
    if weights and not any(weights.values()):
        raise ValueError(f"the weights of all sources are zero: {', '.join(weights)}")
    if exhaustive and (weight_by not in (None, "frames") or len(set(weights.values())) > 1):
        raise ValueError(
            "exhaustive: every window comes once per epoch, so that datasets weigh what they have: remove weight_by and the sources' "
            "weights, or set exhaustive: false"
        )
    if exhaustive is None:  # the paper's stages: clips are drawn, windows come in turn
        exhaustive = by_window and weight_by in (None, "frames") and len(set(weights.values())) == 1
    return Mixture(weights, weight_by, temperature, exhaustive, task_balanced, by_window)


def table(shares: Sequence[Share]) -> str:
    """Shares as lines of text."""
    rows = [("dataset", "episodes", "frames", "weight", "probability", "skipped", "quarantined")]
    for share in shares:
        counts = (f"{share.episodes}", f"{share.frames}", f"{share.weight:g}", f"{share.probability:.4f}")
        rows.append((share.name, *counts, f"{share.skipped}", f"{share.quarantined}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
