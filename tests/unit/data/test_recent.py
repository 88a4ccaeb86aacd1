"""What was used last stays, up to a number of bytes; without it, described datasets read the same again."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from mimicvideo.data import stored
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.recent import Recent
from tests.every_format import FORMATS, WITH_NUMBERS, hdf5
from tests.synthetic_episodes import numbers


def test_what_was_not_used_for_longest_goes_first() -> None:
    recent: Recent[str] = Recent(10)
    for key in "abc":
        recent.keep(key, key.upper(), 3)
    assert recent.get("a") == "A"
    recent.keep("d", "D", 4)  # together 13
    assert [recent.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    recent.keep("d", "E", 1)
    recent.keep("f", "F", 3)  # together 10
    assert [recent.get(key) for key in "acdf"] == ["A", "C", "E", "F"]
    recent.keep("g", "G", 11)
    assert [recent.get(key) for key in "acdfg"] == [None] * 5
    recent.keep("a", "A", 1)
    assert pickle.loads(pickle.dumps(recent)).get("a") is None


@pytest.mark.parametrize("name", [name for name in WITH_NUMBERS if name not in ("lerobot_v3.0", "lerobot_v2.1")])
def test_numbers_that_are_not_kept_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spec = FORMATS[name][0](tmp_path / "d")
    kept = open_episodes(tmp_path / "d", spec=spec)
    monkeypatch.setattr(stored, "KEPT_BYTES", 0)
    again = pickle.loads(pickle.dumps(open_episodes(tmp_path / "d", spec=spec)))
    assert list(again.episodes) == list(kept.episodes) and again.listed.tasks == kept.listed.tasks
    for episode in kept.episodes:
        assert len(again.actions(episode)) == episode.length
        np.testing.assert_array_equal(again.actions(episode), kept.actions(episode))
        np.testing.assert_array_equal(again.proprio(episode), kept.proprio(episode))
        np.testing.assert_array_equal(again.frames(episode, [2, 0]), kept.frames(episode, [2, 0]))


def test_an_episode_that_has_changed_its_length_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_BYTES", 0)
    reader = open_episodes(tmp_path / "d", spec=hdf5(tmp_path / "d"))
    with h5py.File(tmp_path / "d/do_it_demo.hdf5", "a") as file:
        demo = file["data/demo_0"]
        for key in ("actions", "obs/x", "obs/y", "obs/agentview_rgb"):
            values = demo[key][:-1]
            del demo[key]
            demo[key] = values
    with pytest.raises(DatasetError, match="demo_0"):
        reader.actions(reader.episodes[0])
    np.testing.assert_allclose(reader.proprio(reader.episodes[1])[:3], numbers(2, 20, 1)[1][:3], rtol=1e-6)
