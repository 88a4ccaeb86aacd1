"""Contexts against their equations in float64, their start, and refusals; the decoder is the same without one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mimicvideo.action.context import BlockContext, Context, MixContext, PooledContext, check_blocks
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder

WIDTH, TOKENS = 12, 7


def shape(blocks: int = 1) -> DecoderShape:
    return DecoderShape(context_dim=WIDTH, action_dim=2, proprio_dim=3, horizon=4, blocks=blocks)


def states(blocks: int, batch: int = 2) -> list[Tensor]:
    """Deeper blocks are larger, as in a residual stream."""
    generator = torch.Generator().manual_seed(0)
    return [3**block * torch.randn(batch, TOKENS, WIDTH, generator=generator, dtype=torch.float64) for block in range(blocks)]


def shaken(context: Context) -> Context:
    """In float64 with every weight moved, so that each counts."""
    generator = torch.Generator().manual_seed(1)
    context.double()
    with torch.no_grad():
        for weight in context.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return context


def normed(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


# ---- equations ----------------------------------------------------------------------------------------------------------------


def test_one_block_is_passed_on_and_has_no_weights():
    (hidden,) = states(1)
    context = BlockContext(shape())
    assert context(hidden) is hidden
    assert not list(context.parameters())


def test_the_decoder_without_a_context_is_the_one_with_a_block_context():
    options: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "adaln_dim": 4}
    decoders = []
    for context in (None, BlockContext):
        torch.manual_seed(0)
        decoders.append(DiTDecoder(shape(), context=context, **options))
    first, second = (decoder.state_dict() for decoder in decoders)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(name.startswith("context.") for name in first)  # checkpoints made before there was a choice still load


def test_a_mix_is_the_weighted_sum_of_normed_blocks():
    context, hidden = shaken(MixContext(shape(3))), states(3)
    weights = context.logits.exp() / context.logits.exp().sum()
    expected = sum(weights[k] * normed(hidden[k], context.norms[k]) for k in range(3))
    torch.testing.assert_close(context(*hidden), expected, atol=1e-12, rtol=0)


def test_a_mix_starts_uniform_and_learns_its_weights():
    context, hidden = MixContext(shape(3)).double(), states(3)
    mixed = context(*hidden)
    torch.testing.assert_close(mixed, sum(normed(h, context.norms[0]) for h in hidden) / 3, atol=1e-12, rtol=0)
    target = normed(hidden[1], context.norms[1]).detach()
    optimizer = torch.optim.SGD([context.logits], lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        (context(*hidden) - target).square().mean().backward()
        optimizer.step()
    assert context.logits.softmax(0)[1] > 0.8


@pytest.mark.parametrize("blocks", [1, 2])
def test_pooled_tokens_are_queries_that_read_the_video(blocks):
    heads, tokens = 3, 5
    context, hidden = shaken(PooledContext(shape(blocks), tokens=tokens, heads=heads, depth=2)), states(blocks)
    video = torch.cat([normed(h, norm) for h, norm in zip(hidden, context.norms, strict=True)], dim=1)
    x = context.queries.expand(2, -1, -1)
    for layer in context.layers:
        attention, head = layer.attention, WIDTH // heads
        q = normed(x, layer.attention_norm) @ attention.to_q.weight.T
        k, v = (video @ attention.to_kv.weight.T).chunk(2, dim=-1)
        parts = []
        for h in range(heads):
            of = slice(h * head, (h + 1) * head)
            query, key = (
                part[..., of] / (part[..., of].square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
                for part, norm in ((q, attention.query_norm), (k, attention.key_norm))
            )
            parts.append((query @ key.mT / math.sqrt(head)).softmax(-1) @ v[..., of])
        x = x + torch.cat(parts, dim=-1) @ attention.to_out.weight.T
        inner = normed(x, layer.mlp_norm) @ layer.mlp[0].weight.T
        x = x + (inner * (1 + torch.erf(inner / math.sqrt(2))) / 2) @ layer.mlp[2].weight.T
    got = context(*hidden)
    assert got.shape == (2, tokens, WIDTH)
    torch.testing.assert_close(got, x, atol=1e-12, rtol=0)


def test_a_pooled_decoder_attends_to_that_many_tokens():
    decoder = DiTDecoder(shape(2), width=16, depth=3, heads=2, adaln_dim=4, context=lambda s: PooledContext(s, tokens=5, heads=2))
    prepared = decoder.prepare_context(*(h.float() for h in states(2)))
    assert [tuple(keys.shape) for keys in prepared.keys] == [(2, 2, 5, 8)] * 3


@pytest.mark.parametrize(("kind", "blocks"), [(BlockContext, 1), (MixContext, 2), (PooledContext, 2)])
def test_contexts_take_half_precision_states(kind, blocks):
    """The backbone computes in bf16, the decoder's weights are fp32."""
    torch.manual_seed(0)
    decoder = DiTDecoder(shape(blocks), width=16, depth=1, heads=2, adaln_dim=4, context=kind)
    hidden = [h.float() / 3 for h in states(blocks)]
    exact = decoder.prepare_context(*hidden).keys[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder.prepare_context(*(h.bfloat16() for h in hidden)).keys[0]
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


# ---- refusals -----------------------------------------------------------------------------------------------------------------


def test_numbers_of_blocks_that_a_context_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"BlockContext reads one video block, got 3: give one \(block: 4\), or choose .* mix or pooled"):
        DiTDecoder(shape(3), width=16, depth=1, heads=2, adaln_dim=4)
    with pytest.raises(ValueError, match=r"MixContext mixes several video blocks, got 1: give a list \(block: \[2, 4, 6\]\)"):
        MixContext(shape(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "context.tokens must be at least 1, got 0"),
        ({"depth": 0}, "context.depth must be at least 1, got 0"),
        ({"heads": 5}, "context.heads must divide the backbone's width, got heads=5 for a width of 12"),
    ],
)
def test_wrong_sizes_of_the_resampler_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PooledContext(shape(), **options)


def test_a_decoder_refuses_states_of_another_number_of_blocks():
    decoder = DiTDecoder(shape(2), width=16, depth=1, heads=2, adaln_dim=4, context=MixContext)
    with pytest.raises(ValueError, match="got hidden states of 1 video blocks, this decoder was built for 2"):
        decoder.prepare_context(states(1)[0].float())


def test_blocks_keep_their_order_and_mistakes_are_named():
    assert check_blocks(4, 8) == (4,)
    assert check_blocks([6, 2], 8) == (6, 2)
    with pytest.raises(ValueError, match=r"block must lie in \[0, 7\] .* got 8"):
        check_blocks([2, 8], 8)
    with pytest.raises(ValueError, match=r"block names a video block twice, got \[2, 4, 2\]: give each once"):
        check_blocks([2, 4, 2], 8)
    for nothing in ([], None):  # a configuration's null
        with pytest.raises(ValueError, match="block is empty: name one"):
            check_blocks(nothing, 8)  # type: ignore[arg-type]
