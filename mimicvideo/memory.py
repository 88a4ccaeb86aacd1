"""How much memory of a device a run of `fit` will need, from its configuration alone, and whether the device has it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_class

from mimicvideo.messages import ConfigError
from mimicvideo.peak import training_peak, without_data

BACKBONE = "mimicvideo.video.cosmos_predict.CosmosPredict"
FRAMEWORK = 0.5 * 2**30  # bytes that libraries for products, convolutions and communication keep on a GPU


@dataclass(frozen=True)
class Expected:
    """Bytes on each device.

    Attributes:
        rows: By what they hold.
        peak: Most at one time: not all of the rows are full at once.
        open: What could not be counted, and why; empty if everything was.
        faster: Whether the run computes in another way than was counted.
        alone: Whether the weights are divided among all GPUs of a machine and were counted for one, since nobody asked how many it has.
    """

    rows: dict[str, int]
    peak: int
    open: str = ""
    faster: bool = False
    alone: bool = False

    def table(self) -> list[str]:
        """Lines to print, in GiB."""
        lines = [f"{name:14} {size / 2**30:>10.2f} GiB" for name, size in self.rows.items() if size]
        lines.append(f"{'peak':14} {self.peak / 2**30:>10.2f} GiB" + (f" without {self.open}" if self.open else ""))
        lines += ["counted without backbone.execution, with which the run may need less"] * self.faster
        return (
            lines + ["counted for one GPU, which holds all weights: --trainer.devices=N says among how many they are divided"] * self.alone
        )


def expected_memory(config: Mapping[str, Any]) -> Expected | None:
    """Counts weights, gradients, optimizer states and weight average, and finds activations by passes on tensors without data.

    Gradients are freed between steps, so that the peak is the highest of three summits: the start of the backward pass (activations),
    its end (gradients), and the optimizer's step (gradients and as much again). Validation and the VAE's pass have theirs. Where a step
    has several batches (`accumulate_grad_batches`), the gradients of the first are there when the next begin.
    What `torch.compile` saves is not subtracted.

    Args:
        config: Of `fit`, parsed: `model`, `data`, `trainer`.

    Returns:
        None if the model is not made of a `CosmosPredict`.

    Raises:
        ValueError: If clips or blocks do not fit the model.
        FileNotFoundError: If nothing is known about the pretrained model.
    """
    model = config["model"].get("init_args") or {}
    backbone = model.get("backbone") or {}
    if backbone.get("class_path") != BACKBONE:
        return None
    stage = _stage_2 if "decoder" in model else _stage_1
    video = backbone["init_args"]
    counted = stage(model, video, (config.get("data") or {}).get("init_args") or {}, config["trainer"])
    alone = sharing(config["trainer"])[1] and takes_all(config["trainer"])
    return replace(counted, faster=video.get("execution") is not None, alone=alone)


def _stage_1(model: Mapping[str, Any], backbone: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> Expected:
    from mimicvideo.video.footprint import merged_weights, training_activations, transformer_weights, vae_memory

    precision, adaptation = _precision(backbone, trainer), instantiate_class((), backbone["adaptation"])
    weights = transformer_weights(backbone["pretrained"], adaptation, precision)
    devices, sharded = sharing(trainer)
    share = devices if sharded else 1
    trained = weights.trained // share
    rows = {
        "weights": weights.frozen // share + trained,
        "gradients": trained,
        "optimizer": _optimizer_states(model, trained),
        "average": _average(model, trained, precision.trained),
        "DDP buckets": trained if _is_ddp(trainer) else 0,
        "FP8 copies": _fp8_copies(backbone, training=True),
        "merged weights": merged_weights(backbone["pretrained"], adaptation, precision) if execution_of(backbone).get("merge_lora") else 0,
        # While a block computes, it and the next are whole, and so is what is in no block.
        "unsharded": (2 * weights.block + weights.rest) if sharded else 0,
    }
    clips = _clips(data, backbone)
    if isinstance(clips, str):
        return _sum(rows, trainer, 0, 0, 0, clips)
    vae, encoding = vae_memory(backbone["pretrained"], precision.frozen, clips)
    rows["VAE"] = vae
    checkpointing = backbone.get("gradient_checkpointing") or False
    rows["activations"], at_end = training_activations(backbone["pretrained"], adaptation, precision, clips, checkpointing)
    return _sum(rows, trainer, rows["activations"], at_end, 0 if model.get("latent_cache") else encoding)


def _stage_2(model: Mapping[str, Any], backbone: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> Expected:
    from mimicvideo.action.context import check_blocks
    from mimicvideo.action.decoder import DecoderShape
    from mimicvideo.video.adaptation import Frozen
    from mimicvideo.video.footprint import reading_activations, transformer_weights, vae_memory
    from mimicvideo.video.sizes import transformer_config

    if sharing(trainer)[1]:
        raise ConfigError("stage 2 cannot be sharded: use --config conf/trainer/ddp.yaml (in a sweep: trainer=ddp)")
    precision = _precision(backbone, trainer)
    video = transformer_config(backbone["pretrained"])
    blocks = check_blocks(model["block"], video["num_layers"])
    width = video["num_attention_heads"] * video["attention_head_dim"]
    shape = DecoderShape(width, model["action_dim"], model["proprio_dim"], model["horizon"], blocks=len(blocks))
    with torch.device("meta"):
        decoder = factory(model["decoder"])(shape)
    trained = sum(weight.numel() for weight in decoder.parameters()) * precision.trained.itemsize
    rows = {
        "weights": transformer_weights(backbone["pretrained"], Frozen(), precision).frozen + trained,
        "gradients": trained,
        "optimizer": _optimizer_states(model, trained),
        "average": _average(model, trained, precision.trained),
        "DDP buckets": trained if _is_ddp(trainer) else 0,
        "FP8 copies": _fp8_copies(backbone, training=False),
    }
    clips = _clips(data, backbone)
    if isinstance(clips, str):
        return _sum(rows, trainer, 0, 0, 0, clips)
    rows["VAE"], encoding = vae_memory(backbone["pretrained"], precision.frozen, clips)
    reading, state, _ = reading_activations(backbone["pretrained"], precision, clips, max(blocks) + 1)
    batch, draws = clips.batch, model.get("draws") or 1
    tokens = clips.latents[0] * (clips.latents[1] // 2) * (clips.latents[2] // 2)
    autocast = _autocast(trainer)

    def loss() -> torch.Tensor:
        hidden = [torch.empty(batch, tokens, width, dtype=precision.autocast or precision.frozen) for _ in blocks]
        actions, times = torch.randn(batch * draws, shape.horizon, shape.action_dim), torch.rand(batch * draws)
        proprio = torch.randn(batch * draws, shape.history, shape.proprio_dim)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            return decoder(actions, times, decoder.prepare_context(*hidden), times, proprio).float().square().mean()

    with without_data(decoder):
        deciding = training_peak(decoder, loss)
    rows["activations"] = max(reading + (len(blocks) - 1) * state, deciding)
    at_end = deciding if draws > 1 else state * len(blocks)
    return _sum(rows, trainer, rows["activations"], at_end, 0 if model.get("latent_cache") else encoding)


def _sum(rows: dict[str, int], trainer: Mapping[str, Any], at_start: int, at_end: int, encoding: int, open: str = "") -> Expected:
    standing = sum(size for name, size in rows.items() if name not in ("gradients", "activations"))
    gradients, trained = rows["gradients"], rows["gradients"]
    kept = gradients if _accumulated(trainer) > 1 else 0  # while another batch of the same step passes
    validating = at_end + (trained if rows["average"] else 0)  # which keeps the trained weights while it uses the average
    return Expected(rows, standing + max(at_start + kept, at_end + gradients, 2 * gradients, validating, encoding + kept), open)


# -- parts ---------------------------------------------------------------------------------------------------------------------


def factory(spec: Mapping[str, Any]) -> Any:
    """What builds a class from a shape; a class among its arguments becomes such a factory itself."""
    arguments = {name: factory(value) if isinstance(value, dict) else value for name, value in spec.get("init_args", {}).items()}
    return lambda shape: instantiate_class((shape,), {"class_path": spec["class_path"], "init_args": arguments})


def _accumulated(trainer: Mapping[str, Any]) -> int:
    return int(trainer.get("accumulate_grad_batches") or 1)


def _autocast(trainer: Mapping[str, Any]) -> torch.dtype | None:
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.get("precision")))


def _precision(backbone: Mapping[str, Any], trainer: Mapping[str, Any]) -> Any:
    from mimicvideo.video.footprint import Precision

    frozen = getattr(torch, backbone.get("dtype") or "float32")
    whole = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(str(trainer.get("precision")))
    autocast = torch.bfloat16 if frozen == torch.bfloat16 else _autocast(trainer)
    return Precision(whole or frozen, whole or torch.float32, autocast)


def _fp8_copies(backbone: Mapping[str, Any], training: bool) -> int:
    """Of the blocks' products, a byte a weight; two for a model that trains, if it does that in FP8, whose gradients take another copy."""
    from mimicvideo.video.sizes import transformer_config

    execution = execution_of(backbone)
    copies = 2 * bool(execution.get("fp8_training")) if training else int(execution.get("fp8") is not None)
    config = transformer_config(backbone["pretrained"])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return int(copies * config["num_layers"] * width**2 * (6 + 2 * config["mlp_ratio"]))


