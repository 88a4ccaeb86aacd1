"""What a video model needs of a device's memory: weights counted, activations of its passes found on tensors without data."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mimicvideo.peak import peak_of, training_peak, without_data
from mimicvideo.video import wan
from mimicvideo.video.adaptation import Adaptation, Lora
from mimicvideo.video.checkpointing import Checkpointing, check_checkpointing, diffusers_runner
from mimicvideo.video.cosmos_predict import _CHUNK_VALUES, _WHOLE_CLIP_VALUES
from mimicvideo.video.inputs import check_clip_size, latent_frames
from mimicvideo.video.padding_mask import provide_resize
from mimicvideo.video.pretrained import PACKAGED, read_json
from mimicvideo.video.sizes import _Text, transformer_config

provide_resize()


@dataclass(frozen=True)
class Clips:
    """What passes the model at once: pixels of `batch` clips, and their prompts' length. Raises ValueError if the VAE cannot take them."""

    batch: int
    frames: int
    height: int
    width: int
    prompt_tokens: int

    def __post_init__(self) -> None:
        check_clip_size(self.frames, self.height, self.width)

    @property
    def latents(self) -> tuple[int, int, int]:
        """Latent frames, height and width."""
        unit = wan.PIXELS_PER_LATENT
        return latent_frames(self.frames), self.height // unit, self.width // unit


@dataclass(frozen=True)
class Precision:
    """Of frozen weights, of weights that train, and what autocast makes of matrix products (None: nothing)."""

    frozen: torch.dtype
    trained: torch.dtype
    autocast: torch.dtype | None

    def context(self) -> AbstractContextManager:
        """Autocast, for tensors without data."""
        return nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast)


@dataclass(frozen=True)
class Weights:
    """Bytes of a transformer's weights.

    Attributes:
        frozen: Of those that do not train.
        trained: Of those that do.
        block: Of one block, both.
        rest: Of what is in no block, both.
    """

    frozen: int
    trained: int
    block: int
    rest: int


def transformer_weights(pretrained: str, adaptation: Adaptation, precision: Precision) -> Weights:
    """Bytes of the transformer of `CosmosPredict(pretrained, adaptation)`, and of its text encoder if that trains."""
    config = transformer_config(pretrained)
    numbers = _two(adaptation, config)
    few, more = (_bytes(_transformer(pretrained, adaptation, precision, blocks)) for blocks in numbers)
    blocks = config["num_layers"] - numbers[0]
    frozen, trained, rest = (one + blocks * (other - one) for one, other in zip(few, more, strict=True))
    inside = more[0] + more[1] - few[0] - few[1] or (frozen + trained - rest) // config["num_layers"]
    text = _Text(pretrained)
    with torch.device("meta"):
        adaptation.apply(CosmosTransformer3DModel.from_config({**config, "num_layers": 1}), text)  # type: ignore[arg-type]
    trained += sum(weight.numel() for weight in text.parameters()) * precision.trained.itemsize
    return Weights(frozen, trained, inside, rest)


def merged_weights(pretrained: str, adaptation: Adaptation, precision: Precision) -> int:
    """Bytes of what `execution.merge_lora` keeps: the blocks' weights with LoRA's updates, and a copy of these, in the products' dtype."""
    config = transformer_config(pretrained)

    def count(blocks: int) -> int:
        layers = _transformer(pretrained, adaptation, precision, blocks).transformer_blocks.modules()
        return sum(weight.numel() for layer in layers if isinstance(layer, LoraLayer) for weight in nn.Module.parameters(layer))  # pyright: ignore[reportArgumentType]

    numbers = _two(adaptation, config)
    few, more = (count(blocks) for blocks in numbers)
    return (few + (config["num_layers"] - numbers[0]) * (more - few)) * (precision.autocast or precision.frozen).itemsize


def training_activations(
    pretrained: str, adaptation: Adaptation, precision: Precision, clips: Clips, checkpointing: Checkpointing
) -> tuple[int, int]:
    """Bytes that a training step holds beside weights and gradients at its two summits.

    Every block adds the same, or every n of which one is computed again, so that two small models tell what a large one needs.

    Args:
        pretrained: As `CosmosPredict` takes it.
        adaptation: What trains.
        precision: Of weights and products.
        clips: Of one step.
        checkpointing: `gradient_checkpointing` of `CosmosPredict`.

    Returns:
        At the start of the backward pass, when no gradient is there yet, and at its end, when all of them are.

    Raises:
        ValueError: If `checkpointing` is none of what `CosmosPredict` takes.
    """
    check_checkpointing(checkpointing)
    config = transformer_config(pretrained)
    period = 1 if checkpointing is True or not isinstance(checkpointing, int) else max(checkpointing, 1)
    few, more = _two(adaptation, config, period)

    def peak(blocks: int) -> int:
        transformer = _transformer(pretrained, adaptation, precision, blocks).train()
        if checkpointing:
            transformer.enable_gradient_checkpointing(diffusers_runner(transformer.transformer_blocks, checkpointing))
        with without_data(transformer):
            return training_peak(transformer, lambda: _loss(transformer, config, precision, clips))

    start = peak(few)
    grows = (peak(more) - start) * (config["num_layers"] - few) // (more - few) if more > few else 0
    if few == 1:
        at_end = start
    else:  # block 0 comes last; a model of one block may lack what the adaptation names
        at_end = start // few if _by_number(adaptation) else peak(1)
    return start + grows, at_end


