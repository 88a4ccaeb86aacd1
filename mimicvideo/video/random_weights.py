"""RandomCosmos: a CosmosPredict of any size with random weights made on its device, to measure speed and memory without files."""

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.execution import Execution
from mimicvideo.video.adaptation import Adaptation
from mimicvideo.video.checkpointing import Checkpointing
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.prompts import PromptEncoder
from mimicvideo.video.sizes import ARCHITECTURES


class RandomCosmos(CosmosPredict):
    """Everything but the weights is `CosmosPredict`. Prompts become random embeddings, which depend on their text alone.

    Args:
        architecture: Configuration of the transformer, or a name in `sizes.ARCHITECTURES`.
        vae: Configuration of the VAE where it differs from Wan 2.1's, which the released models use.
        adaptation: What trains.
        device: Where the weights are made and stay.
        seed: Of all weights.
        dtype, prompt_tokens, gradient_checkpointing, execution: See `CosmosPredict`.
    """

    _made: dict[str, Any]  # what the loaders below read while CosmosPredict is built

    def __init__(
        self,
        architecture: str | Mapping[str, Any],
        adaptation: Adaptation,
        vae: Mapping[str, Any] | None = None,
        device: str = "cpu",
        seed: int = 0,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        prompt_tokens: int = 512,
        gradient_checkpointing: Checkpointing = False,
        execution: Execution | None = None,
    ) -> None:
        config = ARCHITECTURES[architecture] if isinstance(architecture, str) else dict(architecture)
        self._made = {"transformer": config, "vae": dict(vae or {}), "device": device, "seed": seed}
        super().__init__(
            "cosmos-tiny",  # a folder that is always there, of which nothing is read
            adaptation,
            dtype=dtype,
            prompt_tokens=prompt_tokens,
            gradient_checkpointing=gradient_checkpointing,
            execution=execution,
        )

    def _load_transformer(self) -> CosmosTransformer3DModel:
        with torch.device("meta"):
            transformer: Any = CosmosTransformer3DModel.from_config(self._made["transformer"])
        return cast(CosmosTransformer3DModel, self._materialise(transformer))

    def _load_vae(self) -> AutoencoderKLWan:
        with torch.device("meta"):
            vae: Any = AutoencoderKLWan(**self._made["vae"])
        return cast(AutoencoderKLWan, self._materialise(vae))

    def _load_prompts(self, prompt_tokens: int, cache: str | None) -> PromptEncoder:
        config = self._made["transformer"]
        width = config["crossattn_proj_in_channels"] if config.get("use_crossattn_projection") else config["text_embed_dim"]
        return cast(PromptEncoder, _RandomPrompts(prompt_tokens, width))

    def _materialise(self, module: nn.Module) -> nn.Module:
        device = self._made["device"]
        randomise(nn.Module.to(module, self.dtype).to_empty(device=device), self._made["seed"])
        return module.eval()

    @cached_property
    def weights_hash(self) -> str:
        return hashlib.sha256(f"random {sorted(map(str, self._made.items()))}".encode()).hexdigest()

    @cached_property
    def vae_hash(self) -> str:
        return hashlib.sha256(f"random vae {self._made['vae']} {self._made['seed']} {self.dtype}".encode()).hexdigest()


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> None:
    """Matrices and kernels from N(0, 1/fan_in), gains of norms 1, biases 0, where the weights lie.

    Raises:
        ValueError: If the module has buffers, whose values random weights cannot stand in for.
    """
    if names := [name for name, _ in module.named_buffers()]:
        raise ValueError(f"{type(module).__name__} has buffers, which random weights leave undefined: {', '.join(names)}")
    generators: dict[torch.device, torch.Generator] = {}
    for name, weight in module.named_parameters():
        fan_in = weight[0].numel()
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim < 2 or weight.numel() == len(weight):  # gains, (channels, 1, 1, 1) in the VAE
            weight.fill_(1.0)
        else:
            generator = generators.setdefault(weight.device, torch.Generator(weight.device).manual_seed(seed))
            weight.normal_(0, 1 / math.sqrt(fan_in), generator=generator)


class _RandomPrompts(nn.Module):
    """Stands in for the `PromptEncoder`, whose T5 has 11 billion parameters and is no part of any measurement."""

    weights_hash = "random prompts"
    model = None

    def __init__(self, prompt_tokens: int, prompt_dim: int) -> None:
        super().__init__()
        self.prompt_tokens, self.prompt_dim = prompt_tokens, prompt_dim
        self._recent: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}

    def forward(self, prompts: list[str], device: torch.device) -> Float[Tensor, "batch prompt_tokens prompt_dim"]:
        key = tuple(prompts), device
        if key not in self._recent:
            self._recent = {key: torch.stack([self._embedding(prompt) for prompt in prompts]).to(device)}
        return self._recent[key]

    def _embedding(self, prompt: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "little")
        return torch.randn(self.prompt_tokens, self.prompt_dim, generator=torch.Generator().manual_seed(seed))


def plain_attention(kernels: str) -> AbstractContextManager:
    """Within it diffusers' own pass takes these `kernels` for attention: `native`, torch's choice, or `_native_cudnn`."""
    return cast(AbstractContextManager, attention_backend(kernels))
