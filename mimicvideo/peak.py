"""How much memory a computation holds at its peak, found on tensors without data: no device is needed, and none is filled."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def without_data(module: nn.Module) -> FakeTensorMode:
    """Moves a module from the meta device to a CPU without content; its operations run in a `with` block of the result.

    The meta device will not do: autocast does not know it.
    """
    mode = FakeTensorMode()
    with mode:
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(part, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return mode


class _FusedRMSNorm(torch.autograd.Function):
    """What PyTorch's fused RMSNorm of a GPU keeps: its input and one number a row, where the CPU's keeps every step's result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, torch.empty_like(x[..., :1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextmanager
def gpu_norms() -> Iterator[None]:
    """Lets `F.rms_norm` keep what it does on a GPU, which fuses it if input and weight have one dtype; values are lost."""
    plain = F.rms_norm

    def rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        fused = hasattr(torch.ops.aten, "_fused_rms_norm_backward")  # before torch 2.9 GPUs kept as much as CPUs
        if weight is None or weight.dtype != input.dtype or not fused:
            return plain(input, normalized_shape, weight, eps)
        return _FusedRMSNorm.apply(input, weight)  # type: ignore[return-value]

    F.rms_norm = rms_norm
    try:
        yield
    finally:
        F.rms_norm = plain


@contextmanager
def gpu_autocast() -> Iterator[None]:
    """Lets the CPU's autocast compute layer norms in fp32 as the GPU's does (PyTorch's list of autocast operations)."""
    plain = F.layer_norm

    def layer_norm(input: Tensor, *given: Any, **named: Any) -> Tensor:
        half = torch.is_autocast_enabled("cpu") and input.dtype in (torch.bfloat16, torch.float16)
        return plain(input.float() if half else input, *given, **named)

    F.layer_norm = layer_norm
    try:
        yield
    finally:
        F.layer_norm = plain


class PeakMemory(TorchDispatchMode):
    """Counts the storages that operations in its `with` block make, while somebody holds them.

    Attributes:
        now: Bytes at present.
        peak: Most bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def ignore(self, *tensors: Tensor) -> None:
        """Leaves what was there before out of the count."""
        self._seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)


def peak_of(module: nn.Module, function: Callable[[], Any]) -> int:
    """Bytes that `function` holds at its peak beside the module's weights and buffers. Call it `without_data`."""
    with gpu_autocast(), gpu_norms(), PeakMemory() as memory:
        memory.ignore(*module.parameters(), *module.buffers())
        function()
    return memory.peak


def training_peak(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that forward and backward hold at their peak beside weights and gradients. Call it `without_data`."""
    for weight in module.parameters():
        if weight.requires_grad:  # gradients are counted by whoever knows when they are there
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    return peak_of(module, lambda: loss().backward())
