"""Memory does not grow with the dataset: 20,000 episodes take no more than a tenth of them, but for a few bytes each."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo.audit import work
from mimicvideo.audit.calibration import Calibration
from mimicvideo.audit.dataset import Audited, Plan, audit_dataset
from mimicvideo.audit.episode import summarise
from mimicvideo.data.episodes import Camera, Episode, Episodes
from mimicvideo.data.scan import Verify
from mimicvideo.data.window import Window
from tests.short_episodes import ShortEpisodes


class Endless(ShortEpisodes):
    """Any number of them."""

    def __init__(self, root: Path, count: int) -> None:
        (root / "numbers").write_text(str(count))
        super().__init__(root, [f"Push block {index}." for index in range(count)])

    def proprio(self, episode: Episode) -> np.ndarray:
        return np.random.default_rng(episode.index).normal(size=(6, 2)).cumsum(0).astype(np.float32)

    def actions(self, episode: Episode) -> np.ndarray:
        return np.diff(self.proprio(episode), axis=0, append=0).astype(np.float32)

    def _decode(self, episode: Episode, camera: Camera, rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(episode.index).integers(0, 256, (6, 8, 8, 3), np.uint8)[rows]

    def _files(self) -> tuple[list[Path], list[Path]]:
        return [self.root / "numbers"], []


def growth(root: Path, count: int) -> tuple[float, Audited]:
    """How much the largest memory that the process ever had grew during an audit, in 10^6 bytes."""
    root.mkdir()
    reader = Endless(root, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    audited = audit_dataset("data", reader, set(), Plan(Window(1, 4), "full", "en", 0, root), lambda frames, new: None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6, audited


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[int, dict[str, Any]] = {}

    def repeated(reader: Episodes, episode: Episode, calibration: Calibration, verify: Verify) -> dict[str, Any]:
        """Reading takes milliseconds: 50 summaries, each with a descriptor and hashes of its own, stand for all."""
        if (place := episode.index % 50) not in read:
            read[place] = summarise(reader, episode, calibration, verify)
        numbers = read[place]["numbers"]
        own = {"hash": dict.fromkeys(numbers["hash"], f"{episode.index + 1:016x}"), "descriptor": random.normal(size=32).tolist()}
        return {**read[place], "episode": episode.index, "numbers": {**numbers, **own}}

    random = np.random.default_rng(0)
    monkeypatch.setattr(work, "summarise", repeated)
    growth(tmp_path / "small", 2_500)  # more than the sample that statistics are taken from
    grown, audited = growth(tmp_path / "large", 20_000)
    assert audited.content["episodes"] == 20_000
    assert (tmp_path / "large" / "episodes-data.jsonl").stat().st_size > 40e6
    assert grown < 40  # 40 MB of summaries are several times that as Python objects; what is kept of an episode is a few hundred bytes
