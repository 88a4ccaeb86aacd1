"""LoRA merged into the weights while it trains: rounding, gradients against the plain layers, and how it follows the weights."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.nn.utils import parameters_to_vector

from mimicvideo.execution import Execution
from mimicvideo.video import fast_transformer
from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.merged_lora import MergedBlocks, dithered, merge

MERGED = Execution(compile=None, merge_lora=True)
UNIT = 2.0**-7  # of bf16 in [1, 2)


def velocities_and_gradients(build, inputs, perturb, execution, dtype=torch.float32, **options):
    torch.manual_seed(0)
    backbone = build(Lora(rank=4, alpha=8), execution=execution, **options).to(dtype)
    perturb(backbone)
    noisy, tau, condition = inputs(backbone).all()
    velocity = backbone.velocity(noisy.to(dtype), tau, condition)
    velocity.square().mean().backward()
    return velocity.detach(), {name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None}


# ---- rounding -----------------------------------------------------------------------------------------------------------------


def test_what_bf16_holds_stays_as_it_is() -> None:
    values = torch.tensor([[0.0, -0.0, 1.0, -1.0, 3.0e38, -1e-40, float("inf"), -float("inf")]]).bfloat16()
    assert torch.equal(dithered(values.float().expand(300, -1)), values.expand(300, -1))
    random = torch.randn(64, 500).bfloat16()
    assert torch.equal(dithered(random.float()), random)
    assert dithered(torch.full((3, 5), float("nan"))).isnan().all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.99])
def test_rounding_is_right_on_average_along_rows_and_along_columns(sign, part) -> None:
    x = torch.full((512, 512), sign * (1 + part * UNIT))
    rounded = dithered(x).float()
    assert set(rounded.unique().tolist()) == {sign * 1.0, sign * (1 + UNIT)}
    for mean in (rounded.mean(0), rounded.mean(1)):
        assert (mean - x[0, 0]).abs().max() < 0.01 * UNIT


def test_updates_far_below_a_unit_of_the_weights_are_felt_as_they_should() -> None:
    """The slope of what the merged layer adds over what LoRA adds; rounded to the nearest it would be zero."""
    torch.manual_seed(0)
    weight = torch.randn(256, 1024).bfloat16()
    update = 2e-4 * torch.randn(256, 8) @ torch.randn(8, 1024)  # a tenth of half a unit of a typical weight
    x = torch.randn(2000, 1024)
    added, given = x @ (merge(weight, update, 1.0, torch.bfloat16).float() - weight.float()).t(), x @ update.t()
    assert ((added * given).sum() / given.square().sum()).item() == pytest.approx(1, abs=0.05)
    assert (added - given).norm() < 2**-8 * (x @ weight.float().t()).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merging_is_the_same_compiled(dtype) -> None:
    weight, update = torch.randn(96, 160).bfloat16(), 0.01 * torch.randn(96, 160)
    merged = torch.compile(merge, dynamic=False)(weight, update, 0.5, dtype)
    assert torch.equal(merged, merge(weight, update, 0.5, dtype))
    assert (merged.float() - weight.float() - 0.5 * update).abs().max() <= 2.0**-7 * weight.abs().max().float()


# ---- the same function --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_velocity_and_gradients_are_the_plain_ones(build, inputs, perturb, dtype, tolerance, checkpointing) -> None:
    plain, wanted = velocities_and_gradients(build, inputs, perturb, None, dtype)
    merged, found = velocities_and_gradients(build, inputs, perturb, MERGED, dtype, gradient_checkpointing=checkpointing)
    torch.testing.assert_close(merged, plain, rtol=tolerance, atol=tolerance)
    assert found.keys() == wanted.keys() and sum("lora" in name for name in found) > 60
    for name, gradient in wanted.items():
        assert found[name].dtype == gradient.dtype
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm().clamp(min=1e-3), name


def test_in_bf16_gradients_are_nearly_as_exact_as_those_of_separate_layers(build, inputs, perturb) -> None:
    def gradients(dtype: str, execution: Execution) -> torch.Tensor:
        torch.manual_seed(0)
        backbone = build(Lora(rank=4, alpha=8), dtype=dtype, execution=execution)
        perturb(backbone)
        with torch.no_grad():
            for weight in backbone.transformer.parameters():
                weight.copy_(weight.bfloat16())
        noisy, tau, condition = inputs(backbone).all()
        backbone.velocity(noisy, tau, condition).square().mean().backward()
        return parameters_to_vector(weight.grad for weight in backbone.parameters() if weight.grad is not None)

    exact = gradients("float32", Execution(compile=None))
    apart, merged = ((gradients("bfloat16", way) - exact).norm() / exact.norm() for way in (Execution(compile=None), MERGED))
    assert 1e-3 < apart < 0.05 and merged < 1.5 * apart


# ---- following the weights ----------------------------------------------------------------------------------------------------


def test_it_follows_every_step_and_equals_the_plain_model_after_several(build, inputs, perturb) -> None:
    ends = []
    for execution in (None, MERGED):
        torch.manual_seed(0)
        backbone = build(Lora(rank=4, alpha=8), execution=execution)
        perturb(backbone)
        trained = [weight for weight in backbone.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, eps=1e-3)
        noisy, tau, condition = inputs(backbone).all()
        for _ in range(3):
            backbone.velocity(noisy, tau, condition).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((parameters_to_vector(trained).detach(), backbone.velocity(noisy, tau, condition).detach()))
    for found, wanted in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_weights_are_merged_when_they_changed_and_only_then(build, inputs, monkeypatch) -> None:
    merged = []
    update = MergedBlocks._update
    monkeypatch.setattr(MergedBlocks, "_update", lambda self, layers: (merged.extend(layers), update(self, layers)))
    backbone = build(Lora(rank=4, alpha=8), execution=MERGED)
    sample = inputs(backbone).all()
    backbone.velocity(*sample)
    layers = len(merged)
    assert layers == 10 * backbone.num_blocks
    backbone.velocity(*sample)  # gradients of several passes may add up before a step
    with torch.no_grad():
        backbone.velocity(*sample)
    assert len(merged) == layers
    first = merged[0].merged
    with torch.no_grad():
        next(weight for name, weight in backbone.named_parameters() if "attn1.to_q.lora_B" in name).add_(0.1)
    backbone.velocity(*sample)
    assert len(merged) == 2 * layers and merged[layers].merged is first  # in place
    before = backbone.velocity(*sample)
    backbone.load_adapter_state(build(Lora(rank=4, alpha=8)).adapter_state())
    assert not torch.equal(backbone.velocity(*sample), before)


def test_a_model_that_is_moved_to_another_dtype_is_merged_anew(build, inputs) -> None:
    backbone = build(Lora(rank=4, alpha=8), execution=MERGED)
    noisy, tau, condition = inputs(backbone).all()
    before = backbone.velocity(noisy, tau, condition)
    with torch.autocast("cpu", torch.bfloat16):
        assert 1e-3 < (backbone.velocity(noisy, tau, condition) - before).norm() / before.norm() < 0.05
    backbone.double()
    torch.testing.assert_close(backbone.velocity(noisy.double(), tau, condition).float(), before, rtol=1e-4, atol=1e-5)


def test_weights_that_are_saved_know_nothing_of_it(build, inputs) -> None:
    backbone = build(Lora(rank=4, alpha=8), execution=MERGED)
    names = list(backbone.state_dict())
    backbone.velocity(*inputs(backbone).all()).square().mean().backward()
    assert list(backbone.state_dict()) == names


def rescale(transformer) -> None:
    transformer.set_adapters("default", 0.3)


def add_second(transformer) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False), "other")
    transformer.set_adapters(["default", "other"])


CHANGES = {
    "rescaled": rescale,
    "off": lambda transformer: transformer.disable_adapters(),
    "fused": lambda transformer: transformer.fuse_lora(),
    "two": add_second,
    "deleted": lambda transformer: transformer.delete_adapters("default"),
}


@pytest.mark.parametrize("execution", [MERGED, Execution(compile=None)], ids=["merged", "apart"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_peft_does_to_the_layers_is_seen_at_once(build, inputs, perturb, change, execution) -> None:
    found = []
    for way in (None, execution):
        torch.manual_seed(0)
        backbone = build(Lora(rank=4, alpha=8), execution=way)
        perturb(backbone)
        sample = inputs(backbone).all()
        before = backbone.velocity(*sample).detach()
        with torch.no_grad():
            backbone.requires_grad_(False).velocity(*sample)  # which keeps the text's keys
            change(backbone.transformer)
            velocities = [backbone.requires_grad_(False).velocity(*sample)]
        for name, weight in backbone.transformer.named_parameters():
            weight.requires_grad_("lora_" in name)
        velocities.append(backbone.velocity(*sample).detach())
        assert change is CHANGES["fused"] or not torch.allclose(velocities[0], before, atol=1e-2)
        found.append(torch.stack(velocities))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_layers_whose_base_trains_beside_a_lora_get_all_of_their_gradients(build, inputs, perturb) -> None:
    adaptation = Lora(rank=4, alpha=8, targets=["to_q", "norm1.linear_1"], adaln=True)
    velocities, gradients = [], []
    for execution in (None, MERGED):
        torch.manual_seed(0)
        backbone = build(adaptation, execution=execution)
        perturb(backbone)
        velocity = backbone.velocity(*inputs(backbone).all())
        velocity.square().mean().backward()
        velocities.append(velocity.detach())
        gradients.append({name: weight.grad for name, weight in backbone.named_parameters() if weight.requires_grad})
    torch.testing.assert_close(*velocities, rtol=1e-5, atol=1e-5)
    assert any(name.endswith("norm1.linear_1.base_layer.weight") for name in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


# ---- refusals -----------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_merged_is_refused(build, inputs) -> None:
    with pytest.raises(ValueError, match="fp8_training and merge_lora are both true.*choose one"):
        Execution(fp8="row", fp8_training=True, merge_lora=True)
    for adaptation, message in (
        (Lora(rank=4, dropout=0.1), r"no place for LoRA's dropout, which is 0.1: set that to 0"),
        (Full(), "merge_lora is for a LoRA, the adaptation is Full: set it to false"),
    ):
        with pytest.raises(ValueError, match=message):
            build(adaptation, execution=MERGED)
    backbone = build(Lora(rank=4), execution=MERGED)
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="not for fp16"):
        backbone.velocity(*inputs(backbone).all())


def test_divided_weights_are_refused(build, inputs, monkeypatch) -> None:
    backbone = build(Lora(rank=4), execution=MERGED)
    monkeypatch.setattr(fast_transformer, "FSDPModule", nn.Module)
    with pytest.raises(RuntimeError, match="execution.merge_lora needs whole weights, but FSDP divides them"):
        backbone._fast._network((), True, torch.device("cpu"))


@pytest.mark.parametrize("adaptation", [Frozen(), Lora(rank=4, targets=["patch_embed.proj"])])
def test_nothing_is_merged_where_no_block_has_a_lora(build, inputs, adaptation) -> None:
    plain, merged = build(adaptation), build(adaptation, execution=MERGED)
    sample = inputs(plain).all()
    torch.testing.assert_close(merged.velocity(*sample), plain.velocity(*sample), rtol=1e-5, atol=1e-5)


# ---- on a GPU -----------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [None, "default"])
def test_on_a_gpu_gradients_are_nearly_those_of_separate_layers(build, inputs, perturb, compile) -> None:
    gradients = []
    for execution in (None, Execution(compile=compile, merge_lora=True)):
        torch.manual_seed(0)
        backbone = build(Lora(rank=16, alpha=16), dtype="bfloat16", execution=execution).cuda()
        perturb(backbone)
        sample = inputs(backbone)
        backbone.velocity(sample.noisy.cuda(), sample.tau.cuda(), sample.condition).square().mean().backward()
        gradients.append(parameters_to_vector(weight.grad for weight in backbone.parameters() if weight.grad is not None))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()
