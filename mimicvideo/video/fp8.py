"""Products in FP8 (e4m3) for passes that need not be exact: weights are rounded once, activations and gradients at every call."""

from collections.abc import Collection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.execution import product_dtype, with_parts

Scaling = Literal["row", "tensor"]
DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST_SCALE = 1e-12  # of a row of zeros
_UNIT = 16  # cuBLAS takes FP8 matrices whose sides are multiples of it
_GELU_LOW = 0.17  # gelu(x) >= -0.17


def check_hardware(device: torch.device) -> None:
    """Raises RuntimeError unless the device multiplies FP8 matrices: NVIDIA from compute capability 8.9 on (Ada, Hopper)."""
    remedy = "set execution.fp8 to null"
    if device.type != "cuda":
        raise RuntimeError(f"execution.fp8 needs an NVIDIA GPU of compute capability 8.9 or newer, the model is on {device}: {remedy}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise RuntimeError(f"execution.fp8 needs compute capability 8.9 or newer, {name} has {version}: {remedy}")


def quantize(x: Float[Tensor, "*rows width"], scaling: Scaling) -> tuple[Tensor, Tensor]:
    """q, s with x ~ s q: q in e4m3, s = max |x| / 448 in fp32, over each row, shape (..., 1), or over the tensor, a scalar."""
    scale = _scale(x.float().abs(), scaling)
    return _rounded(x.float(), scale), scale


def quantize_gelu(x: Float[Tensor, "*rows width"], scaling: Scaling) -> tuple[Tensor, Tensor]:
    """`quantize` of gelu(x), whose scale is taken from x: gelu(x) <= max(x, 0), and gelu is expensive enough to be computed once."""
    scale = _scale(x.float().clamp(min=_GELU_LOW), scaling)
    return _rounded(F.gelu(x.float()), scale), scale


def _scale(magnitude: Tensor, scaling: Scaling) -> Tensor:
    largest = magnitude.amax(dim=-1, keepdim=True) if scaling == "row" else magnitude.amax()
    return (largest / LARGEST).clamp(min=SMALLEST_SCALE)


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    return (x * (1 / scale)).clamp(-LARGEST, LARGEST).to(DTYPE)


class Fp8Linear(nn.Module):
    """x W^T + b of a linear layer, x and W in FP8, the sum in the GPU's own precision, the result rounded to bf16 and given
    the dtype that the layer's would have.

    Args:
        linear: Its weight is rounded now; the layer itself is not kept.
        scaling: One scale for each token and each output channel, or one for x and one for W.
        differentiable: Whether gradients pass to x, by a product in FP8 as well; it keeps a second copy of the weight, with a scale
            for each input channel. None reach the weight.
    """

    def __init__(self, linear: nn.Linear, scaling: Scaling, differentiable: bool = False) -> None:
        super().__init__()
        self.scaling: Scaling = scaling
        self.forth = _factor(linear.weight.detach(), scaling)
        self.back = _factor(linear.weight.detach().t(), scaling) if differentiable else None
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        if self.back is not None and torch.is_grad_enabled():
            return _Product.apply(x, *self.forth, *self.back, self.bias, self.scaling)
        return _product(x, quantize, self.scaling, self.forth, self.bias)

    def of_gelu(self, x: Tensor) -> Tensor:
        """The layer's output for gelu(x), in passes without gradients."""
        return _product(x, quantize_gelu, self.scaling, self.forth, self.bias)


def _factor(weight: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """A weight's transpose and its scales, as a product's second factor, which cuBLAS wants by columns."""
    rounded, scale = quantize(weight.contiguous(), scaling)
    return rounded.t(), scale.t() if scaling == "row" else scale


def _product(x: Tensor, rounding: Any, scaling: Scaling, factor: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
    rows, scale = rounding(x.flatten(0, -2), scaling)
    y = torch._scaled_mm(rows, factor[0], scale, factor[1], bias, out_dtype=torch.bfloat16, use_fast_accum=True)
    return y.unflatten(0, x.shape[:-1]).to(product_dtype(x.device, x.dtype))


class _Product(torch.autograd.Function):
    """Both of a frozen layer's products in FP8: y = x W^T + b, dx = dy W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        forth, forth_scale, back, back_scale, bias, scaling = rest
        ctx.save_for_backward(back, back_scale)
        ctx.scaling, ctx.dtype = scaling, x.dtype
        # The sum of nothing ties y to x: torch 2.11's compiler takes a product in FP8 for a constant and drops its gradient.
        return _product(x, quantize, scaling, (forth, forth_scale), bias) + x.flatten()[:0].sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        dx = _product(gradient, quantize, ctx.scaling, ctx.saved_tensors, None)
        return dx.to(ctx.dtype), *([None] * 6)


def with_fp8_products(module: nn.Module, scaling: Scaling, exact: Collection[str] = (), differentiable: bool = False) -> nn.Module:
    """A twin of `module` that shares all of its parts and weights but its large linear layers, which become `Fp8Linear`.

    Args:
        module: It stays as it is, and is returned itself if there is nothing to replace.
        scaling: See `Fp8Linear`.
        exact: Parts that are shared as they are, by their dotted names or pieces of them.
        differentiable: See `Fp8Linear`; layers whose weights train are left alone then.
    """

    def rounded(name: str, part: nn.Module) -> nn.Module:
        if not isinstance(part, nn.Linear) or any(f".{piece}." in f"{name}." for piece in exact):
            return part
        large = part.in_features % _UNIT == 0 == part.out_features % _UNIT
        return Fp8Linear(part, scaling, differentiable) if large and not (differentiable and part.weight.requires_grad) else part

    return with_parts(module, rounded)
