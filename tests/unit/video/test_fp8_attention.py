"""Attention in FP8: scales around cuDNN's kernel, whose definition stands in for it here; on a GPU the kernel itself."""

import sys

import pytest
import torch
import torch.nn.functional as F

from mimicvideo.execution import Execution
from mimicvideo.video import fp8_attention
from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.fast_transformer import FastTransformer, _in_fp8


def exact(q, k, v):
    return F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def definition(q, k, v, scales):
    """What cuDNN documents: e4m3 in, the softmax rounded to e4m3 after scale_s, the result after scale_o."""
    assert all(x.dtype == torch.float8_e4m3fn and x.float().isfinite().all() for x in (q, k, v)) and scales.shape == (6, 4)
    descale_q, descale_k, descale_v, descale_s, scale_s, scale_o = scales[:, 0].double()
    torch.testing.assert_close(descale_s * scale_s, torch.ones((), dtype=torch.float64), rtol=1e-6, atol=0)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double() * descale_q, k.double() * descale_k) * q.shape[-1] ** -0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (weights * scale_s).clamp(max=448).to(torch.float8_e4m3fn).double() * descale_s
    result = torch.einsum("bhqk,bkhd->bhqd", rounded, v.double() * descale_v) / weights.sum(-1, keepdim=True)
    scaled = result.transpose(1, 2) * scale_o
    assert scaled.abs().max() <= 448 * 1.05  # the values' largest bounds the results
    return scaled.to(torch.float8_e4m3fn)


def random(shape, seed: int, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e4])
def test_the_result_is_near_whatever_the_sizes_of_queries_keys_and_values(monkeypatch, size) -> None:
    monkeypatch.setattr(fp8_attention, "kernel", definition)
    q, k, v = (random((2, 40, 3, 16), seed) for seed in range(3))
    expected = exact(q, k, size * v)
    result = fp8_attention.attention(q, k, size * v, (q.abs().amax(), 2 * k.abs().amax()))
    assert result.dtype == torch.bfloat16 and result.shape == q.shape
    assert (result.double() - expected).norm() < 0.08 * expected.norm()


def test_what_tokens_have_in_common_passes_without_rounding(monkeypatch) -> None:
    monkeypatch.setattr(fp8_attention, "kernel", definition)
    q, k, v = (random((1, 40, 2, 16), seed, torch.float32) for seed in range(3))
    common = 50 * random((1, 1, 2, 16), 4, torch.float32)
    bounds = q.abs().amax(), (k + common).abs().amax()
    expected = exact(q, k, v)
    result = fp8_attention.attention(q, k + common, v + common, bounds) - common
    assert (result.double() - expected).norm() < 0.2 * expected.norm()  # rounded as they are, the error is fifty times the result


def test_zeros_stay_zeros_and_what_is_not_finite_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(fp8_attention, "kernel", lambda q, k, v, scales: v)
    q, k = random((1, 8, 2, 16), 0), random((1, 8, 2, 16), 1)
    bounds = q.abs().amax(), k.abs().amax()
    assert torch.equal(fp8_attention.attention(q, k, torch.zeros_like(q), bounds), torch.zeros_like(q))
    broken = torch.zeros_like(q)
    broken[0, 0, 0, 0] = float("nan")
    assert fp8_attention.attention(q, k, broken, bounds).isnan().all()


def test_what_is_missing_is_told(monkeypatch) -> None:
    check = fp8_attention.check.__wrapped__
    with pytest.raises(RuntimeError, match=r"the model is on the CPU: use one or set execution.attention to torch"):
        check(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(RuntimeError, match=r"needs a Hopper or Blackwell GPU, the model is on NVIDIA L40S"):
        check(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.raises(RuntimeError, match=r"pip install 'mimicvideo\[fp8\]' or set execution.attention to torch"):
        check(torch.device("cuda", 0))


def test_a_model_on_the_cpu_refuses_it(build, inputs) -> None:
    backbone = build(execution=Execution(compile=None, attention="fp8"))
    with torch.no_grad(), pytest.raises(RuntimeError, match="execution.attention=fp8 needs a Hopper or Blackwell GPU"):
        backbone.velocity(*inputs(backbone).all())


def test_trained_weights_lose_more_than_random_ones_and_not_much(monkeypatch) -> None:
    """The figures that the README and experiments/LOG.md tell: hidden states of cosmos-tiny, 2.4 % apart, bf16's 0.8 %."""
    monkeypatch.setattr(fp8_attention, "kernel", definition)
    models = {
        dtype: CosmosPredict("cosmos-tiny", Frozen(), dtype=dtype, execution=Execution(compile=None)) for dtype in ("float32", "bfloat16")
    }
    generator = torch.Generator().manual_seed(0)
    noisy, tau = torch.randn(2, 16, 5, 16, 16, generator=generator), torch.full((2,), 80 / 81)
    block = models["float32"].num_blocks - 1

    @torch.no_grad()
    def states(dtype):
        model = models[dtype]
        observed = model.encode_video(torch.linspace(0, 255, 2 * 5 * 128 * 128 * 3).to(torch.uint8).view(2, 5, 128, 128, 3))
        return model.hidden_states(noisy, tau, VideoCondition(model.encode_prompt(["push the button"] * 2), observed), [block])[
            block
        ].float()

    reference, in_bf16 = states("float32"), states("bfloat16")
    monkeypatch.setattr(FastTransformer, "_attention", lambda *_: _in_fp8)
    in_fp8 = states("bfloat16")
    apart = [((found - reference).norm() / reference.norm()).item() for found in (in_bf16, in_fp8)]
    assert 0.004 < apart[0] < 0.01 and 2 * apart[0] < apart[1] < 0.04, apart


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [(256, 256), (1000, 1000), (384, 130), (200, 19200)])
def test_on_a_gpu_the_kernel_is_near_in_eager_mode_and_in_a_graph(tokens) -> None:
    device = torch.device("cuda")
    try:
        fp8_attention.check(device)
    except RuntimeError as error:
        pytest.skip(str(error))
    queries, keys = tokens
    q, k, v = (random((2, count, 4, 128), seed).to(device) for seed, count in enumerate((queries, keys, keys)))
    v = v + 3  # as in networks, values have much in common
    bounds = q.abs().amax(), k.abs().amax()
    expected = exact(q, k, v)
    result = fp8_attention.attention(q, k, v, bounds)
    spread = expected - expected.mean(1, keepdim=True)
    assert (result.double() - expected).norm() < 0.1 * spread.norm() + 0.004 * expected.norm()  # bf16's own rounding of the common part
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fp8_attention.attention(q, k, v, bounds)
    q.copy_(q.flip(1))
    graph.replay()
    torch.testing.assert_close(captured, result.flip(1), rtol=0.1, atol=0.02)
