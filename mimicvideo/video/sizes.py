"""How large a video model is and what an adaptation trains of it, counted on the meta device: no weights, no GPU, no download."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from torch import nn

from mimicvideo.video.adaptation import ADALN_MODULES, Adaptation, Full, matches
from mimicvideo.video.pretrained import PACKAGED, read_json

# What all published transformers have in common: NVIDIA's networks as diffusers' conversion script writes them.
_COMMON: dict[str, Any] = {
    "in_channels": 17,  # 16 of the VAE and the mask of clean frames
    "out_channels": 16,
    "attention_head_dim": 128,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,  # NVIDIA's configuration names one, but the checkpoints hold none
}
_2B = {**_COMMON, "num_attention_heads": 16, "num_layers": 28, "rope_scale": (1.0, 3.0, 3.0)}
_14B = {**_COMMON, "num_attention_heads": 40, "num_layers": 36}
# The text of Predict2.5: 28 hidden states of width 3584 of Reason1, which the transformer itself reduces.
_REASON = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 28 * 3584, "encoder_hidden_states_channels": 1024}

# Configurations of `CosmosTransformer3DModel` by the last part of the model's name.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "predict2-2b-480p-10fps": _2B,
    "Cosmos-Predict2-2B-Video2World": _2B,
    "Cosmos-Predict2-14B-Video2World": {**_14B, "rope_scale": (20 / 24, 2.0, 2.0)},
    "Cosmos-Predict2.5-2B": {**_2B, **_REASON},
    "Cosmos-Predict2.5-14B": {**_14B, **_REASON, "rope_scale": (1.0, 3.0, 3.0)},
}


@dataclass(frozen=True)
class BackboneSize:
    """Sizes of a video transformer.

    Attributes:
        blocks: How many there are.
        width: Of a block's output.
        parameters: Of the pretrained transformer.
        trained: Of what an adaptation trains: `LoRA`, `AdaLN`, `transformer` and `text encoder`, where there are any.
    """

    blocks: int
    width: int
    parameters: int
    trained: dict[str, int]


def transformer_config(pretrained: str) -> dict[str, Any]:
    """The transformer's configuration, from the model's folder if it is on this machine, else from `ARCHITECTURES`.

    Raises:
        FileNotFoundError: If it is in neither.
    """
    folder = PACKAGED.get(pretrained, Path(pretrained).expanduser())
    if (folder / "transformer").is_dir():
        return read_json(folder / "transformer" / "config.json")
    if folder.name in ARCHITECTURES:
        return ARCHITECTURES[folder.name]
    raise FileNotFoundError(
        f"pretrained={pretrained!r}: there is no folder {folder / 'transformer'}, and without it the sizes of {folder.name!r} are unknown: "
        f"put the model there, or choose one of {', '.join(ARCHITECTURES)}"
    )


def backbone_size(pretrained: str, adaptation: Adaptation) -> BackboneSize:
    """Sizes of the transformer that `CosmosPredict(pretrained, adaptation)` would build.

    Raises:
        FileNotFoundError: See `transformer_config`.
        ValueError: If the adaptation does not fit.
    """
    with torch.device("meta"):
        transformer: Any = CosmosTransformer3DModel.from_config(transformer_config(pretrained))
        parameters = sum(parameter.numel() for parameter in transformer.parameters())
        text = _Text(pretrained)
        transformer.requires_grad_(False)
        adaptation.apply(transformer, text)  # type: ignore[arg-type]
    trained: Counter[str] = Counter()
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            trained[_kind(name, isinstance(adaptation, Full))] += parameter.numel()
    if count := sum(parameter.numel() for parameter in text.parameters()):
        trained["text encoder"] = count
    width = transformer.config["num_attention_heads"] * transformer.config["attention_head_dim"]
    return BackboneSize(len(transformer.transformer_blocks), width, parameters, dict(trained))


def _kind(name: str, everything: bool) -> str:
    if "lora_" in name:
        return "LoRA"
    return "AdaLN" if not everything and matches(name.rpartition(".")[0], ADALN_MODULES) else "transformer"


class _Text(nn.Module):
    """Stands in for the `PromptEncoder`: holds parameters only where its T5 trains."""

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        self.folder = PACKAGED.get(pretrained, Path(pretrained).expanduser()) / "text_encoder"

    def train_weights(self) -> None:
        """T5 as the folder's configuration describes it, on the current device."""
        from transformers import T5Config, T5EncoderModel

        self.model = T5EncoderModel(T5Config(**read_json(self.folder / "config.json")))
