"""The page of a study: complete, self-contained, honest about what it lacks."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mimicvideo.evaluation import Episode, Evaluation
from mimicvideo.media import write_mp4, write_png
from mimicvideo.report import report
from mimicvideo.report_figures import smoothed
from mimicvideo.report_inputs import commands, read_curves, read_inputs

RECORD = {
    "arguments": {"seed": 0},
    "contract": {},
    "sha256": {"checkpoint": "c" * 64},
    "versions": {"torch": "2.13"},
    "hardware": {"cpu": "x"},
    "command": "mimicvideo rollout --policy p.ckpt",
    "wall_seconds": 12.5,
}
LATENCY = {"calls": 10, "observations": 40, "mean_batch": 4.0, "batch_ms": {"p50": 31.0, "p99": 50.0, "first": 90.0}}


def make_rollout(folder: Path, control: str, successes: int, error: str | None = None) -> str:
    (folder / "videos").mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    write_mp4(folder / "videos/reach-v3_000_success.mp4", frames, 10)
    write_mp4(folder / "videos/grid.mp4", frames, 10)
    episodes = [Episode(task, index, 7 * index, index < successes, 50) for task in ("reach-v3", "push-v3") for index in range(10)]
    if error:
        episodes.append(Episode("push-v3", 10, 99, error=error))
    Evaluation.of(control, ["reach-v3", "push-v3"], episodes, LATENCY, RECORD).write(folder)
    return str(folder)


def make_training(folder: Path, model: str) -> str:
    lines = ["epoch,step,train/loss,val/loss,val/velocity_tau_0.10,val/velocity_tau_0.90,val/sample_psnr"]
    lines += [f"0,{step},{1 / (step + 1)},,,," for step in range(100)]
    lines += [f"0,{step},,{2 / (step + 1)},{0.5 / (step + 1)},{0.9 - step / 1000},{20 + step / 10}" for step in (9, 49, 99)]
    (folder / "csv/version_0").mkdir(parents=True)
    (folder / "csv/version_0/metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "fit.yaml").write_text(f"model:\n  class_path: mimicvideo.{model}\n")
    samples = folder / "samples/step_000099"
    samples.mkdir(parents=True)
    write_png(samples / "strip.png", np.full((20, 60, 3), 200, np.uint8))
    write_mp4(samples / "sample_0.mp4", np.zeros((3, 16, 32, 3), np.uint8), 5)
    return str(folder)


def make_dataset(folder: Path) -> str:
    counts = {"reach-v3": {"episodes": 5, "dropped": 1}, "push-v3": {"episodes": 4, "dropped": 3}}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/mimicvideo.json").write_text(json.dumps({"counts": counts, "generator": {"seed": 3}}))
    return str(folder)


class Outline(HTMLParser):
    """Checks that tags close and collects what the page refers to."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [(tag, value or "") for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] != "style" else ""


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    return [
        make_dataset(tmp_path / "datasets/mt3"),
        make_training(tmp_path / "video", "video.finetune.VideoFinetune"),
        make_training(tmp_path / "action", "action.policy.ActionPolicy"),
        make_rollout(tmp_path / "rollout", "none", 9),
        make_rollout(tmp_path / "zero", "zero_context", 1),
    ]


def test_a_complete_study_lacks_nothing_and_needs_no_other_file(tmp_path: Path, study: list[str]) -> None:
    text = report(study, str(tmp_path / "out/page.html"), title="A <study>").read_text()
    outline = Outline(text)
    assert "Not in this report" not in text and "A <study>" in outline.text
    assert all(source.startswith("data:") for _, source in outline.sources)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)
    kinds = [source.split(";")[0] for _, source in outline.sources]
    assert kinds.count("data:video/mp4") == 2 * 1 + 2 * 2  # a sample per training, grid and episode per rollout
    assert kinds.count("data:image/svg+xml") == 1 + 2 * 2 and kinds.count("data:image/png") == 2
    for _, source in outline.sources:
        content = base64.b64decode(source.partition(",")[2])
        assert content[:4] in (b"\x89PNG", b"<?xm") or content[4:8] == b"ftyp"
    for said in (
        "90 %",
        "10 %",
        "18 of 20, 95 % in 70–97 %",
        "70–97",
        "reach-v3, episode 0: success",
        "dropped",
        "datasets/mt3 --seed=3",
        "mimicvideo rollout --policy p.ckpt",
        "c" * 64,
    ):
        assert said in outline.text, said
    assert "Stage 1, video model: video" in outline.text and "Stage 2, action decoder: action" in outline.text


