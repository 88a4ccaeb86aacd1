"""The command line in this process: links, what overrides what, and every kind of mistake refused before anything is built."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from safetensors.torch import load_file

from mimicvideo import __main__ as program
from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint
from mimicvideo.cli import CheckingCLI, MimicVideoCLI, check_devices, check_execution
from mimicvideo.compose import CONF
from mimicvideo.data.captions import SIDECAR
from mimicvideo.folders import replacing
from mimicvideo.memory import BACKBONE
from mimicvideo.messages import ConfigError, nearest, nearest_key, shorten
from tests.synthetic_episodes import by_lerobot
from tests.typed import typed

TOY: dict[str, Any] = {
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 4,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "logger": [
            {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}},
            {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": ".", "name": "tb"}},
        ],
    },
    "model": {
        "class_path": "tests.toys.ToyPolicy",
        "init_args": {
            "backbone": {"class_path": "tests.toys.ToyBackbone"},
            "decoder": {"class_path": "tests.toys.Mlp", "init_args": {"width": 3}},
            "noise": {"class_path": "mimicvideo.noise.Fixed", "init_args": {"tau": 0.3}},
        },
    },
    "data": {"class_path": "tests.toys.ToyData"},
}


@pytest.fixture
def toy(tmp_path: Path) -> str:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.dump(TOY))
    return str(path)


def checked(*argv: str, verb: str = "fit") -> Namespace:
    return CheckingCLI(args=[verb, *argv]).config[verb]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a command that is refused with status 2; nothing may have been built."""
    capsys.readouterr()
    with pytest.raises((SystemExit, ConfigError)) as caught:
        MimicVideoCLI(args=["fit", *argv])
    out, err = capsys.readouterr()
    if isinstance(caught.value, ConfigError):
        return str(caught.value)
    assert caught.value.code == 2
    assert "the backbone is built" not in out
    (line,) = err.strip().splitlines()
    return line


# -- what is accepted ----------------------------------------------------------------------------------------------------------


def test_values_follow_their_sources(toy: str) -> None:
    config = checked("--config", toy, "--run_dir=runs/x", "--data.action_dim=5", "--seed_everything=7")
    assert config.trainer.default_root_dir == "runs/x"
    assert config.checkpoint.dirpath == "runs/x/checkpoints"
    assert [logger.init_args.save_dir for logger in config.trainer.logger] == ["runs/x", "runs/x"]
    assert config.model.init_args.action_dim == 5 and config.model.init_args.horizon == 3
    assert config.model.init_args.seed == 7 and config.data.init_args.seed == 7


def test_one_logger_and_no_logger_are_linked_too(toy: str) -> None:
    one = checked("--config", toy, "--run_dir=runs/x", "--trainer.logger=CSVLogger")
    assert one.trainer.logger.init_args.save_dir == "runs/x"
    assert checked("--config", toy, "--trainer.logger=false").trainer.logger is False


def test_links_leave_a_model_alone_that_takes_nothing_from_its_data(toy: str) -> None:
    config = checked("--config", toy, "--model", "tests.toys.ToyVideo", "--model.backbone", "tests.toys.ToyBackbone", "--data", "ToyClips")
    assert set(config.model.init_args.as_dict()) == {"backbone", "tau"}


