"""DiTDecoder against a plain float64 re-implementation of the paper's equations, its sizes, its initial values and its context."""

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mimicvideo import flow
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import CrossAttention, DiTDecoder
from mimicvideo.action.layers import hop_widths

SHAPE = DecoderShape(context_dim=20, action_dim=3, proprio_dim=5, horizon=6, history=2)
WIDTH, DEPTH, HEADS, RANK, TOKENS = 32, 3, 4, 6, 11


def make(seed: int = 0, **options: Any) -> DiTDecoder:
    """A small decoder in float64 whose zero-initialised weights are random, so that every path counts."""
    torch.manual_seed(seed)
    decoder = DiTDecoder(SHAPE, **{"width": WIDTH, "depth": DEPTH, "heads": HEADS, "adaln_dim": RANK, **options}).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def inputs(samples: int = 4, contexts: int = 4, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "actions": normal(samples, SHAPE.horizon, SHAPE.action_dim),
        "tau_action": torch.rand(samples, generator=generator, dtype=torch.float64),
        "hidden": normal(contexts, TOKENS, SHAPE.context_dim),
        "tau_video": torch.rand(samples, generator=generator, dtype=torch.float64),
        "proprio": normal(samples, SHAPE.history, SHAPE.proprio_dim),
    }


# ---- the equations, one sample and one token at a time, nothing shared with the package ---------------------------------------


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean() + 1e-6)


def standardise(x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-6)


