"""Two processes (gloo) train as one does: DDP and FSDP2, both stages, whole runs of the command line on the same global batches.

In float32 the sums of two processes differ from those of one by rounding; TOLERANCE is what that may come to after six steps of
AdamW, as the share of the way that the weights have gone.
"""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mimicvideo.compose import CONF
from tests.synthetic_episodes import by_writer
from tests.tiny_trio import tiny_trio

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]  # a minute or two on two idle cores

TOLERANCE = 1e-4
STEPS = 6
SCRIPT = Path(__file__).resolve().parents[1] / "run_jobs.py"


class Runs:
    """Folders of runs by name, and how to start more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        by_writer(folder / "data", lengths=(12, 11, 13, 14, 12), tasks=["reach-v3", "push-v3"] * 2 + ["reach-v3"], height=32, width=32)

    def line(self, name: str, experiment: str, *more: str, processes: int = 1) -> list[str]:
        """A command line of `fit` for one of `processes` that share batches of 4."""
        given = {
            "run_dir": self.folder / name,
            "data.root": self.folder / "data",
            "data.batch_size": 4 // processes,
            "data.validation_windows": 5,
            "data.validation_fraction": 0.4,
            "model.backbone.pretrained": tiny_trio(),
            "model.backbone.prompt_tokens": 8,
            "model.backbone.prompt_cache": self.folder / "prompts",
            "model.latent_cache": "null",
            "model.scheduler.init_args.warmup": 1,
            "trainer.max_steps": STEPS,
            "trainer.val_check_interval": 3,
            "trainer.gradient_clip_val": 0.1,  # always reached
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "checkpoint.every_n_train_steps": 3,
            "checkpoint.save_top_k": -1,
            "checkpoint.filename": "{step}",
        }
        flags = [f"--{key}={value}" for key, value in given.items()]
        return ["fit", f"--config={CONF}/experiment/{experiment}.yaml", *more, *flags]

    def pair(self, name: str, experiment: str, strategy: str, *more: str) -> list[str]:
        """The same for two processes."""
        here = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true"]
        return self.line(name, experiment, f"--config={CONF}/trainer/{strategy}.yaml", *here, *more, processes=2)

    def start(self, *lines: list[str], processes: int = 1) -> None:
        jobs = self.folder / "jobs.json"
        jobs.write_text(json.dumps(lines))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        ranks = [{}] if processes == 1 else [{"LOCAL_RANK": str(rank), "NODE_RANK": "0"} for rank in range(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(jobs)],
                env={**os.environ, **shared, **rank},
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in ranks
        ]
        try:
            outputs = [process.communicate(timeout=900)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        assert not any(process.returncode for process in running), "\n".join(output[-5000:] for output in outputs)

    def column(self, name: str, metric: str) -> list[float]:
        """A metric's values in the order of steps."""
        (file,) = (self.folder / name).glob("csv/version_0/metrics.csv")
        with file.open() as rows:
            return [float(row[metric]) for row in csv.DictReader(rows) if row.get(metric)]

    def checkpoint(self, name: str, step: int) -> Path:
        return self.folder / name / "checkpoints" / f"step={step}.ckpt"

    def saved(self, name: str, step: int) -> dict[str, Any]:
        return torch.load(self.checkpoint(name, step), weights_only=True)


VIDEO, ACTION = "quickstart_video", "quickstart_action"
NO_SAMPLES = "--trainer.callbacks=[]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("parallel"))
    full = [f"--config={CONF}/adaptation/full.yaml", NO_SAMPLES]
    sizes = ["--data.action_dim=3", "--data.proprio_dim=2", "--data.horizon=4", "--data.hold_dims=[2]"]
    fast = [NO_SAMPLES, f"--config={CONF}/execution/fast.yaml", "--model.backbone.execution.compile=null"]
    action = ["--model.backbone.adapter=null", "--model.block=2", *sizes]
    runs.start(runs.line("one", VIDEO, NO_SAMPLES), runs.line("one_full", VIDEO, *full), runs.line("one_action", ACTION, *action))
    runs.start(
        runs.pair("ddp", VIDEO, "ddp", NO_SAMPLES),
        runs.pair("ddp_merged", VIDEO, "ddp", *fast, "--model.backbone.execution.merge_lora=true"),
        runs.pair("fsdp", VIDEO, "fsdp"),  # with sampled videos
        runs.pair("fsdp_fast", VIDEO, "fsdp", *fast),
        runs.pair("fsdp_fast_again", VIDEO, "fsdp", *fast, "--model.backbone.gradient_checkpointing=selective"),
        runs.pair("one_then_fsdp", VIDEO, "fsdp", NO_SAMPLES, f"--ckpt_path={runs.checkpoint('one', 3)}"),
        runs.pair("fsdp_full", VIDEO, "fsdp", *full),
        runs.pair("ddp_action", ACTION, "ddp", *action),
        processes=2,
    )
    runs.start(
        runs.line("fsdp_then_one", VIDEO, NO_SAMPLES, f"--ckpt_path={runs.checkpoint('fsdp', 3)}"),
        runs.line("full_then_one", VIDEO, *full, f"--ckpt_path={runs.checkpoint('fsdp_full', 3)}"),
    )
    return runs


