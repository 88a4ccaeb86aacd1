"""Runs of the audit over mixtures of formats: files, status and quarantine; full disks, files that vanish, processes that die."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mimicvideo.audit import work
from mimicvideo.data.claims import Claims
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.modules import ClipData
from tests.audit_formats import hdf5_index, recordings, spec_of, write_format
from tests.faults import BAD, FAULTS, Corpus, make_corpus
from tests.typed import typed
from tests.unit.audit.deadly import Deadly

KINDS = ("rlds", "zarr", "hdf5", "videos")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), episodes=7)


@pytest.fixture(scope="module")
def dark(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of each format, by its name, with some black pictures in one episode; and a mixture of all in `mixture.yaml`."""
    folder, change = tmp_path_factory.mktemp("dark"), FAULTS["black_frames"].change
    assert change is not None
    made = recordings(corpus, {BAD: change(corpus.recordings[BAD], corpus)})
    for kind in KINDS:
        write_format(kind, folder / kind, corpus, made)
    mixture(folder, KINDS)
    return folder


def mixture(folder: Path, kinds: tuple[str, ...], **more: Any) -> Path:
    sources = {kind: {"root": str(folder / kind), "spec": str(spec_of(folder / kind)), "cameras": ["front"]} for kind in kinds}
    init = {"sources": {**sources, **more}, "observed": 1, "future": 8}
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"class_path": "mimicvideo.data.modules.ClipData", "init_args": init}))
    return path


def bad_of(corpus: Corpus, kind: str) -> int:
    return hdf5_index(corpus.recordings, BAD) if kind == "hdf5" else BAD


