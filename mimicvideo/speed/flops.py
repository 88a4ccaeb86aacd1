"""Arithmetic of the networks by formula: what a result needs, not what an implementation happens to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """Floating-point operations; a multiply-add is two.

    Attributes:
        products: Of linear layers.
        attention: Of attention, forward: q k^T and its product with v.
        attention_backward: Of attention, backward, with the scores computed again: five products for two.
        moved: Bytes read where reading, not arithmetic, takes the time: no operations, and no part of `total`.
    """

    products: float = 0.0
    attention: float = 0.0
    attention_backward: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self._parts, other._parts, strict=True)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * part for part in self._parts))

    @property
    def _parts(self) -> tuple[float, float, float, float]:
        return self.products, self.attention, self.attention_backward, self.moved

    @property
    def total(self) -> float:
        return self.products + self.attention + self.attention_backward


@dataclass(frozen=True)
class Clip:
    """Sizes of one sample in the video transformer.

    Attributes:
        frames: Latent frames.
        positions: Tokens of a frame.
        text: Tokens of the prompt.
    """

    frames: int
    positions: int
    text: int

    @property
    def tokens(self) -> int:
        return self.frames * self.positions


def width_of(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def video_blocks(config: Mapping[str, Any], clip: Clip, blocks: int, text: bool = True) -> Work:
    """A forward pass of one sample through `blocks` blocks and what comes before them, for states of the last.

    Per block (6 + 2 mlp_ratio) width^2 multiply-adds a token for q, k, v, out, q, out and the MLP, AdaLN's three modulations of
    each latent frame, and, if `text`, the text's keys and values.

    Args:
        config: Of `CosmosTransformer3DModel`.
        clip: One sample.
        blocks: How many run.
        text: Whether the text's keys and values are computed, which do not change while the prompt stays.
    """
    width, rank, tokens = width_of(config), config["adaln_lora_dim"], clip.tokens
    linear = tokens * (6 + 2 * config["mlp_ratio"]) * width**2 + clip.frames * 3 * (width * rank + rank * 3 * width)
    if text:
        linear += clip.text * 2 * config["text_embed_dim"] * width
    channels = (config["in_channels"] + config["concat_padding_mask"]) * config["patch_size"][1] * config["patch_size"][2]
    embeddings = tokens * channels * width + clip.frames * 4 * width**2
    return Work(2 * (blocks * linear + embeddings), 4 * blocks * width * tokens * (tokens + clip.text))


def video_head(config: Mapping[str, Any], clip: Clip) -> Work:
    """From the last block's output to the velocity."""
    width, rank = width_of(config), config["adaln_lora_dim"]
    pixels = config["out_channels"] * config["patch_size"][1] * config["patch_size"][2]
    return Work(2 * (clip.tokens * width * pixels + clip.frames * (width * rank + rank * 2 * width)))


def lora_products(config: Mapping[str, Any], clip: Clip, rank: int) -> Work:
    """The forward pass of the paper's LoRA layers in the blocks: rank (in + out) multiply-adds a token and layer."""
    width, hidden = width_of(config), round(config["mlp_ratio"] * width_of(config))
    per_token = 6 * 2 * width + 2 * (width + hidden)
    text = 2 * (config["text_embed_dim"] + width)
    return Work(2 * rank * config["num_layers"] * (clip.tokens * per_token + clip.text * text))


def lora_step(config: Mapping[str, Any], clip: Clip, rank: int) -> Work:
    """Forward and backward pass of one sample in stage 1, without recomputation.

    Frozen products have a gradient for their input only (once the forward), LoRA's for input and weight (twice).
    """
    frozen = video_blocks(config, clip, config["num_layers"]) + video_head(config, clip)
    lora = lora_products(config, clip, rank)
    return Work(2 * frozen.products + 3 * lora.products, frozen.attention, 2.5 * frozen.attention)


def decoder_context(shape: Any, width: int, depth: int, tokens: int) -> Work:
    """Every block's keys and values of the hidden states, `DiTDecoder`."""
    return Work(2 * depth * tokens * shape.context_dim * 2 * width)


def decoder_step(shape: Any, width: int, depth: int, adaln_dim: int, tokens: int, bytes_per_number: int = 2) -> Work:
    """One call of `DiTDecoder` on a prepared context, `mlp_ratio` 4; its token embedders are left out.

    A chunk has few tokens: every weight, and every key and value of the context, is read for little arithmetic.
    """
    length = shape.history + shape.horizon
    modulation = 3 * (width * adaln_dim + 3 * width * adaln_dim)
    products = 2 * depth * (length * 14 * width**2 + 2 * modulation) + 2 * 2 * 5 * width**2
    moved = bytes_per_number * depth * (14 * width**2 + modulation + 2 * tokens * width)
    return Work(products, 4 * depth * width * length * (length + tokens), moved=moved)


def decoder_training(shape: Any, width: int, depth: int, adaln_dim: int, tokens: int, draws: int) -> Work:
    """Forward and backward pass of one sample's decoder with `draws` (tau_a, noise) draws; the video model gets no gradient."""
    steps, context = decoder_step(shape, width, depth, adaln_dim, tokens) * draws, decoder_context(shape, width, depth, tokens)
    return Work(3 * (steps.products + context.products), steps.attention, 2.5 * steps.attention)