def test_a_policy_on_data_without_actions_is_refused(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--config", toy, "--data=tests.toys.ToyClips")
    assert message == ("tests.toys.ToyPolicy takes action_dim, horizon from its data, but tests.toys.ToyClips has none: choose --data")


@pytest.mark.parametrize("flag", ["--model.backbone.adapter", "--model.init_args.backbone.init_args.adapter"])
@pytest.mark.parametrize("value", ["null", "None"])
def test_null_on_the_command_line_is_none_at_any_depth(flag: str, value: str) -> None:
    experiment = str(CONF / "experiment" / "quickstart_action.yaml")
    with_text = checked("--config", experiment, f"{flag}=elsewhere")
    assert with_text.model.init_args.backbone.init_args.adapter == "elsewhere"
    for given in ([f"{flag}={value}"], [flag, value]):
        assert checked("--config", experiment, *given).model.init_args.backbone.init_args.adapter is None


def test_another_video_model_keeps_the_adapter_of_the_experiment() -> None:
    """A file of conf/backbone says nothing of adapters: stage 2 would go on without stage 1, silently."""
    for file in (CONF / "backbone").glob("*.yaml"):
        assert "adapter" not in yaml.safe_load(file.read_text())["init_args"], file
    given = f"--config={CONF}/experiment/libero_goal_action.yaml", f"--model.backbone={CONF}/backbone/predict2_5_2b.yaml"
    backbone = checked(*given).model.init_args.backbone.init_args
    assert (backbone.adapter, backbone.pretrained) == ("runs/libero_goal/video/adapter", "nvidia/Cosmos-Predict2.5-2B")


def test_flags_are_short_or_in_full_and_win(toy: str, tmp_path: Path) -> None:
    overlay = tmp_path / "over.yaml"
    overlay.write_text("model: {init_args: {tau: 0.2, num_steps: 3}}\n")
    config = checked("--model.tau=0.9", "--config", toy, "--config", str(overlay), "--model.init_args.decoder.init_args.width=7")
    assert config.model.init_args.tau == 0.9
    assert config.model.init_args.num_steps == 3
    assert config.model.init_args.decoder.init_args.width == 7


def test_another_class_drops_the_arguments_of_the_old_one(toy: str) -> None:
    config = checked("--config", toy, "--model.decoder=tests.toys.Linear")
    assert config.model.init_args.decoder.init_args.as_dict() == {"gain": 1.0}


def test_fragments_need_no_hydra(tmp_path: Path) -> None:
    config = checked(
        f"--trainer={CONF}/trainer/cpu.yaml",
        f"--model={CONF}/model/action_policy.yaml",
        f"--model.backbone={CONF}/backbone/cosmos_tiny.yaml",
        "--model.block=4",  # of its eight
        f"--model.backbone.adaptation={CONF}/adaptation/frozen.yaml",
        f"--model.decoder={CONF}/decoder/dit_small.yaml",
        f"--model.future={CONF}/future/noise.yaml",
        f"--model.video_noise={CONF}/video_noise/paper.yaml",
        f"--data={CONF}/data/demonstrations.yaml",
    )
    assert config.model.init_args.decoder.init_args.depth == 4
    assert config.model.init_args.horizon == config.data.init_args.horizon
    assert config.trainer.accelerator == "cpu"


def test_standing_callbacks_are_named_arguments(toy: str) -> None:
    cli = CheckingCLI(args=["fit", "--config", toy, "--nan_guard.every=3", "--checkpoint.mode=max"])
    assert cli._parser("fit").callback_keys == ["checkpoint", "nan_guard"]
    built = cli.parser.instantiate_classes(Namespace(subcommand="fit", fit=Namespace(checkpoint=cli.config.fit.checkpoint)))
    assert type(built.fit.checkpoint) is SafeCheckpoint and built.fit.checkpoint.mode == "max"


# -- what is refused -----------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("--modle.tau=1", "--modle.tau is not accepted: did you mean 'model'?"),
    ("--runn_dir=x", "--runn_dir is not accepted: did you mean 'run_dir'?"),
    ("--trainer.max_step=3", "--trainer.max_step is not accepted: did you mean 'trainer.max_steps'?"),
    ("--checkpoint.save_topk=3", "--checkpoint.save_topk is not accepted: did you mean 'checkpoint.save_top_k'?"),
    ("--model.tua=3", "model.init_args.tua is not accepted by tests.toys.ToyPolicy: did you mean 'tau'?"),
    ("--model.init_args.tua=3", "model.init_args.tua is not accepted by tests.toys.ToyPolicy: did you mean 'tau'?"),
    ("--model.decoder.widht=3", "model.init_args.decoder.init_args.widht is not accepted by tests.toys.Mlp: did you mean 'width'?"),
    ("--model.noise.init_args.ta=1", "model.init_args.noise.init_args.ta is not accepted by mimicvideo.noise.Fixed: did you mean 'tau'?"),
    ("--model.optimizer.lrr=3", "model.init_args.optimizer.init_args.lrr is not accepted by torch.optim.AdamW: did you mean 'lr'?"),
    ("--data.rot=x", "data.init_args.rot is not accepted by tests.toys.ToyData: did you mean 'root'?"),
    ("--model.tau=high", "model.init_args.tau: expected float, got 'high'"),
    ("--model.num_steps=1.5", "model.init_args.num_steps: expected int, got '1.5'"),
    ("--model.decoder.width=wide", "model.init_args.decoder.init_args.width: expected int, got 'wide'"),
    ("--model.optimizer.lr=fast", "model.init_args.optimizer.init_args.lr: expected one of float, Tensor, got 'fast'"),
    ("--trainer.max_steps=many", "trainer.max_steps: expected int, got 'many'"),
    ("--trainer.precision=bf16-mixd", "did you mean 'bf16-mixed'?"),
    ("--seed_everything=x", "seed_everything: expected one of bool, int, got 'x'"),
    ("--model.decoder=tests.toys.Mpl", "model.init_args.decoder: module 'tests.toys' has no attribute 'Mpl': did you mean 'Mlp'?"),
    ("--model.backbone=tests.toyz.ToyBackbone", "model.init_args.backbone: module 'tests' has no attribute 'toyz': did you mean 'toys'?"),
    (
        "--model.backbone=tests.toys.Mlp",
        "model.init_args.backbone: Import path tests.toys.Mlp does not correspond to a subclass of ToyBackbone",
    ),
    ("--model=mimicvideo.actoin.Policy", "model: module 'mimicvideo' has no attribute 'actoin': did you mean 'action'?"),
    ("--trainer=conf/trainer/cpuu.yaml", "there is no file conf/trainer/cpuu.yaml: did you mean 'cpu.yaml'?"),
    (
        "--decoder=dit_small",
        "--decoder is not accepted: a member of the group is chosen with --config conf/decoder/NAME.yaml (in a sweep: ",
    ),
    ("--model.decoder=dit_small", "decoder: there is no class dit_small (write --config conf/decoder/dit_small.yaml)"),
    ("--model.decoder=dit_smal", "decoder: there is no class dit_smal (write package.module.Class)"),
    ("experiment=quickstart_video", "unexpected argument 'experiment=quickstart_video' (key=value without dashes is the grammar of"),
]


