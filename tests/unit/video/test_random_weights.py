"""RandomCosmos: a whole backbone without files, whose weights depend on the seed alone and leave no layer dead."""

import pytest
import torch
from torch import nn

from mimicvideo.speed.models import SIZES, Bench
from mimicvideo.video.adaptation import Frozen, Lora
from mimicvideo.video.random_weights import RandomCosmos, randomise

BENCH = Bench(SIZES["tiny"], torch.device("cpu"), "float32")


def make(**options) -> RandomCosmos:
    size = SIZES["tiny"]
    return RandomCosmos(size.transformer, Frozen(), size.vae, dtype="float32", prompt_tokens=size.prompt_tokens, **options)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = make(), make(), make(seed=1)
    pairs = list(zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b, _ in pairs)
    assert sum(not torch.equal(a, c) for (_, a), _, c in pairs) > 20
    assert one.weights_hash == same.weights_hash != other.weights_hash


def test_states_and_latents_are_alive_at_every_block() -> None:
    backbone = make()
    latents = backbone.encode_video(BENCH.video(5, batch=2))
    assert latents.isfinite().all() and 0.05 < latents.std() < 20 and not torch.allclose(latents[0], latents[1], atol=1e-3)
    clip = BENCH.latents(2)
    with torch.no_grad():
        states = backbone.hidden_states(clip, torch.tensor([0.5, 0.9]), BENCH.condition(backbone, clip), [0, 1, 2, 3])
    for state in states.values():
        assert state.isfinite().all() and 0.1 < state.std() < 100


def test_it_is_adapted_like_any_other() -> None:
    backbone = BENCH.backbone(Lora(rank=4, alpha=4))
    assert {name.split(".")[0] for name, weight in backbone.named_parameters() if weight.requires_grad} == {"transformer"}


def test_prompts_differ_by_their_text() -> None:
    backbone = make()
    first = backbone.encode_prompt(["a", "b"])
    assert first.shape == (2, 8, 32) and not torch.allclose(first[0], first[1])
    assert torch.equal(backbone.encode_prompt(["b"])[0], first[1])


def test_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d has buffers.*running_mean"):
        randomise(nn.BatchNorm1d(3), seed=0)
