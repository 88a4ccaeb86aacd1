"""What a run will need, row by row, and which runs are refused."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from mimicvideo.check import print_sizes
from mimicvideo.cli import CheckingCLI, report_memory
from mimicvideo.compose import CONF
from mimicvideo.memory import FRAMEWORK, Expected, _free, _optimizer_states, expected_memory, require_memory
from mimicvideo.messages import ConfigError
from mimicvideo.video import footprint
from mimicvideo.video.adaptation import Lora
from mimicvideo.video.footprint import Clips, Precision
from tests.synthetic_episodes import by_writer

GIB = 2**30
LORA, ADALN, BACKBONE = 370_690_048, 177_733_632, 1_956_413_440
VIDEO = [f"--config={CONF}/experiment/libero_goal_video.yaml", "--data.batch_size=1"]


@cache
def config(*flags: str) -> dict[str, Any]:
    return CheckingCLI(args=["fit", *flags]).config["fit"].as_dict()


@cache
def expected(*flags: str) -> Expected:
    found = expected_memory(config(*flags))
    assert found is not None
    return found


def test_the_rows_of_stage_1_are_its_counts_times_their_bytes() -> None:
    rows = expected(*VIDEO).rows
    trained = LORA + ADALN
    assert rows["weights"] == 2 * (BACKBONE - ADALN) + 4 * trained
    assert rows["gradients"] == rows["DDP buckets"] == 4 * trained
    assert rows["optimizer"] == 8 * trained
    assert rows["average"] == rows["unsharded"] == 0


def test_lora_of_2b_with_checkpointing_fits_24_gb() -> None:
    one = expected(*VIDEO, f"--config={CONF}/trainer/gpu.yaml", "--trainer.devices=1", "--trainer.strategy=auto")
    assert one.rows["DDP buckets"] == 0
    assert 15 * GIB < one.peak < 24e9 - FRAMEWORK


def test_checkpointing_batch_and_average_tell() -> None:
    small = expected(*VIDEO)
    assert expected(*VIDEO, "--model.backbone.gradient_checkpointing=false").rows["activations"] > 8 * small.rows["activations"]
    twice = expected(*VIDEO, "--data.batch_size=2").rows["activations"]
    assert twice == pytest.approx(2 * small.rows["activations"], rel=0.1)
    averaged = expected(*VIDEO, "--model.ema_decay=0.99")
    assert averaged.peak >= small.peak + 4 * (LORA + ADALN)


def test_gradients_that_wait_for_another_batch_of_their_step_are_counted() -> None:
    """Then all rows are full at once. One GPU of 24 GB holds them, but for DDP's second copy of the gradients."""
    one, several = expected(*VIDEO), expected(*VIDEO, "--trainer.accumulate_grad_batches=2")
    assert several.rows == one.rows and several.peak == sum(one.rows.values()) > one.peak
    alone = [*VIDEO, f"--config={CONF}/trainer/gpu.yaml", "--trainer.devices=1", "--trainer.accumulate_grad_batches=64"]
    require_memory(expected(*alone), config(*alone), 24.0)


def test_each_way_of_checkpointing_is_counted() -> None:
    """Of 28 blocks; kept inputs, attentions and inner activations are the same in each block."""
    kept = {value: expected(*VIDEO, f"--model.backbone.gradient_checkpointing={value}") for value in ("true", "selective", 2, 4, "false")}
    activations = [found.rows["activations"] for found in kept.values()]
    assert activations == sorted(activations) and len(set(activations)) == 5
    full, selective, half, most, none = activations
    tokens = 16 * 30 * 40
    state = 2 * tokens * 2048  # of a block's input, in bf16
    assert selective - full == pytest.approx(28 * 2 * state, rel=0.1)  # two attentions' outputs, which are as large
    # Every second block is kept whole but its input: half of the way, up to the block that is at work.
    assert half == pytest.approx((full + none) / 2, rel=0.05)
    assert most == pytest.approx(none - 7 * (none - full) / 27, rel=0.05)
    assert kept[4].peak > kept[2].peak > kept["true"].peak