@pytest.mark.parametrize(("flag", "message"), MISTAKES)
def test_a_mistyped_flag_is_named_with_the_nearest_right_one(flag: str, message: str, toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "--config", toy, flag)
    assert line.startswith("mimicvideo fit: error: ")
    assert message in line
    assert len(line) < 500


IN_FILES = [
    ("modle.x", 1, "modle.x is not accepted: did you mean 'model'?"),
    ("trainer.max_step", 1, "trainer.max_step is not accepted: did you mean 'trainer.max_steps'?"),
    ("model.init_args.tua", 1, "model.init_args.tua is not accepted by tests.toys.ToyPolicy: did you mean 'tau'?"),
    ("model.tau", 1, "model.tau is not accepted beside class_path: did you mean 'model.init_args.tau'?"),
    ("model.init_args.decoder.init_args.widht", 1, "is not accepted by tests.toys.Mlp: did you mean 'width'?"),
    ("model.init_args.decoder.init_args.width", "wide", "model.init_args.decoder.init_args.width: expected int, got 'wide'"),
    ("model.init_args.decoder.class_path", "tests.toys.Mpl", "model.init_args.decoder: module 'tests.toys' has no attribute 'Mpl'"),
    ("model.init_args.tau", "high", "model.init_args.tau: expected float, got 'high'"),
    ("trainer.logger.0.init_args.nam", "x", "is not accepted by lightning.pytorch.loggers.CSVLogger: did you mean 'name'?"),
    ("data.init_args.action_dim", 1.5, "data.init_args.action_dim: expected int, got '1.5'"),
]


