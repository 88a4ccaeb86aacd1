"""What of a video model trains in stage 1: LoRA with full AdaLN (the paper's recipe), everything, or nothing."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from diffusers import CosmosTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from mimicvideo.video.prompts import PromptEncoder

# The paper's targets under diffusers' names. The bare linear_1 and linear_2 would also match the AdaLN weights.
PAPER_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "patch_embed.proj",
    "time_embed.t_embedder.linear_1",
    "time_embed.t_embedder.linear_2",
)
ADALN_MODULES = ("norm1.linear_1", "norm1.linear_2", "norm2.linear_1", "norm2.linear_2")
ADALN_MODULES += ("norm3.linear_1", "norm3.linear_2", "norm_out.linear_1", "norm_out.linear_2")


class Adaptation(ABC):
    """Opens some weights of a video model to training and closes the others. Trained weights are kept in fp32."""

    @abstractmethod
    def apply(self, transformer: CosmosTransformer3DModel, prompts: PromptEncoder) -> None:
        """Prepares `transformer` in place."""


class Lora(Adaptation):
    """Low-rank updates of the target layers and, if `adaln`, the AdaLN modulation layers in full; the rest is frozen.

    Defaults are the paper's (official code, `configs/experiment/video2world.py`); at Predict2-2B they train
    370,690,048 + 177,733,632 parameters.

    Args:
        rank: Rank of the updates.
        alpha: Updates are scaled by alpha / rank.
        targets: Names, or dotted ends of names, of linear layers; None is the paper's `PAPER_TARGETS`.
        adaln: Also train the AdaLN modulation layers.
        dropout: On the updates' input.
    """

    def __init__(
        self,
        rank: int = 256,
        alpha: float = 32.0,
        targets: list[str] | None = None,
        adaln: bool = True,
        dropout: float = 0.0,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.rank, self.alpha, self.adaln, self.dropout = rank, alpha, adaln, dropout
        self.targets = list(PAPER_TARGETS if targets is None else targets)

    def config(self) -> LoraConfig:
        """The same for PEFT, which calls alpha an int but takes any number."""
        alpha = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=sorted(self.targets), lora_dropout=self.dropout)  # pyright: ignore[reportArgumentType]

    def apply(self, transformer: CosmosTransformer3DModel, prompts: PromptEncoder) -> None:
        transformer.requires_grad_(False)
        prompts.requires_grad_(False)
        inject(transformer, self.config())
        if self.adaln:
            for name, module in transformer.named_modules():
                if matches(name, ADALN_MODULES):
                    module.float().requires_grad_(True)


class Full(Adaptation):
    """Everything in the transformer trains, and T5 too if `text_encoder`. The VAE never does."""

    def __init__(self, text_encoder: bool = False) -> None:
        self.text_encoder = text_encoder

    def apply(self, transformer: CosmosTransformer3DModel, prompts: PromptEncoder) -> None:
        transformer.float().requires_grad_(True)
        if self.text_encoder:
            prompts.train_weights()


class Frozen(Adaptation):
    """Nothing trains: the backbone of stage 2 and of rollouts."""

    def apply(self, transformer: CosmosTransformer3DModel, prompts: PromptEncoder) -> None:
        transformer.requires_grad_(False)


def matches(name: str, targets: Iterable[str]) -> bool:
    """Whether a dotted module name is, or ends in, one of `targets`: PEFT's rule."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def target_layers(transformer: CosmosTransformer3DModel, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """The linear layers that `targets` name, by their names without adapter.

    Raises:
        ValueError: If a target matches no linear layer; the nearest names are listed.
    """
    linears = {}
    for name, module in transformer.named_modules():
        base = module.base_layer if isinstance(module, LoraLayer) else module
        if isinstance(base, nn.Linear) and "lora_" not in name and not name.endswith("base_layer"):
            linears[name] = base
    for target in targets:
        if not any(matches(name, [target]) for name in linears):
            tails = {".".join(name.split(".")[start:]) for name in linears for start in range(name.count(".") + 1)}
            near = difflib.get_close_matches(target, sorted(tails), n=5, cutoff=0.3) or sorted({name.split(".")[-1] for name in linears})
            raise ValueError(f"LoRA target {target!r} matches no linear layer of the transformer; nearest names: {', '.join(near)}")
    return {name: base for name, base in linears.items() if matches(name, targets)}


def inject(transformer: CosmosTransformer3DModel, config: LoraConfig) -> None:
    """Adds LoRA layers in fp32, whatever the dtype of the frozen weights; only they train."""
    target_layers(transformer, config.target_modules or ())  # PEFT ignores a target that matches nothing if another one matches
    transformer.add_adapter(config)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def injected_config(transformer: CosmosTransformer3DModel) -> LoraConfig | None:
    """The configuration of the LoRA layers that are in the transformer now, if any."""
    configs = getattr(transformer, "peft_config", None) or {}
    return configs.get("default")


@torch.no_grad()
def fuse(transformer: CosmosTransformer3DModel) -> None:
    """Adds the LoRA updates to the weights, summed in fp32 and rounded once, and removes the LoRA layers."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().get_parameter("weight")
            down, up = (matrices.get_parameter("default.weight") for matrices in (module.lora_A, module.lora_B))
            weight.copy_(weight.float() + module.scaling["default"] * (up.float() @ down.float()))
    transformer.unload_lora()
