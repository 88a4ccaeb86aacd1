"""What a constructor would refuse after the video model is loaded is refused while the configuration is read, by its key."""

import pytest

from mimicvideo.check import check, print_sizes
from mimicvideo.cli import CheckingCLI
from mimicvideo.compose import CONF, compose_argv
from mimicvideo.messages import ConfigError

VIDEO, ACTION = (f"--config={CONF}/experiment/quickstart_{stage}.yaml" for stage in ("video", "action"))
LIBERO = f"--config={CONF}/experiment/libero_goal_action.yaml"
MERGED = [f"--config={CONF}/execution/fast.yaml", "--model.backbone.execution.merge_lora=true"]
BRIDGE = f"--config={CONF}/experiment/bridge_video.yaml"  # of several datasets


def accepted(*flags: str) -> None:
    CheckingCLI(args=compose_argv(["fit", *flags]))


def test_a_frozen_video_model_can_be_measured_but_not_trained() -> None:
    frozen = [VIDEO, f"--config={CONF}/adaptation/frozen.yaml"]
    with pytest.raises(ConfigError, match=r"backbone\.init_args\.adaptation: nothing trains: choose an adaptation other than Frozen"):
        accepted(*frozen)
    CheckingCLI(args=compose_argv(["validate", *frozen]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([ACTION, "--model.future.tau=1.5"], r"model\.init_args\.future: future\.tau must lie in \[0, 1\].*got 1\.5"),
        ([ACTION, f"--config={CONF}/future/stopped.yaml", "--model.future.step=36"], r"future\.step must lie in \[0, 35\]"),
        ([ACTION, "--model.video_noise.scale=-1"], r"model\.init_args\.video_noise: "),
        ([ACTION, "--model.action_noise.power=-1"], r"model\.init_args\.action_noise: power"),
        ([VIDEO, "--model.noise.tail_probability=2"], r"model\.init_args\.noise: "),
        ([VIDEO, "--model.backbone.adaptation.rank=0"], r"model\.init_args\.backbone\.init_args\.adaptation: rank must be at least 1"),
        ([ACTION, "--model.flow_times=tied", "--model.future.tau=0.5"], r"model\.init_args: flow_times tied needs"),
        ([ACTION, "--model.block=8"], r"model\.init_args: block must lie in \[0, 7\]"),
        ([LIBERO, "--model.block=28"], r"model\.init_args: block must lie in \[0, 27\]"),
        ([ACTION, "--model.block=[1,2]"], r"model\.init_args: BlockContext reads one video block"),
        ([ACTION, f"--config={CONF}/context/mix.yaml"], r"model\.init_args: MixContext mixes several"),
        ([ACTION, f"--config={CONF}/decoder/joint_tiny.yaml", "--model.block=[1,2,3]"], r"model\.init_args: "),
        ([ACTION, "--data.history=3"], r"data\.init_args\.history is 3: .*the present state alone"),
        ([ACTION, "--data.future=7"], r"data\.init_args: observed \+ future must be 1 \+ 4n frames"),
        ([ACTION, "--data.observed=3", "--data.future=6"], r"data\.init_args: observed must be 1 \+ 4m"),
        ([VIDEO, "--data.height=50"], r"data\.init_args: give both height and width"),
        ([LIBERO, "--data.height=470"], r"data\.init_args: height 470 is not a multiple of 16 pixels; nearest are 464 and 480"),
        # What constructors of models and data say of their own numbers, before a video model is loaded for them.
        ([ACTION, "--model.num_steps=0"], r"model\.init_args: num_steps must be at least 1, got 0"),
        ([ACTION, "--model.draws=0"], r"model\.init_args: draws must be at least 1"),
        ([ACTION, "--model.validation_taus=[1.5]"], r"model\.init_args: validation_taus must lie in \[0, 1\]"),
        (
            [ACTION, "--model.normalization={actions: [variance]}"],
            r"model\.init_args: give one normalisation mode or one for each of the 4",
        ),
        ([ACTION, "--model.ema_decay=2"], r"model\.init_args: ema_decay must lie in \[0, 1\), got 2"),
        ([ACTION, "--model.optimizer.lr=-1"], r"model\.init_args\.optimizer: Invalid learning rate: -1"),
        ([ACTION, "--model.scheduler.warmup=2000"], r"model\.init_args\.scheduler: steps \(1000\), .* must exceed warmup \(2000\)"),
        ([ACTION, f"--config={CONF}/acting/fast.yaml", "--model.acting.scale=3"], r"model\.init_args: acting\.scale must lie in"),
        ([ACTION, f"--config={CONF}/acting/realtime.yaml", "--model.acting.future_latents=3"], r"have only 2 of them"),
        (
            [ACTION, "--model.backbone.conditional_sigma=-1"],
            r"backbone\.init_args: conditional_sigma must be a finite number of at least 0",
        ),
        ([ACTION, "--model.backbone.prompt_tokens=0"], r"backbone\.init_args: prompt_tokens must be at least 1"),
        ([ACTION, "--model.backbone.gradient_checkpointing=-2"], r"backbone\.init_args: gradient_checkpointing must be"),
        (
            [ACTION, f"--config={CONF}/execution/fast.yaml", "--model.backbone.compile=true"],
            r"backbone\.init_args: compile is for diffusers'",
        ),
        (
            [VIDEO, *MERGED, f"--config={CONF}/adaptation/full.yaml"],
            r"backbone\.init_args: execution\.merge_lora is for a LoRA, the adaptation is Full",
        ),
        (
            [VIDEO, *MERGED, "--model.backbone.adaptation.dropout=0.1"],
            r"merge_lora has no place for LoRA's dropout, which is 0\.1: set that to 0",
        ),
        ([VIDEO, *MERGED, f"--config={CONF}/trainer/fsdp.yaml"], r"execution\.merge_lora needs whole weights.*take ddp\.yaml"),
        (
            [
                VIDEO,
                f"--config={CONF}/execution/fp8.yaml",
                "--model.backbone.execution.fp8_training=true",
                f"--config={CONF}/adaptation/full.yaml",
            ],
            r"execution\.fp8_training multiplies by frozen weights in FP8, but with Full all weights train",
        ),
        ([VIDEO, "--model.backbone.adaptation.targets=[to_qq]"], r"backbone\.init_args\.adaptation: LoRA target 'to_qq' matches no"),
        ([VIDEO, "--model.observed={1: 0.5, 2: 0.6}"], r"model\.init_args: observed must give .* sum to 1"),
        ([VIDEO, "--model.observed={1: 0.5, 3: 0.5}"], r"model\.init_args: .* up to 3 latent frames clean, but clips have only 3"),
        ([VIDEO, "--model.prompt_dropout=1.5"], r"model\.init_args: prompt_dropout must lie in"),
        ([VIDEO, "--model.loss_scale=-1"], r"model\.init_args: loss_scale must be a positive number, got -1"),
        ([ACTION, "--model.loss_scale=0"], r"model\.init_args: loss_scale must be a positive number, got 0"),
        ([VIDEO, "--data.batch_size=0"], r"data\.init_args: batch_size must be at least 1, got 0"),
        ([ACTION, "--data.hold_dims=[9]"], r"data\.init_args: hold_dims must lie in \[0, 3\]"),
        ([BRIDGE, "--data.validation_fraction=2"], r"data\.init_args: validation_fraction must lie in"),
    ],
)
def test_numbers_that_a_part_does_not_take_are_refused_by_key(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accepted(*flags)


@pytest.mark.parametrize(
    "flags",
    [
        [ACTION],
        [ACTION, "--model.flow_times=tied"],
        [ACTION, f"--config={CONF}/context/mix.yaml", "--model.block=[2,4,6]"],
        [ACTION, f"--config={CONF}/decoder/joint_tiny.yaml", "--model.block=[1,3,5,7]"],
        [ACTION, "--model.backbone.pretrained=somebody/their-model", "--model.block=90"],  # how many blocks it has is not known
        [VIDEO, "--data.height=64", "--data.width=32"],
        [VIDEO, "--model.backbone.pretrained=somebody/their-model", f"--config={CONF}/adaptation/scratch.yaml"],
        [VIDEO, "--model.observed={1: 1.0, 3: 0.0}"],  # what never happens is no reason to refuse
        [VIDEO, "--data.root=null", "--data.sources={a: there, b: {root: elsewhere, weight: 2, spec: {format: zarr}}}"],
        [BRIDGE, "--model.scheduler=torch.optim.lr_scheduler.ConstantLR"],
    ],
)
def test_what_fits_is_accepted(flags: list[str]) -> None:
    accepted(*flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("devices=0", r"trainer\.devices must be at least 1, got 0"),
        ("max_steps=-5", r"trainer\.max_steps must be at least 0, got -5"),
        ("accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches must be at least 1"),
        ("gradient_clip_val=-1", r"trainer\.gradient_clip_val must be at least 0"),
        ("strategy=dpp", r"trainer\.strategy: there is no 'dpp': did you mean 'ddp'\?"),
        ("strategy=fsdp", r"trainer\.strategy=fsdp, .* use --config conf/trainer/fsdp\.yaml"),
    ],
)
def test_a_trainer_that_lightning_would_refuse_after_the_model_is_loaded(flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accepted(VIDEO, f"--trainer.{flag}")


@pytest.mark.parametrize("flag", ["devices=-1", "devices=auto", "devices=[0,1]", "max_steps=-1", "gradient_clip_val=null", "strategy=ddp"])
def test_every_other_trainer_is_lightnings_matter(flag: str) -> None:
    accepted(VIDEO, f"--trainer.{flag}")


def test_a_sweep_is_refused_before_its_first_job(capsys: pytest.CaptureFixture[str]) -> None:
    text = compose_argv(["fit", ACTION, "--model.block=8"])
    with pytest.raises(SystemExit):
        check("fit", {"block=8": text[1].removeprefix("--config=").replace("block: 4", "block: 8")})
    assert "block must lie in [0, 7]" in (told := capsys.readouterr().err) and "(in the job block=8; none has started)" in told


def test_a_refused_configuration_is_not_called_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="height 470"):
        print_sizes(compose_argv(["fit", LIBERO, "--data.height=470"])[1:])
    assert "accepted" not in capsys.readouterr().out


def test_a_model_that_is_still_to_be_made_is_checked_as_far_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_sizes(compose_argv(["fit", f"--config={CONF}/experiment/cosmos_tiny_transformer.yaml"])[1:])
    told = capsys.readouterr().out
    assert "accepted" in told and "not known: pretrained='runs/cosmos_tiny/untrained'" in told