@pytest.mark.parametrize(("key", "value", "message"), IN_FILES)
def test_a_mistake_in_a_file_is_named_too(key: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(json.dumps(TOY))
    node, *parents, last = config, *key.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.dump(config))
    assert message in refusal(capsys, "--config", str(path))


def test_a_mistake_in_a_nested_file_is_named(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tmp_path / "decoder.yaml"
    block.write_text("class_path: tests.toys.Mlp\ninit_args: {widht: 3}\n")
    assert "widht is not accepted by tests.toys.Mlp: did you mean 'width'?" in refusal(capsys, "--config", toy, f"--model.decoder={block}")


def test_without_a_model_the_way_to_choose_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model must be given: choose an experiment, --config conf/experiment/NAME.yaml" in refusal(capsys)


def test_a_misspelt_checkpoint_is_refused_before_anything_is_built(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.ckpt").touch()
    message = refusal(capsys, "--config", toy, f"--ckpt_path={tmp_path}/lats.ckpt")
    assert message == f"ckpt_path: there is no {tmp_path}/lats.ckpt: did you mean 'last.ckpt'?"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.horizon=7", "model.horizon follows from data.init_args.horizon: give that instead"),
        ("--model.init_args.action_dim=7", "model.init_args.action_dim follows from data.init_args.action_dim: give that instead"),
        ("--data.seed=3", "data.seed follows from seed_everything: give that instead"),
        ("--checkpoint.dirpath=x", "checkpoint.dirpath follows from run_dir: give that instead"),
        ("--config=model: {init_args: {seed: 3}}\n", "model.init_args.seed follows from seed_everything: give that instead"),
    ],
)
def test_what_follows_from_another_argument_is_not_lost_silently(
    argument: str, message: str, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "--config", toy, argument) == message


# -- GPUs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "there", "message"),
    [
        (
            {"accelerator": "gpu", "devices": 1},
            0,
            "no GPU that PyTorch can use: use --config conf/trainer/cpu.yaml (in a sweep: trainer=cpu)",
        ),
        ({"accelerator": "cuda", "devices": "auto"}, 0, "no GPU that PyTorch can use"),
        ({"accelerator": "gpu", "devices": -1}, 0, "no GPU that PyTorch can use"),
        ({"accelerator": "gpu", "devices": 4}, 2, "asks for 4 GPU(s), but this machine has 2 GPU(s): use --trainer.devices=2"),
        ({"accelerator": "gpu", "devices": [0, 3]}, 2, "asks for 4 GPU(s), but this machine has 2 GPU(s)"),
        ({"accelerator": "gpu", "devices": 2}, 2, None),
        ({"accelerator": "gpu", "devices": "auto"}, 1, None),
        ({"accelerator": "auto", "devices": 4}, 0, None),
        ({"accelerator": "cpu", "devices": 8}, 0, None),
    ],
)
def test_a_gpu_that_is_not_there_is_named_with_the_fix(
    trainer: dict[str, Any], there: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    if message is None:
        check_devices(Namespace(trainer))
        return
    with pytest.raises(ConfigError) as caught:
        check_devices(Namespace(trainer))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("execution", "accelerator", "message"),
    [
        ({"fp8": "row"}, "cpu", "model.backbone.execution.fp8 needs an NVIDIA GPU of compute capability 8.9 or newer, the model is on cpu"),
        ({"attention": "fp8"}, "cpu", "model.backbone.execution.attention=fp8 needs a Hopper or Blackwell GPU, the model is on the CPU"),
        ({"attention": "flash4"}, "gpu", "execution.attention=flash4 needs a Hopper or Blackwell GPU, this is NVIDIA A100"),
        ({"fp8": "tensor"}, "auto", "NVIDIA A100 has 8.0: set execution.fp8 to null"),
        ({"attention": "flash4"}, "cpu", None),  # there it is torch's
        ({"attention": "torch"}, "gpu", None),
        ({}, "gpu", None),
    ],
)
def test_kernels_that_are_not_there_are_told_before_weights_are_read(
    execution: dict[str, Any], accelerator: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if accelerator != "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    backbone = {"class_path": BACKBONE, "init_args": {"execution": execution}}
    with nullcontext() if message is None else pytest.raises(ConfigError, match=re.escape(message)):
        check_execution({"init_args": {"backbone": backbone}}, Namespace(accelerator=accelerator))


def test_a_run_on_the_cpu_with_fp8_is_refused_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--config={CONF}/experiment/quickstart_video.yaml", f"--config={CONF}/execution/fp8_attention.yaml"]
    message = refusal(capsys, *options, "--trainer.accelerator=cpu")
    assert "execution.attention=fp8 needs a Hopper or Blackwell GPU, the model is on the CPU" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_experiment_for_a_gpu_is_refused_before_its_backbone_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, f"--config={CONF}/experiment/metaworld_mt10_action.yaml")
    assert message.startswith("trainer.accelerator=gpu asks for 1 GPU(s), but this machine has no GPU")


