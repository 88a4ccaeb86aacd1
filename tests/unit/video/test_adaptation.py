"""What trains: the paper's counts at Predict2-2B size, refused targets, and the fused update."""

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from mimicvideo.video.adaptation import ADALN_MODULES, Frozen, Full, Lora, fuse, injected_config, matches, target_layers


@pytest.fixture(scope="module")
def predict2_2b() -> CosmosTransformer3DModel:
    """Without memory for its weights."""
    with torch.device("meta"):
        return CosmosTransformer3DModel(
            in_channels=17,
            out_channels=16,
            num_attention_heads=16,
            attention_head_dim=128,
            num_layers=28,
            text_embed_dim=1024,
            adaln_lora_dim=256,
            rope_scale=(1.0, 3.0, 3.0),
            extra_pos_embed_type=None,
        )


def test_counts_at_full_size_are_the_papers(predict2_2b: CosmosTransformer3DModel) -> None:
    assert sum(parameter.numel() for parameter in predict2_2b.parameters()) == 1_956_413_440
    with torch.device("meta"):
        Lora().apply(predict2_2b, torch.nn.Module())  # type: ignore[arg-type]
    trained = {name: parameter.numel() for name, parameter in predict2_2b.named_parameters() if parameter.requires_grad}
    assert sum(count for name, count in trained.items() if "lora_" in name) == 370_690_048
    assert sum(count for name, count in trained.items() if "lora_" not in name) == 177_733_632
    assert all(matches(name.rsplit(".", 1)[0], ADALN_MODULES) for name in trained if "lora_" not in name)


def test_narrow_targets_have_the_known_count(build) -> None:
    """10 layers of a block at rank 16 on 2B are 22,937,600; here the same layers by their shapes."""
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    backbone = build(Lora(rank=2, targets=targets, adaln=False))
    layers = target_layers(backbone.transformer, targets)
    assert len(layers) == 4 * 10
    expected = sum(2 * (layer.in_features + layer.out_features) for layer in layers.values())
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == expected


def test_bare_names_would_reach_adaln_which_is_why_they_are_not_the_defaults(build) -> None:
    assert any("norm1" in name for name in target_layers(build().transformer, ["linear_1"]))
    assert not any("norm1" in name for name in target_layers(build().transformer, Lora().targets))


def test_targets_that_match_nothing_are_refused_with_near_names(build) -> None:
    with pytest.raises(ValueError, match=r"'to_queries' matches no linear layer.*to_q"):
        build(Lora(rank=2, targets=["to_k", "to_queries"]))
    with pytest.raises(ValueError, match="'norm1'"):  # a module, but not a linear one
        build(Lora(rank=2, targets=["norm1"]))


@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}])
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Lora(**options)


def test_lora_starts_as_nothing(build, frozen, inputs) -> None:
    with torch.no_grad():
        torch.testing.assert_close(build(Lora(rank=4)).velocity(*inputs(frozen).all()), frozen.velocity(*inputs(frozen).all()))


def test_dropout_acts_in_training_only(build, inputs, perturb) -> None:
    backbone = build(Lora(rank=4, dropout=0.5))
    perturb(backbone)
    sample = inputs(backbone)
    with torch.no_grad():
        backbone.eval()
        assert torch.equal(backbone.velocity(*sample.all()), backbone.velocity(*sample.all()))
        backbone.train()
        assert not torch.equal(backbone.velocity(*sample.all()), backbone.velocity(*sample.all()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_fused_model_gives_the_same_outputs(build, inputs, perturb, dtype: str, tolerance: float) -> None:
    backbone = build(Lora(rank=4, alpha=8), dtype=dtype)
    perturb(backbone)
    sample = inputs(backbone)
    with torch.no_grad():
        before, base = backbone.velocity(*sample.all()), build(dtype=dtype).velocity(*sample.all())
        backbone.fuse_adapter()
        after = backbone.velocity(*sample.all())
    assert (after - before).abs().max() < tolerance * before.abs().max()
    assert (after - base).abs().max() > 0.2 * before.abs().max()
    assert not any("lora" in name or "base_layer" in name for name, _ in backbone.named_parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert {parameter.dtype for parameter in backbone.transformer.parameters()} == {getattr(torch, dtype)}
    assert injected_config(backbone.transformer) is None


def test_fusing_sums_in_fp32_and_rounds_once(build, perturb) -> None:
    backbone = build(Lora(rank=4, alpha=8), dtype="bfloat16")
    perturb(backbone)
    layer = backbone.transformer.transformer_blocks[1].attn1.to_q
    update = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = (layer.base_layer.weight.float() + update).bfloat16()
    fuse(backbone.transformer)
    assert torch.equal(backbone.transformer.transformer_blocks[1].attn1.to_q.weight, expected)


def test_full_and_frozen_open_everything_and_nothing(build) -> None:
    full = build(Full(), dtype="bfloat16")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in full.transformer.parameters())
    assert not any(p.requires_grad for p in full.vae.parameters())
    assert not any(p.requires_grad for p in build(Frozen()).parameters())
