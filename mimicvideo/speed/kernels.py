"""Where a call's time goes: a profile of GPU kernels (on a CPU, of operators) summed by category."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mimicvideo.speed.measure import synchronize

# The first pattern that a kernel's name matches is its category.
CATEGORIES = {
    "attention": r"flash|fmha|sdpa|attention|cudnn_generated",
    "convolution": r"conv|wgrad|dgrad|fprop|im2col",
    "matrix product": r"gemm|nvjet|cutlass|xmma|cublas|_mm|matmul|linear|mkl",
    "fused": r"triton|cpp_fused|graph_call",
    "optimizer": r"adam|multi_tensor",
    "norm or reduction": r"norm|reduce|sum|mean|amax",
    "copy": r"memcpy|memset|copy|cat|transpose|_to_",
    "elementwise": r"elementwise|vectorized|add|mul|gelu|silu",
}


def category(kernel: str) -> str:
    """Of a kernel or operator, by its name."""
    return next((name for name, pattern in CATEGORIES.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def profile_calls(function: Callable[[], Any], device: torch.device, calls: int = 3, longest: int = 25) -> dict[str, Any]:
    """Milliseconds a call by category, with their shares and launches, and the `longest` kernels."""
    on_gpu = device.type == "cuda"
    function()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        for _ in range(calls):
            function()
        synchronize(device)
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    single: list[tuple[float, str, int]] = []
    for event in profiled.key_averages():
        if on_gpu and "CUDA" not in str(event.device_type):
            continue
        milliseconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / calls
        times[category(event.key)] += milliseconds
        counts[category(event.key)] += event.count // calls
        single.append((milliseconds, event.key, event.count // calls))
    total = sum(times.values()) or 1.0
    shares = {
        name: {"ms": round(value, 4), "share": round(value / total, 4), "launches": counts[name]}
        for name, value in sorted(times.items(), key=lambda item: -item[1])
    }
    kernels = [
        {"kernel": key[:120], "ms": round(value, 4), "launches": count} for value, key, count in sorted(single, reverse=True)[:longest]
    ]
    return {"busy_ms": round(total, 4), "categories": shares, "longest": kernels}