def test_an_absent_adapter_is_refused_before_the_video_model_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mimicvideo.cli.report_memory", lambda config: pytest.fail("counts the memory"))
    with pytest.raises(ConfigError, match=r"model\.backbone\.adapter='.*absent': there is no such folder: run stage 1 first"):
        run("fit", f"--config={CONF}/experiment/quickstart_action.yaml", f"--model.backbone.adapter={tmp_path}/absent")


@pytest.mark.parametrize("machine", ["cpu", "ddp"])
def test_an_absent_video_model_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str) -> None:
    """With the GPUs that are absent, too; before data is read, weights are counted or anything is built."""

    def offline(*args: Any) -> None:
        raise ConnectionRefusedError("no network")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setattr("mimicvideo.cli.report_memory", lambda config: pytest.fail("counts the memory"))
    flags = [f"--config={CONF}/experiment/libero_goal_video.yaml", f"--config={CONF}/trainer/{machine}.yaml", f"--run_dir={tmp_path}/run"]
    with pytest.raises(ConfigError) as caught:
        run("fit", *flags)
    assert "there is no folder" in str(caught.value) and "FOLDER/transformer/ " in str(caught.value)
    assert ("asks for 8 GPU(s)" in str(caught.value)) == (machine == "ddp")
    with pytest.raises(ConfigError, match=r"'nvidia/Cosmos-Predict2\.5-2B'.*revision diffusers/base/post-trained.*no network"):
        run("fit", *flags, f"--config={CONF}/backbone/predict2_5_2b.yaml")
    assert not (tmp_path / "run").exists()


# -- runs ----------------------------------------------------------------------------------------------------------------------


def run(*argv: str) -> MimicVideoCLI:
    return MimicVideoCLI(args=[*argv])


def metrics(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / "metrics.json").read_text())


def test_a_run_leaves_all_that_is_needed_to_repeat_it(toy: str, tmp_path: Path) -> None:
    run("fit", "--config", toy, f"--run_dir={tmp_path}/a", "--model.tau=0.8")
    written = {path.name for path in (tmp_path / "a").iterdir()}
    assert written == {"checkpoints", "csv", "tb", "fit.yaml", "commands.txt", "metrics.json"}
    saved = (tmp_path / "a" / "fit.yaml").read_text()
    assert "Unable to serialize" not in saved
    assert yaml.safe_load(saved)["model"]["init_args"]["tau"] == 0.8
    run("fit", "--config", f"{tmp_path}/a/fit.yaml", f"--run_dir={tmp_path}/b")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert (tmp_path / "b" / "csv").is_dir()


