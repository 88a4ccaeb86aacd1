"""Acting fast: the same actions as in validation up to rounding, with the present weights, and a shorter future on demand."""

import copy
import subprocess
import sys

import pytest
import torch

from mimicvideo.action.acting import Acting, integrate
from mimicvideo.action.future import OracleFuture
from mimicvideo.ema import WeightAverage
from tests.fake_backbone import demonstrations
from tests.unit.action.test_policy import ready

OBSERVATION = demonstrations(3)["observation"]


def act(policy, **options) -> torch.Tensor:
    return policy.predict_actions(OBSERVATION, generator=torch.Generator().manual_seed(0), **options)


def awake(**options):
    """A policy whose modulations are no identity."""
    policy = ready(**options)
    with torch.no_grad():
        for weight in policy.decoder.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return policy


def test_in_fp32_the_actions_are_bit_for_bit_those_of_validation() -> None:
    policy = awake()
    plain = act(policy)
    policy.act_as(Acting())
    assert torch.equal(act(policy), plain)
    policy.act_as(None)
    assert torch.equal(act(policy), plain)


def test_in_bfloat16_they_are_near_and_those_of_autocast() -> None:
    policy = awake()
    plain = act(policy)
    policy.act_as(Acting(dtype="bfloat16"))
    rounded = act(policy)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, plain)
    assert (rounded - plain).norm() < 0.05 * plain.norm()
    given = torch.rand(3), torch.randn(3, 1, 3), torch.randn(3, 6, 2)
    hidden, decoder = torch.randn(3, 5, 12), policy.decoder
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = integrate(decoder, decoder.prepare_context(hidden), *given, policy.num_steps)
    # Weights that are rounded once give what weights that are rounded at every call give.
    torch.testing.assert_close(policy._sampler((hidden,), *given), autocast, rtol=1e-6, atol=1e-6)
    assert all(weight.dtype == torch.float32 for weight in policy.decoder.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_change_are_seen(dtype) -> None:
    policy = awake(acting=Acting(dtype=dtype))
    before = act(policy)
    twin = policy._sampler._twin()
    with torch.no_grad():
        for weight in policy.decoder.parameters():
            weight.mul_(1.1)
    after = act(policy)
    assert policy._sampler._twin() is twin and not torch.allclose(after, before)
    fresh = awake(acting=Acting(dtype=dtype))
    fresh.decoder.load_state_dict(policy.decoder.state_dict())
    assert torch.equal(act(fresh), after)


def test_weights_may_change_after_inference_mode() -> None:
    policy = awake(acting=Acting())
    with torch.inference_mode():
        before = act(policy)
    with torch.no_grad():
        policy.decoder.positions.add_(0.5)
    after = act(policy)
    policy.act_as(None)
    assert torch.equal(act(policy), after) and not torch.equal(after, before)


def test_graphs_are_captured_anew_under_another_autocast() -> None:
    policy, keys = awake(acting=Acting()), []
    policy._sampler.graphs = lambda key, function, *tensors: (keys.append(key), function(*tensors))[1]
    act(policy)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            act(policy)
    act(policy)
    assert len(set(keys)) == 3 and keys[0] == keys[-1]


def test_averaged_weights_act() -> None:
    policy = awake(acting=Acting())
    average = WeightAverage(policy.decoder, 0.5)
    before = act(policy)
    with torch.no_grad():
        for weight in policy.decoder.parameters():
            weight.add_(0.1)
    with average.applied_to(policy.decoder):
        torch.testing.assert_close(act(policy), before)
    assert not torch.allclose(act(policy), before, atol=1e-3)


def test_training_and_validation_know_nothing_of_it() -> None:
    batch, policies = demonstrations(4), (awake(), awake(acting=Acting(dtype="bfloat16", future_latents=0)))
    losses = [policy._flow_loss(batch, torch.Generator().manual_seed(1)) for policy in policies]
    assert torch.equal(*losses)
    policy = policies[1].train()
    act(policy)
    assert policy.decoder.training  # acting happens in a twin


@pytest.mark.parametrize("future", [None, 2, 1, 0])
def test_the_video_model_is_shown_as_many_latent_frames_as_said(future) -> None:
    policy, seen = awake(acting=Acting(future_latents=future)), []
    states = policy.backbone.hidden_states

    def spy(noisy, tau, condition, blocks):
        seen.append(noisy.shape[2])
        return states(noisy, tau, condition, blocks)

    policy.backbone.hidden_states = spy
    actions = act(policy)
    assert seen == [policy.z_frames if future is None else policy.z_observed + future]
    assert actions.shape == (3, 6, 2) and actions.isfinite().all()
    if future is not None and policy.z_observed + future == policy.z_frames:
        policy.act_as(None)
        assert torch.equal(act(policy), actions)


@pytest.mark.parametrize(("scale", "size"), [(1.0, (480, 640)), (0.5, (240, 320)), (0.3, (144, 192)), (0.01, (16, 16))])
def test_pictures_are_shrunk_to_whole_sixteens(scale, size) -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 255, 480), torch.linspace(0, 255, 640), indexing="ij")
    video = torch.stack([rows, columns, 0 * rows + 77], dim=-1).to(torch.uint8).expand(2, 3, -1, -1, -1)
    small = Acting(scale=scale).shrunk(video)
    assert small.shape == (2, 3, *size, 3) and small.dtype == torch.uint8
    assert torch.equal(small[..., 2], torch.full_like(small[..., 2], 77))
    ramp = (torch.arange(size[1]) + 0.5) / size[1] * 255  # a ramp stays one, but for its ends
    assert (small[1, 2, 0, 1:-1, 1].float() - ramp[1:-1]).abs().max() <= 1.5


