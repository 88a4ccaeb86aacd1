"""Products in FP8 (e4m3) for passes that need not be exact: weights are rounded once, activations at every call."""

import copy
from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Scaling = Literal["row", "tensor"]
DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST_SCALE = 1e-12  # of a row of zeros
_UNIT = 16  # cuBLAS takes FP8 matrices whose sides are multiples of it


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
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True) if scaling == "row" else wide.abs().amax()
    scale = (largest / LARGEST).clamp(min=SMALLEST_SCALE)
    return (wide / scale).clamp(-LARGEST, LARGEST).to(DTYPE), scale


class Fp8Linear(nn.Module):
    """x W^T + b of a linear layer, x and W in FP8, the sum in the GPU's own precision, the result in bf16.

    Args:
        linear: Its weight is rounded now; the layer itself is not kept.
        scaling: One scale for each token and each output channel, or one for x and one for W.
    """

    def __init__(self, linear: nn.Linear, scaling: Scaling) -> None:
        super().__init__()
        self.scaling: Scaling = scaling
        weight, scale = quantize(linear.weight.detach(), scaling)
        self.weight, self.scale = weight.t(), scale.t() if scaling == "row" else scale  # cuBLAS wants the second factor by columns
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize(x.flatten(0, -2), self.scaling)
        y = torch._scaled_mm(rows, self.weight, scale, self.scale, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True)
        return y.unflatten(0, x.shape[:-1])


def with_fp8_products(module: nn.Module, scaling: Scaling, exact: Collection[str] = (), name: str = "") -> nn.Module:
    """A twin of `module` that shares all of its weights but those of its large linear layers, which become `Fp8Linear`.

    Args:
        module: It stays as it is.
        scaling: See `Fp8Linear`.
        exact: Parts that are shared as they are, by the dotted ends of their names.
        name: Of `module` itself.
    """
    if any(name == part or name.endswith(f".{part}") for part in exact):
        return module
    if isinstance(module, nn.Linear):
        large = module.in_features % _UNIT == 0 == module.out_features % _UNIT
        return Fp8Linear(module, scaling) if large else module
    twin = copy.copy(module)
    children = {key: (child, f"{name}.{key}") for key, child in module._modules.items()}
    twin._modules = {key: child and with_fp8_products(child, scaling, exact, dotted) for key, (child, dotted) in children.items()}
    return twin
