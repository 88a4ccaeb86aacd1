"""Sound data that look like faults raise no alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimicvideo.audit.dataset import Plan, audit_dataset
from mimicvideo.data.sources import Source
from mimicvideo.data.window import Window
from tests.faults import BAD, CENTRE, SCALE, Corpus, Recording, make_corpus, render, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def found(root: Path, folder: Path) -> list[tuple[str, int | None, str]]:
    reader = Source(str(root)).open(["front"], max_bad_fraction=1.0, ram_cache_gb=0.0)
    audited = audit_dataset("data", reader, set(), Plan(Window(1, 4), "quick", "en", 0, folder), lambda frames, new: None)
    return [(finding.kind, finding.episode, finding.text) for finding in audited.findings]


def at_rest(recording: Recording) -> Recording:
    """Height and two angles are not needed: their commands stay, their encoders are noisy."""
    actions, states, dims = recording.actions.copy(), recording.states.copy(), [2, 3, 4]
    noise = 0.01 * np.random.default_rng(0).normal(size=(len(states), 3))
    actions[:, dims], states[:, dims] = 0, CENTRE[dims] + SCALE[dims] * noise
    return replace(recording, actions=actions, states=states, frames=render(states))


def absolute(recording: Recording) -> Recording:
    """Commands are the next poses."""
    actions = recording.actions.copy()
    actions[:, :6] = np.concatenate([recording.states[1:, :6], recording.states[-1:, :6] + recording.actions[-1:, :6]])
    return replace(recording, actions=actions)


@pytest.mark.parametrize("commands", [lambda recording: recording, absolute])
def test_axes_that_a_demonstration_does_not_need(commands: Callable[[Recording], Recording], corpus: Corpus, tmp_path: Path) -> None:
    changed = {index: commands(recording) for index, recording in enumerate(corpus.recordings)}
    resting = commands(at_rest(corpus.recordings[BAD]))
    resting.actions[:, [2, 3, 4]] = resting.actions[0, [2, 3, 4]]
    assert found(write(tmp_path / "data", corpus, {**changed, BAD: resting}), tmp_path) == []
    moving = replace(resting, states=changed[BAD].states, frames=changed[BAD].frames)
    assert ("constant_action", BAD) in [
        (kind, index) for kind, index, _ in found(write(tmp_path / "moving", corpus, {**changed, BAD: moving}), tmp_path)
    ]


def test_episodes_of_five_rows(corpus: Corpus, tmp_path: Path) -> None:
    short = {index: recording.rows(np.arange(10, 15)) for index, recording in enumerate(corpus.recordings)}
    short[BAD].actions[:, 0] = short[BAD].actions[:, 0].max()  # at its limit all the time
    assert found(write(tmp_path / "data", corpus, short), tmp_path) == []
