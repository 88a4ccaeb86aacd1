"""Statistics equal those of all windows written out, and the copy on disk is used only if it is that of the same data."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mimicvideo.data.statistics import Statistics, cached, window_statistics
from mimicvideo.data.window import Tail, Window, fill_tail, proprio_rows
from mimicvideo.normalize import Normalizer

LENGTHS, STRIDE, HORIZON, HISTORY = (7, 3, 12), 2, 5, 2
WINDOW = Window(observed=1, future=4, horizon=HORIZON, stride=STRIDE)


def episodes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(0)
    actions = [random.normal(size=(rows * STRIDE, 3)).astype(np.float32) for rows in LENGTHS]
    return actions, [random.normal(size=(rows, 2)).astype(np.float32) for rows in LENGTHS]


def all_windows(tail: Tail, hold: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Every chunk [windows, horizon, 3] and history [windows, history, 2], one after the other."""
    chunks, histories = [], []
    for actions, states in zip(*episodes(), strict=True):
        for row in range(len(states)):
            steps, beyond = WINDOW.action_steps(row, len(states))
            chunks.append(fill_tail(actions[steps], beyond, tail, hold))
            histories.append(states[proprio_rows(row, HISTORY)])
    return np.stack(chunks).astype(np.float64), np.stack(histories).astype(np.float64)


@pytest.mark.parametrize(("tail", "hold"), [("repeat", ()), ("zero_delta", ()), ("zero_delta", (2,))])
def test_they_are_exact(tail: Tail, hold: tuple[int, ...]) -> None:
    statistics = window_statistics(*episodes(), WINDOW, tail, hold, HISTORY)
    chunks, histories = all_windows(tail, hold)
    assert statistics["windows"] == sum(LENGTHS) == len(chunks)
    for name, values in (("actions", chunks), ("proprio", histories)):
        for kind, flat in (("per_step", values), ("pooled", values.reshape(-1, values.shape[-1]))):
            found = statistics[name][kind]
            p2, p98 = np.percentile(flat, 2, axis=0), np.percentile(flat, 98, axis=0)
            mean = flat.mean(0)
            clipped = np.clip(flat, mean + 1.5 * (p2 - mean), mean + 1.5 * (p98 - mean))
            expected = {
                "mean": mean,
                "std": flat.std(0),
                "min": flat.min(0),
                "max": flat.max(0),
                "p2": p2,
                "p98": p98,
                "q01": np.quantile(flat, 0.01, axis=0),
                "q99": np.quantile(flat, 0.99, axis=0),
                "clipped_mean": clipped.mean(0),
                "clipped_std": clipped.std(0),
            }
            assert set(found) == set(expected)
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-12, err_msg=f"{name} {kind} {key}")


def test_a_normalizer_takes_them_and_makes_unit_variance() -> None:
    import torch

    statistics = window_statistics(*episodes(), WINDOW, "repeat", (), 1)
    chunks, _ = all_windows("repeat", ())
    for per_step, kind in ((True, "per_step"), (False, "pooled")):
        normalizer = Normalizer(3, HORIZON, "variance", per_step)
        normalizer.fit(statistics["actions"][kind])
        units = normalizer.normalize(torch.from_numpy(chunks).float())
        over = 0 if per_step else (0, 1)
        torch.testing.assert_close(units.mean(over), torch.zeros(units.mean(over).shape), atol=1e-5, rtol=0)
        torch.testing.assert_close(units.std(over, correction=0), torch.ones(units.mean(over).shape), atol=1e-4, rtol=0)


def test_nothing_to_compute_from() -> None:
    with pytest.raises(ValueError, match="no training episode"):
        window_statistics([], [], WINDOW, "repeat")


# ---- the copy on disk -----------------------------------------------------------------------------------------------------------------


def counting() -> tuple[Callable[[], Statistics], list[int]]:
    calls: list[int] = []

    def compute() -> Statistics:
        calls.append(1)
        return window_statistics(*episodes(), WINDOW, "repeat")

    return compute, calls


def assert_same(first: Statistics, second: Statistics) -> None:
    for name in ("actions", "proprio"):
        for kind, values in first[name].items():
            for key, value in values.items():
                np.testing.assert_array_equal(value, second[name][kind][key])


def test_computed_once_per_key(tmp_path: Path) -> None:
    compute, calls = counting()
    first = cached(tmp_path, None, ["a"], compute)
    assert_same(first, cached(tmp_path, None, ["a"], compute))
    assert len(calls) == 1 and len(list((tmp_path / ".mimicvideo").glob("statistics-*.json"))) == 1
    cached(tmp_path, None, ["b"], compute)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "digit", "other"])
def test_a_damaged_copy_is_not_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    compute, calls = counting()
    first = cached(tmp_path, tmp_path / "cache", ["a"], compute)
    (file,) = (tmp_path / "cache").iterdir()
    text = file.read_text()
    place = text.index("0.", 200)
    flipped = text[: place + 2] + str((int(text[place + 2]) + 1) % 10) + text[place + 3 :]
    file.write_text({"cut": text[: len(text) // 2], "digit": flipped, "other": json.dumps({"sha256": 1})}[damage])
    assert_same(first, cached(tmp_path, tmp_path / "cache", ["a"], compute))
    assert len(calls) == 2 and "damaged" in caplog.text
    assert file.read_text() == text


def test_a_place_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.mimicvideo").write_text("a file where the folder would be")
    compute, calls = counting()
    for _ in range(2):
        cached(tmp_path / "data", None, ["a"], compute)
    assert len(calls) == 1 and len(list((tmp_path / "home/mimicvideo").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data/.mimicvideo"))
    cached(tmp_path / "data", None, ["b"], compute)
    cached(tmp_path / "data", None, ["b"], compute)
    assert len(calls) == 3, "kept nowhere, computed each time, and no error"
