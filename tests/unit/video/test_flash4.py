"""Attention by FlashAttention-4: the operator around its kernels, here with kernels of the same interface written from the equations."""

import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mimicvideo.video import flash4
from mimicvideo.video.extras import passes


def softmax(q, k):
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(q.shape[-1])
    return scores, scores.softmax(-1)


class Kernels(ModuleType):
    """FlashAttention-4's two functions, in float64 from the equations, counted."""

    def __init__(self) -> None:
        super().__init__("flash_attn.cute.interface")
        self.calls: list[str] = []

    def flash_attn_func(self, q, k, v, return_lse=False):
        assert return_lse and q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        self.calls.append("forward")
        scores, weights = softmax(q, k)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v.double()).to(q.dtype).contiguous(), scores.logsumexp(-1).float()

    def _flash_attn_bwd(self, q, k, v, out, dout, lse):
        assert dout.is_contiguous() and lse.shape == (q.shape[0], q.shape[2], q.shape[1])
        self.calls.append("backward")
        scores, _ = softmax(q, k)
        weights = (scores - lse.double()[..., None]).exp()
        of_weights = torch.einsum("bqhd,bkhd->bhqk", dout.double(), v.double())
        of_scores = weights * (of_weights - (dout.double() * out.double()).sum(-1).transpose(1, 2)[..., None]) / math.sqrt(q.shape[-1])
        dq = torch.einsum("bhqk,bkhd->bqhd", of_scores, k.double())
        dk = torch.einsum("bhqk,bqhd->bkhd", of_scores, q.double())
        dv = torch.einsum("bhqk,bqhd->bkhd", weights, dout.double())
        return tuple(gradient.to(q.dtype).contiguous() for gradient in (dq, dk, dv))


@pytest.fixture
def kernels(monkeypatch) -> Kernels:
    module = Kernels()
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def random(*shape: int, dtype=torch.bfloat16, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_(True)


def of_sdpa(q, k, v):
    return F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_result_and_gradients_are_those_of_attention(kernels, how) -> None:
    q, k, v = (random(2, 7, 3, 16, seed=seed) for seed in range(3))
    function = flash4.attention if how == "eager" else torch.compile(flash4.attention, backend="aot_eager", fullgraph=True)
    result, expected = function(q, k, v), of_sdpa(q, k, v)
    assert result.shape == (2, 7, 3, 16) and result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=0.02, atol=0.01)
    gradient = torch.randn(3, 2, 16, 7, generator=torch.Generator().manual_seed(5)).permute(1, 3, 0, 2)  # as it comes: not contiguous
    found = torch.autograd.grad(result, (q, k, v), gradient.bfloat16())
    for mine, exact in zip(found, torch.autograd.grad(expected, (q, k, v), gradient.double()), strict=True):
        assert (mine.double() - exact.double()).norm() < 0.02 * exact.double().norm()
    assert kernels.calls == ["forward", "backward"]


def test_the_operator_is_what_torch_asks_of_one(kernels) -> None:
    q, k, v = (random(1, 5, 2, 8, seed=seed) for seed in range(3))
    torch.library.opcheck(flash4.forward, (q, k.transpose(0, 1).contiguous().transpose(0, 1), v), rtol=0.02, atol=0.02)


def test_under_autocast_it_computes_in_autocasts_dtype_and_in_32_bits_it_is_torchs_own(kernels) -> None:
    q, k, v = (random(1, 6, 2, 8, dtype=torch.float32, seed=seed) for seed in range(3))
    result = flash4.attention(q, k, v)
    assert kernels.calls == [] and result.dtype == torch.float32
    torch.testing.assert_close(result.double(), of_sdpa(q, k, v), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flash4.attention(q, k, v)
    assert kernels.calls == ["forward"] and rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, result, rtol=0.05, atol=0.02)


def test_selective_checkpointing_does_not_compute_it_again(kernels) -> None:
    q, k, v = (random(1, 6, 2, 8, seed=seed) for seed in range(3))

    def block(q, k, v):
        return flash4.attention(q * 2, k, v).sin()

    expected = torch.autograd.grad(block(q, k, v).sum(), (q, k, v))
    assert kernels.calls == ["forward", "backward"]
    for policy, calls in (([flash4.KERNEL], ["forward", "backward"]), ([], ["forward", "forward", "backward"])):
        kernels.calls.clear()
        contexts = lambda policy=policy: create_selective_checkpoint_contexts(policy)  # noqa: E731
        found = torch.autograd.grad(checkpoint(block, q, k, v, use_reentrant=False, context_fn=contexts).sum(), (q, k, v))
        assert kernels.calls == calls
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)


def test_what_is_missing_is_told(monkeypatch, kernels) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check = flash4.check.__wrapped__
    with pytest.raises(
        RuntimeError, match=r"needs a Hopper or Blackwell GPU, this is NVIDIA A100: use one or set execution.attention to torch"
    ):
        check(device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check(device)
    monkeypatch.delattr(Kernels, "_flash_attn_bwd")
    with pytest.raises(RuntimeError, match=r"has no _flash_attn_bwd: pip install the version in 'mimicvideo\[flash4\]'"):
        check(device)
    monkeypatch.setitem(sys.modules, kernels.__name__, None)
    with pytest.raises(RuntimeError, match=r"pip install 'mimicvideo\[flash4\]' or set execution.attention to torch"):
        check(device)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [(300, 300), (1000, 130)])
def test_on_a_gpu_the_kernels_agree_with_float64(tokens) -> None:
    if not passes(flash4.check, torch.device("cuda")):
        pytest.skip("FlashAttention-4 is not installed, or has no kernels for this GPU")
    queries, keys = tokens
    shapes = (2, queries, 4, 128), (2, keys, 4, 128), (2, keys, 4, 128)
    q, k, v = (random(*shape, seed=seed).detach().cuda().requires_grad_(True) for seed, shape in enumerate(shapes))
    result, expected = flash4.attention(q, k, v), of_sdpa(q, k, v)
    assert (result.double() - expected).norm() < 0.01 * expected.norm()
    gradient = torch.randn_like(result)
    found = torch.autograd.grad(result, (q, k, v), gradient)
    for mine, exact in zip(found, torch.autograd.grad(expected, (q, k, v), gradient.double()), strict=True):
        assert (mine.double() - exact.double()).norm() < 0.01 * exact.double().norm()
