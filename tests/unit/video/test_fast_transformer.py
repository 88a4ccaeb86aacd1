"""FastTransformer against diffusers' forward pass: levels, blocks, gradients, precision; and what it computes only once."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from mimicvideo.execution import Execution
from mimicvideo.video import flash4, fp8_attention
from mimicvideo.video import fp8 as fp8_products
from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.pretrained import write_manifest

EAGER = Execution(compile=None)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def pair(build, adaptation=None, dtype=torch.float32, **options) -> tuple[CosmosPredict, CosmosPredict]:
    """The plain model and the fast one, with equal weights."""
    models = []
    for execution in (None, EAGER):
        torch.manual_seed(0)  # of LoRA's start
        models.append(build(adaptation, execution=execution, **options).to(dtype))
    return models[0], models[1]


def lora_gradients(build, inputs, perturb, execution, rank: int, checkpointing, device: str) -> list[torch.Tensor]:
    """All gradients as one vector, of the plain model and of the fast one, which have the same weights with gradients."""
    gradients = []
    for way in (None, execution):
        torch.manual_seed(0)
        adaptation = Lora(rank=rank, alpha=rank)
        backbone = build(adaptation, dtype="bfloat16", gradient_checkpointing=checkpointing, execution=way).to(device)
        perturb(backbone)
        noisy, tau, condition = inputs(backbone).all()
        backbone.velocity(noisy.to(device), tau.to(device), condition).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    return [torch.cat([gradient.flatten() for gradient in each.values()]) for each in gradients]


def velocities_on_gpu(build, inputs, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain model's and the fast one's, executed as the options say."""
    plain = build(dtype="bfloat16").cuda()
    fast = build(dtype="bfloat16", execution=Execution(compile=None, **options)).cuda()
    sample = inputs(plain)
    arguments = sample.noisy.cuda(), sample.tau.cuda(), sample.condition
    with torch.no_grad():
        return plain.velocity(*arguments), fast.velocity(*arguments)


@contextmanager
def counted(*modules: torch.nn.Module):
    """The shapes of everything that enters them."""
    shapes: list[torch.Size] = []
    handles = [module.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape)) for module in modules]
    yield shapes
    for handle in handles:
        handle.remove()


# ---- the same function --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional_sigma", [1e-4, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_velocity_and_states_at_several_levels_are_the_plain_ones(build, inputs, dtype: torch.dtype, conditional_sigma) -> None:
    plain, fast = pair(build, dtype=dtype, conditional_sigma=conditional_sigma)
    sample = inputs(plain, z_observed=2, num_observed=[1, 2])
    taus = torch.tensor([0.98765, 0.5, 0.05], dtype=dtype)
    noisy = torch.stack([(1 - tau) * sample.clean.to(dtype) + tau * sample.noise.to(dtype) for tau in taus])
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    with torch.no_grad():
        expected = plain.hidden_states_by_level(noisy, taus, sample.condition, [0, 2, 3])
        states = fast.hidden_states_by_level(noisy, taus, sample.condition, [0, 2, 3])
        assert list(states) == [0, 2, 3]
        for block, state in states.items():
            torch.testing.assert_close(state, expected[block], **tolerance)
        for level, tau in enumerate(taus):
            arguments = noisy[level], tau.expand(2), sample.condition
            torch.testing.assert_close(fast.velocity(*arguments), plain.velocity(*arguments), **tolerance)


