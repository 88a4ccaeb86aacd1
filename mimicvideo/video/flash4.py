"""Attention by FlashAttention-4's kernels as one operator, which autograd, `torch.compile`, checkpointing and CUDA graphs know."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mimicvideo.execution import attend, product_dtype
from mimicvideo.video.extras import MAJORS, REMEDY, installed

_MODULE = "flash_attn.cute.interface"


@cache
def check(device: torch.device) -> None:
    """Raises RuntimeError unless FlashAttention-4 is installed and the GPU is one that it has kernels for (Hopper, Blackwell)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in MAJORS:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise RuntimeError(f"execution.attention=flash4 needs a Hopper or Blackwell GPU, this is {name}: use one {REMEDY}")
    kernels = _kernels()
    if missing := [name for name in ("flash_attn_func", "_flash_attn_bwd") if not hasattr(kernels, name)]:
        raise RuntimeError(f"{_MODULE} has no {', '.join(missing)}: pip install the version in 'mimicvideo[flash4]' {REMEDY}")


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, all of shape (batch, tokens, heads, head_dim), as the result.

    Under autocast in its dtype; what is not of 16 bits then is left to torch.
    """
    dtype = product_dtype(q.device, q.dtype)
    if dtype in (torch.bfloat16, torch.float16):
        return forward(q.to(dtype), k.to(dtype), v.to(dtype))[0].to(q.dtype)
    return attend(q, k, v)


def _kernels() -> Any:
    return installed("flash4", _MODULE)


@torch.library.custom_op("mimicvideo::flash4", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the logarithms of the softmax's sums in fp32, (batch, heads, tokens), for the backward pass alone."""
    result, log_sums = _kernels().flash_attn_func(q.contiguous(), k.contiguous(), v.contiguous(), return_lse=True)
    return result, log_sums


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)


@torch.library.custom_op("mimicvideo::flash4_backward", mutates_args=())
def backward(q: Tensor, k: Tensor, v: Tensor, result: Tensor, log_sums: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    dq, dk, dv = _kernels()._flash_attn_bwd(q.contiguous(), k.contiguous(), v.contiguous(), result, gradient.contiguous(), log_sums)
    return dq, dk, dv


@backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, result: Tensor, log_sums: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, gradient: Tensor, _of_log_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backward(*ctx.saved_tensors, gradient)


forward.register_autograd(_differentiate, setup_context=_keep)
KERNEL = torch.ops.mimicvideo.flash4.default  # as policies of checkpointing know it
