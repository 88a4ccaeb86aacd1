"""The experiments of the paper: every constant as it reaches the classes, and what they train at full size, counted on a CPU."""

from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mimicvideo import __main__ as program
from mimicvideo.check import experiment_sizes, print_sizes
from mimicvideo.cli import CheckingCLI
from mimicvideo.compose import CONF
from mimicvideo.data.captions import CaptionPolicy, parse_captions
from mimicvideo.messages import ConfigError

SUITES = ["spatial", "object", "goal", "10", "90"]
VIDEO = [f"libero_{suite}_video" for suite in SUITES] + ["bridge_video"]
ACTION = [f"libero_{suite}_action" for suite in SUITES] + ["bridge_action"]


@cache
def complete(experiment: str, *flags: str) -> Any:
    """The configuration with all defaults of the classes filled in."""
    config = CheckingCLI(args=["fit", f"--config={CONF}/experiment/{experiment}.yaml", *flags]).config["fit"].as_dict()
    return OmegaConf.create({name: config[name] for name in ("trainer", "model", "data", "seed_everything")})


def batch(config: Any) -> int:
    """Samples per optimizer step, on all GPUs."""
    assert config.trainer.strategy == "ddp"
    return config.trainer.devices * config.data.init_args.batch_size * config.trainer.accumulate_grad_batches


@pytest.mark.parametrize(
    ("experiment", "steps", "size"),
    [
        ("bridge_video", 70_043, 64),
        ("libero_goal_video", 7_020, 32),
        ("libero_object_video", 8_260, 32),
        ("libero_spatial_video", 7_540, 32),
        ("libero_object_action", 50_274, 128),
        ("libero_spatial_action", 51_212, 128),
        ("bridge_action", 14_112, 256),
    ],
)
def test_length_and_batch_are_the_released_ones(experiment: str, steps: int, size: int) -> None:
    config = complete(experiment)
    assert (config.trainer.max_steps, batch(config)) == (steps, size)


@pytest.mark.parametrize("experiment", VIDEO + ACTION)
def test_clips_optimizer_and_backbone(experiment: str) -> None:
    config = complete(experiment)
    data, model = config.data.init_args, config.model.init_args
    source_hz = 5 if experiment.startswith("bridge") else 20
    assert (data.observed, data.future, data.height, data.width) == (5, 56, 480, 640)
    assert source_hz / data.frame_interval == 5
    assert model.optimizer.class_path == "torch.optim.AdamW"
    settings = model.optimizer.init_args
    assert (list(settings.betas), settings.eps, settings.weight_decay) == ([0.9, 0.99], 1e-8, 0.1)
    assert config.trainer.gradient_clip_val == 10
    assert config.seed_everything == data.seed == model.seed == 0
    backbone = model.backbone.init_args
    assert (backbone.pretrained, backbone.dtype) == ("models/predict2-2b-480p-10fps", "bfloat16")
    assert (backbone.prompt_tokens, backbone.conditional_sigma, backbone.initial) == (512, 1e-4, "pretrained")
    assert model.ema_decay is None and model.latent_cache is None


@pytest.mark.parametrize("experiment", VIDEO)
def test_stage_1(experiment: str) -> None:
    model = complete(experiment).model.init_args
    assert model.optimizer.init_args.lr == pytest.approx(10**-3.75, rel=1e-3)
    assert (model.scheduler.class_path.split(".")[-1], model.scheduler.init_args.warmup) == ("WarmupConstant", 1000)
    lora = model.backbone.init_args.adaptation.init_args
    assert (lora.rank, lora.alpha, lora.adaln, lora.dropout, lora.targets) == (256, 32, True, 0, None)
    noise = model.noise.init_args
    assert (noise.scale, noise.tail_probability, noise.tail_low, noise.tail_high) == (4, 0.05, 200, 1e5)
    assert (dict(model.observed), model.prompt_dropout, model.loss_scale) == ({1: 0.5, 2: 0.5}, 0, 100)


@pytest.mark.parametrize("experiment", ACTION)
def test_stage_2(experiment: str) -> None:
    config, bridge = complete(experiment), experiment == "bridge_action"
    model, data = config.model.init_args, config.data.init_args
    assert model.optimizer.init_args.lr == 1e-4
    schedule = model.scheduler.init_args
    assert (schedule.warmup, schedule.start, schedule.steps, schedule.end) == (1000, 1e-6, 500_000, 0.2)
    noise = model.video_noise.init_args
    assert (noise.scale, noise.tail_probability, noise.tail_low, noise.tail_high) == (4, 0.05, 200, 1e5)
    assert dict(model.action_noise.init_args) == {"power": 0.0, "low": 0.001}  # uniform on [0.001, 1)
    assert (model.block, model.num_steps, model.draws, model.loss_scale, model.context_control) == (19, 10, 1, 10, "none")
    assert model.future.class_path.endswith("NoiseFuture") and model.future.init_args.tau == 80 / 81
    assert (data.horizon, data.action_dim, data.proprio_dim, data.history, data.tail) == (15 if bridge else 60, 10, 10, 1, "repeat")
    rotation_free = ["variance"] * 3 + ["identity"] * 6 + ["variance"]
    assert list(model.normalization.actions) == list(model.normalization.proprio) == rotation_free and model.normalization.per_step
    suite = experiment.removesuffix("_action")
    root = "datasets/bridge.zarr" if bridge else f"datasets/{suite}"
    assert (data.root, model.backbone.init_args.adapter) == (root, f"runs/{suite}/video/adapter")