def off(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor] | None = None) -> float:
    """|found - expected| as a share of |expected - start|, over all tensors together."""
    assert found.keys() == expected.keys()
    wrong = sum((found[name].double() - tensor.double()).square().sum() for name, tensor in expected.items())
    gone = sum((tensor.double() - (start[name].double() if start else 0)).square().sum() for name, tensor in expected.items())
    return float(wrong / gone) ** 0.5


SAME = [
    ("one", "ddp"),
    ("one", "ddp_merged"),
    ("one", "fsdp"),
    ("one", "fsdp_fast"),
    ("one", "fsdp_fast_again"),
    ("one", "one_then_fsdp"),
    ("one", "fsdp_then_one"),
    ("one_full", "fsdp_full"),
    ("one_full", "full_then_one"),
    ("one_action", "ddp_action"),
]


@pytest.mark.parametrize(("alone", "shared"), SAME, ids=[shared for _, shared in SAME])
def test_losses_and_weights_are_those_of_one_process(runs: Runs, alone: str, shared: str) -> None:
    """Gradients are clipped in every step, so that a norm over one's own shard would show."""
    for metric in ("train/loss", "val/loss"):
        expected, found = runs.column(alone, metric), runs.column(shared, metric)
        assert found == pytest.approx(expected[-len(found) :], rel=TOLERANCE)
    assert len(runs.column(shared, "train/loss")) == (3 if "then" in shared else STEPS)
    expected, found, start = runs.saved(alone, STEPS), runs.saved(shared, STEPS), runs.saved(alone, 3)
    assert off(found["state_dict"], expected["state_dict"], start["state_dict"]) < TOLERANCE
    average, other, before = (checkpoint["mimicvideo"]["average"] for checkpoint in (found, expected, start))
    assert average["updates"] == other["updates"] == STEPS
    assert off(average["average"], other["average"], before["average"]) < TOLERANCE


@pytest.mark.parametrize(("alone", "shared"), SAME, ids=[shared for _, shared in SAME])
def test_checkpoints_have_the_format_of_one_process(runs: Runs, alone: str, shared: str) -> None:
    expected, found = runs.saved(alone, STEPS), runs.saved(shared, STEPS)
    assert found.keys() == expected.keys()
    (one,), (other,) = expected["optimizer_states"], found["optimizer_states"]
    assert other["param_groups"] == one["param_groups"]
    assert other["state"].keys() == one["state"].keys()
    for name in ("exp_avg", "exp_avg_sq"):
        moments, others = ({str(number): state[name] for number, state in states["state"].items()} for states in (one, other))
        assert all(type(tensor) is Tensor for tensor in others.values())
        assert off(others, moments) < TOLERANCE
    folder = runs.folder / shared / "checkpoints"
    names = {"last.ckpt", f"step={STEPS}.ckpt"} | (set() if "then" in shared else {"step=3.ckpt"})
    assert {path.name for path in folder.iterdir()} == names | {f"{name}.sha256" for name in names}


@pytest.mark.parametrize("shared", ["ddp", "fsdp", "one_then_fsdp"])
def test_the_adapter_is_the_one_of_one_process(runs: Runs, shared: str) -> None:
    one, other = (runs.folder / name / "adapter" for name in ("one", shared))
    assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()}
    for name in ("adapter_model.safetensors", "full_weights.safetensors"):
        assert off(load_file(other / name), load_file(one / name)) < TOLERANCE


def test_the_whole_model_too(runs: Runs) -> None:
    one, other = (runs.folder / name / "backbone" for name in ("one_full", "fsdp_full"))
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert {path.relative_to(other) for path in other.rglob("*") if path.is_file()} == names
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert off(load_file(other / file), load_file(one / file)) < TOLERANCE
    config = json.loads((other / "transformer/config.json").read_text())
    assert config == json.loads((one / "transformer/config.json").read_text())


def test_sampled_videos_are_written_once(runs: Runs) -> None:
    for step in (3, 6):
        assert {path.name for path in (runs.folder / f"fsdp/samples/step_{step:06d}").iterdir()} >= {"strip.png", "samples.json"}
    assert "val/sample_psnr" in json.loads((runs.folder / "fsdp/metrics.json").read_text())
