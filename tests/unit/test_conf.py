"""Every file of conf/ is checked against the classes it names, in one process and without building anything; and conf/'s rules."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from mimicvideo.cli import CheckingCLI
from mimicvideo.compose import CONF, compose_verb
from mimicvideo.functions import function_parser
from mimicvideo.sweep import jobs

FILES = sorted(CONF.rglob("*.yaml"))
# Which files of a group need an experiment around them to be a whole configuration.
VIDEO, ACTION = "quickstart_video", "quickstart_action"
AROUND = {"model/video_finetune": VIDEO, "adaptation": VIDEO, "data/clips": VIDEO, "model/autoencoder": "cosmos_tiny_vae"}
MIXTURES = [f"data/oxe_{mixture}" for mixture in ("rtx", "magic_soup", "magic_soup_plus", "bridge_rt_1")]
AROUND |= dict.fromkeys(MIXTURES, VIDEO) | {"adaptation/frozen": ACTION}
MAY_HAVE_DEFAULTS = {"experiment", "ablation", "sweep", "trainer", "hydra/launcher", "."}
# It takes several blocks, of which the experiment around it has one; and sources, where that has a root.
ALSO = {"context/mix": ["--model.block=[2,4]"]} | {mixture: ["--data.root=null"] for mixture in MIXTURES}
REQUIRED = {"demos": ["--root=x"], "rollout": ["--policy=x"]}


def group(file: Path) -> str:
    return file.parent.relative_to(CONF).as_posix()


def name(file: Path) -> str:
    return file.relative_to(CONF).with_suffix("").as_posix()


def in_groups(*names: str) -> list[Any]:
    return [pytest.param(file, id=name(file)) for file in FILES if group(file) in names]


ALL = [pytest.param(file, id=name(file)) for file in FILES]


def checked(verb: str, *argv: str) -> str:
    """The complete configuration after all checks, as YAML. A refusal ends the test with its message."""
    if verb in ("demos", "rollout"):
        parser = function_parser(verb)
        return parser.dump(parser.parse_args([*argv, *REQUIRED[verb]]), skip_none=False)
    cli = CheckingCLI(args=[verb, *argv])
    return cli._parser(verb).dump(cli.config[verb], skip_none=False)


def first_comment(file: Path) -> str:
    return next(line for line in file.read_text().splitlines() if line.startswith("# ") and not line.startswith("# @"))


def leaves(config: Any, key: str = "") -> dict[str, Any]:
    if isinstance(config, dict) and config:
        return {k: v for name, value in config.items() for k, v in leaves(value, f"{key}.{name}".strip(".")).items()}
    return {key: config}


def differences(one: list[str], other: list[str]) -> set[str]:
    """Keys whose values differ between two compositions of `fit`."""
    a, b = (leaves(OmegaConf.to_container(compose_verb("fit", overrides))) for overrides in (one, other))
    return {key for key in a.keys() | b.keys() if key not in a or key not in b or a[key] != b[key]}


# -- every file parses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", in_groups("experiment"))
def test_experiments_are_whole(file: Path) -> None:
    text = checked("fit", f"--config={file}")
    assert "Unable to serialize" not in text
    assert "${" not in text
    assert checked("fit", f"--config={text}") == text  # a saved run can be repeated


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.parametrize("experiment", [VIDEO, ACTION])
def test_the_other_verbs_take_experiments_too(verb: str, experiment: str) -> None:
    checked(verb, f"--config={CONF}/experiment/{experiment}.yaml", "--ckpt_path=x.ckpt")


@pytest.mark.parametrize("file", in_groups("ablation"))
def test_an_ablation_differs_in_one_thing_from_the_experiment_it_names(file: Path) -> None:
    (experiment,) = re.findall(r"^# Of (\w+):", first_comment(file))
    checked("fit", f"--config={CONF}/experiment/{experiment}.yaml", f"--config={file}")
    changed = differences([f"experiment={experiment}"], [f"experiment={experiment}", f"ablation={file.stem}"])
    chosen = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    if chosen:  # another member of one group: all that changes lies in its block
        (override,) = chosen
        (chosen_group,) = (key.split("/")[-1] for key in override)
        assert changed and all(f".{chosen_group}." in key for key in changed)
    else:  # one key; what stage 1 adapted does not go with another backbone
        assert len(changed - {"model.init_args.backbone.init_args.adapter"}) == 1 or changed == {
            "model.init_args.backbone.init_args.adapter"
        }


@pytest.mark.parametrize(
    "file",
    in_groups(
        "model",
        "backbone",
        "adaptation",
        "execution",
        "acting",
        "decoder",
        "context",
        "future",
        "video_noise",
        "flow_times",
        "data",
        "trainer",
        "logger",
    ),
)
def test_members_of_a_group_fit_into_an_experiment(file: Path) -> None:
    experiment = AROUND.get(name(file), AROUND.get(group(file), ACTION))
    checked("fit", f"--config={CONF}/experiment/{experiment}.yaml", f"--config={file}", *ALSO.get(name(file), []))


@pytest.mark.parametrize("file", in_groups("benchmark"))
def test_benchmarks_fit_into_a_rollout(file: Path) -> None:
    text = OmegaConf.to_yaml(compose_verb("rollout", [f"benchmark={file.stem}"]))
    assert "Unable to serialize" not in checked("rollout", f"--config={text}")


@pytest.mark.parametrize("verb", ["demos", "rollout"])
def test_functions_take_their_files(verb: str) -> None:
    text = OmegaConf.to_yaml(compose_verb(verb, []))
    assert "Unable to serialize" not in checked(verb, f"--config={text}")


@pytest.mark.parametrize("value", [True, False, "selective", 2])
def test_checkpointing_is_a_truth_a_word_or_a_number(value: Any) -> None:
    text = checked("fit", f"--config={CONF}/experiment/{VIDEO}.yaml", f"--model.backbone.gradient_checkpointing={value}".lower())
    found = yaml.safe_load(text)["model"]["init_args"]["backbone"]["init_args"]["gradient_checkpointing"]
    assert found == value and type(found) is type(value)


def test_a_rollout_may_run_faster_than_its_checkpoint_says() -> None:
    text = OmegaConf.to_yaml(compose_verb("rollout", []))
    found = yaml.safe_load(checked("rollout", f"--config={text}", "--acting={dtype: bfloat16}", "--execution={}"))
    assert found["acting"]["dtype"] == "bfloat16"
    assert found["execution"] == {
        "compile": "default",
        "cuda_graphs": True,
        "attention": "torch",
        "fp8": None,
        "fp8_training": False,
        "merge_lora": False,
    }


@pytest.mark.parametrize("file", in_groups("sweep"))
def test_every_job_of_a_sweep_is_accepted(file: Path) -> None:
    verb, *rest = re.findall(r"mimicvideo sweep (\w+) (.*)$", first_comment(file))[0]
    given = [override for override in rest[0].split() if not override.startswith("policy=")]
    assert f"sweep={file.stem}" in given
    from mimicvideo.compose import conf, short_errors

    with conf(), short_errors(verb):
        from hydra import compose

        texts = [OmegaConf.to_yaml(compose(verb, job), resolve=True) for job in jobs(verb, given).values()]
    assert len(texts) > 1
    for text in texts:
        checked(verb, f"--config={text}")


# -- rules ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ALL)
def test_only_files_that_hydra_composes_have_defaults(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    assert isinstance(config, dict)
    assert "defaults" not in config or group(file) in MAY_HAVE_DEFAULTS


@pytest.mark.parametrize("file", ALL)
def test_files_hold_literals(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    for key, value in leaves(config).items():
        if isinstance(value, str) and not key.startswith("hydra."):
            assert "${" not in value.replace("${oc.env:", ""), key
            assert value != "???", key


@pytest.mark.parametrize("file", in_groups("backbone", "adaptation", "decoder", "context", "future"))
def test_methods_come_from_the_stage_they_belong_to(file: Path) -> None:
    assert re.match(r"mimicvideo\.(video|action)\.", yaml.safe_load(file.read_text())["class_path"])


@pytest.mark.parametrize("file", in_groups("experiment"))
def test_an_experiment_leaves_the_blocks_it_chooses_as_they_are(file: Path) -> None:
    """Else its numbers would stay when another member is chosen: decoder=dit_500m with the width of dit_small."""
    for block in ("adaptation", "decoder", "context", "future", "video_noise"):
        inside = [key for key in leaves(yaml.safe_load(file.read_text())) if f".{block}." in key]
        assert not inside, f"give these a file of their own in conf/{block}/"


@pytest.mark.parametrize("file", in_groups("sweep"))
def test_a_sweep_says_what_is_tried_and_nothing_else(file: Path) -> None:
    assert set(yaml.safe_load(file.read_text())) <= {"defaults", "hydra"}


def test_no_file_repeats_another() -> None:
    contents: dict[str, Path] = {}
    for file in FILES:
        content = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
        assert group(file) in (".", "dataset") or content not in contents, f"{file} repeats {contents.get(content)}"
        contents[content] = file


def test_the_verbs_name_no_model() -> None:
    composed = compose_verb("fit", [])
    assert "model" not in composed and "data" not in composed


def test_wandb_is_one_override_and_needs_no_other() -> None:
    changed = differences([f"experiment={ACTION}"], [f"experiment={ACTION}", "logger=wandb"])
    assert changed == {"trainer.logger"}