def execution_of(backbone: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a video model's faster execution; none if it runs in the plain way."""
    execution = backbone.get("execution") or {}
    return execution.get("init_args", execution)


def _strategy(trainer: Mapping[str, Any]) -> str:
    given = trainer.get("strategy") or "auto"
    return str(given if isinstance(given, str) else given["class_path"].rpartition(".")[2]).lower()


def _is_ddp(trainer: Mapping[str, Any]) -> bool:
    return _strategy(trainer).startswith("ddp") or (_strategy(trainer) == "auto" and sharing(trainer)[0] > 1)


def takes_all(trainer: Mapping[str, Any]) -> bool:
    """Whether all devices that a machine has train, whose number the configuration does not say."""
    return str(trainer.get("devices", 1)) in ("-1", "auto")


def sharing(trainer: Mapping[str, Any]) -> tuple[int, bool]:
    """How many devices train, and whether they divide the weights among themselves."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    elif "," in str(devices):
        count = len([one for one in str(devices).split(",") if one])
    else:  # see `takes_all`
        count = 1
    return max(count, 1) * (trainer.get("num_nodes") or 1), _strategy(trainer) == "fullysharded"


def _optimizer_states(model: Mapping[str, Any], trained: int) -> int:
    """Found by one step of the optimizer on a small weight."""
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    spec = model.get("optimizer")
    optimizer = instantiate_class(([weight],), dict(spec)) if isinstance(spec, Mapping) else torch.optim.AdamW([weight])
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor) and value.dim())
    return int(trained * kept / weight.nbytes)


def _average(model: Mapping[str, Any], trained: int, dtype: torch.dtype) -> int:
    return 0 if model.get("ema_decay") is None else trained // dtype.itemsize * 4


def _clips(data: Mapping[str, Any], backbone: Mapping[str, Any]) -> Any:
    """What passes the model at once; a text that says why this is not known."""
    from mimicvideo.video.footprint import Clips

    if not {"observed", "future", "batch_size"} <= data.keys():
        return "activations: the data does not say how long its clips are"
    size = _picture_size(data)
    if isinstance(size, str):
        return f"activations: {size}"
    return Clips(data["batch_size"], data["observed"] + data["future"], *size, backbone.get("prompt_tokens") or 512)


def _picture_size(data: Mapping[str, Any]) -> tuple[int, int] | str:
    """Height and width of all cameras side by side, from the configuration or from the first dataset."""
    source = next(iter((data.get("sources") or {}).values()), data.get("root"))
    root = source if isinstance(source, str) else (source or {}).get("root")
    info = Path(str(root), "meta", "info.json")
    if not info.is_file():
        if data.get("height"):
            return data["height"], data["width"] * len(data.get("cameras") or [1])
        return f"{root} is not there and data.init_args.height is not given"
    features = {
        name: feature for name, feature in json.loads(info.read_text())["features"].items() if feature["dtype"] in ("video", "image")
    }
    if data.get("cameras"):
        wanted = data["cameras"]
        features = {name: feature for name, feature in features.items() if name in wanted or name.rpartition(".")[2] in wanted}
    if not features:
        return f"{info} has no such camera"
    if data.get("height"):
        return data["height"], data["width"] * len(features)
    sizes = [dict(zip(feature["names"], feature["shape"], strict=True)) for feature in features.values()]
    return sizes[0]["height"], sum(size["width"] for size in sizes)


# -- the device ----------------------------------------------------------------------------------------------------------------


def require_memory(expected: Expected, config: Mapping[str, Any], memory_gb: float | None) -> None:
    """Refuses a run that cannot fit.

    Args:
        expected: Of this run.
        config: Of this run.
        memory_gb: What a device has, in 10^9 bytes; None asks the GPU that is to be used, and nothing for a run on a CPU.

    Raises:
        ConfigError: With what would help.
    """
    if memory_gb is not None and not memory_gb > 0:
        raise ConfigError(f"memory_gb must be positive, got {memory_gb}: the 10^9 bytes that a device has, or null to ask its GPU")
    available = memory_gb * 1e9 if memory_gb is not None else _free(config["trainer"])
    if available is None or expected.peak + FRAMEWORK <= available:
        return
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in expected.rows.items() if size >= 2**27)
    raise ConfigError(
        f"this run needs about {(expected.peak + FRAMEWORK) / 2**30:.1f} GiB of each device's memory, "
        f"{available / 2**30:.1f} GiB are there{f' ({parts})' if parts else ''}. {_advice(config, expected, available)}"
    )


def _free(trainer: Mapping[str, Any]) -> float | None:
    if trainer.get("accelerator") not in ("gpu", "cuda", "auto") or not torch.cuda.is_available():
        return None
    devices = trainer.get("devices", 1)
    return float(torch.cuda.mem_get_info(devices[0] if isinstance(devices, list) and devices else 0)[0])


def _advice(config: Mapping[str, Any], expected: Expected, available: float) -> str:
    model, trainer = config["model"]["init_args"], config["trainer"]
    backbone, stage_1 = model["backbone"]["init_args"], "decoder" not in model
    batch = ((config.get("data") or {}).get("init_args") or {}).get("batch_size", 1)
    full = backbone["adaptation"]["class_path"].endswith(".Full")
    accumulate = _accumulated(trainer)
    per_sample = expected.rows.get("activations", 0) / batch
    needed = expected.peak + FRAMEWORK + (expected.rows.get("gradients", 0) if accumulate == 1 else 0)  # which accumulating keeps
    smaller = batch // 2  # the largest that divides the batch and leaves enough, if activations were all that shrinks; else 1
    while smaller > 1 and (batch % smaller or needed - (batch - smaller) * per_sample > available):
        smaller -= 1
    smaller = max(smaller, 1)
    helps = {
        "--model.backbone.gradient_checkpointing=true": stage_1 and backbone.get("gradient_checkpointing") is not True,
        f"--data.batch_size={smaller} with --trainer.accumulate_grad_batches={accumulate * batch // smaller}": batch > 1,
        "--model.backbone.dtype=bfloat16": backbone.get("dtype") != "bfloat16" and not full,
        "--trainer.precision=bf16-mixed": _autocast(trainer) is None and backbone.get("dtype") != "bfloat16",
        "--config conf/adaptation/lora_adaln.yaml": stage_1 and full,
        "--config conf/trainer/gpu.yaml (one GPU needs no DDP)": _is_ddp(trainer) and sharing(trainer)[0] == 1 and not takes_all(trainer),
        "--config conf/trainer/fsdp.yaml on several GPUs": stage_1 and not sharing(trainer)[1],
        "--model.ema_decay=null": model.get("ema_decay") is not None,
        "fewer pixels or frames (--data.height, --data.width, --data.future)": True,
    }
    return "What helps: " + "; ".join(name for name, applies in helps.items() if applies)
