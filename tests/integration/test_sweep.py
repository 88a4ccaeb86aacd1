"""Sweeps as a person types them: every job a process of its own, its objective back at the sweeper, with each launcher."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mimicvideo.compose import CONF
from tests.unit.test_sweep import TOY

pytestmark = pytest.mark.integration

SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]


def mimicvideo(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mimicvideo", *argv], capture_output=True, text=True, cwd=CONF.parent, timeout=600)


def sweep(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    done = mimicvideo("sweep", "fit", *TOY, *SHORT, f"run_dir={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    return done


def objective(job: Path) -> float:
    return json.loads((job / "metrics.json").read_text())["val/loss"]


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_every_launcher_runs_the_jobs_it_is_given(launcher: str, tmp_path: Path) -> None:
    decoders = ["tests.toys.Mlp", "tests.toys.Linear"]
    # submitit starts a job before it makes the folder named after it, in which the job writes at once: one that is there already is safe.
    folder = [f"hydra.launcher.submitit_folder={tmp_path}/.submitit"] if launcher == "submitit_local" else []
    sweep(tmp_path, f"hydra/launcher={launcher}", *folder, f"model.init_args.decoder.class_path={','.join(decoders)}")
    for number, decoder in enumerate(decoders):
        run = yaml.safe_load((tmp_path / str(number) / "fit.yaml").read_text())
        assert run["model"]["init_args"]["decoder"]["class_path"] == decoder
        assert run["run_dir"] == str(tmp_path / str(number))
    assert objective(tmp_path / "0") != objective(tmp_path / "1")


def test_an_optimising_sweeper_gets_the_objectives(tmp_path: Path) -> None:
    tpe = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
    sweep(tmp_path, *tpe, "model.init_args.tau=interval(0.1,0.9)")
    losses = [objective(tmp_path / str(number)) for number in range(3)]
    taus = [yaml.safe_load((tmp_path / str(number) / "fit.yaml").read_text())["model"]["init_args"]["tau"] for number in range(3)]
    assert len(set(taus)) == 3
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(losses)
    assert best["best_params"]["++model.init_args.tau"] == taus[losses.index(min(losses))]


def test_the_ranks_of_a_job_are_alike_even_if_the_sweeper_draws_at_random(tmp_path: Path) -> None:
    # Within Hydra's own process each rank would ask an unseeded sweeper for a trial of its own.
    random = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "model.init_args.tau=interval(0.1,0.9)"]
    sweep(tmp_path, *random, "trainer.strategy=ddp", "trainer.devices=2")
    tau = yaml.safe_load((tmp_path / "0" / "fit.yaml").read_text())["model"]["init_args"]["tau"]
    assert json.loads((tmp_path / "0" / "metrics.json").read_text())["train/tau"] == pytest.approx(tau, abs=1e-6)


def test_a_job_can_be_typed_again(tmp_path: Path) -> None:
    sweep(tmp_path, "model.init_args.tau=0.7")
    for again in ("composed", "fit"):
        done = mimicvideo("fit", f"--config={tmp_path}/0/{again}.yaml", f"--run_dir={tmp_path}/{again}")
        assert done.returncode == 0, done.stderr
        assert objective(tmp_path / again) == objective(tmp_path / "0")


def test_a_mistake_ends_the_sweep_before_it_starts(tmp_path: Path) -> None:
    done = mimicvideo("sweep", "fit", *TOY, *SHORT, f"run_dir={tmp_path}/sweep", "model.init_args.tau=0.1,high")
    assert done.returncode == 2
    assert done.stderr == (
        "mimicvideo fit: error: model.init_args.tau: expected float, got 'high'\n(in the job model.init_args.tau=high; none has started)\n"
    )
    assert not (tmp_path / "sweep").exists()
