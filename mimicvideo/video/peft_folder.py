"""LoRA that was trained elsewhere: a folder that stock PEFT or diffusers wrote becomes settings and tensors as `adapter.py` has them."""

import json
import re
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from mimicvideo.video import pretrained as weights
from mimicvideo.video.adaptation import matches, target_layers

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"  # of diffusers' save_lora_weights and save_lora_adapter: the settings are in its header
PREFIX = "base_model.model."  # PEFT's, before the module's name

# Entries of adapter_config.json that are read here, and those that do not change what the finished adapter computes.
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
_WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"}
_WITHOUT_EFFECT |= {"megatron_core", "qalora_group_size", "ensure_weight_tying"}  # the first two configure what must be off
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # of LoRA's matrices; other starts change the base weights as well
_MERGE = "Merge it with PEFT (merge_and_unload), save the transformer, and set pretrained to a folder that holds it"


def is_peft_folder(folder: Path) -> bool:
    """Whether PEFT or diffusers wrote the folder, and not this framework, whose folders have a manifest."""
    theirs = (folder / CONFIG).is_file() or (folder / DIFFUSERS).is_file()
    return theirs and not any((folder / name).exists() for name in (weights.MANIFEST, "full_weights.safetensors"))


def read_peft(folder: Path, transformer: CosmosTransformer3DModel, targets_here: Iterable[str] | None) -> tuple[dict[str, Any], dict]:
    """Reads a folder of `PeftModel.save_pretrained`, whose keys may also begin with `transformer.`, or of diffusers' `save_lora_weights`.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors, or with pytorch_lora_weights.safetensors.
        transformer: What the adapter is for; stays as it is.
        targets_here: Of the LoRA layers that `transformer` has, if any. The adapter's targets get these names if they are the same layers.

    Returns:
        `r`, `lora_alpha`, `target_modules` and `lora_dropout`; the tensors under the names that `adapter.py` gives them.

    Raises:
        FileNotFoundError: If the tensors are missing.
        ValueError: If a setting is missing or one that is not known here changes what the adapter computes, if no layer fits, or if a
            tensor is missing, left over, or of another shape.
    """
    diffusers = (folder / DIFFUSERS).is_file() and not (folder / TENSORS).is_file()
    said, path = (folder / DIFFUSERS,) * 2 if diffusers else (folder / CONFIG, folder / TENSORS)  # where settings and tensors are
    config = _settings(said, _header_settings(said) if diffusers else weights.read_json(said))
    tensors, blank = _tensors(path), _blank(transformer)
    rank, targets = config["r"], config["target_modules"]
    layers = _layers(said, config, blank)
    linear = {name: layer for name, layer in target_layers(blank, layers).items() if name in layers}
    expected = {}
    for name, layer in linear.items():
        expected[f"{PREFIX}{name}.lora_A.weight"] = torch.Size((rank, layer.in_features))
        expected[f"{PREFIX}{name}.lora_B.weight"] = torch.Size((layer.out_features, rank))
    whole = config.get("modules_to_save") or []
    for name, parameter in blank.named_parameters():
        if matches(name.rpartition(".")[0], whole):
            expected[f"transformer.{name}"] = parameter.shape
    saved = {key.removeprefix("transformer."): key for key in expected if key.startswith("transformer.")}
    tensors = {saved.get(key.removeprefix(PREFIX), key): tensor for key, tensor in tensors.items()}
    remedy = f"They must be those that r={rank}, target_modules and modules_to_save of {said.name} make in this transformer: save it again"
    weights.check_shapes({key: tensor.shape for key, tensor in tensors.items()}, expected, path, remedy)
    names = [one for one in (targets_here, targets) if not isinstance(one, str | None) and _same_layers(blank, one, linear)]
    targets = sorted(names[0] if names else layers)
    settings = {"r": rank, "lora_alpha": config["lora_alpha"], "target_modules": targets, "lora_dropout": config.get("lora_dropout") or 0.0}
    return settings, tensors


