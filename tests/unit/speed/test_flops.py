"""Formulas of arithmetic against what torch counts while the real modules run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.execution import Execution
from mimicvideo.speed import flops
from mimicvideo.speed.ceilings import Ceilings
from mimicvideo.speed.models import SIZES, Bench
from mimicvideo.video.adaptation import Frozen, Lora

BENCH = Bench(SIZES["tiny"], torch.device("cpu"), "float32", compile=False)
CONFIG, CLIP = BENCH.size.transformer, BENCH.size.clip()


def products(function) -> int:
    """Of linear layers; torch does not count the CPU's attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    return sum(value for operation, value in counts.items() if "mm" in str(operation))


@pytest.mark.parametrize("block", [0, 2])
def test_states_cost_what_the_formula_says(block: int) -> None:
    backbone = BENCH.backbone(Frozen(), Execution(compile=None))
    latents = BENCH.latents()
    condition, tau = BENCH.condition(backbone, latents), torch.tensor([0.5])

    def states() -> None:
        with torch.no_grad():
            backbone.hidden_states(latents, tau, condition, [block])

    assert products(states) == flops.video_blocks(CONFIG, CLIP, block + 1).products
    assert products(states) == flops.video_blocks(CONFIG, CLIP, block + 1, text=False).products  # kept from the first call


def test_a_lora_step_costs_what_the_formula_says() -> None:
    """Up to what counts for little: embeddings, AdaLN, and the first block, whose input needs no gradient."""
    rank = 4
    backbone = BENCH.backbone(Lora(rank=rank, alpha=4, adaln=False), Execution(compile=None))
    latents = BENCH.latents()
    condition = BENCH.condition(backbone, latents)
    counted = products(lambda: backbone.velocity(latents, torch.tensor([0.5]), condition).square().mean().backward())
    work = flops.lora_step(CONFIG, CLIP, rank)
    assert counted == pytest.approx(work.products, rel=0.05)
    assert work.attention_backward == 2.5 * work.attention
    width, tokens = flops.width_of(CONFIG), CLIP.tokens
    assert work.attention == 4 * CONFIG["num_layers"] * width * tokens * (tokens + CLIP.text)


def test_the_true_size_has_the_known_arithmetic() -> None:
    """107 TFLOP for 20 blocks and 150 for all 28 at 19,200 tokens: 28 N D^2 + 4 N^2 D a block."""
    size = SIZES["2b"]
    assert size.clip().tokens == 19_200
    assert flops.video_blocks(size.transformer, size.clip(), 20).total / 1e12 == pytest.approx(107, rel=0.03)
    assert flops.video_blocks(size.transformer, size.clip(), 28).total / 1e12 == pytest.approx(150, rel=0.03)


def test_a_decoder_costs_what_the_formula_says() -> None:
    shape, tokens = DecoderShape(48, 3, 3, 6), 24
    width, depth, adaln_dim = 32, 2, 8
    decoder = DiTDecoder(shape, width=width, depth=depth, heads=2, adaln_dim=adaln_dim).eval()
    hidden, tau = torch.randn(1, tokens, 48), torch.tensor([0.5])
    context = decoder.prepare_context(hidden)
    assert products(lambda: decoder.prepare_context(hidden)) == flops.decoder_context(shape, width, depth, tokens).products
    counted = products(lambda: decoder(torch.randn(1, 6, 3), tau, context, tau, torch.randn(1, 1, 3)))
    formula = flops.decoder_step(shape, width, depth, adaln_dim, tokens)
    assert counted == pytest.approx(formula.products, rel=0.1)  # its embedders and head are left out, which count at this size
    assert formula.attention == 4 * depth * width * 7 * (7 + tokens)


def test_the_roofline_is_the_sum_of_the_parts_at_their_ceilings() -> None:
    ceilings = Ceilings(products=100.0, attention=50.0, attention_backward=25.0, memory=10.0, products_fp8=None)
    work = flops.Work(products=200.0, attention=50.0, attention_backward=100.0, moved=5.0)
    assert ceilings.least_seconds(work) == 2 + 1 + 4 + 0.5
    assert work.total == 350 and (work + work).total == 700 and (work * 3).moved == 15
