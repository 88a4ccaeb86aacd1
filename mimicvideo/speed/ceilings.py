"""The hardware's own limits, measured in the same process: matrix products, attention, memory. A roofline's two slopes and a half."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mimicvideo.execution import attend, attention_kernels
from mimicvideo.speed.flops import Work
from mimicvideo.speed.measure import measure
from mimicvideo.video import flash4
from mimicvideo.video.extras import passes
from mimicvideo.video.fp8 import check_hardware

CALLS = 20


@dataclass(frozen=True)
class Ceilings:
    """Rates that nothing built of library kernels exceeds by much: operations per second, and bytes per second.

    Attributes:
        products: A square matrix product in the computing dtype, on random numbers (zeros would be faster: less power).
        attention: Attention forward at the video model's own shape, by the fastest library kernel.
        attention_backward: The same, backward.
        memory: A copy, bytes read and written.
        products_fp8: The square product in FP8 with a scale per row; None where there is none.
    """

    products: float
    attention: float
    attention_backward: float
    memory: float
    products_fp8: float | None

    def least_seconds(self, work: Work) -> float:
        """What `work` would take at these rates, one part after the other."""
        return (
            work.products / self.products
            + work.attention / self.attention
            + work.attention_backward / self.attention_backward
            + work.moved / self.memory
        )

    def record(self) -> dict[str, Any]:
        return {name: None if value is None else float(f"{value:.4g}") for name, value in asdict(self).items()}


def measure_ceilings(device: torch.device, dtype: torch.dtype, side: int, tokens: int, heads: int, head_dim: int) -> Ceilings:
    """Rates of medians over 20 calls.

    Args:
        device: What is measured.
        dtype: In which the networks compute.
        side: Of the square matrices.
        tokens: Of the attention, by itself.
        heads: Of it.
        head_dim: Of each head.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def rate(amount: float, function: Any) -> float:
        return amount / (measure(function, device, CALLS, seconds=5.0).p50_ms / 1000)

    a, b = random(side, side), random(side, side)
    products, fp8 = rate(2 * side**3, lambda: a @ b), None
    if passes(check_hardware, device):
        low_a, low_b, ones = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t(), torch.ones(side, 1, device=device)
        fp8 = rate(
            2 * side**3,
            lambda: torch._scaled_mm(low_a, low_b, ones, ones.t(), out_dtype=torch.bfloat16, use_fast_accum=True),
        )
    memory = rate(2 * a.numel() * a.element_size(), lambda: b.copy_(a))

    q, k, v = (random(1, tokens, heads, head_dim).requires_grad_(True) for _ in range(3))
    operations = 4 * heads * head_dim * tokens**2

    def by_torch() -> torch.Tensor:
        with attention_kernels(device):
            return attend(q, k, v)

    def rates(function: Callable[[], torch.Tensor]) -> tuple[float, float]:
        output = function()
        gradient = torch.randn_like(output)
        backward = rate(2.5 * operations, lambda: torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True))
        with torch.no_grad():
            return rate(operations, function), backward

    found = [rates(by_torch)]
    if dtype == torch.bfloat16 and passes(flash4.check, device):
        found.append(rates(lambda: flash4.attention(q, k, v)))
    forward, backward = (max(each) for each in zip(*found, strict=True))
    return Ceilings(products, forward, backward, memory, fp8)
