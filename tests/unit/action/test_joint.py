"""JointDecoder against a plain float64 computation that prepares nothing, and its layers' blocks, draws, compilation, refusals."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mimicvideo import flow
from mimicvideo.action.attention import JointAttention
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.joint import JointDecoder

WIDTH, HEADS, TOKENS = 16, 2, 7


def make(blocks: int = 2, depth: int = 4, **options: Any) -> JointDecoder:
    """In float64, with the zero-initialised weights random, so that every path counts."""
    torch.manual_seed(0)
    shape = DecoderShape(context_dim=10, action_dim=3, proprio_dim=5, horizon=6, history=2, blocks=blocks)
    decoder = JointDecoder(shape, **{"width": WIDTH, "depth": depth, "heads": HEADS, "adaln_dim": 6, **options}).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def inputs(decoder: JointDecoder, samples: int = 4, contexts: int = 4) -> dict[str, Any]:
    generator, shape = torch.Generator().manual_seed(1), decoder.shape

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    return {
        "actions": normal(samples, shape.horizon, shape.action_dim),
        "tau_action": torch.rand(samples, generator=generator, dtype=torch.float64),
        "tau_video": torch.rand(samples, generator=generator, dtype=torch.float64),
        "proprio": normal(samples, shape.history, shape.proprio_dim),
        "hidden": [normal(contexts, TOKENS, shape.context_dim) for _ in range(shape.blocks)],
    }


def run(decoder: JointDecoder, given: dict[str, Any]) -> Tensor:
    context = decoder.prepare_context(*given["hidden"])
    return decoder(given["actions"], given["tau_action"], context, given["tau_video"], given["proprio"])


# ---- a computation that prepares and shares nothing ----------------------------------------------------------------------------


def standardise(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def reference(decoder: JointDecoder, given: dict[str, Any]) -> Tensor:
    draws = len(given["actions"]) // len(given["hidden"][0])
    return torch.stack([_one(decoder, given, i, i // draws) for i in range(len(given["actions"]))])


def _one(decoder: JointDecoder, given: dict[str, Any], i: int, context: int) -> Tensor:
    """The velocity of sample i; embedders and modulations are modules that `test_dit` holds against their equations."""
    w, shape = {name: value.detach() for name, value in decoder.named_parameters()}, decoder.shape
    tau, tau_video = given["tau_action"][i : i + 1], given["tau_video"][i : i + 1]
    actions = given["actions"][i] / ((1 - tau) ** 2 + tau**2).sqrt()
    x = torch.cat([decoder.embed_proprio(given["proprio"][i]), decoder.embed_action(actions)]) + w["positions"]
    shared, embedding = decoder.time(torch.stack([torch.full_like(tau, 1e-3), tau], dim=1), tau_video)
    time_of = [0] * shape.history + [1] * shape.horizon

    def modulation(module: Any) -> list[Tensor]:
        return [vector[0, time_of] for vector in module(shared, embedding)]

    for number, layer in enumerate(decoder.blocks):
        name, block = f"blocks.{number}", number * shape.blocks // len(decoder.blocks)
        video = standardise(given["hidden"][block][context]) * w[f"context_norms.{block}.weight"] + w[f"context_norms.{block}.bias"]
        shift, scale, gate = modulation(layer.attention_modulation)
        tokens = standardise(x) * (1 + scale) + shift
        q, k, v = (tokens @ w[f"{name}.attention.to_qkv.weight"].T).chunk(3, dim=-1)
        video_k, video_v = (video @ w[f"{name}.attention.to_context_kv.weight"].T).chunk(2, dim=-1)
        head, parts = WIDTH // HEADS, []
        for h in range(HEADS):
            of = slice(h * head, (h + 1) * head)
            keys = [
                rms(video_k[:, of], w[f"{name}.attention.context_key_norm.weight"]),
                rms(k[:, of], w[f"{name}.attention.key_norm.weight"]),
            ]
            scores = (rms(q[:, of], w[f"{name}.attention.query_norm.weight"]) @ torch.cat(keys).T / math.sqrt(head)).exp()
            parts.append(scores / scores.sum(-1, keepdim=True) @ torch.cat([video_v[:, of], v[:, of]]))
        x = x + gate * (torch.cat(parts, dim=-1) @ w[f"{name}.attention.to_out.weight"].T)
        shift, scale, gate = modulation(layer.mlp_modulation)
        inner = (standardise(x) * (1 + scale) + shift) @ w[f"{name}.mlp.0.weight"].T
        x = x + gate * ((inner * (1 + torch.erf(inner / math.sqrt(2))) / 2) @ w[f"{name}.mlp.2.weight"].T)
    shift, scale = modulation(decoder.head.modulation)
    return ((standardise(x) * (1 + scale) + shift) @ w["head.to_velocity.weight"].T)[shape.history :]


@pytest.mark.parametrize(("blocks", "depth"), [(1, 3), (2, 4), (3, 3)])
@pytest.mark.parametrize(("samples", "contexts"), [(4, 4), (6, 2)])
def test_forward_is_the_plain_computation(blocks, depth, samples, contexts):
    decoder = make(blocks, depth)
    given = inputs(decoder, samples, contexts)
    with torch.no_grad():
        torch.testing.assert_close(run(decoder, given), reference(decoder, given), atol=1e-11, rtol=1e-10)


def test_the_context_is_projected_once_per_chunk_and_equals_projecting_at_every_step(monkeypatch):
    decoder = make()
    given, calls, original = inputs(decoder), [], JointAttention.keys_and_values

    def counted(self: JointAttention, context: Tensor) -> Any:
        calls.append(self)
        return original(self, context)

    monkeypatch.setattr(JointAttention, "keys_and_values", counted)
    taus = torch.linspace(1, 0, 11, dtype=torch.float64)
    with torch.no_grad():
        prepared = decoder.prepare_context(*given["hidden"])
        once = flow.integrate(
            lambda x, tau: decoder(x, tau.expand(len(x)), prepared, given["tau_video"], given["proprio"]), given["actions"], taus
        )
        assert len(calls) == 4  # one for each layer
        naive = flow.integrate(
            lambda x, tau: reference(decoder, given | {"actions": x, "tau_action": tau.expand(len(x))}), given["actions"], taus
        )
    torch.testing.assert_close(once, naive, atol=1e-10, rtol=0)


def test_each_layer_reads_its_own_block():
    decoder = make(blocks=2, depth=4)
    given = inputs(decoder)
    plain = decoder.prepare_context(*given["hidden"])
    other = decoder.prepare_context(given["hidden"][0], given["hidden"][1].flip(-1))
    same = [torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in zip(plain.keys, other.keys, plain.values, other.values, strict=True)]
    assert same == [True, True, False, False]


def test_draws_do_not_see_each_other():
    decoder = make()
    given = inputs(decoder, samples=6, contexts=2)
    changed = given["actions"].clone()
    changed[1] += 1  # the second draw of the first context
    with torch.no_grad():
        moved = (run(decoder, given | {"actions": changed}) - run(decoder, given)).abs().amax((1, 2))
    assert moved[1] > 1e-3
    assert moved[[0, 2, 3, 4, 5]].max() < 1e-12


def test_gradients_reach_every_weight():
    decoder = make()
    run(decoder, inputs(decoder, samples=4, contexts=2)).square().sum().backward()
    without = {name for name, weight in decoder.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert without == {"proprio_mask_token"}  # which is for training


def test_bfloat16_autocast_stays_close_and_returns_fp32():
    decoder = make().float()
    given = {name: value.float() for name, value in inputs(decoder, samples=4, contexts=2).items() if name != "hidden"}
    hidden = [value.float() for value in inputs(decoder, samples=4, contexts=2)["hidden"]]
    exact = run(decoder, given | {"hidden": hidden})
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(decoder, given | {"hidden": [value.bfloat16() for value in hidden]})
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


COMPILED = """
import torch
from mimicvideo.action.context import MixContext, PooledContext
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.joint import JointDecoder