def test_the_command_line_beats_the_checkpoint(toy: str, tmp_path: Path) -> None:
    # Lightning 2.6 lets the checkpoint's hyper-parameters win, which would void every ablation of inference.
    run("fit", "--config", toy, f"--run_dir={tmp_path}/fit", "--model.tau=0.5")
    losses = []
    for tau in (0.1, 0.9):
        checkpoint = f"--ckpt_path={tmp_path}/fit/checkpoints/last.ckpt"
        run("validate", "--config", toy, f"--run_dir={tmp_path}/{tau}", checkpoint, f"--model.tau={tau}")
        losses.append(metrics(tmp_path / str(tau))["val/loss"])
        assert (tmp_path / str(tau) / "validate.yaml").is_file()
    assert abs(losses[0] - losses[1]) > 0.01


def test_predictions_are_kept(toy: str, tmp_path: Path) -> None:
    model = run("predict", "--config", toy, f"--run_dir={tmp_path}").model
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    written = load_file(tmp_path / "predictions.safetensors")
    torch.testing.assert_close(written["actions"], model.decoder(data).detach())
    assert written["row"].tolist() == list(range(32))


def test_what_predicts_nothing_is_refused(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.toys.ToyData.predict_dataloader", lambda self: [])
    with pytest.raises(ConfigError, match="nothing to predict: the data holds nothing out; set .*validation_fraction"):
        run("predict", "--config", toy, f"--run_dir={tmp_path}/a")
    monkeypatch.delattr("tests.toys.ToyPolicy.predict_step")
    with pytest.raises(ConfigError, match="ToyPolicy predicts no actions: `predict` takes an experiment of stage 2"):
        run("predict", "--config", toy, f"--run_dir={tmp_path}/b")
    assert not list(tmp_path.glob("*/predictions*"))


def test_a_run_goes_on_from_its_checkpoint(toy: str, tmp_path: Path) -> None:
    run("fit", "--config", toy, f"--run_dir={tmp_path}")
    resumed = run("fit", "--config", f"{tmp_path}/fit.yaml", "--trainer.max_steps=6", f"--ckpt_path={tmp_path}/checkpoints/last.ckpt")
    assert resumed.trainer.global_step == 6
    assert sorted(path.name for path in (tmp_path / "csv").iterdir()) == ["version_0", "version_1"]  # no curve is lost


# -- the program ---------------------------------------------------------------------------------------------------------------


def program_output(*argv: str) -> tuple[int, str, str]:
    """Status and output of the program with heavy packages out of reach: what it says, it says without them."""
    hide = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'hydra', 'jsonargparse', 'numpy'): sys.modules[name] = None\n"
        "from mimicvideo.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", hide, *argv], capture_output=True, text=True, cwd=CONF.parent, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_help_needs_no_heavy_import_and_lists_every_verb() -> None:
    start = time.monotonic()
    status, out, _ = program_output("--help")
    assert status == 0
    assert time.monotonic() - start < 2
    for verb in program.VERBS:
        assert f"\n  {verb} " in out
    assert program_output()[1] == out


def test_an_unknown_verb_needs_none_either() -> None:
    assert program_output("rolout") == (2, "", "mimicvideo rolout: error: there is no verb 'rolout': did you mean 'rollout'?\n")


def program_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    status = typed(monkeypatch, *argv)
    return status, capsys.readouterr().err


