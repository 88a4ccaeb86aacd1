"""Datasets come as often as their weights say, in both stages, and the table says how often that is."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.mixture import probabilities
from mimicvideo.data.modules import ClipData
from mimicvideo.data.sampler import ClipOrder, WindowOrder
from mimicvideo.data.sources import Source
from tests.synthetic_episodes import by_writer, change_rows

LENGTHS = {"small": (4, 6), "large": (30, 10, 20), "long": (80,)}
EPISODES, FRAMES = [2, 3, 1], [10, 60, 80]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        name: str(by_writer(folder / name, lengths, [f"{name[0]}{k % 2}" for k in range(len(lengths))]).root)
        for name, lengths in LENGTHS.items()
    }


def make(kind: str, roots: dict[str, str], weights: dict[str, float] | None = None, **options: Any) -> ClipData:
    sources: dict[str, str | Source] = {name: Source(root, (weights or {}).get(name, 1.0)) for name, root in roots.items()}
    common: dict[str, Any] = {"sources": sources, "observed": 1, "future": 4, "validation_fraction": 0.0, "batch_size": 50, **options}
    return ClipData(**common) if kind == "clips" else DemonstrationData(3, 2, 4, **common)


def drawn(data: ClipData, samples: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Dataset and member of many samples."""
    data.setup()
    order = data._order()
    members = np.array([order[position].episode for position in range(samples)])
    return data._training.source[members], members


EXPECTED = {
    "dataset": [1 / 3, 1 / 3, 1 / 3],
    "episodes": [2 / 6, 3 / 6, 1 / 6],
    "frames": [10 / 150, 60 / 150, 80 / 150],
    "temperature": np.sqrt(FRAMES) / np.sqrt(FRAMES).sum(),
}


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
@pytest.mark.parametrize("weight_by", EXPECTED)
@pytest.mark.parametrize("weights", [{}, {"small": 3.0, "long": 0.5}])
def test_datasets_come_as_often_as_they_weigh(roots: dict[str, str], kind: str, weight_by: str, weights: dict[str, float]) -> None:
    options = {"temperature": 2.0} if weight_by == "temperature" else {}
    data = make(kind, roots, weights, weight_by=weight_by, exhaustive=False, **options)
    expected = np.array(EXPECTED[weight_by]) * [weights.get(name, 1.0) for name in LENGTHS]
    expected /= expected.sum()
    shares = data.mixture()
    assert [(share.name, share.episodes, share.frames) for share in shares] == list(zip(LENGTHS, EPISODES, FRAMES, strict=True))
    np.testing.assert_allclose([share.probability for share in shares], expected, rtol=1e-12)
    sources, members = drawn(data)
    np.testing.assert_allclose(np.bincount(sources, minlength=3) / len(sources), expected, atol=0.025)
    within = np.bincount(members[sources == 1])[2:] / (sources == 1).sum()
    even = [1 / 3, 1 / 3, 1 / 3] if kind == "clips" else [1 / 2, 1 / 6, 1 / 3]
    np.testing.assert_allclose(within, even, atol=0.05)


def test_what_stages_do_by_themselves(roots: dict[str, str]) -> None:
    clips, demonstrations = make("clips", roots), make("demonstrations", roots)
    np.testing.assert_allclose([share.probability for share in clips.mixture()], EXPECTED["episodes"])
    np.testing.assert_allclose([share.probability for share in demonstrations.mixture()], EXPECTED["frames"])
    assert isinstance(clips._order(), ClipOrder) and isinstance(demonstrations._order(), WindowOrder)
    weighted = make("demonstrations", roots, {"small": 2.0})
    np.testing.assert_allclose([share.probability for share in weighted.mixture()], np.array([20, 60, 80]) / 160)
    assert isinstance(weighted._order(), ClipOrder), "with replacement"


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
def test_every_window_once_per_epoch(roots: dict[str, str], kind: str) -> None:
    data = make(kind, roots, exhaustive=True)
    data.setup()
    order = data._order()
    windows = sum(FRAMES)  # with one observed frame stage 1 has as many
    for epoch in range(2):
        seen = Counter(order[position][1:] for position in range(epoch * windows, (epoch + 1) * windows))
        assert len(seen) == windows and set(seen.values()) == {1}
    np.testing.assert_allclose([share.probability for share in data.mixture()], EXPECTED["frames"])


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
def test_tasks_are_balanced_within_weighted_datasets(roots: dict[str, str], kind: str) -> None:
    data = make(kind, roots, weight_by="dataset", task_balanced=True)
    np.testing.assert_allclose([share.probability for share in data.mixture()], EXPECTED["dataset"])
    weights = data._mixture.episode_weights(data._training, data.anchors().counts(data._training.lengths))
    tasks = Counter()
    for task, weight in zip(data._training.tasks, weights, strict=True):
        tasks[task] += weight
    assert tasks == pytest.approx({"s0": 1 / 6, "s1": 1 / 6, "l0": 1 / 6 + 1 / 3, "l1": 1 / 6})


def test_temperature_lies_between_frames_and_datasets() -> None:
    even, by_frames = probabilities([1, 1, 1], EPISODES, FRAMES, "dataset"), probabilities([1, 1, 1], EPISODES, FRAMES, "frames")
    np.testing.assert_allclose(probabilities([1, 1, 1], EPISODES, FRAMES, "temperature", 1.0), by_frames)
    np.testing.assert_allclose(probabilities([1, 1, 1], EPISODES, FRAMES, "temperature", 1e9), even)
    np.testing.assert_allclose(probabilities([1, 1], [0, 2], [0, 8], "dataset"), [0, 1])
    with pytest.raises(ValueError, match="no source with a weight has an episode"):
        probabilities([1, 0], [0, 2], [0, 8], "frames")


def test_the_table_at_the_start(tmp_path: Path, roots: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    broken = by_writer(tmp_path / "broken", (5, 7, 9))
    change_rows(broken.root, lambda columns: columns["action"][6].__setitem__(0, float("nan")))
    caplog.set_level("INFO")
    data = make("demonstrations", {"small": roots["small"], "broken": str(broken.root)}, {"broken": 2.0}, max_bad_fraction=0.4)
    shares = data.mixture()
    assert [(share.skipped, share.quarantined) for share in shares] == [(0, 0), (1, 0)]
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["dataset", "episodes", "frames", "weight", "probability", "skipped", "quarantined"] in lines
    assert ["broken", "2", "14", "2", f"{28 / 38:.4f}", "1", "0"] in lines


def test_other_numbers_are_still_refused(tmp_path: Path, roots: dict[str, str]) -> None:
    data = make("demonstrations", roots, {"small": 2.0})
    data._action_dim = 7
    with pytest.raises(DatasetError, match="action_dim is 7"):
        data.setup()
