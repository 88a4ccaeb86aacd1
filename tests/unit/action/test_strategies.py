"""Every way of conditioning that conf/ offers trains on the fake backbone, is saved and acts the same when loaded; tied flow times."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jaxtyping import TypeCheckError
from lightning import Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from mimicvideo.action import load
from mimicvideo.action.flow_times import check_flow_times
from mimicvideo.action.future import NoiseFuture
from mimicvideo.action.load import load_policy
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.checkpoint import save_checkpoint
from mimicvideo.compose import CONF
from mimicvideo.noise import Uniform
from tests.fake_backbone import FakeData, demonstrations

SMALL = {"width": 16, "depth": 2, "heads": 2, "adaln_dim": 4}
DIT = {"class_path": "mimicvideo.action.dit.DiTDecoder", "init_args": SMALL}
JOINT = {"class_path": "mimicvideo.action.joint.JointDecoder", "init_args": SMALL}


def fragment(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def dit(context: str) -> dict[str, Any]:
    return {"decoder": DIT | {"init_args": SMALL | {"context": fragment(f"context/{context}")}}}


STRATEGIES: dict[str, dict[str, Any]] = {
    "block": dit("block"),
    "mix": dit("mix") | {"block": [0, 2, 1]},
    "pooled": dit("pooled"),
    "pooled_from_several": dit("pooled") | {"block": [0, 2]},
    "joint": {"decoder": JOINT, "block": [0, 2]},
    "joint_from_one": {"decoder": JOINT},
    "tied": fragment("flow_times/tied"),
}


@pytest.fixture(autouse=True)
def trust_the_fake(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mimicvideo"])  # LightningCLI warns of others
    monkeypatch.setattr(load, "TRUSTED", ("mimicvideo.", "tests.fake_backbone."))


def configured(**changes: Any) -> ActionPolicy:
    """Built as `mimicvideo fit` builds it."""
    init_args: dict[str, Any] = {
        "backbone": {"class_path": "tests.fake_backbone.FakeBackbone"},
        "decoder": DIT,
        "future": {"class_path": "mimicvideo.action.future.NoiseFuture"},
        "action_dim": 2,
        "proprio_dim": 3,
        "horizon": 6,
        "video_noise": {"class_path": "mimicvideo.noise.Uniform"},
        "action_noise": {"class_path": "mimicvideo.noise.Uniform"},
        "block": 1,
        "draws": 4,
        "num_steps": 4,
        "validation_taus": [0.5],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
    }
    trainer = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False) | {"accelerator": "cpu"}
    model = {"class_path": "mimicvideo.action.policy.ActionPolicy", "init_args": copy.deepcopy(init_args | changes)}
    args = {"model": model, "trainer": trainer, "seed_everything": 0}
    options = {"run": False, "save_config_callback": None, "auto_configure_optimizers": False}
    return LightningCLI(ActionPolicy, subclass_mode_model=True, args=args, **options).model


def fit(policy: ActionPolicy, steps: int, root: Path) -> Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(**off, max_steps=steps, accelerator="cpu", default_root_dir=root, limit_val_batches=1, num_sanity_val_steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(policy, datamodule=FakeData(batch=8, same=True))
    return trainer


def loss(policy: ActionPolicy) -> float:
    """Over draws of their own, without a proprio mask."""
    policy.eval()
    batch = FakeData(batch=8, same=True).at(0)
    with torch.no_grad():
        values = [policy._flow_loss(batch, torch.Generator().manual_seed(seed)).item() for seed in range(8)]
    policy.train()
    return sum(values) / len(values)


def act(policy: ActionPolicy) -> Tensor:
    return policy.predict_actions(demonstrations(3)["observation"], generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_learns_a_batch_and_acts_the_same_when_loaded(name, tmp_path):
    policy = configured(**STRATEGIES[name])
    fit(policy, 1, tmp_path)  # contract, units
    before = loss(policy)
    trainer = fit(policy, 80, tmp_path)
    after = loss(policy)
    assert after < 0.6 * before, (before, after)  # NaN is not less
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    save_checkpoint(torch.load(tmp_path / "policy.ckpt", weights_only=True), tmp_path / "policy.ckpt")
    loaded = load_policy(tmp_path / "policy.ckpt")
    assert loaded.blocks == policy.blocks
    assert loaded.flow_times == policy.flow_times
    passes = loaded.backbone.passes
    actions = act(loaded)
    assert loaded.backbone.passes == passes + 1  # however many blocks are read
    assert torch.equal(actions, act(policy.eval()))
    assert torch.isfinite(actions).all()


def test_strategies_that_read_several_blocks_depend_on_each():
    for name in ("mix", "pooled_from_several", "joint"):
        policy = configured(**STRATEGIES[name])
        hidden = [torch.randn(1, 5, 12) for _ in policy.blocks]
        plain = policy.decoder.prepare_context(*hidden)
        for index in range(len(hidden)):
            other = policy.decoder.prepare_context(*(h + torch.randn_like(h) * (i == index) for i, h in enumerate(hidden)))
            assert any((a - b).abs().max() > 1e-3 for a, b in zip(plain.values, other.values, strict=True)), (name, index)


def test_the_decoder_gets_the_blocks_in_their_order_from_one_pass(tmp_path):
    policy = configured(**STRATEGIES["joint"] | {"block": [2, 0]})
    fit(policy, 1, tmp_path)
    latents, tau = torch.randn(2, 4, 3, 4, 4), torch.full((2,), 0.5)
    condition = policy._condition(["a", "b"], latents)
    passes = policy.backbone.passes
    hidden = policy._hidden_states(latents, tau, condition)
    assert policy.backbone.passes == passes + 1
    for block, states in zip((2, 0), hidden, strict=True):
        assert torch.equal(states, policy.backbone.hidden_states(latents, tau, condition, [block])[block])


@pytest.mark.parametrize("control", ["zero", "shuffle"])
def test_context_controls_hold_for_all_blocks(control, tmp_path):
    policy = configured(**STRATEGIES["joint"])
    fit(policy, 1, tmp_path)
    inner, seen = policy.decoder.prepare_context, []
    policy.decoder.prepare_context = lambda *hidden: seen.append(hidden) or inner(*hidden)  # type: ignore[method-assign]
    act(policy)
    policy.context_control = control
    act(policy)
    plain, controlled = seen
    assert len(plain) == len(controlled) == 2
    for one, other in zip(plain, controlled, strict=True):
        assert torch.equal(other, torch.zeros_like(one) if control == "zero" else one.roll(1, dims=0))


# ---- tied flow times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_times", ["tied", "decoupled"])
def test_tied_draws_share_their_videos_noise_level(flow_times, tmp_path):
    policy = configured(flow_times=flow_times)
    fit(policy, 1, tmp_path)
    inner, seen = policy.decoder.forward, []

    def spy(actions: Tensor, tau_action: Tensor, context: Any, tau_video: Tensor, *rest: Any) -> Tensor:
        seen.append((actions, tau_action, tau_video))
        return inner(actions, tau_action, context, tau_video, *rest)

    policy.decoder.forward = spy  # type: ignore[method-assign]
    policy._flow_loss(demonstrations(8), torch.Generator().manual_seed(0))
    ((actions, tau_action, tau_video),) = seen
    assert torch.equal(tau_action, tau_video) == (flow_times == "tied")
    assert torch.equal(tau_video[::4], tau_video[1::4])
    assert len(set(tau_video.tolist())) == 8  # one for each sample
    assert not torch.isclose(actions[::4], actions[1::4]).all((1, 2)).any()  # draws differ in their noise


def test_tied_times_act_in_one_pass_at_the_futures_level(tmp_path):
    policy = configured(flow_times="tied")
    fit(policy, 1, tmp_path)
    inner, seen, passes = policy.decoder.forward, [], policy.backbone.passes

    def spy(actions: Tensor, tau_action: Tensor, context: Any, tau_video: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((tau_action[0].item(), tau_video[0].item()))
        return inner(actions, tau_action, context, tau_video, *rest, **options)

    policy.decoder.forward = spy  # type: ignore[method-assign]
    act(policy)
    assert policy.backbone.passes == passes + 1
    assert seen == [(tau, pytest.approx(80 / 81)) for tau in (1.0, 0.75, 0.5, 0.25)]


# ---- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": [0, 3]}, r"block must lie in \[0, 2\] .* got 3"),
        ({"block": [0, 1]}, "BlockContext reads one video block, got 2"),
        (dit("mix"), "MixContext mixes several video blocks, got 1"),
        ({"decoder": JOINT, "block": [0, 1, 2]}, "got depth=2 for 3 blocks"),
        (
            {"flow_times": "tied", "video_noise": {"class_path": "mimicvideo.noise.Fixed", "init_args": {"tau": 0.0}}},
            "always 0.0 here.*choose a video_noise that varies",
        ),
        (
            {"flow_times": "tied", "future": {"class_path": "mimicvideo.action.future.DenoisedFuture", "init_args": {"tau": 0.5}}},
            "tied needs a future at the action flow's start, tau >= 0.98, got 0.5: choose future noise",
        ),
    ],
)
def test_combinations_that_do_not_work_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        configured(**changes)


def test_an_unknown_way_of_drawing_times_is_named():
    with pytest.raises((ValueError, TypeCheckError), match="(must be decoupled or tied, got|Actual value:) 'both'"):
        check_flow_times("both", Uniform(), NoiseFuture())  # type: ignore[arg-type]


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path):
    policy = configured(**STRATEGIES["pooled"])
    trainer = fit(policy, 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "pooled.ckpt")
    with pytest.raises(ValueError, match="another architecture.*unexpected: decoder.context"):
        configured(**STRATEGIES["block"]).on_load_checkpoint(torch.load(tmp_path / "pooled.ckpt", weights_only=True))