@pytest.mark.parametrize("adaptation", [Lora(rank=2, alpha=2), Full()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_velocity_and_of_states_are_the_plain_ones(build, inputs, perturb, adaptation, dtype: torch.dtype) -> None:
    gradients = []
    for backbone in pair(build, adaptation, dtype):
        perturb(backbone)
        noisy, tau, condition = inputs(backbone).all()
        loss = backbone.velocity(noisy.to(dtype), tau, condition).square().mean()
        loss = loss + sum(state.square().mean() for state in backbone.hidden_states(noisy.to(dtype), tau, condition, [1, 2]).values())
        loss.backward()
        gradients.append({name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None})
    plain, fast = gradients
    assert plain.keys() == fast.keys() and len(plain) > 50
    for name, gradient in plain.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(fast[name], gradient, rtol=0, atol=max(scale, 1e-3) * TOLERANCE[dtype], msg=name)


def test_in_bfloat16_it_is_as_near_to_the_exact_result_as_the_plain_pass(build, inputs) -> None:
    exact, _ = pair(build, dtype=torch.float64)
    plain, fast = pair(build, dtype=torch.float32, **{})
    rounded = [build(dtype="bfloat16", execution=execution) for execution in (None, EAGER)]
    sample = inputs(exact)
    with torch.no_grad():
        reference = exact.velocity(sample.noisy.double(), sample.tau, sample.condition).float()
        errors = [(model.velocity(*sample.all()) - reference).norm() / reference.norm() for model in (*rounded, plain, fast)]
        assert all(model.hidden_states(*sample.all(), [1])[1].dtype == torch.bfloat16 for model in rounded)
    assert errors[1] < 1.3 * errors[0] < 0.03
    assert max(errors[2:]) < 1e-5


def test_the_projection_of_the_text_is_part_of_it(own_trio, build, inputs) -> None:
    config = {**CosmosTransformer3DModel.load_config(own_trio / "transformer"), "use_crossattn_projection": True}
    config |= {"crossattn_proj_in_channels": 32, "encoder_hidden_states_channels": 24, "text_embed_dim": 24}
    torch.manual_seed(0)
    CosmosTransformer3DModel.from_config(config).save_pretrained(own_trio / "transformer")
    write_manifest(own_trio)
    plain, fast = pair(build, pretrained=str(own_trio))
    sample = inputs(plain)
    with torch.no_grad():
        torch.testing.assert_close(fast.velocity(*sample.all()), plain.velocity(*sample.all()), rtol=1e-5, atol=1e-5)


def test_denoising_with_guidance_is_the_plain_one(build, inputs) -> None:
    plain, fast = pair(build)
    sample, taus = inputs(plain, z_observed=2, num_observed=[1, 2]), torch.linspace(0.98, 0.2, 4)
    ends = [model.denoise(sample.noise, taus, sample.condition, "ab2", guidance=2.0) for model in (plain, fast)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


def test_a_model_may_change_its_execution(build, inputs) -> None:
    backbone = build()
    sample = inputs(backbone)
    with torch.no_grad():
        plain = backbone.velocity(*sample.all())
        backbone.execute(EAGER)
        with counted(backbone.transformer) as calls:
            fast = backbone.velocity(*sample.all())
        assert not calls  # diffusers' forward pass did not run
        backbone.execute(None)
        assert torch.equal(backbone.velocity(*sample.all()), plain)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


COMPILED = """
import torch
from torch._dynamo.utils import counters
from mimicvideo.video.adaptation import Frozen, Lora
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.execution import Execution
from tests.tiny_trio import tiny_trio
from tests.unit.video.conftest import Inputs, perturb

compile = torch.compile
modes = []
def eager_compile(function, mode=None, dynamic=None):
    modes.append((mode, dynamic))
    return compile(function, backend="aot_eager", dynamic=dynamic, fullgraph=True)
torch.compile = eager_compile

low = Lora(rank=2, alpha=2)
ways = [(False, Frozen(), False), (False, low, False), ("selective", low, False), ("selective", low, True)]
for checkpointing, adaptation, merged in ways:
    results = []
    for execution in (None, Execution(merge_lora=merged)):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        backbone = CosmosPredict(tiny_trio(), adaptation, prompt_tokens=8, gradient_checkpointing=checkpointing, execution=execution)
        perturb(backbone)
        sample = Inputs(backbone)
        velocity = backbone.velocity(*sample.all())
        trained = [weight for weight in backbone.parameters() if weight.requires_grad]
        if trained:
            velocity.square().mean().backward()
        results.append([velocity.detach(), *(weight.grad for weight in trained)])
    shapes = 3 if merged else 0  # of sums of weights: square, and both of the MLP
    assert counters["stats"]["unique_graphs"] == 1 + shapes, counters["stats"]  # four blocks, one compilation
    for fast, plain in zip(*reversed(results), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
assert set(modes) == {("default", False)}
"""


def test_all_blocks_share_one_compilation_and_compute_the_same() -> None:
    """In a process of its own, since the checks of annotations that tests run under cannot be compiled."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], check=True)


# ---- computed once ------------------------------------------------------------------------------------------------------------


def test_modulation_sees_frames_where_diffusers_shows_it_tokens(build, inputs) -> None:
    plain, fast = pair(build)
    sample = inputs(plain)
    for model, rows in ((plain, 3 * 2 * 3), (fast, 3)):
        norms = [getattr(block, name).linear_1 for block in model.transformer.transformer_blocks for name in ("norm1", "norm2", "norm3")]
        with torch.no_grad(), counted(*norms, model.transformer.norm_out.linear_1) as shapes:
            model.velocity(*sample.all())
        assert set(shapes) == {(2, rows, 32)} and len(shapes) == 13


def text_keys(backbone: CosmosPredict) -> list[torch.nn.Module]:
    return [block.attn2.to_k for block in backbone.transformer.transformer_blocks]


def test_the_texts_keys_are_computed_once_per_prompt_and_anew_when_weights_change(build, inputs) -> None:
    plain, fast = pair(build)
    with torch.no_grad(), counted(*text_keys(fast)) as shapes:
        sample = inputs(fast)
        fast.hidden_states(*sample.all(), [2])
        assert len(shapes) == 3
        sample = inputs(fast)  # the prompts are encoded again: the same tensor
        fast.hidden_states(*sample.all(), [2])
        assert len(shapes) == 3
        other = VideoCondition(fast.encode_prompt(["close the drawer"] * 2), sample.condition.observed)
        for model in (fast, plain):
            other_states = model.hidden_states(sample.noisy, sample.tau, other, [2])[2]
        assert len(shapes) == 6
        torch.testing.assert_close(fast.hidden_states(sample.noisy, sample.tau, other, [2])[2], other_states, rtol=1e-5, atol=1e-5)
        fast.hidden_states(*sample.all(), [2])
        assert len(shapes) == 6  # both are kept
        for model in (fast, plain):
            text_keys(model)[1].weight.mul_(-1.5)
        changed = fast.hidden_states(*sample.all(), [2])[2]
        assert len(shapes) == 9
        torch.testing.assert_close(changed, plain.hidden_states(*sample.all(), [2])[2], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(changed, other_states, atol=1e-2)


def test_text_that_is_written_to_is_read_again(build, inputs) -> None:
    plain, fast = pair(build)
    sample = inputs(fast)
    prompt = sample.condition.prompt.clone()
    condition = VideoCondition(prompt, sample.condition.observed)
    with torch.no_grad():
        fast.velocity(sample.noisy, sample.tau, condition)
        prompt.mul_(-1)
        expected = plain.velocity(sample.noisy, sample.tau, condition)
        torch.testing.assert_close(fast.velocity(sample.noisy, sample.tau, condition), expected, rtol=1e-5, atol=1e-5)


def test_text_is_read_anew_and_graphs_are_captured_anew_in_another_precision(build, inputs) -> None:
    fast = build(execution=EAGER)
    sample, keys = inputs(fast).all(), []
    fast._fast.graphs = lambda key, function, *tensors: (keys.append(key), function(*tensors))[1]
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                assert torch.equal(fast.velocity(*sample), build(execution=EAGER).velocity(*sample))
    assert len(set(keys)) == 3


def test_nothing_is_kept_of_weights_that_train(build, inputs, perturb) -> None:
    plain, fast = pair(build, Lora(rank=2, alpha=2))
    sample = inputs(fast)
    for scale in (0.0, 0.05, 0.05):
        for model in (plain, fast):
            perturb(model, scale)
        with torch.no_grad():
            torch.testing.assert_close(fast.velocity(*sample.all()), plain.velocity(*sample.all()), rtol=1e-4, atol=1e-5)


def test_a_merged_adapter_is_seen_at_once(build, inputs, perturb) -> None:
    trained = build(Lora(rank=2, alpha=2))
    perturb(trained)
    fast = build(Frozen(), execution=EAGER)
    sample = inputs(fast)
    with torch.no_grad():
        before = fast.velocity(*sample.all())
        fast.load_adapter_state(trained.adapter_state())
        after = fast.velocity(*sample.all())
        torch.testing.assert_close(after, trained.velocity(*sample.all()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("execution", [None, EAGER])
def test_what_inference_mode_leaves_behind_may_be_trained_on(build, inputs, perturb, execution) -> None:
    backbone = build(Lora(rank=2, alpha=2), execution=execution)
    perturb(backbone)
    with torch.inference_mode():
        first = backbone.velocity(*inputs(backbone).all())
    loss = backbone.velocity(*inputs(backbone).all())
    loss.square().mean().backward()
    assert torch.equal(loss.detach(), first)
    frozen = build(execution=execution)
    with torch.inference_mode():
        first = frozen.velocity(*inputs(frozen).all())
    with torch.no_grad():
        assert torch.equal(frozen.velocity(*inputs(frozen).all()), first)


def test_rotary_angles_are_computed_once_per_shape(build, inputs) -> None:
    _, fast = pair(build)
    sample = inputs(fast)
    with torch.no_grad(), counted(fast.transformer.rope) as shapes:
        for _ in range(3):
            fast.velocity(*sample.all())
        assert len(shapes) == 1
        short = VideoCondition(sample.condition.prompt, sample.condition.observed)
        fast.velocity(sample.noisy[:, :, :2], sample.tau, short)
        fast.velocity(*sample.all())
        assert len(shapes) == 2


def test_prompts_on_the_device_are_the_same_tensor_again(build) -> None:
    backbone = build()
    first = backbone.encode_prompt(["open the drawer", "press the button"])
    assert backbone.encode_prompt(["open the drawer", "press the button"]) is first
    swapped = backbone.encode_prompt(["press the button", "open the drawer"])
    assert torch.equal(swapped, first.flip(0))
    for index in range(10):
        backbone.encode_prompt([f"task {index}"])
    assert torch.equal(backbone.encode_prompt(["open the drawer", "press the button"]), first)


# ---- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compile": "fastest"}, "execution.compile must be default.*'fastest'"),
        ({"fp8": "block"}, "execution.fp8 must be row.*'block'"),
        ({"attention": "flash"}, "execution.attention must be torch, flash4 or fp8.*'flash'"),
        ({"fp8_training": True}, "execution.fp8 is null: set it to row or tensor"),
    ],
)
def test_unknown_ways_of_execution_are_refused(values, message) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{message}|type"):
        Execution(**values)


def test_two_compilations_are_refused(build) -> None:
    with pytest.raises(ValueError, match="use execution.compile"):
        build(compile=True, execution=Execution())


def test_parts_that_are_not_covered_are_named(own_trio, build) -> None:
    config = {**CosmosTransformer3DModel.load_config(own_trio / "transformer"), "extra_pos_embed_type": "learnable"}
    CosmosTransformer3DModel.from_config(config).save_pretrained(own_trio / "transformer")
    write_manifest(own_trio)
    with pytest.raises(ValueError, match="does not cover.*extra_pos_embed_type.*learnable"):
        build(pretrained=str(own_trio), execution=EAGER)


def test_fp8_is_refused_where_there_is_none(build, inputs) -> None:
    backbone = build(execution=Execution(compile=None, fp8="row"))
    with torch.no_grad(), pytest.raises(RuntimeError, match="compute capability 8.9.*on cpu: set execution.fp8 to null"):
        backbone.velocity(*inputs(backbone).all())


@pytest.fixture
def emulated(monkeypatch, scaled_mm) -> None:
    """FP8 products on the CPU."""
    monkeypatch.setattr(fp8_products, "check_hardware", lambda device: None)


FP8_TRAINING = Execution(compile=None, fp8="row", fp8_training=True)


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_fp8_under_lora_trains_with_nearly_the_same_gradients(build, inputs, perturb, emulated, checkpointing) -> None:
    plain, eight = lora_gradients(build, inputs, perturb, FP8_TRAINING, 16, checkpointing, "cpu")
    assert 1e-3 < (eight - plain).norm() / plain.norm() < 0.2


def test_fp8_in_training_follows_new_frozen_weights_and_passes_without_gradients_use_it_too(build, inputs, emulated) -> None:
    backbone = build(Lora(rank=16, alpha=16), execution=FP8_TRAINING)
    noisy, tau, condition = inputs(backbone).all()
    before = backbone.velocity(noisy, tau, condition)
    made = backbone._fast._fp8
    with torch.no_grad():
        torch.testing.assert_close(backbone.velocity(noisy, tau, condition), before.detach(), rtol=0.02, atol=0.02)
        next(weight for name, weight in backbone.named_parameters() if "lora_A" in name).mul_(1.5)
    backbone.velocity(noisy, tau, condition)
    assert backbone._fast._fp8 is made  # what trains is not rounded
    with torch.no_grad():
        next(weight for name, weight in backbone.named_parameters() if "attn1.to_v.base_layer" in name).mul_(2)
    after = backbone.velocity(noisy, tau, condition)
    assert backbone._fast._fp8 is not made and (after - before).norm() > 0.01 * before.norm()


def test_fp8_in_training_is_refused_where_everything_trains(build) -> None:
    with pytest.raises(ValueError, match="with Full all weights train: set it to false"):
        build(Full(), execution=FP8_TRAINING)


def test_flash_attention_is_left_aside_off_gpu(build, inputs) -> None:
    plain, fast = build(), build(execution=Execution(compile=None, attention="flash4"))
    sample = inputs(plain)
    with torch.no_grad():
        torch.testing.assert_close(fast.velocity(*sample.all()), plain.velocity(*sample.all()), rtol=1e-5, atol=1e-5)


# ---- on a GPU -----------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_passes_are_the_plain_ones_again_and_again(build, inputs, graphs: bool) -> None:
    plain = build(dtype="bfloat16").cuda()
    fast = build(dtype="bfloat16", execution=Execution(compile=None, cuda_graphs=graphs)).cuda()
    for z_observed in (1, 2, 1):
        sample = inputs(plain, z_observed=z_observed)
        for scale in (1.0, 0.5):
            arguments = (scale * sample.noisy).cuda(), sample.tau.cuda(), sample.condition
            with torch.no_grad():
                for block in (1, 2):
                    expected = plain.hidden_states(*arguments, [block])[block].float()
                    state = fast.hidden_states(*arguments, [block])[block].float()
                    assert (state - expected).norm() < 0.02 * expected.norm()
    if graphs:
        assert len(fast._fast.graphs) == 2  # one for each block that was wanted


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True, "selective", 2])
def test_on_a_gpu_gradients_are_the_plain_ones(build, inputs, perturb, checkpointing) -> None:
    plain, fast = lora_gradients(build, inputs, perturb, EAGER, 2, checkpointing, "cuda")
    assert (fast - plain).norm() < 0.05 * plain.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("scaling", ["row", "tensor"])
def test_on_a_gpu_fp8_is_near(build, inputs, scaling) -> None:
    expected, velocity = velocities_on_gpu(build, inputs, fp8=scaling)
    assert 1e-4 < (velocity - expected).norm() / expected.norm() < 0.15


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flash4", "fp8"])
def test_on_a_gpu_other_attention_is_near(build, inputs, attention) -> None:
    check = {"flash4": flash4.check, "fp8": fp8_attention.check}[attention]
    try:
        check(torch.device("cuda", 0))
    except RuntimeError as error:
        pytest.skip(str(error))
    expected, velocity = velocities_on_gpu(build, inputs, attention=attention)
    assert (velocity - expected).norm() < {"flash4": 0.02, "fp8": 0.1}[attention] * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, "selective"])
def test_on_a_gpu_gradients_through_fp8_products_are_near(build, inputs, perturb, checkpointing) -> None:
    plain, eight = lora_gradients(build, inputs, perturb, FP8_TRAINING, 2, checkpointing, "cuda")
    assert 1e-4 < (eight - plain).norm() / plain.norm() < 0.2
