"""LoRA in training with its updates added to the frozen weights after every step: one product each way instead of three and a sum."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mimicvideo.execution import Fingerprint, lasting, places, with_parts

# 2**16 / r and 2**16 / r**2 for the r with r**3 = r + 1: sums of their multiples fill [0, 2**16) evenly along rows and along columns
# (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
_ROW_STEP, _COLUMN_STEP = 49_471, 37_345
_DROPPED = 1 << 16  # values of the bits that fp32 has and bf16 has not


def dithered(x: Tensor) -> Tensor:  # plain annotations: what is compiled cannot be checked at run time
    """A matrix in fp32 to bf16, up or down by a fixed pattern: right on average, so that updates too small for bf16 count together.

    What bf16 can hold stays as it is. Rounding to the nearest would lose every update smaller than half a unit of its weight.
    """
    steps = zip(x.shape, (_ROW_STEP, _COLUMN_STEP), strict=True)
    rows, columns = ((torch.arange(size, device=x.device) * step % _DROPPED).to(torch.int32) for size, step in steps)
    threshold = (rows[:, None] + columns) % _DROPPED
    return ((x.view(torch.int32) + threshold) & -_DROPPED).view(torch.float32).to(torch.bfloat16)


def merge(weight: Tensor, update: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """weight + scaling * update in `dtype`, with `dithered` where that is bf16."""
    if dtype == torch.bfloat16:
        return dithered(weight.float() + scaling * update.float())
    return weight.to(dtype) + scaling * update.to(dtype)


def settings(layers: Iterable[Any]) -> Fingerprint:
    """Of what besides weights decides on a LoRA layer's function: adapters in use, scales, whether the base trains."""
    return tuple(
        ((layer.disable_adapters, *layer.active_adapters, *layer.merged_adapters, *layer.scaling.items(), _base_trains(layer)), 0)
        for layer in layers
    )


def mergeable(layer: Any) -> bool:
    """Whether a LoRA layer is x (W + s B A)^T + b with W and b frozen: not switched off, merged by PEFT, of several adapters or DoRA."""
    name = "default"
    return (
        list(layer.active_adapters) == [name]
        and name in layer.lora_A
        and not (layer.disable_adapters or layer.merged or layer.lora_variant or layer.lora_bias[name] or _base_trains(layer))
        and isinstance(layer.lora_dropout[name], nn.Identity)
    )


def _base_trains(layer: Any) -> bool:
    base = layer.get_base_layer()
    return any(weight is not None and weight.requires_grad for weight in (base.weight, base.bias))


class MergedLora(nn.Module):
    """x (W + s B A)^T + b of a LoRA layer from one product, with the gradients of x, A and B.

    Args:
        layer: PEFT's, whose weights stay what trains.
        dtype: In which it multiplies.

    Raises:
        ValueError: If the dtype is fp16.
    """

    def __init__(self, layer: LoraLayer, dtype: torch.dtype) -> None:
        super().__init__()
        if dtype == torch.float16:
            raise ValueError("execution.merge_lora is for bf16 and wider numbers, not for fp16: set it to false")
        base: Any = layer.get_base_layer()
        self.base, self.scaling, self.dtype = base, layer.scaling["default"], dtype
        self.down: Any = layer.lora_A["default"]
        self.up: Any = layer.lora_B["default"]
        # In the products' dtype, of which all steps' passes make use.
        self.merged = torch.empty_like(base.weight, dtype=dtype)
        self.low_down, self.low_up = (torch.empty_like(part.weight, dtype=dtype) for part in (self.down, self.up))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.base.bias is None else self.base.bias.to(self.dtype)
        factors = self.merged, self.low_down, self.low_up
        return _Product.apply(x.to(self.dtype), *factors, self.down.weight, self.up.weight, bias, self.scaling)


class _Product(torch.autograd.Function):
    """y = x W'^T + b, dx = dy W', dA = s (dy B)^T x, dB = s dy^T (x A^T)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: Tensor, low_down: Tensor, low_up: Tensor, *rest: Any) -> Tensor:
        down, up, bias, scaling = rest  # A and B themselves only receive their gradients
        ctx.save_for_backward(x, merged, low_down, low_up)
        ctx.scaling, ctx.dtypes = scaling, (down.dtype, up.dtype)
        return F.linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, merged, down, up = ctx.saved_tensors
        rows, dy = x.flatten(0, -2), gradient.flatten(0, -2)
        d_down, d_up = (dy @ up).t() @ rows, dy.t() @ (rows @ down.t())
        dx = gradient @ merged if ctx.needs_input_grad[0] else None
        d_down, d_up = (ctx.scaling * d.to(dtype) for d, dtype in zip((d_down, d_up), ctx.dtypes, strict=True))
        return dx, None, None, None, d_down, d_up, None, None


class MergedBlocks:
    """A transformer's blocks with merged LoRA layers, which follow the weights in place. What is not `mergeable` stays PEFT's.

    Args:
        blocks: They stay as they are.
        compile: Mode in which the merging, which reads and writes every weight after every step, is compiled; None leaves it as it is.
    """

    def __init__(self, blocks: nn.ModuleList, compile: str | None) -> None:
        self._blocks = blocks
        self._merge = merge if compile is None else torch.compile(merge, mode=compile, dynamic=False)
        self._twin: nn.Module | None = None
        self._place: Any = None
        self._version: Fingerprint = ()

    def __call__(self, dtype: torch.dtype, version: Fingerprint) -> nn.Module:
        """The twin for products in `dtype`, with the present weights, whose fingerprint is `version`.

        Raises:
            ValueError: See `MergedLora`.
        """
        with lasting():
            if self._twin is None or self._place != (dtype, places(version)):
                self._twin = with_parts(self._blocks, partial(_merged, dtype))
                self._place, self._version = (dtype, places(version)), ()
            if self._version != version:
                self._update([part for part in self._twin.modules() if isinstance(part, MergedLora)])
        self._version = version
        return self._twin

    def _update(self, layers: list[MergedLora]) -> None:
        if not layers:
            return
        copies = [copy for layer in layers for copy in (layer.low_down, layer.low_up)]
        torch._foreach_copy_(copies, [weight for layer in layers for weight in (layer.down.weight, layer.up.weight)])  # one launch for all
        for layer in layers:
            layer.merged.copy_(self._merge(layer.base.weight, layer.low_up @ layer.low_down, layer.scaling, layer.dtype))

    def clear(self) -> None:
        """Frees the twin."""
        self._twin = None


def _merged(dtype: torch.dtype, _name: str, part: nn.Module) -> nn.Module:
    return MergedLora(part, dtype) if isinstance(part, LoraLayer) and mergeable(part) else part
