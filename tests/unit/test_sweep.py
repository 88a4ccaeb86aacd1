"""What a sweep does before its first job: overrides, the grid, and the check of every job. In this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mimicvideo import sweep as module
from mimicvideo.check import check
from mimicvideo.compose import CONF, conf, short_errors
from mimicvideo.messages import ConfigError
from mimicvideo.sweep import hydra_override, jobs, parse, run_job, sweep

TOY = [
    "model.class_path=tests.toys.ToyPolicy",
    "model.init_args.backbone.class_path=tests.toys.ToyBackbone",
    "model.init_args.decoder.class_path=tests.toys.Mlp",
    "model.init_args.noise.class_path=mimicvideo.noise.Fixed",
    "model.init_args.noise.init_args.tau=0.3",
    "data.class_path=tests.toys.ToyData",
]


def overridden(*given: str) -> list[str]:
    with conf(), short_errors("fit"):
        return [hydra_override(override) for override in parse(list(given))]


def grid(*given: str, verb: str = "fit") -> dict[str, list[str]]:
    with conf(), short_errors(verb):
        return jobs(verb, [hydra_override(override) for override in parse(list(given))])


def refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The message of a sweep that must not get as far as Hydra's multirun; the check runs in this process."""

    def never(**options: Any) -> Any:
        raise AssertionError("the sweep started")

    def run(command: list[str], input: str, **options: Any) -> None:
        assert command[1:] == ["-m", "mimicvideo.check", "fit"]
        check("fit", json.loads(input))
        raise AssertionError("the check accepted the sweep")

    monkeypatch.setattr(module.hydra, "main", never)
    monkeypatch.setattr(module.subprocess, "run", run)
    with pytest.raises((ConfigError, SystemExit)) as caught:
        sweep(["fit", *TOY, *given])
    out, err = capsys.readouterr()
    assert "the backbone is built" not in out
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        return err
    return str(caught.value)


def test_keys_need_no_plus_and_groups_stay_groups() -> None:
    given = [
        "experiment=quickstart_action",
        "model.init_args.num_steps=1,2",
        "hydra/launcher=joblib",
        "hydra.job.name=x",
        "+a.b=1",
        "~trainer",
    ]
    assert overridden(*given) == [given[0], "++model.init_args.num_steps=1,2", *given[2:]]


def test_the_run_folder_is_where_the_jobs_go() -> None:
    assert overridden("run_dir=runs/x") == ["hydra.sweep.dir=runs/x"]


def test_the_grid_is_every_combination() -> None:
    names = list(grid("experiment=quickstart_action", "decoder=dit_small,dit_medium", "model.init_args.block=1,2", "objective=val/loss"))
    assert names == [f"decoder={d} model.init_args.block={b}" for d in ("dit_small", "dit_medium") for b in (1, 2)]


def test_globs_ranges_and_intervals_are_checked_too() -> None:
    assert len(grid("experiment=quickstart_action", "future=glob(*)")) == len(list((CONF / "future").glob("*.yaml"))) > 2
    assert list(grid("experiment=quickstart_action", "model.init_args.block=range(0,3)")) == [
        f"model.init_args.block={b}" for b in range(3)
    ]
    ends = grid("experiment=quickstart_action", "model.init_args.loss_scale=interval(1,10)")
    assert list(ends) == ["model.init_args.loss_scale=1.0", "model.init_args.loss_scale=10.0"]


def test_what_a_file_of_sweep_tries_is_part_of_the_grid() -> None:
    names = list(grid("experiment=quickstart_action", "sweep=blocks", "decoder=dit_small,dit_medium"))
    assert len(names) == 16
    assert "model.init_args.block=7 decoder=dit_medium" in names


def test_of_a_large_grid_every_value_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_AT_MOST", 5)
    checked = grid("experiment=quickstart_action", "model.init_args.block=1,2,3", "model.init_args.draws=1,2,bad").values()
    for value in ("block=1", "block=2", "block=3", "draws=1", "draws=2", "draws=bad"):
        assert any(f"++model.init_args.{value}" in job for job in checked)
    assert len(checked) < 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.init_args.tau=0.1,high",
            "model.init_args.tau: expected float, got 'high'\n(in the job model.init_args.tau=high; none has started)",
        ),
        ("model.init_args.tua=0.1,0.2", "model.init_args.tua is not accepted by tests.toys.ToyPolicy: did you mean 'tau'?"),
        ("+model.init_args.tua=0.1", "model.init_args.tua is not accepted by tests.toys.ToyPolicy: did you mean 'tau'?"),
        ("model.init_args.decoder.init_args.widht=1,2", "is not accepted by tests.toys.Mlp: did you mean 'width'?"),
        ("model.init_args.decoder.class_path=tests.toys.Mlp,tests.toys.Lnear", "has no attribute 'Lnear': did you mean 'Linear'?"),
        ("model.tau=0.1,0.2", "model.tau is not accepted beside class_path: did you mean 'model.init_args.tau'? (in the job model.tau=0.1"),
        ("trainer.max_step=1", "trainer.max_step is not accepted: did you mean 'trainer.max_steps'?"),
        ("trainer.max_steps=1,1.5", "trainer.max_steps: expected int, got '1.5'"),
        ("objectve=val/loss", "objectve is not accepted: did you mean 'objective'?"),
        ("traner=cpu", "traner is not a group of conf/: did you mean 'trainer'?"),
        ("trainer=cpu,gpuu", "there is no conf/trainer/gpuu.yaml: did you mean 'gpu'?"),
        ("hydra/launcher=joblb", "did you mean 'joblib'?"),
        ("model.init_args.tau=[0.1", "cannot read the override"),
    ],
)
def test_every_mistake_is_refused_before_the_first_job(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_before_anything_starts(monkeypatch, capsys, override)


def test_a_gpu_of_another_machine_is_no_reason_to_refuse() -> None:
    # A sweep may be submitted from a machine that has none.
    text = {"trainer": {"accelerator": "gpu", "devices": 8}, **toy_config()}
    check("fit", {"job": yaml.dump(text)})


def toy_config() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.from_dotlist(TOY))  # type: ignore[return-value]


def test_a_job_that_fails_or_lacks_its_objective_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = OmegaConf.create({"job": {"config_name": "fit"}, "runtime": {"output_dir": str(tmp_path)}})
    monkeypatch.setattr(module.HydraConfig, "get", lambda: job)
    done = type("Done", (), {"returncode": 0})
    monkeypatch.setattr(module.subprocess, "run", lambda command, check: done)
    (tmp_path / "metrics.json").write_text('{"val/loss": 0.5}')
    assert run_job(OmegaConf.create({"objective": "val/loss"})) == 0.5
    assert yaml.safe_load((tmp_path / "composed.yaml").read_text()) == {"objective": "val/loss"}
    with pytest.raises(RuntimeError, match="objective=val/los is not a metric .*did you mean 'val/loss'?"):
        run_job(OmegaConf.create({"objective": "val/los"}))
    done.returncode = 3
    with pytest.raises(RuntimeError, match="status 3 from: .*mimicvideo fit --config"):
        run_job(OmegaConf.create({"objective": "val/loss"}))
