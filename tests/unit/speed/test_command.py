"""tools/benchmark: every row at tiny size on a CPU, what its files hold, resuming, refusals. Figures themselves mean nothing here."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mimicvideo.speed.command import ROWS, parser, run
from mimicvideo.speed.kernels import category
from mimicvideo.speed.measure import difference, measure

TINY = ["--size", "tiny", "--device", "cpu", "--calls", "2", "--reference-calls", "2", "--seconds", "0.5"]


def record(folder: Path, row: str) -> dict:
    return json.loads((folder / f"{row}_tiny_cpu.json").read_text())


def measured(row: str, folder: Path, *options: str) -> dict:
    run([row], parser().parse_args([*TINY, "--out", str(folder), *options]))
    return record(folder, row)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_measured_and_recorded(row: str, tmp_path: Path, capsys) -> None:
    found = measured(row, tmp_path)
    assert found["row"] == row and found["complete"] and found["size"] == "tiny" and found["compile"] is False
    assert found["surroundings"]["hardware"]["device"] == "cpu" and "torch" in found["surroundings"]["versions"]
    assert found["surroundings"]["command"] and found["ceilings"]["products"] > 0
    plain, *ours = found["variants"]
    assert ours
    for variant in found["variants"]:
        assert 0 < variant["p50_ms"] <= variant["p99_ms"] and variant["calls"] >= 2 and variant["first_ms"] > 0
        assert variant["tflop"] >= 0 and variant["roofline_fraction"] > 0
    exact = ours if row in ("hidden_states", "chunk", "lora_step") else ours[:1] if row == "decoder_training" else []
    for variant in exact:
        assert variant["agreement"]["relative_rms"] < 1e-4, variant["name"]
    if row == "realtime":
        assert 1e-4 < ours[0]["agreement"]["relative_rms"] < 1  # shown less of the future: not the same actions
        assert "FP8" in found["skipped"]
    if row == "decoder_training":
        assert ours[1]["draws_per_s"] == pytest.approx(16 * ours[1]["samples_per_s"], rel=1e-3)
        assert plain["samples_per_s_over_plain"] == 1
    text = capsys.readouterr().out
    assert found["work"].split(",")[0][:20] in text and "recorded in" in text


def test_a_profile_and_learning_curves_are_recorded_on_demand(tmp_path: Path) -> None:
    found = measured("decoder_training", tmp_path, "--profile", "--curve-seconds", "0.4", "--ways", "1")
    assert len(found["variants"]) == 2
    assert found["profiles"]["ours, exact"]["busy_ms"] > 0 and "matrix product" in found["profiles"]["ours, exact"]["categories"]
    exact, reuse = found["curves"]["exact"], found["curves"]["reuse"]
    assert exact[0]["validation_loss"] == pytest.approx(reuse[0]["validation_loss"], rel=1e-5)  # the same start, the same validation
    for curve in (exact, reuse):
        assert curve[0]["seconds"] == 0 and curve[-1]["seconds"] >= 0.4 and curve[-1]["steps"] >= 1


def test_complete_rows_are_left_alone_and_broken_off_ones_measured_again(tmp_path: Path, capsys) -> None:
    first = measured("hidden_states", tmp_path)
    path = tmp_path / "hidden_states_tiny_cpu.json"
    path.write_text(json.dumps(first | {"mark": 1}))
    measured("hidden_states", tmp_path, "--resume")
    assert record(tmp_path, "hidden_states")["mark"] == 1 and "complete already" in capsys.readouterr().out
    path.write_text(json.dumps(first | {"mark": 1, "complete": False}))
    assert "mark" not in measured("hidden_states", tmp_path, "--resume")


def test_what_was_measured_survives_a_failure(tmp_path: Path, monkeypatch) -> None:
    from mimicvideo.speed import inference

    real, timed = inference.measure, []

    def breaks(*arguments, **options):
        timed.append(None)
        if len(timed) == 2:
            raise RuntimeError("the machine was taken away")
        return real(*arguments, **options)

    monkeypatch.setattr(inference, "measure", breaks)
    with pytest.raises(RuntimeError, match="taken away"):
        measured("hidden_states", tmp_path)
    found = record(tmp_path, "hidden_states")
    assert [variant["name"] for variant in found["variants"]] == ["diffusers, eager"] and not found["complete"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--calls", "0"], "must be at least 1"), (["--seconds", "0"], "above 0"), (["--ways", "0"], "must be at least 1")],
)
def test_numbers_out_of_range_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        measured("chunk", tmp_path, *options)


def test_only_the_wanted_ways_are_measured(tmp_path: Path) -> None:
    found = measured("realtime", tmp_path, "--only", "0 future latents")
    assert [variant["name"] for variant in found["variants"]] == ["exact, whole clip", "0 future latents"]
    assert found["effort"]["only"] == ["0 future latents"]
    for row in ROWS:
        with pytest.raises(SystemExit, match=r"no such way here: 'theirs'; there are '.*(ours|future)"):
            measured(row, tmp_path / "none", "--only", "theirs")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_at_once(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/benchmark", "all", "--out", str(tmp_path)])
    script = Path(__file__).resolve().parents[3] / "tools" / "benchmark"
    with pytest.raises(SystemExit, match="no GPU is available: use --size tiny --device cpu"):
        runpy.run_path(str(script), run_name="__main__")


def test_percentiles_are_those_of_the_calls() -> None:
    timing = measure(lambda: None, torch.device("cpu"), calls=50)
    assert timing.calls == 50 and timing.p50_ms <= timing.p99_ms and timing.peak_gib is None
    assert measure(lambda: torch.randn(200, 200) @ torch.randn(200, 200), torch.device("cpu"), 10**9, seconds=0.05).calls < 10**6
    found = difference(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0]))
    assert found["relative_max"] == pytest.approx(0.1) and found["relative_rms"] == pytest.approx(0.2 / 5**0.5)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
        ("triton_red_fused_add_mul_native_layer_norm_3", "fused"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "convolution"),
        ("void at::native::vectorized_elementwise_kernel<4>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("cudaGraphLaunch", "other"),
    ],
)
def test_kernels_fall_into_categories(kernel: str, expected: str) -> None:
    assert category(kernel) == expected