@pytest.mark.parametrize("period", [2, 3])
def test_blocks_that_are_not_traced_follow_from_those_that_are(period: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a trace of all 8 blocks, which end with a period or within one."""
    clips, precision = Clips(1, 5, 16, 16, 4), Precision(torch.float32, torch.float32, None)
    small = {**footprint.transformer_config("cosmos-tiny"), "num_layers": 8}
    monkeypatch.setattr(footprint, "transformer_config", lambda pretrained: small)
    few = footprint.training_activations("cosmos-tiny", Lora(rank=4), precision, clips, period)
    monkeypatch.setattr(footprint, "_two", lambda *given: (8, 8))
    assert few == footprint.training_activations("cosmos-tiny", Lora(rank=4), precision, clips, period)


def test_a_faster_execution_is_not_counted_and_the_table_says_so() -> None:
    flag = "--model.backbone.execution=mimicvideo.execution.Execution"
    faster, plain = expected(*VIDEO, flag), expected(*VIDEO)
    assert (faster.rows, faster.peak) == (plain.rows, plain.peak)
    assert faster.table()[:-1] == plain.table() and "without backbone.execution" in faster.table()[-1]


def test_copies_in_fp8_are_counted_where_they_are_made() -> None:
    """A byte for each weight of the blocks' self-attention, queries and outputs of the text's, and MLP: counted on the network itself."""
    config = footprint.transformer_config("nvidia/predict2-2b-480p-10fps")
    with torch.device("meta"):
        blocks = CosmosTransformer3DModel.from_config(config).transformer_blocks
    products = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
    one = sum(block.get_submodule(name).weight.numel() for block in blocks for name in products)
    fp8 = f"--config={CONF}/execution/fp8.yaml"
    training = "--model.backbone.execution.fp8_training=true"
    assert expected(*VIDEO, fp8).rows["FP8 copies"] == 0
    both, plain = expected(*VIDEO, fp8, training), expected(*VIDEO)
    assert both.rows["FP8 copies"] == 2 * one and both.peak == plain.peak + 2 * one
    action = [f"--config={CONF}/experiment/libero_goal_action.yaml", "--data.batch_size=1"]
    assert expected(*action, fp8).rows["FP8 copies"] == one and expected(*action).rows["FP8 copies"] == 0


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (None, ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")),
        (["attn1.to_q", "ff.net.2"], ("attn1.to_q",)),
    ],
)
def test_weights_merged_with_a_lora_are_counted(targets, kinds) -> None:
    """Two bytes for each weight that has an update, and of the update's factors, here of rank 256: counted on the network itself."""
    with torch.device("meta"):
        blocks = CosmosTransformer3DModel.from_config(footprint.transformer_config("nvidia/predict2-2b-480p-10fps")).transformer_blocks
    names = (*kinds, *(("ff.net.0.proj", "ff.net.2") if targets is None else ("ff.net.2",)))
    layers = [block.get_submodule(name) for block in blocks for name in names]
    weights = sum(layer.weight.numel() + 256 * (layer.in_features + layer.out_features) for layer in layers)
    chosen = [] if targets is None else [f"--model.backbone.adaptation.targets={targets}"]
    fast = [f"--config={CONF}/execution/fast.yaml", *chosen]
    merged, apart = (expected(*VIDEO, *fast, f"--model.backbone.execution.merge_lora={value}") for value in ("true", "false"))
    assert apart.rows["merged weights"] == 0
    assert merged.rows["merged weights"] == 2 * weights and merged.peak == apart.peak + 2 * weights


def test_fsdp_divides_what_ddp_repeats() -> None:
    whole = expected(*VIDEO, f"--config={CONF}/adaptation/full.yaml").rows
    shared = expected(*VIDEO, f"--config={CONF}/adaptation/full.yaml", f"--config={CONF}/trainer/fsdp.yaml", "--trainer.devices=8").rows
    for name in ("weights", "gradients", "optimizer"):
        assert shared[name] == pytest.approx(whole[name] / 8, rel=1e-6)
    assert shared["DDP buckets"] == 0 < shared["unsharded"] < whole["weights"] / 8


def test_fit_counts_the_gpus_among_which_weights_are_divided(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*VIDEO, f"--config={CONF}/trainer/fsdp.yaml", "--trainer.devices=-1"]
    alone = expected(*flags)
    assert "--trainer.devices=N" in alone.table()[-1] and not expected(*flags, "--trainer.devices=8").alone
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    report_memory(CheckingCLI(args=["fit", *flags]).config["fit"])
    assert capsys.readouterr().out.splitlines()[1:] == expected(*flags, "--trainer.devices=8").table()


def test_stage_2_counts_the_frozen_backbone_and_the_decoder() -> None:
    flags = [f"--config={CONF}/experiment/libero_goal_action.yaml", "--data.batch_size=1"]
    rows = expected(*flags).rows
    decoder = 499_036_810
    assert rows["weights"] == 2 * BACKBONE + 4 * decoder
    assert (rows["gradients"], rows["optimizer"]) == (4 * decoder, 8 * decoder)
    assert expected(*flags, "--data.batch_size=2").rows["activations"] > 1.5 * rows["activations"]


SAME = ("libero_10_", "libero_90_", "libero_object_", "libero_spatial_")  # as libero_goal_, on other demonstrations


@pytest.mark.integration
@pytest.mark.parametrize("file", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if not path.stem.startswith(SAME)))
def test_every_experiment_is_reported_and_none_is_refused_on_a_cpu(file: str) -> None:
    flags = [f"--config={CONF}/experiment/{file}.yaml", f"--config={CONF}/trainer/cpu.yaml"]
    if file == "cosmos_tiny_transformer":  # what it starts from is made by its recipe
        flags.append("--model.backbone.pretrained=cosmos-tiny")
    found = expected_memory(config(*flags))
    assert (found is None) == (file == "cosmos_tiny_vae")
    if found is not None:
        require_memory(found, config(*flags), None)
        assert found.peak >= found.rows["weights"]


