"""Import of NVIDIA's own Cosmos-Predict2 checkpoints (.pt): their network as a diffusers folder, every key accounted for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from mimicvideo.folders import check_free, replacing
from mimicvideo.native_files import check_finite, network_tensors, read_tensors
from mimicvideo.video import pretrained as weights
from mimicvideo.video.sizes import ARCHITECTURES

# Names in NVIDIA's `MinimalV1LVGDiT` (nvidia-cosmos/cosmos-predict2, `models/text2image_dit.py`) and in diffusers'
# `CosmosTransformer3DModel`; the pairs are those of diffusers' `scripts/convert_cosmos_to_diffusers.py`. Each has one `.weight`.
_OUTSIDE_BLOCKS = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "t_embedding_norm": "time_embed.norm",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}
_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "output_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_IN_A_BLOCK = {
    **{f"self_attn.{native}": f"attn1.{name}" for native, name in _ATTENTION.items()},
    **{f"cross_attn.{native}": f"attn2.{name}" for native, name in _ATTENTION.items()},
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    "adaln_modulation_self_attn.1": "norm1.linear_1",
    "adaln_modulation_self_attn.2": "norm1.linear_2",
    "adaln_modulation_cross_attn.1": "norm2.linear_1",
    "adaln_modulation_cross_attn.2": "norm2.linear_2",
    "adaln_modulation_mlp.1": "norm3.linear_1",
    "adaln_modulation_mlp.2": "norm3.linear_2",
}

# One network for all resolutions and frame rates (NVIDIA, `configs/base/config_video2world.py`; diffusers' script likewise).
VARIANTS = {name: ARCHITECTURES[name] for name in ("Cosmos-Predict2-2B-Video2World", "Cosmos-Predict2-14B-Video2World")}
_COMPANIONS = tuple(name for name in weights.COMPONENTS if name != "transformer")


def import_native(file: str, out: str, companions: str, network: str | None = None, ema: bool = False) -> Path:
    """Writes a video model that `pretrained` takes from a native Cosmos-Predict2 checkpoint: NVIDIA's, or the official mimic-video's.

    The file is read without pickle's classes. Nothing is written unless every key of it is known and every weight is there.

    Args:
        file: NVIDIA's `model-480p-10fps.pt`, mimic-video's `v2w_..._fused.pt`, or the same tensors as `.safetensors`.
        out: The folder to create. It gets `transformer`, what `companions` has, and a manifest of SHA-256 hashes.
        companions: Folder with `vae`, `text_encoder` and `tokenizer` in diffusers' format, or the hub id of such a model; native
            files do not hold them. They are copied.
        network: A `config.json` of diffusers' transformer, for a network that is none of NVIDIA's or has another RoPE scale, which
            no checkpoint tells. By default the sizes in the file choose among NVIDIA's.
        ema: Take the weight average (`net_ema.`) of a training checkpoint that holds both.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If a file or a companion is missing.
        FileExistsError: If `out` holds something.
        ValueError: If the file is damaged, holds more than tensors, or its keys or shapes are not those of the network.
    """
    source, folder = Path(file).expanduser(), Path(out).expanduser()
    check_free(folder)
    weights.check_source(companions, key="companions", components=_COMPANIONS)
    tensors = network_tensors(read_tensors(source), source, ema)
    transformer = build_transformer(tensors, source, None if network is None else Path(network).expanduser())
    check_finite(tensors, source)
    parts = find_companions(companions)  # downloads gigabytes: for a file that is right
    _check_companions(parts, transformer.config)
    with replacing(folder) as new:
        transformer.save_pretrained(new / "transformer")
        for name in _COMPANIONS:
            weights.copy_component(parts / name, new / name)
        weights.write_manifest(new)
    print(f"{folder}: {len(tensors)} tensors of {source.name}; use it with backbone.init_args.pretrained={folder}")
    return folder


def find_companions(companions: str) -> Path:
    """The folder that holds VAE, text encoder and tokenizer. Raises FileNotFoundError naming what is missing."""
    return weights.resolve(companions, key="companions", components=_COMPANIONS)


def _check_companions(parts: Path, network: Mapping[str, Any]) -> None:
    """Raises ValueError if the VAE or the text encoder is that of another video model."""
    for name, key, wanted in (("vae", "z_dim", network["out_channels"]), ("text_encoder", "d_model", network["text_embed_dim"])):
        path = parts / name / "config.json"
        if (given := weights.read_json(path).get(key)) != wanted:
            raise ValueError(
                f"{path} has {key} {given}, the network in the file wants {wanted}: "
                "give as companions the folder, or the hub id, of the same video model in diffusers' format"
            )


def key_map(layers: int) -> dict[str, str]:
    """Native name to diffusers name for every weight of a network with so many blocks."""
    names = dict(_OUTSIDE_BLOCKS)
    for block in range(layers):
        names |= {f"blocks.{block}.{native}": f"transformer_blocks.{block}.{name}" for native, name in _IN_A_BLOCK.items()}
    return {f"{native}.weight": f"{name}.weight" for native, name in names.items()}


def build_transformer(tensors: Mapping[str, Tensor], file: Path, config: Path | None = None) -> CosmosTransformer3DModel:
    """The diffusers network that holds exactly these tensors, bit for bit.

    Raises:
        ValueError: If the variant is unknown, blocks are missing, or keys or shapes are not those of the network.
    """
    given: Any = choose_variant(tensors, file) if config is None else weights.read_json(config)
    try:
        with torch.device("meta"):
            built: Any = CosmosTransformer3DModel.from_config(given)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(
            f"{config} is no config.json of diffusers' CosmosTransformer3DModel: {str(error).splitlines()[0][:200]}"
        ) from error
    network, names = built.state_dict(), key_map(built.config["num_layers"])
    if beyond := network.keys() ^ set(names.values()):
        raise ValueError(f"{config} describes no Cosmos-Predict2 network, which has no {', '.join(sorted(beyond)[:12])}")
    _check_blocks(tensors, built.config["num_layers"], file)
    found = {key: tensor.shape for key, tensor in tensors.items()}
    expected = {native: network[name].shape for native, name in names.items()}
    if strange := [key for key in found if key not in expected]:
        unfused = any(".lora_A." in key for key in strange)
        raise ValueError(
            f"{file} has {len(strange)} keys that a Cosmos-Predict2 video model has not: {', '.join(strange[:20])}"
            f"{', ...' * (len(strange) > 20)}. "
            + (
                "Its LoRA is not fused yet: fuse it with mimic-video's own script, and import the file that it writes (..._fused.pt)"
                if unfused
                else "Is it another Cosmos model (Predict2.5, multiview, action-conditioned, a control net)?"
            )
        )
    weights.check_shapes(found, expected, file, "Download it again; for another network give its config.json as network")
    weights_by_name, places = {}, set()
    for native, name in names.items():
        tensor = tensors[native]
        # Two names of one tensor become two: safetensors writes none twice.
        weights_by_name[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    built.load_state_dict(weights_by_name, assign=True)
    return built


def choose_variant(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """The configuration of NVIDIA's whose width and input are those of the tensors. Raises ValueError if there is none."""
    first = tensors.get("x_embedder.proj.1.weight")
    if first is None or first.ndim != 2:
        raise ValueError(
            f"{file} is no native Cosmos-Predict2 checkpoint: it lacks x_embedder.proj.1.weight. "
            f"Its keys are {', '.join(list(tensors)[:6])}"
        )
    sizes = {}
    for name, variant in VARIANTS.items():
        patch = variant["patch_size"][0] * variant["patch_size"][1] * variant["patch_size"][2]
        inputs = (variant["in_channels"] + 1) * patch  # and the padding mask
        sizes[name] = (variant["num_attention_heads"] * variant["attention_head_dim"], inputs)
        if sizes[name] == tuple(first.shape):
            return variant
    known = "; ".join(f"{name} {size}" for name, size in sizes.items())
    raise ValueError(
        f"{file} is of an unknown variant: its x_embedder.proj.1.weight is {tuple(first.shape)} (width, inputs of a patch), known are "
        f"{known}. A text-to-image model has no mask channel and cannot be used; for another network give its config.json as network"
    )


def _check_blocks(tensors: Mapping[str, Tensor], layers: int, file: Path) -> None:
    there = {int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))}
    missing = sorted(set(range(layers)) - there)
    if there and missing:  # without any, other names are the fault
        raise ValueError(
            f"{file} has {layers - len(missing)} of the {layers} blocks: blocks.{', blocks.'.join(map(str, missing))} are missing. "
            "It is a partial checkpoint: download the whole one"
        )
