"""Activation checkpointing of a transformer's blocks: what the backward pass reads from memory and what it computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mimicvideo.video import flash4

Checkpointing = bool | int | Literal["selective"]

# Every kernel of attention: at 19,200 tokens more than half of a block's arithmetic.
_ATTENTION = [
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
    for kernel in ("cudnn_attention", "flash_attention", "efficient_attention", "flash_attention_for_cpu")
] + [flash4.KERNEL]


def check_checkpointing(value: Checkpointing) -> None:
    """Raises ValueError unless it is true, false, `selective` or an integer of at least 2."""
    if not isinstance(value, bool) and value != "selective" and not (isinstance(value, int) and value >= 2):
        raise ValueError(f"gradient_checkpointing must be true, false, selective, or n >= 2 to recompute every n-th block, got {value!r}")


def block_runner(value: Checkpointing, index: int) -> Callable[..., Any]:
    """What calls block `index` as `runner(block, *inputs)`, of a network with gradient_checkpointing `value`.

    True recomputes every block, in which only its input is kept; n recomputes blocks 0, n, 2n, ... and keeps all of the others;
    `selective` recomputes every block but its attentions, whose outputs are kept: two more tensors of the input's size.
    """
    if not torch.is_grad_enabled() or not value or (value is not True and isinstance(value, int) and index % value):
        return _call
    return _SELECTIVE if value == "selective" else _FULL


def diffusers_runner(blocks: nn.ModuleList, value: Checkpointing) -> Callable[..., Any]:
    """`block_runner` as diffusers' `enable_gradient_checkpointing` wants it, which by itself knows all or nothing."""
    return partial(_run_one_of, blocks, value)


def _run_one_of(blocks: nn.ModuleList, value: Checkpointing, block: nn.Module, *inputs: Any) -> Any:
    index = next(index for index, one in enumerate(blocks) if one is block)
    return block_runner(value, index)(block, *inputs)


def _call(block: Callable[..., Any], *inputs: Any) -> Any:
    return block(*inputs)


def _keep_attention() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_ATTENTION)


_FULL = partial(checkpoint, use_reentrant=False)
_SELECTIVE = partial(checkpoint, use_reentrant=False, context_fn=_keep_attention)
