"""What stage 1 trained, as tensors and as files: collected from a backbone, checked against it, loaded into it.

An adapter folder holds
    adapter_config.json, adapter_model.safetensors   LoRA, as PEFT writes and reads it (absent without LoRA); diffusers takes it by
                                                     load_lora_adapter(folder, weight_name="adapter_model.safetensors",
                                                     prefix="base_model.model")
    full_weights.safetensors                         tensors that were trained in full (absent if there are none)
    manifest.json                                    SHA-256 of these files, of the base weights, and the LoRA settings
A folder that PEFT wrote elsewhere, with the first two files alone, is read too, and so is diffusers' pytorch_lora_weights.safetensors.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mimicvideo.folders import check_listed, replacing
from mimicvideo.hashes import known_sha256
from mimicvideo.sharding import gathered, is_writer, parameters, placed_like
from mimicvideo.video import pretrained as weights
from mimicvideo.video.adaptation import Frozen, fuse, inject, injected_config, target_layers
from mimicvideo.video.peft_folder import CONFIG, DIFFUSERS, PREFIX, TENSORS, check_numbers, is_peft_folder, read_peft

if TYPE_CHECKING:
    from mimicvideo.video.cosmos_predict import CosmosPredict

_LORA_SETTINGS = ("r", "lora_alpha", "target_modules", "lora_dropout")
_REMEDY = "Build the backbone with the adaptation that the adapter was trained with (adaln: false if it holds no AdaLN layers)"


# {"config": ..., "tensors": {name: tensor}}, where config is JSON-able: format, base_weights_hash, and lora, which is
# None or has r, lora_alpha, target_modules and lora_dropout.
AdapterState = Mapping[str, Any]


def own_parameters(backbone: "CosmosPredict") -> dict[str, nn.Parameter]:
    """The parameters that pretrained files do not give, under their adapter names, in the model's order."""
    named = {}
    for name, parameter in parameters(backbone.transformer).items():
        plain = "transformer." + name.replace(".base_layer.", ".")
        if "lora_" in name:
            named[PREFIX + name.replace(".default.", ".")] = parameter
        elif plain in backbone.own_names:
            named[plain] = parameter
    if backbone.prompts.model is not None:
        named |= {f"text_encoder.{name}": parameter for name, parameter in parameters(backbone.prompts.model).items()}
    return named


def collect(backbone: "CosmosPredict") -> dict[str, Any]:
    """Copies of what distinguishes the backbone from its pretrained weights, on the CPU; gathered if they are sharded."""
    config = {"format": 1, "lora": _settings(injected_config(backbone.transformer)), "base_weights_hash": backbone.weights_hash}
    tensors = {name: gathered(value.detach()).cpu().clone() for name, value in own_parameters(backbone).items()}
    return {"config": config, "tensors": tensors}


def _settings(config: LoraConfig | None) -> dict[str, Any] | None:
    if config is None:
        return None
    values = (config.r, config.lora_alpha, sorted(config.target_modules or ()), config.lora_dropout)
    return dict(zip(_LORA_SETTINGS, values, strict=True))


def is_empty(state: AdapterState) -> bool:
    """Whether the backbone is as its pretrained files have it."""
    return state["config"]["lora"] is None and not state["tensors"]


def same(one: AdapterState, other: AdapterState) -> bool:
    """Whether two states hold the same settings and bits."""
    tensors, others = one["tensors"], other["tensors"]
    if one["config"] != other["config"] or tensors.keys() != others.keys():
        return False
    return all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def load(backbone: "CosmosPredict", state: AdapterState, where: str) -> None:
    """Copies an adapter into the backbone; a `Frozen` one without LoRA layers gets them first.

    Raises:
        ValueError: If the base weights are others, or settings, keys or shapes do not fit; then nothing has changed.
    """
    config, tensors = state.get("config"), state["tensors"]
    if not isinstance(config, Mapping) or not {"lora", "base_weights_hash"} <= config.keys():
        raise ValueError(
            f"{where} does not say its LoRA's settings and base weights (config.lora, config.base_weights_hash): save it again"
        )
    if unsaid := [key for key in _LORA_SETTINGS if config["lora"] is not None and key not in config["lora"]]:
        raise ValueError(f"{where} does not say its LoRA's {', '.join(unsaid)}, without which its weights mean nothing: save it again")
    if config["lora"] is not None:
        check_numbers(config["lora"], where)
    if config["base_weights_hash"] != backbone.weights_hash:
        raise ValueError(
            f"{where} was trained on other base weights (SHA-256 {config['base_weights_hash'][:16]}...) than those of {backbone.folder} "
            f"({backbone.weights_hash[:16]}..., initial={backbone.initial!r}): set pretrained and initial to what it was trained on"
        )
    if broken := [key for key, tensor in tensors.items() if not (tensor.is_floating_point() and bool(tensor.isfinite().all()))]:
        raise ValueError(
            f"{where} has {len(broken)} tensors with NaN, infinity or no floating-point numbers: {', '.join(broken[:3])}"
            f"{', ...' * (len(broken) > 3)}. Take an earlier checkpoint of its training"
        )
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if isinstance(backbone.adaptation, Frozen):
        weights.check_shapes(found, _shapes_for_frozen(backbone, config, found), where, "The adapter belongs to another architecture")
        if config["lora"] is not None:
            inject(backbone.transformer, LoraConfig(**config["lora"]))
        if any(key.startswith("text_encoder.") for key in tensors) and backbone.prompts.model is None:
            backbone.prompts.train_weights()
        backbone.own_names |= {key for key in tensors if key.startswith("transformer.")}
    else:
        _check_settings(config["lora"], _settings(injected_config(backbone.transformer)), where)
        expected = {key: parameter.shape for key, parameter in own_parameters(backbone).items()}
        weights.check_shapes(found, expected, where, _REMEDY)
    own = own_parameters(backbone)
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(placed_like(tensor, own[key]))
    if isinstance(backbone.adaptation, Frozen):
        backbone.requires_grad_(False)