def audit(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    """The status of `mimicvideo audit ARGV`."""
    return typed(monkeypatch, "audit", *argv)


def of(root: Path, out: Path, *more: str) -> list[str]:
    window = ["--data.cameras=[front]", "--data.observed=1", "--data.future=8"]
    return [f"--data={root}", f"--data.spec={spec_of(root)}", *window, f"--out={out}", *more]


def content(out: Path) -> dict[str, Any]:
    def constant(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    return json.loads((out / "audit.json").read_text(), parse_constant=constant)


def test_a_mixture_of_all_formats(dark: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit(monkeypatch, f"--data={dark / 'mixture.yaml'}", f"--out={tmp_path / 'out'}") == 1
    found = content(tmp_path / "out")
    for dataset in found["datasets"]:
        told = [(finding["kind"], finding["episode"]) for finding in dataset["findings"]]
        assert told == [("black_frames", bad_of(corpus, dataset["name"]))] and dataset["episodes"] == 7
        assert {f"datasets[].{key}" for key in dataset} <= {key.removesuffix(".*") for key in found["keys"]}
    assert sorted(dataset["name"] for dataset in found["datasets"]) == sorted(KINDS)
    assert {*found} == {key.split(".")[0].removesuffix("[]") for key in found["keys"]}
    page = (tmp_path / "out" / "audit.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)|url\((?!data:)|@import', page) and "<script" not in page
    assert not list((tmp_path / "out").glob(".*"))


def test_a_source_that_cannot_be_opened_leaves_the_others(dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(dark, tmp_path / "data")
    for path in (tmp_path / "data" / "hdf5").iterdir():
        path.write_bytes(b"")
    absent = {"root": str(tmp_path / "absent")}
    assert audit(monkeypatch, f"--data={mixture(tmp_path / 'data', ('hdf5', 'zarr'), gone=absent)}", f"--out={tmp_path / 'out'}") == 1
    found = {dataset["name"]: dataset for dataset in content(tmp_path / "out")["datasets"]}
    assert "damaged or truncated" in found["hdf5"]["problem"] and "there is no dataset" in found["gone"]["problem"]
    assert found["zarr"]["problem"] is None and found["zarr"]["counts"] == {"black_frames": 1}


@pytest.mark.parametrize("rate", [None, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_training_honours_the_quarantine_of_every_format(
    kind: str, rate: float | None, dark: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit(monkeypatch, *of(dark / kind, tmp_path, *([f"--data.frame_hz={rate}"] if rate else []))) == 1
    options: dict[str, Any] = {"cameras": ["front"], "observed": 1, "future": 8, "frame_hz": rate, "validation_fraction": 0.0}
    data = ClipData(str(dark / kind), spec=str(spec_of(dark / kind)), quarantine=str(tmp_path / "quarantine.json"), **options)
    data.setup()
    bad = bad_of(corpus, kind)
    assert list(data.skipped) == [f"data/{bad}"] and "black_frames" in data.skipped[f"data/{bad}"]
    assert sorted(member.episode.index for member in data._training) == [index for index in range(7) if index != bad]


def test_a_full_disk_is_said_and_costs_nothing_that_was_read(
    dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, written = work._write_line, []

    def full(file: Any, summary: dict[str, Any]) -> None:
        if len(written) == 4:
            file.write('{"episode": ')  # as far as there was room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(summary["episode"])
        real(file, summary)

    argv = of(dark / "zarr", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(work, "_write_line", full)
        assert audit(monkeypatch, *argv) == 2
    assert f"results cannot be written to {tmp_path / 'out'} (No space left on device): free some space" in capsys.readouterr().err
    assert audit(monkeypatch, *argv) == 1
    through = content(tmp_path / "out")["datasets"][0]["throughput"]
    assert (through["episodes_kept_from_before"], through["episodes_read"]) == (4, 3)


def test_stopped_from_the_keyboard(dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "summarise", stop)
    assert audit(monkeypatch, *of(dark / "videos", tmp_path)) == 130
    assert f"stopped; the same command goes on from what is kept in {tmp_path}" in capsys.readouterr().err


def test_what_an_earlier_audit_wrote_stays_whole(dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = of(dark / "zarr", tmp_path)
    assert audit(monkeypatch, *argv) == 1
    before = {name: (tmp_path / name).read_bytes() for name in ("quarantine.json", "audit.html")}

    def full(path: Path, *_: Any) -> None:
        path.write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mimicvideo.audit.run.write_quarantine", full)
    assert audit(monkeypatch, *argv) == 2
    assert before == {name: (tmp_path / name).read_bytes() for name in before} and not list(tmp_path.glob(".*"))


def test_two_audits_do_not_write_to_one_folder(
    dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Claims(tmp_path / ".audit")
    assert other.take("running")
    assert audit(monkeypatch, *of(dark / "videos", tmp_path)) == 2
    assert "another audit is writing to" in capsys.readouterr().err
    other.release_all()
    assert audit(monkeypatch, *of(dark / "videos", tmp_path)) == 1


@pytest.mark.parametrize(
    ("kind", "pattern", "lost"), [("videos", "clip_5.mp4", 1), ("zarr", "episode_5", 1), ("hdf5", "0_*.hdf5", 3), ("rlds", "*00001-of*", 3)]
)
def test_files_that_vanish_while_they_are_read(
    kind: str, pattern: str, lost: int, dark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / kind
    shutil.copytree(dark / kind, root)
    shutil.copy(spec_of(dark / kind), spec_of(root))
    real = Episodes.frames

    def vanishing(*args: Any) -> Any:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return real(*args)

    monkeypatch.setattr(Episodes, "frames", vanishing)
    assert audit(monkeypatch, *of(root, tmp_path / "out", "--verify=quick")) == 1
    dataset = content(tmp_path / "out")["datasets"][0]
    unreadable = {f["episode"] for f in dataset["findings"] if f["kind"] in ("missing_video", "corrupt_video")}
    assert len(unreadable) == lost and dataset["quarantined"] >= lost


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    from mimicvideo.audit.dataset import Plan, audit_dataset
    from mimicvideo.data.window import Window

    with pytest.raises(ChildProcessError, match="a process of the audit died, .* fewer --num_workers; .* not read again"):
        audit_dataset("data", Deadly(tmp_path, 6), set(), Plan(Window(1, 4), "full", "en", 1, tmp_path), lambda frames, new: None)


@pytest.mark.integration
def test_processes_end_with_an_audit_that_is_killed(dark: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mimicvideo", "audit", f"--data={dark / 'mixture.yaml'}", f"--out={tmp_path}", "--num_workers=2"]
    audit = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[int] = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and audit.poll() is None and not any(path.stat().st_size > 9999 for path in tmp_path.glob("*.jsonl")):
        time.sleep(0.05)
    for task in Path(f"/proc/{audit.pid}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    audit.send_signal(signal.SIGKILL)
    audit.wait()
    assert len(children) >= 2
    while time.monotonic() < deadline and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
