"""Wilson's interval against known values, counting of episodes, latencies, and results that survive writing and reading."""

import json
from pathlib import Path

import pytest

from mimicvideo.evaluation import Episode, Evaluation, Latency, SuccessRate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3, four decimals
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 20, 200):
        for successes in {0, 1, n // 2, n - 1, n}:
            reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
            assert wilson_interval(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-7)


@pytest.mark.parametrize("n", [1, 7, 20, 1000])
def test_wilson_interval_at_the_ends(n: int) -> None:
    low, high = wilson_interval(0, n)
    assert low == 0.0 and 0 < high < 1
    assert wilson_interval(n, n) == pytest.approx((1 - high, 1.0))
    assert wilson_interval(n, n)[1] == 1.0


def test_wilson_interval_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson_interval(successes, n)


EPISODES = [
    Episode("push", 1, 11, success=False, steps=500),
    Episode("reach", 0, 12, success=True, steps=40, video="reach_000_success.mp4"),
    Episode("push", 0, 13, success=True, steps=100),
    Episode("reach", 1, 14, error="RuntimeError: unstable"),
]


def test_errors_count_neither_as_success_nor_as_failure() -> None:
    rate = SuccessRate.of(EPISODES)
    assert (rate.successes, rate.episodes, rate.errors) == (2, 3, 1)
    assert rate.success_rate == pytest.approx(2 / 3)
    assert rate.mean_steps_to_success == 70
    nothing = SuccessRate.of([EPISODES[3]])
    assert nothing.success_rate is None and (nothing.low, nothing.high) == (0.0, 1.0) and str(nothing) == "– [0%, 100%]"


def test_an_evaluation_is_sorted_counted_and_read_back(tmp_path: Path) -> None:
    evaluation = Evaluation.of("none", ["reach", "push"], EPISODES, {"calls": 0}, {"seed": 0})
    assert [(episode.task, episode.index) for episode in evaluation.episodes] == [("reach", 0), ("reach", 1), ("push", 0), ("push", 1)]
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path) == evaluation
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == {"success_rate": pytest.approx(2 / 3), "success_rate/reach": 1.0, "success_rate/push": 0.5}


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"control": "none"}')
    with pytest.raises(ValueError, match=r"results.json holds no results of a rollout .*overall"):
        Evaluation.read(tmp_path)


def test_latency_per_call_and_per_observation() -> None:
    latency = Latency()
    assert latency.summary() == {"calls": 0, "observations": 0}
    latency.add(0.1, 1)
    latency.add(0.2, 4)
    summary = latency.summary()
    assert (summary["calls"], summary["observations"], summary["mean_batch"]) == (2, 5, 2.5)
    assert summary["batch_ms"]["p50"] == pytest.approx(150) and summary["batch_ms"]["first"] == pytest.approx(100)
    assert summary["observation_ms"]["p50"] == pytest.approx(50)  # 100, 50, 50, 50, 50
    assert 50 < summary["observation_ms"]["p99"] <= 100
