"""Files of conf/ become one configuration; what Hydra refuses becomes one line with the nearest right name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mimicvideo import compose
from mimicvideo.compose import CONF, check_class_blocks, choice, compose_argv, compose_verb
from mimicvideo.messages import ConfigError

EXPERIMENT = f"{CONF}/experiment/quickstart_action.yaml"


def composed(*argv: str) -> dict:
    """What `--config` becomes."""
    verb, config, *_ = compose_argv(list(argv))
    assert verb == argv[0]
    return yaml.safe_load(config.removeprefix("--config="))


def test_a_file_of_conf_stands_for_a_choice(tmp_path: Path) -> None:
    assert choice(f"{CONF}/decoder/dit_small.yaml", "fit") == ["decoder=dit_small"]
    assert choice(f"{CONF}/hydra/launcher/slurm.yaml", "fit") == ["hydra/launcher=slurm"]
    assert choice(f"{CONF}/fit.yaml", "fit") == []
    assert choice(str(tmp_path / "fit.yaml"), "fit") is None


def test_another_verbs_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"conf/rollout.yaml is not for `fit`: use conf/fit.yaml"):
        choice(f"{CONF}/rollout.yaml", "fit")


def test_an_experiment_fills_the_groups_and_changes_values() -> None:
    config = composed("fit", "--config", EXPERIMENT)
    assert config["model"]["init_args"]["decoder"]["class_path"] == "mimicvideo.action.dit.DiTDecoder"
    assert config["model"]["init_args"]["backbone"]["init_args"]["adaptation"]["class_path"].endswith("Frozen")
    assert config["data"]["init_args"]["root"] == "datasets/quickstart"
    assert "hydra" not in config and "experiment" not in config


def test_later_files_win_over_the_experiment() -> None:
    config = composed("fit", f"--config={EXPERIMENT}", "-c", f"{CONF}/trainer/ddp.yaml", f"--config={CONF}/decoder/dit_500m.yaml")
    assert config["trainer"]["strategy"] == "ddp"
    assert config["trainer"]["max_steps"] == composed("fit", "--config", EXPERIMENT)["trainer"]["max_steps"]
    assert config["model"]["init_args"]["decoder"]["init_args"]["depth"] == 24


def test_files_outside_conf_and_flags_follow_in_their_order(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("trainer: {max_steps: 3}\n")
    argv = compose_argv(["fit", "--trainer.max_epochs", "2", f"--config={overlay}", "--config", EXPERIMENT, "--model.block=1"])
    assert argv[2:] == [f"--config={overlay}", "--trainer.max_epochs", "2", "--model.block=1"]
    assert compose_argv(["fit", "-c", str(overlay), "--run_dir=x"]) == ["fit", f"--config={overlay}", "--run_dir=x"]


def test_what_is_composed_stays_as_it_is() -> None:
    once = compose_argv(["fit", "--config", EXPERIMENT, "--model.block=1"])
    assert compose_argv(once) == once


def test_the_content_of_a_file_takes_the_place_of_its_name_for_a_nested_key(tmp_path: Path) -> None:
    block = tmp_path / "decoder.yaml"
    block.write_text("class_path: a.B\ninit_args: {width: 3}\n")
    inlined = '{"class_path": "a.B", "init_args": {"width": 3}}'
    assert compose_argv(["fit", f"--model.decoder={block}"]) == ["fit", f"--model.decoder={inlined}"]
    assert compose_argv(["fit", "--model.decoder", str(block)]) == ["fit", "--model.decoder", inlined]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoder=dit_smal"], "there is no conf/decoder/dit_smal.yaml: did you mean 'dit_small'?"),
        (["experiment=quickstart_acton"], "did you mean 'quickstart_action'?"),
        (["decodr=dit_small"], "decodr is not a group of conf/, nor a key of the configuration: did you mean 'decoder'?"),
        (["benchmark=metaworld"], "`fit` does not choose from a group 'benchmark'"),
        (["trainer.max_epochs=[1"], "cannot read the override 'trainer.max_epochs=[1'"),
        (["hydra.sweep.dri=x"], "hydra.sweep.dri is not"),
    ],
)
def test_what_hydra_refuses_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_verb("fit", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_inside_conf_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "fit.yaml").write_text("defaults: [_self_, {experiment: null}]\n")
    (tmp_path / "experiment" / "broken.yaml").write_text("model: [\n")
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\ndefaults: [{override /decodr: x}]\n")
    monkeypatch.setattr(compose, "CONF", tmp_path)
    with pytest.raises(ConfigError, match=r"broken.yaml"):
        compose_verb("fit", ["experiment=broken"])
    with pytest.raises(ConfigError, match="'decodr'"):
        compose_verb("fit", ["experiment=typo"])
    with pytest.raises(ConfigError, match=r"there is no conf/validate.yaml"):
        compose_verb("validate", [])


def test_a_missing_tree_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"there is no .*conf, which belongs to the package: install it again, .pip install"):
        compose_verb("fit", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*run.yaml"),
        ("model: [", "is not YAML"),
        ("defaults: [x]", "`defaults` is Hydra's and only works in files under"),
        ("model: {class_path: a.B, init_arg: {x: 1}}", "model.init_arg is not accepted beside class_path: did you mean 'model.init_args'"),
    ],
)
def test_overlays_are_looked_at_before_anything_is_imported(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        compose_argv(["fit", "--config", str(tmp_path / "run.yaml")])


def test_the_nearest_file_beside_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="did you mean 'fit.yaml'"):
        compose_argv(["fit", "--config", str(tmp_path / "fti.yaml")])


def test_keys_beside_class_path_are_named_wherever_they_are() -> None:
    check_class_blocks({"a": [{"class_path": "x.Y", "init_args": {"b": {"class_path": "x.Z"}}}], "dict_kwargs": 1})
    with pytest.raises(ConfigError, match=r"a.0.tau is not accepted beside class_path: did you mean 'a.0.init_args.tau'"):
        check_class_blocks({"a": [{"class_path": "x.Y", "tau": 1}]})


def test_composing_imports_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from mimicvideo.compose import compose_argv\n"
        f"compose_argv(['fit', '--config', {EXPERIMENT!r}])\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parent, timeout=120)