def reading_activations(pretrained: str, precision: Precision, clips: Clips, blocks: int) -> tuple[int, int, int]:
    """Bytes of one pass without gradients, of one block's hidden states as it leaves them, and their width."""
    config = transformer_config(pretrained)
    with torch.device("meta"):
        transformer: Any = CosmosTransformer3DModel.from_config({**config, "num_layers": min(2, blocks)})
        nn.Module.to(transformer, precision.frozen)
    transformer.requires_grad_(False)
    states: list[int] = []
    transformer.transformer_blocks[-1].register_forward_hook(lambda *given: states.append(given[-1].nbytes))
    with without_data(transformer), torch.no_grad():
        peak = peak_of(transformer, lambda: _loss(transformer, config, precision, clips))
    return peak, states[0], config["num_attention_heads"] * config["attention_head_dim"]


def vae_memory(pretrained: str, dtype: torch.dtype, clips: Clips) -> tuple[int, int]:
    """Bytes of the VAE's weights, and of encoding a batch. A model that is not on this machine has Wan 2.1's VAE."""
    folder = PACKAGED.get(pretrained, Path(pretrained).expanduser()) / "vae"
    config = read_json(folder / "config.json") if folder.is_dir() else {}
    with torch.device("meta"):
        vae: Any = AutoencoderKLWan.from_config(config)
        nn.Module.to(vae, dtype)
    widest = clips.frames * clips.height * clips.width * max(vae.config["base_dim"], vae.config["decoder_base_dim"] or 0)
    at_once = min(max(_CHUNK_VALUES["cuda"] // widest, 1), clips.batch)
    whole = widest <= _WHOLE_CLIP_VALUES and wan.supported(vae)

    def encode() -> Tensor:
        video = torch.empty(at_once, clips.frames, clips.height, clips.width, 3, dtype=torch.uint8)
        pixels = (video.movedim(-1, 1).float() / 127.5 - 1).to(dtype)
        # Frame groups after the second need what the second does.
        return wan.encode_moments(vae, pixels) if whole else vae.encode(pixels[:, :, :9]).latent_dist.parameters

    with without_data(vae), torch.no_grad():
        peak = peak_of(vae, encode)
    return sum(weight.nbytes for weight in vae.parameters()), peak


def _two(adaptation: Adaptation, config: Mapping[str, Any], period: int = 1) -> tuple[int, int]:
    """Numbers of blocks from which the rest follows in steps of `period`; all of them if an adaptation treats blocks differently."""
    blocks = config["num_layers"]
    few = blocks % period or period  # so that the small models end within the period where the large one ends
    return (blocks, blocks) if _by_number(adaptation) or few + period > blocks else (few, few + period)


def _by_number(adaptation: Adaptation) -> bool:
    return isinstance(adaptation, Lora) and any(re.match(r"(transformer_blocks\.)?\d", target) for target in adaptation.targets)


def _transformer(pretrained: str, adaptation: Adaptation, precision: Precision, blocks: int) -> Any:
    """On the meta device, with what the adaptation adds."""
    with torch.device("meta"):
        transformer: Any = CosmosTransformer3DModel.from_config({**transformer_config(pretrained), "num_layers": blocks})
        nn.Module.to(transformer, precision.frozen)
        adaptation.apply(transformer, _NoText())  # type: ignore[arg-type]
    for weight in transformer.parameters():
        if weight.requires_grad and weight.dtype != precision.trained:
            weight.data = weight.data.to(precision.trained)
    return transformer


class _NoText(nn.Module):
    """Stands in for the `PromptEncoder`, whose activations are not counted."""

    def train_weights(self) -> None: ...


def _bytes(transformer: Any) -> tuple[int, int, int]:
    """Of frozen and trained weights, and of those outside of blocks."""
    inside = sum(weight.nbytes for weight in transformer.transformer_blocks.parameters())
    trained = sum(weight.nbytes for weight in transformer.parameters() if weight.requires_grad)
    every = sum(weight.nbytes for weight in transformer.parameters())
    return every - trained, trained, every - inside


def _loss(transformer: Any, config: Mapping[str, Any], precision: Precision, clips: Clips) -> Tensor:
    """A training step's loss, with the inputs that `CosmosPredict` gives its transformer."""
    z_frames, z_height, z_width = clips.latents
    text_width = config["crossattn_proj_in_channels"] if config.get("use_crossattn_projection") else config["text_embed_dim"]
    latents, noise = torch.randn(2, clips.batch, config["out_channels"], z_frames, z_height, z_width).unbind()
    kept = torch.zeros(clips.batch, 1, z_frames, 1, 1)
    noisy = torch.lerp(latents, noise, 0.5)
    with ExitStack() as stack:
        stack.enter_context(precision.context())
        predicted = transformer(
            hidden_states=torch.where(kept > 0, latents, noisy),
            timestep=kept + 0.5,
            encoder_hidden_states=torch.randn(clips.batch, clips.prompt_tokens, text_width),
            condition_mask=kept.expand(-1, 1, -1, z_height, z_width),
            padding_mask=torch.zeros(1, 1, z_height, z_width),
        ).sample.float()
    return ((1 - kept) * (predicted - (noise - latents))).square().mean()