shape = DecoderShape(12, 2, 3, 4, blocks=2)
sizes = {"width": 16, "depth": 2, "heads": 2, "adaln_dim": 4}
hidden, actions, proprio = (torch.randn(2, 5, 12), torch.randn(2, 5, 12)), torch.randn(4, 4, 2), torch.randn(4, 1, 3)
tau_action, tau_video = torch.rand(4), torch.rand(4)
for decoder in (JointDecoder(shape, **sizes), *(DiTDecoder(shape, context=context, **sizes) for context in (MixContext, PooledContext))):

    def run():
        return decoder(actions, tau_action, decoder.prepare_context(*hidden), tau_video, proprio, torch.Generator().manual_seed(3))

    plain = run()
    decoder.compile(backend="aot_eager", fullgraph=True)
    compiled = run()
    compiled.sum().backward()
    torch.testing.assert_close(compiled, plain)
"""


def test_the_compiler_takes_it_and_the_contexts_whole():
    """In a process of its own, since the checks of annotations that tests run under cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"depth must be a multiple of .* video blocks, .* got depth=4 for 3 blocks: change depth, or"):
        make(blocks=3, depth=4)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        make(depth=0)
    decoder = make()
    with pytest.raises(ValueError, match="got hidden states of 1 video blocks, this decoder was built for 2"):
        decoder.prepare_context(torch.zeros(1, 4, 10, dtype=torch.float64))
    given = inputs(decoder, samples=4, contexts=3)
    with pytest.raises(ValueError, match="4 samples cannot share 3 contexts"):
        run(decoder, given)