@pytest.mark.parametrize("experiment", VIDEO + ACTION)
def test_captions_are_those_of_the_official_code_and_of_the_evaluation(experiment: str) -> None:
    captions = parse_captions(complete(experiment).data.init_args.captions) or CaptionPolicy()
    if experiment.startswith("libero"):  # zarr's instructions end in a period, the simulator's do not
        assert captions.clean("put the black bowl on the stove.") == "put the bowl on the stove"
    assert (captions.long_probability, captions.choose, captions.empty) == (0, "first", "keep")


def test_action_noise_of_the_papers_text_is_one_flag_away() -> None:
    model = complete("libero_goal_action", "--model.action_noise.power=0.5").model.init_args
    assert model.action_noise.class_path.endswith("PowerTowardNoise") and model.action_noise.init_args.power == 0.5


# -- what trains ---------------------------------------------------------------------------------------------------------------


def sizes(experiment: str, *flags: str) -> dict[str, int]:
    return experiment_sizes([f"--config={CONF}/experiment/{experiment}.yaml", *flags])


@pytest.mark.parametrize("experiment", ["bridge_video", "libero_spatial_video"])
def test_stage_1_trains_the_papers_parameters(experiment: str) -> None:
    assert sizes(experiment) == {"backbone": 1_956_413_440, "LoRA": 370_690_048, "AdaLN": 177_733_632}


@pytest.mark.parametrize(("horizon", "decoder"), [(60, 499_036_810), (15, 498_990_730)])
def test_stage_2_trains_the_papers_decoder(horizon: int, decoder: int) -> None:
    """LIBERO's chunk of 60 actions, and Bridge's of 15."""
    assert sizes("libero_goal_action", f"--data.horizon={horizon}") == {"backbone": 1_956_413_440, "decoder": decoder}


def test_stage_2_on_14b() -> None:
    """The decoder reads wider hidden states; its own width stays."""
    counts = sizes("libero_goal_action", f"--config={CONF}/backbone/predict2_14b.yaml")
    wider = 24 * 2 * 1024 * (5120 - 2048) + 2 * (5120 - 2048)  # keys and values of each block, one LayerNorm
    assert counts == {"backbone": 14_265_285_632, "decoder": 499_036_810 + wider}


def test_sizes_of_a_small_experiment_and_of_one_without_these_parts() -> None:
    assert sizes("quickstart_video").keys() == {"backbone", "LoRA", "AdaLN"}
    assert sizes("cosmos_tiny_vae") == {}


def test_several_blocks_and_a_context_are_counted() -> None:
    experiment, mix = (f"--config={CONF}/{name}.yaml" for name in ("experiment/quickstart_action", "context/mix"))
    plain = experiment_sizes([experiment])["decoder"]
    mixed = experiment_sizes([experiment, mix, "--model.block=[1,3]"])["decoder"]
    width = 256  # of cosmos-tiny: a LayerNorm and a weight for each of two blocks
    assert mixed - plain == 2 * (2 * width + 1)
    with pytest.raises(ConfigError, match="MixContext mixes several"):
        experiment_sizes([experiment, mix])


def test_a_block_beyond_the_models_last_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[0, 27\] .*got 28"):
        sizes("libero_goal_action", "--model.block=28")


def test_the_verb_prints_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(*_: Any) -> None:
        raise AssertionError("the check asks for a GPU")

    monkeypatch.setattr(torch.cuda, "device_count", no_gpu)
    monkeypatch.setattr("sys.argv", ["mimicvideo", "check", "--config", f"{CONF}/experiment/libero_goal_video.yaml"])
    program.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:5] == [
        ["backbone", "1,956,413,440", "pretrained"],
        ["LoRA", "370,690,048", "trained"],
        ["AdaLN", "177,733,632", "trained"],
        ["548,423,680", "trained", "in", "all"],
    ]
    assert lines[5] == ["expected", "memory", "of", "each", "device:"]
    assert [line[0] for line in lines[6:]] == ["weights", "gradients", "optimizer", "DDP", "VAE", "activations", "peak"]
    print_sizes([f"--config={CONF}/experiment/cosmos_tiny_vae.yaml"])
    assert capsys.readouterr().out == "the configuration is accepted\n"