def psi(tau: float, width: int) -> Tensor:
    periods = [4e-3 * (4.0 / 4e-3) ** (index / (width // 2 - 1)) for index in range(width // 2)]
    angles = [2 * math.pi * tau / period for period in periods]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def embed(weights: dict[str, Tensor], name: str, token: Tensor) -> Tensor:
    layers = sum(key.startswith(f"{name}.layers.") and key.endswith("weight") for key in weights)
    for layer in range(layers):
        token = weights[f"{name}.layers.{layer}.weight"] @ token + weights[f"{name}.layers.{layer}.bias"]
        token = gelu(token) if layer < layers - 1 else token / math.sqrt(WIDTH)
    return token


def times(weights: dict[str, Tensor], tau_action: float, tau_video: float) -> tuple[Tensor, Tensor]:
    phi_a = silu(weights["time.action.weight"] @ psi(tau_action, WIDTH) + weights["time.action.bias"])
    phi_v = silu(weights["time.video.weight"] @ psi(tau_video, WIDTH) + weights["time.video.bias"])
    b, c = weights["time.action_factor.bias"], weights["time.video_factor.bias"]
    z = (weights["time.action_factor.weight"] @ phi_a + b) * (weights["time.video_factor.weight"] @ phi_v + c) - b * c
    return weights["time.shared.weight"] @ z, rms(z, weights["time.norm.weight"])


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], query_norm: Tensor, key_norm: Tensor) -> list[Tensor]:
    head, results = WIDTH // HEADS, []
    for query in queries:
        parts = []
        for h in range(HEADS):
            of = slice(h * head, (h + 1) * head)
            scores = torch.stack([rms(query[of], query_norm) @ rms(key[of], key_norm) / math.sqrt(head) for key in keys])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            parts.append(sum(weight * value[of] for weight, value in zip(weights, values, strict=True)))
        results.append(torch.cat(parts))
    return results


def reference(decoder: DiTDecoder, given: dict[str, Tensor], masked: list[bool] | None = None) -> Tensor:
    """The velocity of each sample by the paper's equations."""
    weights = {name: value.detach() for name, value in decoder.named_parameters()}
    return torch.stack([_one(weights, given, i, bool(masked and masked[i])) for i in range(len(given["actions"]))])


def _one(w: dict[str, Tensor], given: dict[str, Tensor], i: int, masked: bool) -> Tensor:
    tau, tau_video = given["tau_action"][i].item(), given["tau_video"][i].item()
    draws = len(given["actions"]) // len(given["hidden"])
    tokens = [w["proprio_mask_token"] if masked else embed(w, "embed_proprio", token) for token in given["proprio"][i]]
    tokens += [embed(w, "embed_action", token / math.sqrt((1 - tau) ** 2 + tau**2)) for token in given["actions"][i]]
    x = [token + position for token, position in zip(tokens, w["positions"], strict=True)]
    time = [times(w, 1e-3, tau_video)] * SHAPE.history + [times(w, tau, tau_video)] * SHAPE.horizon
    context = [w["context_norm.weight"] * standardise(token) + w["context_norm.bias"] for token in given["hidden"][i // draws]]

    def modulation(name: str, index: int) -> Tensor:
        a, e = time[index]
        own = w[f"{name}.up.weight"] @ (w[f"{name}.down.weight"] @ silu(e))
        return own + a[: len(own)]

    for block in range(DEPTH):
        name = f"blocks.{block}"
        for kind in ("cross", "self", "mlp"):
            vectors = [modulation(f"{name}.{kind}_modulation", index).chunk(3) for index in range(len(x))]
            inner = [standardise(token) * (1 + scale) + shift for token, (shift, scale, _) in zip(x, vectors, strict=True)]
            if kind == "mlp":
                inner = [w[f"{name}.mlp.2.weight"] @ gelu(w[f"{name}.mlp.0.weight"] @ token) for token in inner]
            else:
                layer = f"{name}.{kind}_attention"
                if kind == "cross":
                    q = [w[f"{layer}.to_q.weight"] @ token for token in inner]
                    k, v = zip(*((w[f"{layer}.to_kv.weight"] @ token).chunk(2) for token in context), strict=True)
                else:
                    q, k, v = zip(*((w[f"{layer}.to_qkv.weight"] @ token).chunk(3) for token in inner), strict=True)
                inner = attend(list(q), list(k), list(v), w[f"{layer}.query_norm.weight"], w[f"{layer}.key_norm.weight"])
                inner = [w[f"{layer}.to_out.weight"] @ token for token in inner]
            x = [token + gate * update for token, update, (_, _, gate) in zip(x, inner, vectors, strict=True)]

    velocity = []
    for index in range(SHAPE.history, len(x)):
        shift, scale = modulation("head.modulation", index).chunk(2)
        velocity.append(w["head.to_velocity.weight"] @ (standardise(x[index]) * (1 + scale) + shift))
    return torch.stack(velocity)


def run(decoder: DiTDecoder, given: dict[str, Tensor], **options: Any) -> Tensor:
    context = decoder.prepare_context(given["hidden"])
    return decoder(given["actions"], given["tau_action"], context, given["tau_video"], given["proprio"], **options)


# ---- equality with the equations ----------------------------------------------------------------------------------------------


def test_forward_is_the_papers_equations():
    decoder, given = make(), inputs()
    torch.testing.assert_close(run(decoder, given), reference(decoder, given), atol=1e-11, rtol=1e-10)


def test_forward_is_the_papers_equations_for_several_draws_of_a_context():
    decoder, given = make(), inputs(samples=6, contexts=2)
    torch.testing.assert_close(run(decoder, given), reference(decoder, given), atol=1e-11, rtol=1e-10)


def test_masked_proprio_is_the_learned_token_in_training_only():
    decoder, given = make(proprio_mask_probability=0.5), inputs(samples=8, contexts=8)
    masked = (torch.rand(8, generator=torch.Generator().manual_seed(3)) < 0.5).tolist()
    assert 0 < sum(masked) < 8
    torch.testing.assert_close(run(decoder, given), reference(decoder, given), atol=1e-11, rtol=1e-10)
    decoder.train()
    trained = run(decoder, given, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(trained, reference(decoder, given, masked), atol=1e-11, rtol=1e-10)


def test_proprio_is_masked_for_a_fifth_of_the_samples():
    decoder = make(depth=1).train()
    given = inputs(samples=4000, contexts=4000)
    given = {name: value[:1].expand_as(value) for name, value in given.items()}
    with torch.no_grad():
        plain = run(decoder.eval(), {name: value[:1] for name, value in given.items()})
        trained = run(decoder.train(), given, generator=torch.Generator().manual_seed(0))
    share = ((trained - plain).abs().amax((1, 2)) > 1e-6).double().mean().item()
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 4000)


# ---- the context is prepared once ---------------------------------------------------------------------------------------------


def test_prepared_context_equals_recomputation_at_every_integration_step(monkeypatch):
    decoder, given = make(), inputs()
    calls = 0
    original = CrossAttention.keys_and_values

    def counted(self: CrossAttention, context: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return original(self, context)

    monkeypatch.setattr(CrossAttention, "keys_and_values", counted)
    taus = torch.linspace(1, 0, 11, dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {"once": [], "naive": []}

    def velocity(name: str, x: Tensor, tau: Tensor) -> Tensor:
        context = prepared if name == "once" else decoder.prepare_context(given["hidden"])
        seen[name].append(decoder(x, tau.expand(len(x)), context, given["tau_video"], given["proprio"]))
        return seen[name][-1]

    with torch.no_grad():
        prepared = decoder.prepare_context(given["hidden"])
        once = flow.integrate(lambda x, tau: velocity("once", x, tau), given["actions"], taus)
        assert calls == DEPTH  # once per block and chunk
        naive = flow.integrate(lambda x, tau: velocity("naive", x, tau), given["actions"], taus)
    assert calls == DEPTH * 11
    assert len(seen["once"]) == 10
    for fast, slow in zip(seen["once"], seen["naive"], strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    torch.testing.assert_close(once, naive, atol=1e-12, rtol=0)


def test_draws_share_a_context_and_equal_separate_passes():
    decoder, given = make(), inputs(samples=6, contexts=2)
    together = run(decoder, given)
    for draw in range(3):
        rows = torch.tensor([draw, 3 + draw])  # sample i reads context i // draws
        alone = run(decoder, {name: value if name == "hidden" else value[rows] for name, value in given.items()})
        torch.testing.assert_close(together[rows], alone, atol=1e-12, rtol=0)


def test_gradients_of_draws_reach_the_context_projections_as_separate_passes_would():
    decoder, given = make(), inputs(samples=4, contexts=2)
    run(decoder, given).square().sum().backward()
    folded = {name: weight.grad.clone() for name, weight in decoder.named_parameters()}
    decoder.zero_grad()
    repeated = given | {"hidden": given["hidden"].repeat_interleave(2, dim=0)}
    run(decoder, repeated).square().sum().backward()
    for name, weight in decoder.named_parameters():
        assert folded[name].any() or name == "proprio_mask_token", name
        torch.testing.assert_close(folded[name], weight.grad, atol=1e-10, rtol=1e-8)


# ---- sizes and initial values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        (DecoderShape(2048, 10, 10, 60), {}, 499_036_810),  # LIBERO, 61 positions
        (DecoderShape(2048, 10, 10, 15), {}, 498_990_730),  # Bridge, 16 positions
        (DecoderShape(2048, 6, 6, 60), {"width": 256, "depth": 4, "heads": 4, "adaln_dim": 64}, 9_223_858),  # a log of a fork
    ],
)
def test_parameter_counts(shape, options, count):
    with torch.device("meta"):
        decoder = DiTDecoder(shape, **options)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count


def test_hops_grow_geometrically():
    assert hop_widths(10, 1024) == [10, 47, 220, 1024]
    assert hop_widths(4, 64) == [4, 16, 64]
    assert hop_widths(4, 6) == [4, 6]
    assert hop_widths(600, 512) == [600, 512]


def test_initial_values():
    torch.manual_seed(0)
    decoder = DiTDecoder(DecoderShape(64, 10, 10, 30), width=512, depth=1, heads=4, adaln_dim=32)
    weights = dict(decoder.named_parameters())
    for name in ("time.action", "time.video", "time.shared", "time.action_factor", "blocks.0.mlp.0", "head.to_velocity"):
        weight = weights[f"{name}.weight"]
        std = 1 / math.sqrt(weight.shape[1])
        assert weight.abs().max() <= 3 * std
        assert abs(weight.std().item() / std - 0.987) < 0.03  # a normal cut at three deviations keeps 0.987 of its own
    for name in ("blocks.0.mlp.2", "blocks.0.cross_attention.to_kv", "blocks.0.cross_modulation.down"):
        weight = weights[f"{name}.weight"]
        assert abs(weight.std().item() * math.sqrt(weight.shape[1]) - 0.987) < 0.05
    for name in ("time.action_factor.bias", "time.video_factor.bias"):
        assert torch.equal(weights[name], torch.full((512,), 0.38205))
    for name in ("time.action.bias", "time.video.bias", "embed_action.layers.0.bias", "embed_action.layers.2.bias"):
        assert not weights[name].any()
    zero = {name for name, weight in weights.items() if weight.ndim == 2 and not weight.any()}
    assert zero == {name for name in weights if name.endswith("modulation.up.weight")}  # W2 and no other matrix
    assert len(zero) == 4
    first, last = weights["embed_action.layers.0.weight"], weights["embed_action.layers.2.weight"]
    assert abs(first.abs().max().item() / math.sqrt(6 / 10) - 1) < 0.02  # Kaiming-uniform bound, ReLU gain
    assert abs(last.abs().max().item() / math.sqrt(3 / last.shape[1]) - 1) < 0.02  # linear gain
    for name in ("proprio_mask_token", "positions"):
        assert abs(weights[name].std().item() * math.sqrt(512) - 0.987) < 0.1


def test_gates_are_open_at_the_start():
    """A is not zero, so an untrained decoder already depends on everything."""
    torch.manual_seed(0)
    decoder = DiTDecoder(SHAPE, width=WIDTH, depth=DEPTH, heads=HEADS, adaln_dim=RANK).double().eval()
    plain, given = run(decoder, inputs()), inputs()
    for name in given:
        other = run(decoder, given | {name: given[name] * 0.5})
        assert (other - plain).abs().max() > 1e-6, name


def test_no_biases_but_in_embedders_time_and_context_norm():
    biased = {name for name, _ in make().named_parameters() if name.endswith("bias")}
    assert {name.split(".")[0] for name in biased} == {"embed_proprio", "embed_action", "time", "context_norm"}


# ---- precision and refusals ---------------------------------------------------------------------------------------------------


def test_bfloat16_autocast_stays_close_and_returns_fp32():
    decoder, given = make().float(), {name: value.float() for name, value in inputs().items()}
    exact = run(decoder, given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(decoder, given | {"hidden": given["hidden"].bfloat16()})
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


COMPILED = """
import torch
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder

torch.manual_seed(0)
decoder = DiTDecoder(DecoderShape(12, 2, 3, 4), width=16, depth=2, heads=2, adaln_dim=4)
hidden, actions, proprio = torch.randn(2, 5, 12), torch.randn(4, 4, 2), torch.randn(4, 1, 3)
tau_action, tau_video = torch.rand(4), torch.rand(4)

def run():
    return decoder(actions, tau_action, decoder.prepare_context(hidden), tau_video, proprio, torch.Generator().manual_seed(3))

names, plain = list(decoder.state_dict()), run()
decoder.compile(backend="aot_eager", fullgraph=True)
compiled = run()
compiled.sum().backward()
assert list(decoder.state_dict()) == names
torch.testing.assert_close(compiled, plain)
"""


def test_the_compiler_takes_the_whole_trunk():
    """In a process of its own, since the checks of annotations that tests run under cannot be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30, "heads": 4}, "divisible by heads, got width=30, heads=4"),
        ({"time_rank": 16}, "time_rank must equal width .* got 16 and 32"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"proprio_mask_probability": 1.5}, r"\[0, 1\], got 1.5"),
    ],
)
def test_wrong_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_inputs_are_named():
    decoder, given = make(), inputs(samples=4, contexts=3)
    with pytest.raises(ValueError, match="4 samples cannot share 3 contexts"):
        run(decoder, given)
    with pytest.raises(ValueError, match="7 wide, this decoder was built for 20"):
        decoder.prepare_context(torch.zeros(1, 4, 7))
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        DecoderShape(8, 2, 2, 0)