def test_the_video_model_sees_shrunk_pictures_of_a_known_future_too() -> None:
    policy, seen = awake(acting=Acting(scale=0.5), future=OracleFuture()), []
    encode = policy.backbone.encode_video

    def spy(video):
        seen.append(tuple(video.shape[1:4]))
        return encode(video)

    policy.backbone.encode_video = spy
    height, width = OBSERVATION["video"].shape[2:4]
    actions = act(policy, future_video=demonstrations(3)["future"])
    assert {shape[1:] for shape in seen} == {Acting(scale=0.5).shrunk_size(height, width)} != {(height, width)}
    assert actions.shape == (3, 6, 2) and actions.isfinite().all()


def test_steps_may_be_fewer_when_acting() -> None:
    policy, few = awake(acting=Acting(num_steps=3)), awake(num_steps=3)
    assert torch.equal(act(policy), act(few))
    assert policy.num_steps == 10


@pytest.mark.parametrize(("name", "value"), [("scale", 0.0), ("scale", 1.5), ("num_steps", 0)])
def test_impossible_settings_are_refused(name, value) -> None:
    with pytest.raises(ValueError, match=rf"acting.{name} must .*{value}"):
        Acting(**{name: value})


def test_a_known_future_is_cut_too() -> None:
    policy = awake(acting=Acting(future_latents=1), future=OracleFuture())
    video = demonstrations(3)["future"]
    actions = act(policy, future_video=video)
    changed = video.clone()
    changed[:, 4:] = 0  # beyond the one latent frame that is shown
    assert torch.equal(act(policy, future_video=changed), actions)
    changed[:, :4] = 0
    assert not torch.equal(act(policy, future_video=changed), actions)


def test_more_future_than_a_clip_has_is_refused() -> None:
    policy = awake(acting=Acting(future_latents=3))
    with pytest.raises(ValueError, match="acting.future_latents is 3, but this policy's clips have only 2"):
        act(policy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "float16"}, "acting.dtype must be float32 or bfloat16, got 'float16'"),
        ({"future_latents": -1}, "must not be negative, got -1"),
    ],
)
def test_wrong_values_are_refused(values, message) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{message}|type"):
        Acting(**values)


COMPILED = """
import torch
from torch._dynamo.utils import counters
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.acting import Acting, ActionSampler
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.joint import JointDecoder

compile = torch.compile
torch.compile = lambda function, dynamic=None: compile(function, backend="aot_eager", dynamic=dynamic, fullgraph=True)
for kind, graphs in ((DiTDecoder, 3), (JointDecoder, 3)):
    counters.clear()
    torch.manual_seed(0)
    decoder = kind(DecoderShape(12, 2, 3, 4), width=16, depth=3, heads=2, adaln_dim=4).eval()
    given = (torch.randn(2, 5, 12),), torch.rand(2), torch.randn(2, 1, 3), torch.randn(2, 4, 2)
    plain = ActionSampler(decoder, Acting(), 3)(*given)
    names = list(decoder.state_dict())
    compiled = ActionSampler(decoder, Acting(compile=True), 3)(*given)
    assert counters["stats"]["unique_graphs"] == graphs, counters["stats"]  # block, vectors, keys and values
    assert list(decoder.state_dict()) == names and "forward" not in vars(decoder.blocks[0])
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
"""


def test_all_blocks_share_their_compilations() -> None:
    """In a process of its own, since the checks of annotations that tests run under cannot be compiled."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], check=True)


def test_a_decoder_compiled_for_training_acts_uncompiled() -> None:
    policy = awake(acting=Acting())
    plain = act(policy)

    def broken(*_args):
        raise AssertionError("the training's function ran")

    policy.decoder._velocity = broken
    policy.act_as(Acting())
    assert torch.equal(act(policy), plain)


def test_a_deep_copy_acts_with_its_own_weights(monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args, **kwargs: function(*args, **kwargs))
    plain, policy = awake(), awake(acting=Acting(compile=True))
    policy.decoder.compile()
    act(policy)
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for model in (plain, twin):
            for weight in model.decoder.parameters():
                weight.mul_(1.1)
    expected = act(plain)
    torch.testing.assert_close(act(twin), expected)
    for acted in (policy, twin):
        acted.act_as(None)
    torch.testing.assert_close(act(twin), expected)
    assert not torch.allclose(act(policy), expected, atol=1e-3)
