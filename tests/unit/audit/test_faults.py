"""The audit finds every fault of the corpus in the right episode and gives it the right name, and finds nothing in sound data."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mimicvideo.audit.dataset import Audited, Plan, audit_dataset
from mimicvideo.data.sources import Source
from mimicvideo.data.window import Window
from tests.faults import CAMERAS, FAULTS, Corpus, inject, make_corpus, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def audited(root: Path, cameras: Sequence[str], folder: Path) -> Audited:
    reader = Source(str(root)).open(list(cameras), max_bad_fraction=1.0, ram_cache_gb=0.0)
    plan = Plan(Window(1, 8), "full", "en", 0, folder)
    return audit_dataset("data", reader, set(), plan, lambda frames, new: None)


def test_sound_data_has_no_finding(corpus: Corpus, tmp_path: Path) -> None:
    found = audited(write(tmp_path / "data", corpus), CAMERAS, tmp_path)
    assert [(finding.kind, finding.episode, finding.text) for finding in found.findings] == []
    assert found.findings.quarantined == {}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, corpus: Corpus, tmp_path: Path) -> None:
    fault = FAULTS[name]
    episode = inject(tmp_path / "data", corpus, fault)
    found = {(finding.kind, finding.episode) for finding in audited(tmp_path / "data", fault.cameras, tmp_path).findings}
    assert (fault.kind, episode) in found
    assert found - {(kind, episode) for kind in fault.also} == {(fault.kind, episode)}  # and nothing else is