def test_the_size_of_pictures_comes_from_the_dataset(tmp_path: Path) -> None:
    flags = [f"--config={CONF}/experiment/quickstart_video.yaml", f"--data.root={tmp_path / 'data'}"]
    assert "is not there" in expected(*flags).open
    by_writer(tmp_path / "data", height=32, width=48)
    found = expected_memory(config(*flags))
    assert found is not None and not found.open and found.rows["activations"] > 0
    given = expected_memory(config(*flags, "--data.height=64", "--data.width=96"))
    assert given is not None and given.rows["activations"] > 3 * found.rows["activations"]


@pytest.mark.parametrize(("optimizer", "share"), [("AdamW", 2), ("SGD", 0), ("RMSprop", 1)], ids=["two states", "none", "one"])
def test_optimizer_states_are_those_that_a_step_makes(optimizer: str, share: int) -> None:
    spec = {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": 0.1}}
    assert _optimizer_states({"optimizer": spec}, 1000) == 1000 * share


def test_a_run_that_cannot_fit_is_refused_with_what_helps() -> None:
    flags = [*VIDEO, "--data.batch_size=4", "--model.backbone.gradient_checkpointing=false", f"--config={CONF}/adaptation/full.yaml"]
    with pytest.raises(ConfigError) as caught:
        require_memory(expected(*flags), config(*flags), 80.0)
    message = str(caught.value)
    assert "74.5 GiB are there" in message
    for advice in ("gradient_checkpointing=true", "--data.batch_size=1", "lora_adaln", "fsdp"):
        assert advice in message
    require_memory(expected(*VIDEO), config(*VIDEO), 80.0)


@pytest.mark.parametrize(("memory_gb", "batch"), [(60.0, 4), (40.0, 2), (25.0, 1)])
def test_the_advised_batch_fits_and_leaves_the_optimizer_its_samples(memory_gb: float, batch: int) -> None:
    bridge = [f"--config={CONF}/experiment/bridge_video.yaml"]
    with pytest.raises(ConfigError) as caught:
        require_memory(expected(*bridge), config(*bridge), memory_gb)
    advised = [f"--data.batch_size={batch}", f"--trainer.accumulate_grad_batches={8 // batch}"]
    assert " with ".join(advised) in str(caught.value)
    require_memory(expected(*bridge, *advised), config(*bridge, *advised), memory_gb)


def test_one_gpu_is_told_that_it_needs_no_ddp() -> None:
    """The 14B's buckets are 6.4 GiB: without them it fits 75 GB. Several GPUs, or as many as there are, keep theirs."""
    bridge = [f"--config={CONF}/experiment/bridge_video.yaml", f"--config={CONF}/backbone/predict2_14b.yaml", "--data.batch_size=1"]
    alone = [*bridge, "--trainer.devices=1"]
    with pytest.raises(ConfigError, match="conf/trainer/gpu.yaml .one GPU needs no DDP"):
        require_memory(expected(*alone), config(*alone), 75.0)
    alone.append(f"--config={CONF}/trainer/gpu.yaml")
    require_memory(expected(*alone), config(*alone), 75.0)
    for flags in (bridge, [*bridge, "--trainer.devices=-1"]):
        with pytest.raises(ConfigError) as caught:
            require_memory(expected(*flags), config(*flags), 75.0)
        assert "gpu.yaml" not in str(caught.value)


def test_fit_and_check_refuse_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="22.4 GiB are there"):
        print_sizes([*VIDEO, "--data.batch_size=8", "--memory_gb=24"])
    given = CheckingCLI(args=["fit", *VIDEO, "--memory_gb=10"]).config["fit"]
    with pytest.raises(ConfigError, match="9.3 GiB are there"):
        report_memory(given)
    assert "expected memory of each device:" in capsys.readouterr().out