def test_the_markdown_beside_it_has_the_tables(tmp_path: Path, study: list[str]) -> None:
    text = report(study, str(tmp_path / "page.html")).with_suffix(".md").read_text()
    assert "| all | 90 % [70–97] (18/20) | 10 % [3–30] (2/20) |" in text
    assert "| val/velocity_tau_0.90 | 99 | 0.801 |" in text
    assert f"mimicvideo fit --config {tmp_path}/video/fit.yaml" in text


def test_what_is_missing_is_named(tmp_path: Path, study: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/results.json").write_text("{}")
    page = report([study[1], str(tmp_path / "empty"), str(tmp_path / "nowhere"), str(tmp_path / "bad")], str(tmp_path / "page.html"))
    for text in (Outline(page.read_text()).text, page.with_suffix(".md").read_text()):
        for said in (
            f"{tmp_path}/empty: holds neither",
            f"{tmp_path}/nowhere: there is no such folder",
            "bad/results.json holds no results",
            "no training run of 'Stage 2, action decoder' was given",
            "no rollout of a policy",
            "no control rollout",
        ):
            assert said in text, said


def test_missing_parts_of_runs_are_named(tmp_path: Path) -> None:
    rollout, training = make_rollout(tmp_path / "r", "none", 3), make_training(tmp_path / "t", "video.finetune.VideoFinetune")
    for path in [*(tmp_path / "r/videos").iterdir(), tmp_path / "t/samples/step_000099/strip.png", tmp_path / "t/fit.yaml"]:
        path.unlink()
    missing = "\n".join(read_inputs([rollout, training]).missing)
    for said in ("no videos were recorded", "no generated videos", "no fit.yaml"):
        assert said in missing


def test_videos_beyond_the_limit_are_named_and_left_out(tmp_path: Path, study: list[str]) -> None:
    outline = Outline(report(study, str(tmp_path / "page.html"), max_megabytes=0).read_text())
    assert not [source for tag, source in outline.sources if tag == "video"]
    assert "rollout/videos/grid.mp4" in outline.text and "too large for this page" in outline.text


def test_errors_of_episodes_are_shown_and_escaped(tmp_path: Path) -> None:
    folder = make_rollout(tmp_path / "r", "none", 5, error="RuntimeError: <b>unstable</b>")
    outline = Outline(report([folder], str(tmp_path / "page.html")).read_text())
    assert "could not be finished (not counted)" in outline.text and "RuntimeError: <b>unstable</b>" in outline.text


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to report: .*nowhere: there is no such folder"):
        report([str(tmp_path / "nowhere")], str(tmp_path / "page.html"))


def test_curves_of_a_resumed_run_are_joined(tmp_path: Path) -> None:
    for version, rows in {9: "1,4.0\n2,3.0\n3,nan\n", 10: "3,2.0\n4,1.0\n"}.items():
        (tmp_path / f"csv/version_{version}").mkdir(parents=True)
        (tmp_path / f"csv/version_{version}/metrics.csv").write_text("step,train/loss\n" + rows)
    assert read_curves(tmp_path) == {"train/loss": [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]}


def test_commands_as_typed_come_before_those_reconstructed(tmp_path: Path) -> None:
    folder = Path(make_training(tmp_path / "video", "video.finetune.VideoFinetune"))
    assert commands(folder) == [f"mimicvideo fit --config {folder}/fit.yaml"]
    (folder / "commands.txt").write_text("mimicvideo fit --config a.yaml\nmimicvideo fit --config a.yaml --ckpt_path last\n")
    assert len(commands(folder)) == 2


def test_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [make_rollout(tmp_path / f"{name}/rollout", "none", 3) for name in "ab"]
    assert list(read_inputs(folders).rollouts) == ["a/rollout", "b/rollout"]


def test_smoothing_keeps_constants_and_ends() -> None:
    assert smoothed([2.0] * 9, 4) == pytest.approx([2.0] * 9)
    assert smoothed([0, 3, 0], 3) == pytest.approx([1.5, 1.0, 1.5])
