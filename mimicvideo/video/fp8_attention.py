"""Self-attention in FP8 by cuDNN's kernels, in passes without gradients: faster than in bf16, and not exact."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mimicvideo.video.extras import MAJORS, REMEDY, installed
from mimicvideo.video.fp8 import DTYPE, LARGEST, SMALLEST_SCALE


@cache
def check(device: torch.device) -> None:
    """Raises RuntimeError unless cuDNN's frontend is installed and the GPU has such kernels (Hopper, Blackwell)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in MAJORS:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        raise RuntimeError(f"execution.attention=fp8 needs a Hopper or Blackwell GPU, the model is on {name}: use one {REMEDY}")
    _frontend()


def attention(q: Tensor, k: Tensor, v: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v of shapes (batch, tokens, heads, head_dim), all rounded to e4m3 with a scale for each tensor.

    The means of keys and of values over the tokens are taken off before: the softmax does not see the one, and the result, an average
    of values, just gets the other back. What tokens have in common, often most of them, thus passes without rounding; nor do the
    kernels sum it up over thousands of tokens with the few bits that FP8 products are summed with.

    Args:
        q: Queries.
        k: Keys.
        v: Values. What bounds them bounds the results, which are averages of them.
        bounds: What no query and no key exceeds.
    """
    of_keys, of_values = (x.float().mean(dim=1, keepdim=True) for x in (k, v))
    largest = bounds[0].float(), 2 * bounds[1].float(), v.abs().amax().float() + of_values.abs().amax()
    centred = q.float(), k.float() - of_keys, v.float() - of_values
    scales = [(bound / LARGEST).clamp(min=SMALLEST_SCALE) for bound in largest]
    rounded = [(x * (1 / scale)).clamp(-LARGEST, LARGEST).to(DTYPE) for x, scale in zip(centred, scales, strict=True)]
    of_softmax = torch.full_like(scales[0], 1 / LARGEST)  # whose values lie in [0, 1]
    numbers = torch.stack([*scales, of_softmax, 1 / of_softmax, 1 / scales[2]])
    result = kernel(*rounded, numbers[:, None].expand(-1, _APART).contiguous())
    return (result.float() * scales[2] + of_values).to(q.dtype)


_APART = 4  # floats from one scale to the next, so that each lies on 16 bytes


def _frontend() -> Any:
    return installed("fp8", "cudnn")


@dataclass(frozen=True)
class _Graph:
    """cuDNN's graph for one shape, and its tensors: q, k, v, six scales, the result, and two maxima that nobody reads."""

    graph: Any
    tensors: tuple[Any, ...]
    handle: Any


@cache
def _graph(device: torch.device, queries: tuple[int, ...], keys: tuple[int, ...]) -> _Graph:
    cudnn = _frontend()
    real, eight = cudnn.data_type.FLOAT, cudnn.data_type.FP8_E4M3
    handle = cudnn.create_handle()
    graph = cudnn.pygraph(io_data_type=eight, intermediate_data_type=real, compute_data_type=real, handle=handle)

    def by_heads(shape: tuple[int, ...]) -> dict[str, list[int]]:
        """(batch, tokens, heads, head_dim) in memory, as cuDNN names the axes: batch, heads, tokens, head_dim."""
        batch, tokens, heads, width = shape
        return {"dim": [batch, heads, tokens, width], "stride": [tokens * heads * width, width, heads * width, 1]}

    one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
    q, k, v = (graph.tensor(**by_heads(shape), data_type=eight) for shape in (queries, keys, keys))
    scales = [graph.tensor(**one, data_type=real) for _ in range(6)]
    names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    result, _, *maxima = graph.sdpa_fp8(
        q=q, k=k, v=v, is_inference=True, attn_scale=queries[-1] ** -0.5, **dict(zip(names, scales, strict=True))
    )
    shape = by_heads(queries)
    result.set_output(True).set_dim(shape["dim"]).set_stride(shape["stride"]).set_data_type(eight)
    for maximum in maxima:
        maximum.set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(real)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return _Graph(graph, (q, k, v, *scales, result, *maxima), handle)


@torch.library.custom_op("mimicvideo::fp8_attention", mutates_args=())
def kernel(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
    """The result in e4m3 for q, k, v in e4m3 and (6, 4) scales in fp32, of which the first column counts: what q, k, v, the softmax
    are to be multiplied by, what the softmax and the result were multiplied by."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    result = torch.empty_like(q)
    maxima = scales.new_empty(2, _APART)
    with torch.cuda.device(q.device):
        found = _graph(q.device, tuple(q.shape), tuple(k.shape))
        _frontend().set_stream(handle=found.handle, stream=torch.cuda.current_stream().cuda_stream)
        workspace = torch.empty(max(found.graph.get_workspace_size(), 1), dtype=torch.uint8, device=q.device)
        numbers = [number[:1].view(1, 1, 1, 1) for number in (*scales, *maxima)]
        given = [*(x.transpose(1, 2) for x in (q, k, v)), *numbers[:6], result.transpose(1, 2), *numbers[6:]]
        found.graph.execute(dict(zip(found.tensors, given, strict=True)), workspace, handle=found.handle)
    return result


@kernel.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