def test_the_gpu_is_asked_for_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * (device + 1), 9999))
    assert _free({"accelerator": "cpu"}) is None
    assert _free({"accelerator": "gpu", "devices": 2}) == 1000
    assert _free({"accelerator": "gpu", "devices": [3]}) == 4000


def test_clips_that_the_vae_cannot_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 650 is not a multiple of 16"):
        print_sizes([*VIDEO, "--data.width=650"])


def test_sharding_stage_2_is_refused() -> None:
    with pytest.raises(ConfigError, match="stage 2 cannot be sharded: use .*ddp"):
        print_sizes([f"--config={CONF}/experiment/quickstart_action.yaml", f"--config={CONF}/trainer/fsdp.yaml"])


@pytest.mark.parametrize("flag", ["--config", "--trainer"])
def test_either_flag_takes_a_trainers_file(flag: str) -> None:
    trainer = config(f"--config={CONF}/experiment/quickstart_video.yaml", f"{flag}={CONF}/trainer/fsdp.yaml")["trainer"]
    assert trainer["strategy"]["class_path"] == "mimicvideo.strategy.FullySharded"
    assert (trainer["accelerator"], trainer["precision"], trainer["max_steps"]) == ("gpu", "bf16-mixed", 60)


@pytest.mark.parametrize(
    "flags",
    [
        [f"--config={CONF}/decoder/joint_tiny.yaml", "--model.block=[1,3,5,7]"],
        [f"--config={CONF}/context/mix.yaml", "--model.block=[1,3]"],
        [f"--config={CONF}/context/pooled.yaml"],
        ["--model.draws=4"],
    ],
    ids=["joint", "mix", "pooled", "draws"],
)
def test_every_way_to_read_the_video_model_is_counted(flags: list[str]) -> None:
    found = expected(f"--config={CONF}/experiment/quickstart_action.yaml", "--data.height=64", "--data.width=64", *flags)
    assert not found.open and found.rows["activations"] > 0


def test_what_cannot_be_counted_stops_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    given = CheckingCLI(args=["fit", *VIDEO, "--model.backbone.pretrained=somebody/their-model"]).config["fit"]
    report_memory(given)
    assert "not known beforehand: FileNotFoundError" in capsys.readouterr().out
