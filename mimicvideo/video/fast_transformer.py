"""FastTransformer: the function of diffusers' Cosmos transformer, on its own modules and weights, in a fraction of its GPU time."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import CosmosTransformer3DModel
from einops import rearrange
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mimicvideo.execution import (
    CudaGraphs,
    Execution,
    Fingerprint,
    Weights,
    attend,
    attention_kernels,
    fingerprint,
    lasting,
    places,
    product_dtype,
)
from mimicvideo.video import flash4, fp8_attention
from mimicvideo.video import fp8 as fp8_products
from mimicvideo.video.checkpointing import Checkpointing, block_runner
from mimicvideo.video.merged_lora import MergedBlocks, settings

# What FP8 leaves alone: AdaLN sees one row per frame, on which all tokens depend; the text's keys and values are computed once.
_EXACT = ("norm1", "norm2", "norm3", "attn2.to_k", "attn2.to_v")
Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
_KEPT = 4  # prompts and clip shapes whose text keys and rotary angles are kept


class FastTransformer:
    """What is saved against diffusers' forward pass, which stays the reference:

    - AdaLN's shifts, scales and gates are computed once per latent frame, not once per token (the noise level is one per frame);
    - attention runs on cuDNN's kernels where there are any, or on FlashAttention-4's;
    - rotary angles are computed once per clip shape, the text's keys and values once per prompt;
    - the blocks are compiled, a whole pass is one CUDA graph.

    LoRA layers work, fused or not: the modules are called, not their weights. The transformer stays the owner of everything.

    Args:
        transformer: Predict2's or 2.5's.
        execution: Which of these.
        checkpointing: For passes with gradients; see `checkpointing.block_runner`.

    Raises:
        ValueError: If the transformer has parts that this does not cover.
    """

    def __init__(self, transformer: CosmosTransformer3DModel, execution: Execution, checkpointing: Checkpointing = False) -> None:
        config: Any = transformer.config
        uncovered = {
            "extra_pos_embed_type": config["extra_pos_embed_type"],
            "img_context_dim_in": config["img_context_dim_in"],
            "controlnet_block_every_n": config["controlnet_block_every_n"],
            "patch_size": None if config["patch_size"][0] == 1 else config["patch_size"],
        }
        if found := {name: value for name, value in uncovered.items() if value is not None}:
            raise ValueError(f"the fast execution does not cover this transformer ({found}): leave execution out")
        self.transformer, self.execution = transformer, execution
        self.checkpointing: Checkpointing = checkpointing
        self.graphs = CudaGraphs()
        self._weights = Weights(transformer, kind=LoraLayer)
        self._run: Callable[..., Any] = run_block
        if execution.compile is not None:
            self._run = torch.compile(run_block, mode=execution.compile, dynamic=False)
        self._rotary: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()
        self._text: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()
        self._fp8: tuple[Any, nn.ModuleList] | None = None
        self._merged = MergedBlocks(transformer.transformer_blocks, execution.compile) if execution.merge_lora else None

    def velocity(self, inputs: dict[str, Any]) -> Tensor:
        """What the transformer returns for its forward pass's arguments: a timestep for each frame, no frame rate."""
        return self._call(inputs, None)

    def states(self, inputs: dict[str, Any], blocks: Sequence[int]) -> dict[int, Tensor]:
        """The outputs of the 0-based `blocks` for the same arguments, from one pass up to the deepest of them."""
        return self._call(inputs, blocks)

    def _call(self, inputs: dict[str, Any], blocks: Sequence[int] | None) -> Any:
        latents, levels, mask = inputs["hidden_states"], inputs["timestep"], inputs["condition_mask"]
        depth = len(self.transformer.transformer_blocks) if blocks is None else max(blocks) + 1
        weights = self._weights()
        training = torch.is_grad_enabled() or any(weight.requires_grad for weight in weights)
        version: Fingerprint = ()  # of the weights from which something is computed once
        if not training or self._merged is not None:
            version = fingerprint(weights)
        elif self.execution.fp8_training:
            version = fingerprint(weight for weight in weights if not weight.requires_grad)
        version += settings(self._weights.found) if version else ()
        kernels = self._attention(latents.device, training)
        wanted = None if blocks is None else tuple(sorted(set(blocks)))
        network = self._network(version, training, latents.device)

        def forward(*tensors: Tensor) -> Any:
            return self._forward(network, *tensors, depth=depth, wanted=wanted, kernels=kernels, training=training)

        with attention_kernels(latents.device):
            prompt = inputs["encoder_hidden_states"]
            text = prompt if training else self._kept_text_of(prompt, depth, version)
            tensors = latents, levels, mask, text, *self._rotary_of(latents)
            if training or not self.execution.cuda_graphs:
                return within(self.transformer, forward, *tensors)
            key = wanted, product_dtype(latents.device, latents.dtype), places(version)
            return self.graphs(key if self._fp8 is None else (*key, self._fp8[0]), forward, *tensors)

    def clear(self) -> None:
        """Forgets all that was kept from earlier calls but the compiled code."""
        self.graphs.clear()
        self._text.clear()
        self._fp8 = None
        if self._merged is not None:
            self._merged.clear()

    def _forward(
        self,
        network: nn.ModuleList,
        latents: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        levels: Float[Tensor, "batch 1 z_frames 1 1"],
        mask: Float[Tensor, "batch 1 z_frames z_height z_width"],
        text: Float[Tensor, "depth 2 batch prompt_tokens heads head_dim"] | Float[Tensor, "batch prompt_tokens prompt_dim"],
        cos: Float[Tensor, "tokens 1 head_dim"],
        sin: Float[Tensor, "tokens 1 head_dim"],
        depth: int,
        wanted: tuple[int, ...] | None,
        kernels: Attend,
        training: bool,
    ) -> Any:
        """The whole pass. `text` holds every block's keys and values, or in training the prompt, of which each block makes its own."""
        model: Any = self.transformer
        patch = model.config["patch_size"][1]
        channels = [latents, mask, torch.zeros_like(mask)] if model.config["concat_padding_mask"] else [latents, mask]
        x = model.patch_embed(torch.cat(channels, dim=1)).flatten(2, 3)  # batch frames positions width
        shared, embedding = (vectors.unflatten(0, levels.shape[:3:2]) for vectors in model.time_embed(x, levels.flatten()))

        if training:
            text = self._projected_prompt(text)

        def run(index: int, x: Tensor, embedding: Tensor, shared: Tensor, text: Tensor) -> Tensor:
            block, runner = network[index], block_runner(self.checkpointing, index)
            return self._run(runner, kernels, block, x, embedding, shared, _keys_and_values(block, text) if training else text, cos, sin)

        states: dict[int, Tensor] = {}
        for index in range(depth):
            x = within(network[index], partial(run, index), x, embedding, shared, text if training else text[index])
            if wanted is not None and index in wanted:
                states[index] = x.flatten(1, 2)
        if wanted is not None:
            return states
        own = model.norm_out.linear_2(model.norm_out.linear_1(F.silu(embedding))) + shared[..., : 2 * x.shape[-1]]
        shift, scale = own[:, :, None].chunk(2, dim=-1)
        x = model.proj_out(model.norm_out.norm(x) * (1 + scale) + shift)
        return rearrange(x, "b t (h w) (ph pw c) -> b c t (h ph) (w pw)", h=latents.shape[3] // patch, ph=patch, pw=patch)

    # -- what is computed once -------------------------------------------------------------------------------------------

    def _rotary_of(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        key = latents.shape[2:], latents.device
        if key not in self._rotary:
            with lasting():
                self._rotary[key] = tuple(angles[:, None] for angles in self.transformer.rope(latents, fps=None))
        return _remembered(self._rotary, key)

    def _text_of(self, prompt: Tensor, depth: int) -> Float[Tensor, "depth 2 batch prompt_tokens heads head_dim"]:
        """The keys and values of every block's cross-attention."""
        text = self._projected_prompt(prompt)
        return torch.stack([_keys_and_values(block, text) for block in self.transformer.transformer_blocks[:depth]])

    def _projected_prompt(self, prompt: Tensor) -> Tensor:
        model: Any = self.transformer
        return model.crossattn_proj(prompt) if model.config["use_crossattn_projection"] else prompt

    def _kept_text_of(self, prompt: Tensor, depth: int, version: Fingerprint) -> Tensor:
        """The same, from an earlier call with the same tensor if neither it nor a weight has been written to since."""
        if prompt.is_inference():  # it does not count what is written to it
            return self._text_of(prompt, depth)
        key = id(prompt), prompt._version, depth, product_dtype(prompt.device, prompt.dtype), version
        if key not in self._text:
            self._text[key] = prompt, self._text_of(prompt, depth)  # the prompt is kept too, so that its id stays its own
        return _remembered(self._text, key)[1]

    def _network(self, version: Fingerprint, training: bool, device: torch.device) -> nn.ModuleList:
        """The blocks that run: the transformer's, or twins of them with merged LoRA layers or products in FP8, which follow the weights."""
        blocks = self.transformer.transformer_blocks
        if training and self._merged is not None:
            self._check_whole("merge_lora")
            return cast(nn.ModuleList, self._merged(product_dtype(device, self.transformer.proj_out.weight.dtype), version))
        if self.execution.fp8 is None or (training and not self.execution.fp8_training):
            return blocks
        fp8_products.check_hardware(self.transformer.proj_out.weight.device)
        self._check_whole("fp8_training")
        key = version, training
        if self._fp8 is None or self._fp8[0] != key:
            with lasting():
                twin = fp8_products.with_fp8_products(blocks, self.execution.fp8, _EXACT, differentiable=training)
            self._fp8 = key, cast(nn.ModuleList, twin)
        return self._fp8[1]

    def _check_whole(self, option: str) -> None:
        if isinstance(self.transformer, FSDPModule):
            raise RuntimeError(f"execution.{option} needs whole weights, but FSDP divides them: set it to false, or train with DDP")

    def _attention(self, device: torch.device, training: bool) -> Attend:
        """The kernels of self-attention on a device."""
        kind = self.execution.attention
        if kind == "flash4" and device.type == "cuda":
            flash4.check(device)
            return _by_flash4
        if kind == "fp8" and not training:
            fp8_attention.check(device)
            return _in_fp8
        return _by_torch


def _remembered(memory: OrderedDict, key: Any) -> Any:
    """The value of `key`, now the most recently used; the least recently used is forgotten."""
    memory.move_to_end(key)
    while len(memory) > _KEPT:
        memory.popitem(last=False)
    return memory[key]


def within(module: nn.Module, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """`function(*tensors)` in place of the module's forward pass: if it is sharded, its hooks make its weights whole meanwhile."""
    if not isinstance(module, FSDPModule):
        return function(*tensors)
    module.forward = function
    try:
        return module(*tensors)  # type: ignore[operator]
    finally:
        del module.forward


def run_block(runner: Callable[..., Any], kernels: Attend, block: Any, *inputs: Tensor) -> Tensor:
    """One block through its checkpointing; what is compiled, since selective checkpointing must be seen by the compiler."""

    def forward(*tensors: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the choice of kernels, made outside, becomes part of what is compiled
            return block_forward(block, kernels, *tensors)
        with attention_kernels(tensors[0].device):  # here too: a checkpoint runs again when all outside is long left
            return block_forward(block, kernels, *tensors)

    return runner(forward, *inputs)


# Plain annotations from here on: what is compiled cannot be checked at run time.


def block_forward(block: Any, kernels: Any, x: Tensor, embedding: Tensor, shared: Tensor, text: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x <- x + gate * sublayer(LN(x) * (1 + scale) + shift) for self-attention, attention to the text, and MLP.

    Args:
        block: `CosmosTransformerBlock`.
        kernels: What self-attention runs on.
        x: (batch, frames, positions, width).
        embedding: Of the frames' noise levels, (batch, frames, width).
        shared: The part of the modulation that all blocks share, (batch, frames, 3 width).
        text: Keys and values, (2, batch, prompt tokens, heads, head width).
        cos: Rotary, (frames * positions, 1, head width).
        sin: The same.
    """
    shift, scale, gate = _modulation(block.norm1, embedding, shared)
    x = x + gate * _self_attention(block.attn1, block.norm1.norm(x) * (1 + scale) + shift, cos, sin, kernels)
    shift, scale, gate = _modulation(block.norm2, embedding, shared)
    x = x + gate * _text_attention(block.attn2, block.norm2.norm(x) * (1 + scale) + shift, text)
    shift, scale, gate = _modulation(block.norm3, embedding, shared)
    return x + gate * _feed_forward(block.ff, block.norm3.norm(x) * (1 + scale) + shift)


def _modulation(norm: Any, embedding: Tensor, shared: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate, (batch, frames, 1, width) each."""
    own = norm.linear_2(norm.linear_1(norm.activation(embedding))) + shared
    return own[:, :, None].chunk(3, dim=-1)


def _self_attention(attention: Any, x: Tensor, cos: Tensor, sin: Tensor, kernels: Any) -> Tensor:
    heads = (attention.heads, -1)
    tokens = x.flatten(1, 2)
    q, k, v = (layer(tokens).unflatten(2, heads) for layer in (attention.to_q, attention.to_k, attention.to_v))
    q, k = _rotate(attention.norm_q(q), cos, sin), _rotate(attention.norm_k(k), cos, sin)
    return _projected(attention, kernels(attention, q, k, v)).view_as(x)


def _text_attention(attention: Any, x: Tensor, text: Tensor) -> Tensor:
    # The backward pass's kernels share out heads and keys, too few for a large GPU: as two samples, the queries fill it.
    tokens = x.shape[1] * x.shape[2]
    parts = 2 if torch.is_grad_enabled() and tokens % 2 == 0 else 1
    q = attention.to_q(x.reshape(parts * x.shape[0], tokens // parts, x.shape[3]))
    keys, values = text.repeat_interleave(parts, dim=1).unbind()
    return _projected(attention, attend(attention.norm_q(q.unflatten(2, (attention.heads, -1))), keys, values)).view_as(x)


def _by_torch(_attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v)


def _by_flash4(_attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return flash4.attention(q, k, v)


def _in_fp8(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries and keys are normalised: none is longer than sqrt(head_dim) times the norm's largest weight, before rotation and after."""
    q_bound, k_bound = (norm.weight.abs().amax() * q.shape[-1] ** 0.5 for norm in (attention.norm_q, attention.norm_k))
    return fp8_attention.attention(q, k, v, (q_bound, k_bound))


def _keys_and_values(block: Any, text: Tensor) -> Tensor:
    """Of the text, for a block's cross-attention: (2, batch, prompt tokens, heads, head width)."""
    attention = block.attn2
    keys, values = (layer(text).unflatten(2, (attention.heads, -1)) for layer in (attention.to_k, attention.to_v))
    return torch.stack([attention.norm_k(keys).to(values.dtype), values])


def _projected(attention: Any, x: Tensor) -> Tensor:
    return attention.to_out[0](x.flatten(2))  # to_out[1] is a dropout of 0


def _feed_forward(ff: Any, x: Tensor) -> Tensor:
    last = ff.net[2]  # ff.net[1] is a dropout of 0
    if isinstance(last, fp8_products.Fp8Linear) and not torch.is_grad_enabled():
        return last.of_gelu(ff.net[0].proj(x))
    return ff(x)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) on the halves of each head, in fp32 as diffusers does it."""
    a, b = x.chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-b, a], dim=-1).float() * sin).to(x.dtype)