def test_what_a_constructor_refuses_is_told_without_a_traceback(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = program_run(monkeypatch, capsys, "fit", "--config", toy, "--nan_guard.every=0")
    assert status == 1
    assert "mimicvideo fit: error: every must be at least 1 step, got 0\n" in err
    assert "Traceback" not in err


def test_a_noise_level_is_refused_as_a_mistake_of_the_command_line(
    toy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = program_run(monkeypatch, capsys, "fit", "--config", toy, "--model.noise.tau=3")
    assert status == 2
    assert err == "mimicvideo fit: error: model.init_args.noise: tau must lie in [0, 1] (0 clean, 1 noise), got 3.0\n"


def test_a_disk_that_fills_up_where_a_library_writes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/csv/metrics.csv")

    def train(verb: str, argv: list[str]) -> None:
        raise KeyError("a logger failed") from full

    monkeypatch.setattr(program, "run", train)
    status, err = program_run(monkeypatch, capsys, "fit")
    assert status == 1
    assert "mimicvideo fit: error: No space left on device for runs/a/csv/metrics.csv: free some space" in err and "can be resumed" in err


def test_a_terminated_import_removes_what_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(argv: list[str]) -> None:
        with replacing(tmp_path / "model") as new:
            (new / "config.json").write_text("{")
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr("mimicvideo.functions.run_function", write)
    try:
        with pytest.raises(SystemExit) as left:
            program.run("import", ["import"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    assert not list(tmp_path.iterdir())


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(verb: str, argv: list[str]) -> None:
        raise KeyError("x")

    monkeypatch.setattr(program, "run", defective)
    monkeypatch.setattr(sys, "argv", ["mimicvideo", "fit"])
    with pytest.raises(KeyError):
        program.main()


def test_our_words_go_before_those_of_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fcntl.flock` raises in a line of ours, which then says what that means."""
    by_lerobot(tmp_path / "d", (6,))
    with (tmp_path / "d" / SIDECAR).open("ab") as sidecar:
        fcntl.flock(sidecar, fcntl.LOCK_EX)
        status, err = program_run(monkeypatch, capsys, "captions", "--root", str(tmp_path / "d"), "--model", "x", "--device", "cpu")
    assert status == 1 and err.startswith(f"mimicvideo captions: error: {tmp_path / 'd' / SIDECAR} is being written by another run of")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demos", "--rot", "x"], "mimicvideo demos: error: --rot is not accepted: did you mean 'root'?"),
        (["demos", "--config", f"{CONF}/demos.yaml"], "mimicvideo demos: error: --root must be given"),
        (["demos", "--root", "x", "--episodes_per_task=few"], "mimicvideo demos: error: episodes_per_task: expected int, got 'few'"),
        (["rollout", "--config", f"{CONF}/rollout.yaml", "--polcy=x"], "--polcy is not accepted: did you mean 'policy'?"),
        (["rollout", "--config", f"{CONF}/rollout.yaml", "--policy=x", "--control=zero"], "did you mean 'zero_context'?"),
        (["rollout", "--config", f"{CONF}/rollout.yaml", "--policy=x", "--benchmark.taks=x"], "MetaWorld: did you mean 'tasks'?"),
        (["rollout", "--config", f"{CONF}/decoder/dit_small.yaml"], "`rollout` does not choose from a group 'decoder'"),
        (["sweep", "fitt"], "'fitt' cannot be swept: did you mean 'fit'?"),
        (["sweep", "fit", "--model.tau=1"], "--model.tau=1: a sweep takes Hydra's key=value"),
    ],
)
def test_mistakes_with_the_other_verbs(
    argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = program_run(monkeypatch, capsys, *argv)
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


# -- names ---------------------------------------------------------------------------------------------------------------------


def test_without_a_similar_name_all_are_listed() -> None:
    assert nearest("zzz", ["b", "a"]) == " (there is a, b)"
    assert nearest("zzz", []) == ""


def test_the_first_part_that_leads_nowhere_is_the_one_that_is_replaced() -> None:
    keys = ["trainer.max_steps", "trainer.devices", "model", "checkpoint.mode"]
    assert nearest_key("trainr.max_steps", keys) == ": did you mean 'trainer'?"
    assert nearest_key("trainer.max_step", keys) == ": did you mean 'trainer.max_steps'?"
    assert nearest_key("model", keys) == ""


def test_messages_of_an_unknown_form_are_kept() -> None:
    assert shorten("something\n  else") == "something else"