def _header_settings(path: Path) -> dict[str, Any]:
    """What diffusers wrote of PEFT's settings into a file's header; under `transformer.` if a pipeline did."""
    header = _header(path)
    try:
        given = dict(json.loads(header or "{}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {LORA_ADAPTER_METADATA_KEY} of its header is damaged ({error}): save it again") from error
    if not given:
        raise ValueError(
            f"{path} lacks lora_alpha and the other settings of PEFT: its header has no {LORA_ADAPTER_METADATA_KEY}. Save it again with "
            f"transformer_lora_adapter_metadata of diffusers' save_lora_weights, or with PEFT's save_pretrained"
        )
    of_pipeline = {key.removeprefix("transformer."): value for key, value in given.items() if key.startswith("transformer.")}
    return of_pipeline or given


def check_numbers(config: Mapping[str, Any], where: object) -> None:
    """Raises ValueError unless `r` is a whole number of at least 1 and `lora_alpha` a finite number."""
    rank, alpha = config["r"], config["lora_alpha"]
    for name, value, right in (
        ("r", rank, isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1),
        ("lora_alpha", alpha, isinstance(alpha, int | float) and not isinstance(alpha, bool) and isfinite(alpha)),
    ):
        if not right:
            kind = "whole number of at least 1" if name == "r" else "finite number"
            raise ValueError(f"{where}: {name} is {value!r}, expected a {kind}: write what the adapter was trained with")


def _settings(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path}: peft_type={config['peft_type']!r} cannot be read, only LORA can. {_MERGE}")
    for key, unit in (("r", "rank"), ("lora_alpha", "updates are scaled by it / r"), ("target_modules", "the layers that have LoRA")):
        if not config.get(key):
            raise ValueError(f"{path} lacks {key} ({unit}), without which the weights mean nothing: add what it was trained with")
    check_numbers(config, path)
    targets = config["target_modules"]
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(target, str) for target in targets)):
        raise ValueError(f"{path}: target_modules is {targets!r}, expected names of layers: write what the adapter was trained with")
    plain = LoraConfig().to_dict()
    for key, value in config.items():
        if key == "init_lora_weights":
            changes = value not in _PLAIN_STARTS
        elif key in _READ | _WITHOUT_EFFECT:
            changes = False
        else:
            changes = bool(value) and value != plain.get(key)
        if changes:
            raise ValueError(f"{path}: {key}={value!r} changes what the adapter computes, which is not supported here. {_MERGE}")
    if isinstance(config["target_modules"], list):
        config["target_modules"] = [target.removeprefix("transformer.") for target in config["target_modules"]]
    config["modules_to_save"] = [name.removeprefix("transformer.") for name in config.get("modules_to_save") or []]
    return config


def _header(path: Path) -> str:
    weights.tensor_shapes([path])  # complains of a damaged file
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "")


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        beside = " (adapter_model.bin is there, which is not read)" if path.with_suffix(".bin").is_file() else ""
        raise FileNotFoundError(f"{path} is missing{beside}: save the adapter again with PEFT's save_pretrained")
    tensors = weights.read_safetensors(path)
    if PREFIX in _header(path):  # as `write_adapter` marks it; without the manifest nobody knows whether whole tensors belong to it
        raise FileNotFoundError(
            f"{path.parent / weights.MANIFEST} is missing, though stage 1 wrote {path.name}: copy the whole adapter folder again"
        )
    named = {}
    for key, tensor in tensors.items():
        name = PREFIX + re.sub(rf"^({re.escape(PREFIX)})?(transformer\.)?", "", key)
        if name in named:
            raise ValueError(f"{path} has two tensors for {name.removeprefix(PREFIX)}: save the adapter again")
        named[name] = tensor
    return named


def _blank(transformer: CosmosTransformer3DModel) -> CosmosTransformer3DModel:
    with torch.device("meta"):
        return CosmosTransformer3DModel.from_config(transformer.config)  # type: ignore[return-value]


def _layers(path: Path, config: Mapping[str, Any], blank: CosmosTransformer3DModel) -> list[str]:
    """Where PEFT itself puts LoRA, which knows patterns, layer numbers and exceptions."""
    keys = ("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    given = LoraConfig(**{key: config[key] for key in keys if key in config})
    with torch.device("meta"):
        trial: Any = CosmosTransformer3DModel.from_config(blank.config)
    try:
        inject_adapter_in_model(given, trial)
    except (ValueError, re.error) as error:
        raise ValueError(
            f"{path}: target_modules={config['target_modules']!r} name no layer of this transformer, "
            f"whose names are diffusers' (CosmosTransformer3DModel): {str(error).splitlines()[0][:200]}"
        ) from error
    return [name for name, module in trial.named_modules() if isinstance(module, LoraLayer)]


def _same_layers(blank: CosmosTransformer3DModel, targets: Iterable[str], layers: Mapping[str, Any]) -> bool:
    try:
        return target_layers(blank, targets).keys() == layers.keys()
    except ValueError:  # a target that PEFT passes over
        return False
