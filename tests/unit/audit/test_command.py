"""`mimicvideo audit` as it is typed: status, files, resumption, processes; and the quarantine in training."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimicvideo.audit import work
from mimicvideo.compose import CONF
from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from mimicvideo.data.sources import Source
from tests.faults import BAD, EPISODES, FAULTS, Corpus, inject, make_corpus, write
from tests.typed import typed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def black(corpus: Corpus, tmp_path: Path) -> Path:
    """A dataset with a black video."""
    inject(tmp_path / "black", corpus, FAULTS["black_video"])
    return tmp_path / "black"


def audit(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The status of `mimicvideo audit ARGV`."""
    return typed(monkeypatch, "audit", *argv)


def of(root: Path, out: Path) -> list[str]:
    return [f"--data={root}", "--data.cameras=[front,side]", "--data.observed=1", "--data.future=8", f"--out={out}"]


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "audit.json").read_text())


def test_sound_data_ends_with_0_and_a_whole_report(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "data", corpus)
    assert audit(monkeypatch, *of(root, tmp_path / "out")) == 0
    assert "nothing found" in capsys.readouterr().out
    dataset = content(tmp_path / "out")["datasets"][0]
    rows = sum(len(recording.states) for recording in corpus.recordings)
    assert (dataset["episodes"], dataset["frames"], dataset["findings"]) == (EPISODES, rows, [])
    assert dataset["hours"] == pytest.approx(rows / 10 / 3600)
    assert dataset["instructions"]["languages"] == {"en": EPISODES}
    assert {(pair["action"], pair["state"]) for pair in dataset["relations"]} == {
        ("dx", "x"), ("dy", "y"), ("dz", "z"), ("droll", "roll"), ("dpitch", "pitch"), ("dyaw", "yaw")
    }  # fmt: skip
    states = np.concatenate([recording.states for recording in corpus.recordings])
    for dimension, column in zip(dataset["dimensions"]["proprio"], states.T, strict=True):
        assert (dimension["min"], dimension["max"]) == (column.min(), column.max())
        assert (dimension["mean"], dimension["std"]) == pytest.approx((column.mean(), column.std()), rel=1e-4, abs=1e-6)
        assert sum(dimension["histogram"]["counts"]) == rows
    page = (tmp_path / "out" / "audit.html").read_text()
    assert page.count("data:image/svg+xml") == 3  # lengths, actions, states
    assert page.count("data:image/png") >= 4
    assert not re.search(r'(?:src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anchor_interval": 3},
        {"captions": {"empty": "drop"}},
        {"observed": 5, "anchor_interval": 2},
        {"observed": 5, "repeat_first": False, "repeat_last": False},
    ],
)
def test_samples_are_those_that_training_draws_from(
    options: dict[str, Any], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(tmp_path / "data", corpus, FAULTS["empty_instruction"])
    experiment = f"--config={CONF}/experiment/quickstart_action.yaml"
    flags = [f"--data.root={tmp_path / 'data'}", "--data.cameras=[front,side]", "--data.action_dim=7", "--data.proprio_dim=7"]
    flags += [f"--data.{name}={json.dumps(value)}" for name, value in options.items()]
    assert audit(monkeypatch, experiment, *flags, f"--out={tmp_path}/out", "--fail-on=error") == 0
    found = content(tmp_path / "out")
    observed, every = options.get("observed", 1), options.get("anchor_interval", 1)
    window = {"observed": observed, "future": 8, "frame_interval": 1, "horizon": 16, "rows": observed + 8, "anchor_interval": every}
    repeats = {name: options.get(name, True) for name in ("repeat_first", "repeat_last")}
    assert found["window"] == window | repeats
    common = {"root": str(tmp_path / "data"), "cameras": ["front", "side"], "validation_fraction": 0.07}
    stage_1 = ClipData(**{**common, "observed": 1, "future": 8, **options})
    stage_2 = DemonstrationData(7, 7, 16, **{**common, "observed": 1, "future": 8, **options})
    samples = found["datasets"][0]["samples"]
    for stage, data in (("stage_1", stage_1), ("stage_2", stage_2)):
        data.setup()
        assert samples[stage]["training"] == sum(data.anchors().counts(data._training.lengths))
        assert samples[stage]["validation"] == sum(data.anchors().counts(data._validating.lengths))
        assert samples["episodes"] | {"training": 0} == {
            "training": 0, "validation": len(data._validating), "unlabelled": len(data.skipped), "quarantined": 0
        }  # fmt: skip
    rows = [(member.episode.length, range(0, member.episode.length, every)) for member in stage_2._training]
    full = [row for length, places in rows for row in places if observed - 1 <= row < length - 8]
    assert samples["full"]["training"] == len(full)


def test_what_is_found_decides_the_status(black: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = of(black, tmp_path / "out")
    assert audit(monkeypatch, *argv) == 1
    assert audit(monkeypatch, *argv, "--fail-on=error") == 1
    assert audit(monkeypatch, *argv, "--fail-on=never") == 0


def test_a_warning_is_no_error(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(tmp_path / "data", corpus, FAULTS["exposure_jump"])
    argv = of(tmp_path / "data", tmp_path / "out")
    assert audit(monkeypatch, *argv) == 1
    assert audit(monkeypatch, *argv, "--fail-on=error") == 0
    assert content(tmp_path / "out")["datasets"][0]["quarantined"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either --config conf/experiment/NAME.yaml, or --data"),
        (["--data=/nowhere"], "there is no dataset folder /nowhere"),
        (["--data=/nowhere.yaml"], "there is no file /nowhere.yaml"),
        (["--data=/nowhere", "--trainer.max_steps=3"], "--trainer.max_steps is not accepted"),
        (["--data=/nowhere", "--data.future=7"], "the nearest values of future are 4 and 8"),
        (["--data=/nowhere", "--data.obsreved=5"], "did you mean"),
        (["--data=/nowhere", "--num_workers=-1"], "--num_workers must not be negative, got -1"),
        (["--data=/nowhere", "--thumbnails=-1"], "--thumbnails must not be negative, got -1"),
        (["--data=/nowhere", "--fail-on=fatal"], "invalid choice: 'fatal'"),
    ],
)
def test_what_cannot_run_ends_with_2(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(monkeypatch, *argv, f"--out={tmp_path}/out") == 2
    assert message in capsys.readouterr().err


def test_a_defect_does_not_look_like_a_finding(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "data", corpus)
    assert audit(monkeypatch, *of(root, tmp_path / "out"), "--data.validation_episodes=99") == 2
    assert "validation_episodes must lie in [0, 9]" in capsys.readouterr().err

    def broken(*_: Any) -> None:
        raise TypeError("nobody expected this")

    monkeypatch.setattr("mimicvideo.audit.run.audit_dataset", broken)
    assert audit(monkeypatch, *of(root, tmp_path / "out")) == 2
    assert "TypeError: nobody expected this" in capsys.readouterr().err


def test_one_bad_dataset_does_not_stop_the_others(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "data", corpus)
    (tmp_path / "broken").mkdir()
    sources = json.dumps({"good": str(root), "bad": str(tmp_path / "broken")})
    config = tmp_path / "mixture.yaml"
    config.write_text(f"class_path: mimicvideo.data.modules.ClipData\ninit_args: {{sources: {sources}, cameras: [front, side]}}\n")
    assert audit(monkeypatch, f"--data={config}", f"--out={tmp_path}/out") == 1
    good, bad = content(tmp_path / "out")["datasets"]
    assert (good["episodes"], good["findings"]) == (EPISODES, [])
    assert "is empty" in bad["problem"] and bad["counts"] == {"unusable": 1}


def test_a_second_run_reads_only_what_the_first_did_not_finish(black: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = work.summarise
    monkeypatch.setattr(work, "summarise", lambda reader, episode, *rest: read.append(episode.index) or real(reader, episode, *rest))
    argv = of(black, tmp_path / "out")
    audit(monkeypatch, *argv)
    first = content(tmp_path / "out")["datasets"][0]["findings"]
    assert sorted(read) == list(range(EPISODES))
    results = tmp_path / "out" / "episodes-data.jsonl"
    results.write_bytes(results.read_bytes()[:-100])  # killed while it wrote the last line
    read.clear()
    audit(monkeypatch, *argv)
    assert len(read) == 1
    assert content(tmp_path / "out")["datasets"][0]["findings"] == first
    read.clear()
    audit(monkeypatch, *argv, "--verify=quick")  # another question
    assert len(read) == EPISODES
    read.clear()
    FAULTS["timestamp_gap"].damage(black)  # type: ignore[misc] (it has one)
    audit(monkeypatch, *argv, "--verify=quick")  # the content is another
    assert len(read) == EPISODES


def test_processes_find_the_same(black: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in (0, 2):
        assert audit(monkeypatch, *of(black, tmp_path / f"out{workers}"), f"--num_workers={workers}") == 1
        found.append(content(tmp_path / f"out{workers}")["datasets"][0]["findings"])
    assert found[0] == found[1]
    assert [(finding["kind"], finding["episode"]) for finding in found[0]] == [("black_frames", BAD)]


# -- quarantine ----------------------------------------------------------------------------------------------------------------


def clips(root: Path, **options: Any) -> ClipData:
    data = ClipData(str(root), cameras=["front", "side"], observed=1, future=8, **options)
    data.setup()
    return data


def test_training_leaves_out_what_is_in_quarantine(
    black: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit(monkeypatch, *of(black, tmp_path / "out"))
    (listed,) = json.loads((tmp_path / "out" / "quarantine.json").read_text())["datasets"]
    assert [entry["index"] for entry in listed["episodes"]] == [BAD]
    data, before = clips(black, quarantine=str(tmp_path / "out" / "quarantine.json")), clips(black)
    assert list(data.skipped) == [f"data/{BAD}"] and "black_frames" in data.skipped[f"data/{BAD}"]
    kept = [member.episode.index for member in data._training]
    assert kept == [member.episode.index for member in before._training if member.episode.index != BAD]
    assert f"left out 1 of {EPISODES} episodes" in caplog.text and "black_frames" in caplog.text


def test_a_dataset_that_is_listed_twice(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(tmp_path / "data", corpus, FAULTS["black_video"])  # of the front camera
    sources = {name: {"root": str(tmp_path / "data"), "cameras": [name]} for name in ("front", "side")}
    config = tmp_path / "mixture.yaml"
    config.write_text(json.dumps({"class_path": "mimicvideo.data.modules.ClipData", "init_args": {"sources": sources}}))
    assert audit(monkeypatch, f"--data={config}", f"--out={tmp_path}/out") == 1

    def left_out(**given: Any) -> list[str]:
        data = ClipData(observed=1, future=8, quarantine=str(tmp_path / "out" / "quarantine.json"), **given)
        data.setup()
        return list(data.skipped)

    assert left_out(sources={name: Source(**source) for name, source in sources.items()}) == [f"front/{BAD}"]
    assert left_out(root=str(tmp_path / "data"), cameras=["side"]) == [f"data/{BAD}"]  # nobody knows which of them is meant


def test_a_quarantine_of_another_dataset_is_refused(black: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(monkeypatch, *of(black, tmp_path / "out"))
    other = inject(tmp_path / "other", corpus, FAULTS["actions_one_row_late"])
    assert other == BAD
    with pytest.raises(DatasetError, match="is of other datasets"):
        clips(tmp_path / "other", quarantine=str(tmp_path / "out" / "quarantine.json"))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "there is no quarantine"), ("{", "is no quarantine or damaged"), ('{"version": 7}', "is of version 7")]
)
def test_a_quarantine_that_cannot_be_read_is_refused(text: str | None, message: str, corpus: Corpus, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "quarantine.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        clips(write(tmp_path / "data", corpus), quarantine=str(tmp_path / "quarantine.json"))