def _check_settings(saved: dict[str, Any] | None, here: dict[str, Any] | None, where: str) -> None:
    """Dropout may differ; it is no part of the function that was learned."""
    if (saved is None) != (here is None):
        raise ValueError(f"{where} has {'no ' * (saved is None)}LoRA layers, the model has {'none' if here is None else 'some'}. {_REMEDY}")
    if saved is None or here is None:
        return
    names = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
    differences = [f"{name} {saved[key]} saved, {here[key]} here" for key, name in names.items() if saved[key] != here[key]]
    if differences:
        raise ValueError(f"{where} does not fit: {'; '.join(differences)}. {_REMEDY}")


def _shapes_for_frozen(backbone: "CosmosPredict", config: Mapping[str, Any], found: dict[str, torch.Size]) -> dict[str, torch.Size]:
    """What the tensors must look like: LoRA follows from its settings, whole tensors from the network's own."""
    expected = {}
    if config["lora"] is not None:
        rank = config["lora"]["r"]
        for name, layer in target_layers(backbone.transformer, config["lora"]["target_modules"]).items():
            expected[f"{PREFIX}{name}.lora_A.weight"] = torch.Size((rank, layer.in_features))
            expected[f"{PREFIX}{name}.lora_B.weight"] = torch.Size((layer.out_features, rank))
    whole = {f"transformer.{name}": parameter.shape for name, parameter in backbone.transformer.named_parameters()}
    expected |= {key: whole[key] for key in found if key in whole}
    if backbone.initial == "random":
        expected |= whole  # no file has them
    files = weights.weight_files(backbone.folder / "text_encoder")
    text = {f"text_encoder.{key}": shape for key, shape in weights.tensor_shapes(files).items()}
    return expected | {key: text[key] for key in found if key in text}


def write_adapter(state: AdapterState, folder: Path) -> None:
    """Writes an adapter folder in the first process; an existing one is replaced only once the new one is complete."""
    if not is_writer():
        return
    lora = {key: tensor for key, tensor in state["tensors"].items() if key.startswith(PREFIX)}
    whole = {key: tensor for key, tensor in state["tensors"].items() if key not in lora}
    with replacing(folder) as new:
        if lora:
            LoraConfig(**state["config"]["lora"]).save_pretrained(str(new))
            # diffusers reads no adapter_config.json: without its own header it would take alpha = rank, silently.
            header = {f"{PREFIX}{key}": value for key, value in state["config"]["lora"].items()}
            save_file(lora, new / TENSORS, {LORA_ADAPTER_METADATA_KEY: json.dumps(header)})
        if whole:
            save_file(whole, new / "full_weights.safetensors", {"format": "pt"})
        files = {path.name: known_sha256(path) for path in sorted(new.iterdir())}
        (new / weights.MANIFEST).write_text(json.dumps({**state["config"], "sha256": files}, indent=2) + "\n")


