"""Sound data that look like faults raise no alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo.audit.dataset import Plan, audit_dataset
from mimicvideo.data.sources import Source
from mimicvideo.data.view import View
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


def test_an_arm_that_rests_altogether_is_not_asked_to_follow(corpus: Corpus, tmp_path: Path) -> None:
    recording = corpus.recordings[BAD]
    noise = 0.01 * SCALE * np.random.default_rng(0).normal(size=(len(recording.states), 6))
    actions, states = recording.actions.copy(), recording.states.copy()
    actions[:, :6], states[:, :6] = 1e-4 * noise, CENTRE + noise
    changed = {BAD: replace(recording, actions=actions, states=states, frames=render(states))}
    kinds = {kind for kind, _, _ in found(write(tmp_path / "data", corpus, changed), tmp_path)}
    assert not kinds & {"inconsistent_actions", "swapped_dims", "inverted_dim", "wrong_units", "shifted_actions"}


@pytest.mark.parametrize("hz", [15.0, 20.0, 50.0])
@pytest.mark.parametrize("numbers", [True, False])
def test_pictures_that_a_higher_rate_shows_again(numbers: bool, hz: float, corpus: Corpus, tmp_path: Path) -> None:
    source = Source(str(write(tmp_path / "data", corpus))).open(["front"], ram_cache_gb=0.0)
    all_as_they_are = {"all": {"kind": "other", "dims": list(range(7))}}
    represented: dict[str, Any] = {"proprio": all_as_they_are, "actions": all_as_they_are}
    reader = View(source, hz, hz, represented, numbers=numbers) if numbers else View(source, hz, numbers=False)
    assert len(reader.picture_rows(reader.episodes[0])) == source.episodes[0].length < reader.episodes[0].length
    audited = audit_dataset("data", reader, set(), Plan(Window(1, 4), "quick", "en", 0, tmp_path), lambda frames, new: None)
    kinds = {finding.kind for finding in audited.findings}
    assert not kinds & {"dropped_frames", "frozen_video", "idle_head", "idle_tail"}


def test_dimensions_that_no_episode_uses_are_a_note(corpus: Corpus, tmp_path: Path) -> None:
    def without(recording: Recording, dims: list[int]) -> Recording:
        actions, states = recording.actions.copy(), recording.states.copy()
        actions[:, dims] = states[:, dims] = 0
        return replace(recording, actions=actions, states=states)

    for dims, kind, severity in (([3, 4], "unused_dim", "note"), (list(range(6)), "nothing_changes", "warning")):
        root = write(tmp_path / kind, corpus, {index: without(recording, dims) for index, recording in enumerate(corpus.recordings)})
        reader = Source(str(root)).open(["front"], ram_cache_gb=0.0)
        audited = audit_dataset("data", reader, set(), Plan(Window(1, 4), "quick", "en", 0, tmp_path), lambda frames, new: None)
        told = {(finding.kind, finding.severity, finding.episode) for finding in audited.findings}
        assert (kind, severity, None) in told
        if severity == "note":
            assert told == {(kind, severity, None)} and audited.findings.number("warning") == 0
