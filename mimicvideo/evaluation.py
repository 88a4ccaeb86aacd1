"""What a rollout reports: episodes, success rates with their intervals, latencies, and the record that lets it be repeated."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = "results.json"


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = successes/n.

    Args:
        successes: How many of `n`.
        n: Trials; none at all says nothing: (0, 1).
        z: Quantile of the normal distribution; the default gives 95 %.

    Raises:
        ValueError: Unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, square = successes / n, z * z / n
    center = p + square / 2
    reach = z * math.sqrt(p * (1 - p) / n + square / (4 * n))
    # At 0 and n successes one bound is exactly 0 or 1, which rounding would miss.
    low = 0.0 if successes == 0 else (center - reach) / (1 + square)
    high = 1.0 if successes == n else (center + reach) / (1 + square)
    return low, high


@dataclass(frozen=True)
class Episode:
    """One rolled-out episode.

    Attributes:
        task: Its name.
        index: Its number among the task's episodes.
        seed: With which the environment was reset.
        success: The benchmark's own flag.
        steps: Control steps executed: up to the first success, or all.
        error: Why it could not be finished; such an episode counts neither as success nor as failure.
        video: File name in `videos/`, if it was recorded.
    """

    task: str
    index: int
    seed: int
    success: bool = False
    steps: int = 0
    error: str | None = None
    video: str | None = None


@dataclass(frozen=True)
class SuccessRate:
    """Successes among finished episodes, with the 95 % Wilson interval.

    Attributes:
        successes: The benchmark's own flag.
        episodes: Finished ones.
        success_rate: Their quotient; None without episodes.
        low: Lower end of the interval.
        high: Upper end.
        mean_steps_to_success: Control steps, over successful episodes; None if there is none.
        errors: Episodes that could not be finished, not counted above.
    """

    successes: int
    episodes: int
    success_rate: float | None
    low: float
    high: float
    mean_steps_to_success: float | None
    errors: int

    @classmethod
    def of(cls, episodes: Iterable[Episode]) -> "SuccessRate":
        """Counts."""
        episodes = list(episodes)
        finished = [episode for episode in episodes if episode.error is None]
        steps = [episode.steps for episode in finished if episode.success]
        return cls(
            len(steps),
            len(finished),
            len(steps) / len(finished) if finished else None,
            *wilson_interval(len(steps), len(finished)),
            float(np.mean(steps)) if steps else None,
            len(episodes) - len(finished),
        )

    def __str__(self) -> str:
        rate = "–" if self.success_rate is None else f"{self.success_rate:.0%}"
        return f"{rate} [{self.low:.0%}, {self.high:.0%}]"


@dataclass
class Latency:
    """Wall-clock times of the policy's calls, encoding of the video included.

    Attributes:
        seconds: Per call.
        sizes: Observations per call.
    """

    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, seconds: float, size: int) -> None:
        """Notes one call."""
        self.seconds.append(seconds)
        self.sizes.append(size)

    def summary(self) -> dict[str, Any]:
        """Milliseconds: percentiles per call, and per observation (a call's time divided among its observations)."""
        if not self.seconds:
            return {"calls": 0, "observations": 0}
        call = 1000 * np.array(self.seconds)
        sizes = np.array(self.sizes)
        shares = np.repeat(call / sizes, sizes)
        return {
            "calls": len(call),
            "observations": int(sizes.sum()),
            "mean_batch": float(sizes.mean()),
            "batch_ms": {"p50": float(np.percentile(call, 50)), "p99": float(np.percentile(call, 99)), "first": float(call[0])},
            "observation_ms": {"p50": float(np.percentile(shares, 50)), "p99": float(np.percentile(shares, 99))},
        }


@dataclass(frozen=True)
class Evaluation:
    """All that a rollout found.

    Attributes:
        control: `none`, or the control experiment's name.
        overall: Over all tasks together.
        tasks: By task name, in the benchmark's order.
        episodes: By task and index.
        latency: See `Latency.summary`.
        record: Arguments, hashes, versions, hardware, command, wall time: what it takes to repeat or to doubt the figures.
    """

    control: str
    overall: SuccessRate
    tasks: dict[str, SuccessRate]
    episodes: list[Episode]
    latency: dict[str, Any]
    record: dict[str, Any]

    @classmethod
    def of(
        cls, control: str, tasks: Sequence[str], episodes: Iterable[Episode], latency: dict[str, Any], record: dict[str, Any]
    ) -> "Evaluation":
        """Sorts and counts episodes."""
        order = {task: place for place, task in enumerate(tasks)}
        episodes = sorted(episodes, key=lambda episode: (order[episode.task], episode.index))
        by_task = {task: SuccessRate.of(episode for episode in episodes if episode.task == task) for task in tasks}
        return cls(control, SuccessRate.of(episodes), by_task, episodes, latency, record)

    def write(self, run_dir: Path) -> None:
        """Writes `results.json` and, for sweeps, `metrics.json`."""
        metrics = {"success_rate": self.overall.success_rate} | {
            f"success_rate/{task}": rate.success_rate for task, rate in self.tasks.items()
        }
        (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))
        results = {"success_rate": self.overall.success_rate} | asdict(self)
        (run_dir / RESULTS).write_text(json.dumps(results, indent=2))

    @classmethod
    def read(cls, run_dir: str | Path) -> "Evaluation":
        """Reads what `write` wrote.

        Raises:
            ValueError: If the file is not a rollout's results.
        """
        path = Path(run_dir, RESULTS)
        try:
            results = json.loads(path.read_text())
            return cls(
                results["control"],
                SuccessRate(**results["overall"]),
                {task: SuccessRate(**rate) for task, rate in results["tasks"].items()},
                [Episode(**episode) for episode in results["episodes"]],
                results["latency"],
                results["record"],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no results of a rollout ({type(error).__name__}: {error}); run `mimicvideo rollout` again"
            ) from error