def read_for(backbone: "CosmosPredict", folder: Path) -> dict[str, Any]:
    """Reads an adapter folder, or one that PEFT or diffusers wrote elsewhere. These do not say for which base weights: those of `backbone`.

    Raises:
        FileNotFoundError: See `read_adapter`.
        ValueError: See `read_adapter` and `read_peft`.
    """
    if not is_peft_folder(folder):
        return read_adapter(folder)
    if is_writer():
        print(f"{folder} does not say which base weights it was trained on: those of {backbone.folder} are taken for them")
    here = _settings(injected_config(backbone.transformer))
    lora, tensors = read_peft(folder, backbone.transformer, None if here is None else here["target_modules"])
    return {"config": {"format": 1, "lora": lora, "base_weights_hash": backbone.weights_hash}, "tensors": tensors}


def read_adapter(folder: Path) -> dict[str, Any]:
    """Reads an adapter folder and checks every file against its SHA-256.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file differs from what was written, or is not listed though it would be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"adapter {folder} does not exist: give the folder that stage 1 wrote, <run_dir>/adapter, or one of PEFT's")
    if not any((folder / name).is_file() for name in (weights.MANIFEST, CONFIG)):
        raise FileNotFoundError(
            f"{folder / weights.MANIFEST} is missing, and so is PEFT's {CONFIG}: give the folder that stage 1 wrote, <run_dir>/adapter, "
            f"or one that PEFT's save_pretrained wrote, with {CONFIG} and {TENSORS}, or diffusers' save_lora_weights, with {DIFFUSERS}"
        )
    config = weights.read_json(folder / weights.MANIFEST)
    wanted = {"format": int, "lora": dict | None, "base_weights_hash": str, "sha256": dict}
    wrong = [key for key, kind in wanted.items() if not isinstance(config.get(key, ...), kind)]
    if wrong or config["format"] != 1:
        raise ValueError(
            f"{folder / weights.MANIFEST} is no adapter manifest of format 1: {', '.join(wrong) or 'format'} is missing or not as stage 1 "
            "wrote it; copy the whole adapter folder again"
        )
    check_listed(folder, config["sha256"])
    tensors = {}
    for name, recorded in config.pop("sha256").items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though {weights.MANIFEST} lists it: copy the whole adapter folder again")
        if known_sha256(path) != recorded:
            raise ValueError(f"{path} is truncated or damaged: its SHA-256 differs from the one in {weights.MANIFEST}; copy it again")
        if path.suffix == ".safetensors":
            tensors |= weights.read_safetensors(path)
    if config["lora"] is not None:
        _check_peft_config(folder, config["lora"])
    return {"config": config, "tensors": tensors}


def _check_peft_config(folder: Path, lora: Mapping[str, Any]) -> None:
    """The manifest, whose settings are used, vouches for every file but itself."""
    said = weights.read_json(folder / CONFIG)
    for key in _LORA_SETTINGS:
        one, other = (sorted(value) if isinstance(value, list) else value for value in (lora.get(key), said.get(key)))
        if key in lora and one != other:
            raise ValueError(
                f"{folder / weights.MANIFEST} says {key}={one!r}, {CONFIG} beside it {other!r}: one was changed; copy the folder again"
            )


def write_trio(backbone: "CosmosPredict", folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes transformer (LoRA fused), VAE, text encoder and tokenizer in the formats of their libraries, with a manifest.

    The first process does, but each must call this if weights are sharded.
    """
    transformer: Any = _whole_module(backbone.transformer)
    text_encoder: Any = backbone.prompts.model and _whole_module(backbone.prompts.model)
    if not is_writer():
        return
    if injected_config(transformer) is not None or dtype is not None:
        transformer = copy.deepcopy(transformer)
        if injected_config(transformer) is not None:
            fuse(transformer)
    with replacing(folder) as new:
        if dtype is not None:
            nn.Module.to(transformer, dtype)
        transformer.save_pretrained(new / "transformer")
        for name in ("vae", "tokenizer"):
            weights.copy_component(backbone.folder / name, new / name)
        if text_encoder is None:
            weights.copy_component(backbone.folder / "text_encoder", new / "text_encoder")
        else:
            text_encoder.save_pretrained(new / "text_encoder")
        weights.write_manifest(new)


def _whole_module(module: nn.Module) -> nn.Module:
    """A copy on the CPU of a module that FSDP2 shards, under its own class; any other module as it is."""
    if not isinstance(module, FSDPModule):
        return module
    own_class: Any = type(module).__bases__[1]  # FSDP2 makes a class of itself and this one
    config: Any = module.config
    tensors = {name: gathered(tensor).cpu() for name, tensor in module.state_dict().items()}
    with torch.device("meta"):
        plain = own_class.from_config(config) if hasattr(own_class, "from_config") else own_class(config)
        if lora := injected_config(module):  # type: ignore[arg-type]
            inject(plain, lora)
    plain.load_state_dict(tensors, assign=True)
    if hasattr(plain, "tie_weights"):
        plain.tie_weights()
    return plain
