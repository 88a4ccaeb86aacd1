"""The pieces of the audit against what they say: robust statistics, languages, correlations over lags, reasons of readers."""

from pathlib import Path

import numpy as np
import pytest

from mimicvideo.audit.calibration import change
from mimicvideo.audit.findings import KINDS, Findings, kind_of
from mimicvideo.audit.report import _some_of_each
from mimicvideo.audit.robust import correlation, evenly, runs, usual
from mimicvideo.audit.text import is_placeholder, language


def test_six_standard_deviations_of_normal_values_are_six() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 200_000)
    found = usual(values)
    assert found.median == pytest.approx(3.0, abs=0.02)
    assert (found.below, found.above) == pytest.approx((2.0, 2.0), rel=0.02)
    assert found.far_above(15.3, 0.0) and not found.far_above(14.7, 0.0)
    assert not found.far_above(15.3, 13.0)  # the floor


def test_one_of_few_stands_out_and_a_heavy_tail_does_not() -> None:
    assert usual([1, 1, 1, 1, 1, 9]).far_above(9, 0.5)
    assert usual([1, 1, 9]).far_above(9, 0.5) and usual([1, 1.2, 1.1, 9]).far_above(9, 0.5)
    assert not usual([1, 1, 9, 9]).far_above(9, 0.5)  # either may be right
    assert not usual([1, 9]).far_above(9, 0.5)
    assert not usual([1, 2, 3, 4, 9]).far_above(9, 0.5)  # too few to know how far they spread
    assert not usual([1] * 16 + [9] * 4).far_above(9, 0.5)  # a fifth of them is the dataset's way
    assert not usual([]).far(1.0, 0.0) and not usual([None, float("nan")]).known


def test_correlations_are_numpys_and_zero_for_constants() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(50, 3)), random.normal(size=(50, 2))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.T, b.T)[:3, 3:])
    assert (correlation(np.ones((50, 1)), b) == 0).all()


def test_places_and_runs() -> None:
    assert evenly(10, 4).tolist() == [0, 3, 6, 9] and evenly(3, 5).tolist() == [0, 1, 2] and evenly(0, 5).tolist() == []
    assert runs([True, True, False, True]) == [(0, 2), (3, 1)] and runs([]) == []


def test_an_angle_that_wraps_does_not_jump() -> None:
    angle = np.linspace(0, 9, 60)[:, None]
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    assert change(wrapped) == pytest.approx(np.diff(angle, axis=0))
    assert change(10 * wrapped) == pytest.approx(np.diff(10 * wrapped, axis=0))  # no angle: left as it is


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pick up the red cup.", "en"),
        ("close drawer", "en"),
        ("Öffne die Schublade.", "de"),
        ("Ouvre le tiroir et prends la tasse", "fr"),
        ("abre el cajón", "es"),
        ("Pegue a xícara e coloque na gaveta", "pt"),
        ("打开抽屉", "cjk"),
        ("Открой ящик", "cyrillic"),
        ("xyzzy 42", None),
        ("", None),
    ],
)
def test_languages(text: str, expected: str | None) -> None:
    assert language(text) == expected


def test_every_meta_world_instruction_is_english() -> None:
    from mimicvideo.benchmark.instructions import INSTRUCTIONS

    assert [text for text in map(str, INSTRUCTIONS.values()) if language(text) not in ("en", None) or is_placeholder(text)] == []


def test_placeholders() -> None:
    assert all(map(is_placeholder, ["TODO", "none", "<task>", "N/A", "...", "123"]))
    assert not any(map(is_placeholder, ["", "test the switch", "pick"]))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("actions is NaN or infinite in row 3, dimension 1", "not_finite"),
        ("it has 1 rows, fewer than 2", "too_short"),
        ("its video a.mp4 is unreadable: there is no such file", "missing_video"),
        ("its video a.mp4 is shorter than its parquet rows: 3 of 9 frames", "short_video"),
        ("its video a.mp4 is 8 x 8 pixels, meta/info.json says 16 x 16", "wrong_resolution"),
        ("its video a.mp4 is damaged: it has no frame at 0.1 s (frame 1 at 10 per second)", "wrong_rate"),
        ("its video a.mp4 is unreadable: it is truncated: 10 bytes of at least 20", "corrupt_video"),
        ("data/chunk-000/episode_000005.parquet is missing; copy or download the dataset again", "unusable"),
        ("/d/a.parquet is damaged or truncated (Parquet file size is 0 bytes): copy or download the dataset again", "unusable"),
        ("nobody knows", "unusable"),
    ],
)
def test_a_readers_reason_has_a_kind(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_findings_are_counted_beyond_those_that_are_listed() -> None:
    findings = Findings()
    for episode in range(3000):
        findings.add("black_frames", episode, "dark")
        findings.add("no_instruction", episode, "none")
    assert findings.counts == {"black_frames": 3000, "no_instruction": 3000}
    assert len(list(findings)) == 2000 and len(findings.quarantined) == 3000
    assert next(iter(findings)).severity == "error"
    assert {severity for severity, _ in KINDS.values()} == {"error", "warning", "note"}


def test_a_kind_with_many_findings_leaves_room_for_others() -> None:
    findings = [{"kind": "black_frames", "episode": place} for place in range(1000)]
    findings += [{"kind": "idle_head", "episode": place} for place in range(3)]
    shown = [(finding["kind"], finding["episode"]) for finding in _some_of_each(findings, 20)]
    assert shown == [*(("black_frames", place) for place in range(17)), *(("idle_head", place) for place in range(3))]
    assert _some_of_each(findings[:5], 20) == findings[:5] and _some_of_each(findings, 0) == []


@pytest.mark.simulator
def test_sound_meta_world_data_has_no_finding(tmp_path: Path) -> None:
    from mimicvideo.audit.dataset import Plan, audit_dataset
    from mimicvideo.benchmark.demos import demos
    from mimicvideo.data.sources import Source
    from mimicvideo.data.window import Window

    demos(str(tmp_path / "data"), tasks="MT10", episodes_per_task=3, resolution=(64, 64), num_workers=1)
    reader = Source(str(tmp_path / "data")).open(["corner2"], max_bad_fraction=1.0)
    found = audit_dataset("data", reader, set(), Plan(Window(5, 56), "full", "en", 0, tmp_path), lambda frames, new: None)
    assert [(finding.kind, finding.episode, finding.text) for finding in found.findings] == []
