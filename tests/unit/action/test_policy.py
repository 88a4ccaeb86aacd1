"""ActionPolicy: its loss against the equations, randomness by position, exact resume, controls, validation, refusals."""

import copy
import warnings
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from lightning import Trainer
from torch import Tensor

from mimicvideo import flow
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.future import NoiseFuture, OracleFuture
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.callbacks.nan_guard import NanGuard
from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint
from mimicvideo.noise import Fixed, LogNormalSigma, Uniform, gaussian
from mimicvideo.video.backbone import VideoCondition
from tests.fake_backbone import FakeBackbone, FakeData, contract, demonstrations

SIZES = {"action_dim": 2, "proprio_dim": 3, "horizon": 6}


def decoder(shape: DecoderShape, **options: Any) -> DiTDecoder:
    return DiTDecoder(shape, **{"width": 32, "depth": 2, "heads": 2, "adaln_dim": 8, **options})


def make(**options: Any) -> ActionPolicy:
    torch.manual_seed(0)
    parts = {"backbone": FakeBackbone(), "decoder": decoder, "future": NoiseFuture(), **SIZES}
    parts |= {"video_noise": LogNormalSigma(), "action_noise": Uniform(), "block": 1, "validation_taus": [0.1, 0.5]}
    return ActionPolicy(**{**parts, "optimizer": lambda weights: torch.optim.AdamW(weights, lr=3e-3), **options})


def ready(data: FakeData | None = None, **options: Any) -> ActionPolicy:
    """A policy with contract and statistics, as after `setup`."""
    policy, data = make(**options), data or FakeData()
    policy.adopt_contract(data.contract())
    found = data.statistics()
    policy.action_normalizer.fit(found["actions"]["per_step"])
    policy.proprio_normalizer.fit(found["proprio"]["per_step"])
    return policy.eval()


def trainer(steps: int, tmp_path: Any, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = {"max_steps": steps, "accelerator": "cpu", "check_val_every_n_epoch": None, "val_check_interval": 10_000}
    return Trainer(default_root_dir=tmp_path, **{**quiet, **run, "num_sanity_val_steps": 0, **options})


def fit(policy: ActionPolicy, data: FakeData, steps: int, tmp_path: Any, ckpt: Any = None, **options: Any) -> tuple[list[float], Trainer]:
    """Trains and returns the losses."""
    losses: list[float] = []
    step = policy.training_step

    def recorded(batch: Any, batch_idx: int) -> Tensor:
        loss = step(batch, batch_idx)
        losses.append(loss.item())
        return loss

    policy.training_step = recorded  # type: ignore[method-assign]
    run = trainer(steps, tmp_path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(policy, datamodule=data, ckpt_path=ckpt)
    policy.training_step = step  # type: ignore[method-assign]
    return losses, run


# ---- the loss -----------------------------------------------------------------------------------------------------------------


def test_loss_is_the_velocity_error_of_the_equations():
    policy, batch = ready(draws=2), demonstrations(3)
    policy.decoder.train()  # the proprio mask is part of it
    loss = policy._flow_loss(batch, torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    latents = policy.backbone.encode_video(torch.cat([batch["observation"]["video"], batch["future"]], dim=1))
    tau_video = policy.video_noise.sample(3, generator)
    video_noise = torch.randn(latents.shape, generator=generator)
    noisy = (1 - tau_video)[:, None, None, None, None] * latents + tau_video[:, None, None, None, None] * video_noise
    condition = VideoCondition(policy.backbone.encode_prompt(batch["observation"]["prompt"]), latents[:, :, :1])
    hidden = policy.backbone.hidden_states(noisy, tau_video, condition, [1])[1]
    tau_action = policy.action_noise.sample(6, generator)
    action_noise = torch.randn(6, 6, 2, generator=generator)
    masked = torch.rand(6, generator=generator) < 0.2
    total = 0.0
    policy.decoder.eval()
    for i in range(6):
        sample = i // 2
        clean = policy.action_normalizer.normalize(batch["actions"][sample : sample + 1])
        x = (1 - tau_action[i]) * clean + tau_action[i] * action_noise[i]
        proprio = policy.proprio_normalizer.normalize(batch["observation"]["proprio"][sample : sample + 1])
        policy.decoder.proprio_mask_probability = 1.0
        policy.decoder.train(bool(masked[i]))
        context = policy.decoder.prepare_context(hidden[sample : sample + 1])
        velocity = policy.decoder(x, tau_action[i : i + 1], context, tau_video[sample : sample + 1], proprio)
        total = total + ((velocity - (action_noise[i] - clean)) ** 2).mean() / 6
    torch.testing.assert_close(loss, 10 * total, atol=1e-5, rtol=1e-5)


def test_video_and_action_noise_levels_are_drawn_independently():
    policy, seen = ready(draws=2), []
    inner = policy.decoder.forward

    def spy(actions: Tensor, tau_action: Tensor, context: Any, tau_video: Tensor, proprio: Tensor, generator: Any = None) -> Tensor:
        seen.append((tau_action, tau_video))
        return inner(actions, tau_action, context, tau_video, proprio, generator)

    policy.decoder.forward = spy  # type: ignore[method-assign]
    for position in range(30):
        policy._flow_loss(demonstrations(16, seed=position), policy._generator(0, position))
    tau_action, tau_video = (torch.cat(column) for column in zip(*seen, strict=True))
    assert torch.equal(tau_video[::2], tau_video[1::2])  # draws of a sample share its pass of the backbone
    assert not torch.isclose(tau_action[::2], tau_action[1::2]).any()
    assert torch.corrcoef(torch.stack([tau_action, tau_video]))[0, 1].abs() < 0.15
    assert 0.7 < tau_video.median() < 0.88  # 0.811
    assert 0.4 < tau_action.median() < 0.6


def test_several_draws_are_the_mean_of_separate_ones():
    policy, batch = ready(draws=3), demonstrations(4)
    together = policy._flow_loss(batch, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    tau_video, video_noise = policy.video_noise.sample(4, generator), torch.randn(4, 4, 3, 4, 4, generator=generator)
    tau_action, noise = policy.action_noise.sample(12, generator), torch.randn(12, 6, 2, generator=generator)
    separate = []
    for draw in range(3):
        rows = torch.arange(4) * 3 + draw
        latents = policy._latents(batch)
        condition = policy._condition(batch["observation"]["prompt"], latents)
        hidden = policy._hidden_states(flow.interpolate(latents, video_noise, tau_video), tau_video, condition)
        clean = policy.action_normalizer.normalize(batch["actions"])
        proprio = policy.proprio_normalizer.normalize(batch["observation"]["proprio"])
        x = flow.interpolate(clean, noise[rows], tau_action[rows])
        velocity = policy.decoder(x, tau_action[rows], policy.decoder.prepare_context(*hidden), tau_video, proprio)
        separate.append(10 * ((velocity - (noise[rows] - clean)) ** 2).mean())
    torch.testing.assert_close(together, torch.stack(separate).mean(), atol=1e-5, rtol=1e-5)


def test_cached_latents_give_the_same_loss_as_pixels():
    policy, batch = ready(), demonstrations(4)
    latents = policy._latents(batch)
    cached = batch | {"latents": latents}
    cached["observation"] = {name: value for name, value in batch["observation"].items() if name != "video"}
    del cached["future"]
    first, second = (policy._flow_loss(given, torch.Generator().manual_seed(0)) for given in (batch, cached))
    assert torch.equal(first, second)


def test_the_backbone_is_frozen_and_only_the_decoder_trains(tmp_path):
    policy, data = make(), FakeData(batch=4)
    before = copy.deepcopy(policy.backbone.state_dict())
    fit(policy, data, 2, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in policy.backbone.state_dict().items())
    assert not any(weight.requires_grad for weight in policy.backbone.parameters())
    policy.train()
    assert policy.decoder.training
    assert not policy.backbone.training
    optimized = {id(weight) for group in policy.configure_optimizers().param_groups for weight in group["params"]}
    assert optimized == {id(weight) for weight in policy.decoder.parameters()}


def test_one_batch_is_learned_by_heart(tmp_path):
    policy = make(video_noise=Fixed(0.3), draws=4, validation_taus=[0.3])
    data = FakeData(batch=8, same=True)
    losses, _ = fit(policy, data, 300, tmp_path)
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    policy.eval()
    batch = data.at(0)
    policy.future = OracleFuture(0.3)
    generator = torch.Generator().manual_seed(9)
    predicted = policy.predict_actions(batch["observation"], future_video=batch["future"], generator=generator)
    scale = batch["actions"].std()
    assert (predicted - batch["actions"]).square().mean().sqrt() < 0.35 * scale
    policy.context_control = "shuffle"  # the actions follow from the video, so another's video gives another's actions
    shuffled = policy.predict_actions(batch["observation"], future_video=batch["future"], generator=generator)
    assert (shuffled - batch["actions"]).square().mean().sqrt() > 0.6 * scale


# ---- randomness and resume ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_exactly(tmp_path):
    """Six steps in one go and three plus three give the same losses and the same weights, bit for bit."""
    options = {"draws": 2, "ema_decay": 0.9, "scheduler": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5)}
    whole = make(**options)
    losses, _ = fit(whole, FakeData(batch=4), 6, tmp_path)
    first = make(**options)
    begun, run = fit(first, FakeData(batch=4), 3, tmp_path)
    run.save_checkpoint(tmp_path / "three.ckpt")
    torch.randn(100)  # the global generator must not matter
    second = make(**options)
    ended, _ = fit(second, FakeData(batch=4), 6, tmp_path, ckpt=tmp_path / "three.ckpt")
    assert begun + ended == losses
    for name, value in whole.decoder.state_dict().items():
        assert torch.equal(value, second.decoder.state_dict()[name]), name
    average, other = (policy.average.state_dict()["average"] for policy in (whole, second))
    assert all(torch.equal(average[name], other[name]) for name in average)


def test_random_numbers_depend_on_seed_split_and_position_only():
    policy, other = make(), make(seed=1)
    draws = {
        key: tuple(torch.randn(4, generator=given._generator(split, position)).tolist())
        for key, (given, split, position) in {
            "a": (policy, 0, 7),
            "b": (policy, 0, 8),
            "c": (policy, 1, 7),
            "d": (other, 0, 7),
        }.items()
    }
    assert len(set(draws.values())) == 4
    assert draws["a"] == tuple(torch.randn(4, generator=policy._generator(0, 7)).tolist())


def test_accumulated_batches_have_noise_of_their_own(tmp_path):
    policy, data = make(), FakeData(batch=4, same=True)
    losses, _ = fit(policy, data, 2, tmp_path, accumulate_grad_batches=3)
    assert len(losses) == 6
    assert len(set(losses[:3])) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_of_a_step_is_kept_while_the_next_computes(tmp_path, accumulate):
    """Lightning calls `on_before_zero_grad` after a step's first forward pass."""
    policy, kept = make(), []
    policy.on_before_zero_grad = lambda optimizer: kept.append(any(weight.grad is not None for weight in policy.parameters()))
    fit(policy, FakeData(batch=4), 3, tmp_path, accumulate_grad_batches=accumulate)
    assert kept == [False] * 3


# ---- acting -------------------------------------------------------------------------------------------------------------------


def test_chunks_are_euler_steps_from_one_to_zero_in_dataset_units():
    policy, batch = ready(num_steps=4), demonstrations(2)
    got = policy.predict_actions(batch["observation"], generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    observed = policy.backbone.encode_video(batch["observation"]["video"])
    condition = VideoCondition(policy.backbone.encode_prompt(batch["observation"]["prompt"]), observed)
    noise = torch.randn(2, 4, 3, 4, 4, generator=generator)
    tau_video = torch.full((2,), 80 / 81)
    hidden = policy.backbone.hidden_states(80 / 81 * noise, tau_video, condition, [1])[1]
    x = torch.randn(2, 6, 2, generator=generator)
    proprio = policy.proprio_normalizer.normalize(batch["observation"]["proprio"])
    for tau in (1.0, 0.75, 0.5, 0.25):
        x = x - 0.25 * policy.decoder(x, torch.full((2,), tau), policy.decoder.prepare_context(hidden), tau_video, proprio)
    torch.testing.assert_close(got, x * policy.action_normalizer.scale + policy.action_normalizer.offset, atol=1e-5, rtol=1e-5)
    assert got.dtype == torch.float32
    assert got.shape == (2, 6, 2)


def test_one_backbone_pass_and_one_projection_of_the_context_per_chunk(monkeypatch):
    policy, batch = ready(), demonstrations(2)
    prepared = []
    inner = policy.decoder.prepare_context
    monkeypatch.setattr(policy.decoder, "prepare_context", lambda hidden: prepared.append(1) or inner(hidden))
    policy.predict_actions(batch["observation"])
    assert policy.backbone.passes == 1
    assert len(prepared) == 1


def test_a_generator_per_sample_makes_chunks_independent_of_the_batch():
    policy, batch = ready(), demonstrations(3)
    together = policy.predict_actions(batch["observation"], generator=[torch.Generator().manual_seed(seed) for seed in range(3)])
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in batch["observation"].items()}
        alone = policy.predict_actions(one, generator=[torch.Generator().manual_seed(i)])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        gaussian((3, 1), [torch.Generator(), torch.Generator()])


def test_proprio_is_never_masked_when_acting():
    policy, batch = ready(decoder=lambda shape: decoder(shape, proprio_mask_probability=1.0)), demonstrations(2)
    expected = policy.predict_actions(batch["observation"], generator=torch.Generator().manual_seed(0))
    policy.train()
    got = policy.predict_actions(batch["observation"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, expected)
    assert policy.decoder.training


def test_zero_and_shuffle_controls_change_the_actions():
    policy, batch = ready(), demonstrations(3)
    observation = batch["observation"]

    def act(control: str, given: dict[str, Any] = observation) -> Tensor:
        policy.context_control = control  # type: ignore[assignment]
        generators = [torch.Generator().manual_seed(7) for _ in given["prompt"]]
        return policy.predict_actions(given, generator=generators)

    plain, zero, shuffled = act("none"), act("zero"), act("shuffle")
    assert (plain - zero).abs().amax((1, 2)).min() > 1e-4
    assert (plain - shuffled).abs().amax((1, 2)).min() > 1e-4
    # Sample i acts on what sample i - 1 saw.
    moved = {"video": observation["video"].roll(1, 0), "proprio": observation["proprio"], "prompt": observation["prompt"][-1:]}
    moved["prompt"] += observation["prompt"][:-1]
    torch.testing.assert_close(act("none", moved), shuffled, atol=1e-5, rtol=1e-5)
    # In batches of one it acts on what the previous call saw, and on zeros at first.
    singles = [{name: value[i : i + 1] for name, value in observation.items()} for i in range(2)]
    policy._previous_hidden = None
    torch.testing.assert_close(act("shuffle", singles[0]), act("zero", singles[0]))
    swapped = {"video": singles[0]["video"], "proprio": singles[1]["proprio"], "prompt": singles[0]["prompt"]}
    torch.testing.assert_close(act("shuffle", singles[1]), act("none", swapped), atol=1e-5, rtol=1e-5)


def test_oracle_reads_the_true_future():
    policy, batch = ready(future=OracleFuture(0.2)), demonstrations(2)
    other = demonstrations(2, seed=5)["future"]
    got = [
        policy.predict_actions(batch["observation"], future_video=future, generator=torch.Generator().manual_seed(0))
        for future in (batch["future"], other)
    ]
    assert (got[0] - got[1]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs the true future"):
        policy.predict_actions(batch["observation"])
    with pytest.raises(ValueError, match="4 frames, the contract says 8"):
        policy.predict_actions(batch["observation"], future_video=batch["future"][:, :4])


# ---- validation, averages, caches ---------------------------------------------------------------------------------------------


def test_validation_logs_losses_and_action_errors_with_fixed_noise(tmp_path):
    policy, data = make(ema_decay=0.5), FakeData(batch=4)
    _, run = fit(policy, data, 2, tmp_path, val_check_interval=2, limit_val_batches=2)
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    names = {"val/loss", "val/action_mse", "val/action_mse_tau_0.10", "val/action_mse_tau_0.50", "val/action_mse_generated"}
    assert names <= set(logged)
    assert logged["val/action_mse"] == pytest.approx((logged["val/action_mse_tau_0.10"] + logged["val/action_mse_tau_0.50"]) / 2)
    again = trainer(1, tmp_path).validate(policy, datamodule=data, verbose=False)[0]
    assert {name: again[name] for name in names} == pytest.approx({name: logged[name] for name in names}, rel=1e-6)


def test_validation_error_is_that_of_a_sampled_chunk_in_dataset_units(tmp_path):
    policy, data = ready(), FakeData(batch=4)
    logged: dict[str, Tensor] = {}
    policy.log_dict = lambda metrics, **_: logged.update(metrics)  # type: ignore[method-assign]
    batch = data.at(500)
    policy.validation_step(batch, 0)
    generators = [policy._generator(1, sample) for sample in range(4)]
    policy._flow_loss(batch, generators)
    latents = policy._latents(batch)
    noise, action_noise = gaussian(latents.shape, generators), gaussian((4, 6, 2), generators)
    tau = torch.full((4,), 0.5)
    condition = policy._condition(batch["observation"]["prompt"], latents)
    hidden = policy.backbone.hidden_states(0.5 * latents + 0.5 * noise, tau, condition, [1])[1]
    actions = policy._sample_actions(policy.decoder.prepare_context(hidden), tau, batch["observation"]["proprio"], action_noise)
    torch.testing.assert_close(logged["val/action_mse_tau_0.50"], ((actions - batch["actions"]) ** 2).mean())


def test_the_average_validates_and_the_trained_weights_come_back(tmp_path):
    policy, data = make(ema_decay=0.99), FakeData(batch=4)
    fit(policy, data, 3, tmp_path)
    trained = copy.deepcopy(policy.decoder.state_dict())
    with_average = trainer(1, tmp_path).validate(policy, datamodule=data, verbose=False)[0]
    assert all(torch.equal(value, trained[name]) for name, value in policy.decoder.state_dict().items())
    policy.average.copy_to(policy.decoder)
    policy.average = None
    assert trainer(1, tmp_path).validate(policy, datamodule=data, verbose=False)[0] == pytest.approx(with_average)
    policy.decoder.load_state_dict(trained)
    without = trainer(1, tmp_path).validate(policy, datamodule=data, verbose=False)[0]
    assert without["val/loss"] != pytest.approx(with_average["val/loss"], rel=1e-5)


def test_latents_are_cached_under_the_vaes_hash(tmp_path):
    policy, data = make(latent_cache=str(tmp_path / "latents")), FakeData(batch=4)
    losses, _ = fit(policy, data, 2, tmp_path)
    assert data.latent_key == policy.backbone.vae_hash
    assert len(losses) == 2


@pytest.mark.parametrize("wanted", [False, True])
def test_the_decoder_is_compiled_for_training_if_asked(tmp_path, monkeypatch, wanted):
    compiled = []
    monkeypatch.setattr(DiTDecoder, "compile", lambda self: compiled.append(self))
    policy = make(compile_decoder=wanted)
    trainer(1, tmp_path).validate(ready(compile_decoder=wanted), datamodule=FakeData(batch=2), verbose=False)
    assert compiled == []
    fit(policy, FakeData(batch=2), 1, tmp_path)
    assert compiled == ([policy.decoder] if wanted else [])


# ---- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 3}, r"block must lie in \[0, 2\] .* got 3"),
        ({"block": -1}, r"block must lie in \[0, 2\] .* got -1"),
        ({"validation_taus": [0.5, 1.2]}, r"validation_taus must lie in \[0, 1\].* got 1.2"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"context_control": "zeros"}, "(context_control must be none, zero or shuffle, got|Actual value:) 'zeros'"),
        ({"normalization": {"actions": "gauss"}}, "(unknown normalisation mode|Actual value:) 'gauss'"),
        ({"normalization": {"action": "identity"}}, "normalization has no 'action': choose from actions, per_step, proprio"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((ValueError, TypeCheckError), match=message):  # the latter if annotations are checked in this run
        make(**options)


def test_data_of_another_size_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="the model's horizon is 5, the data has 6"):
        fit(make(horizon=5), FakeData(), 1, tmp_path)
    with pytest.raises(ValueError, match=r"action_dim is 4, the data has 2 \(actions \['dx', 'dy'\]\)"):
        make(action_dim=4).adopt_contract(contract())
    with pytest.raises(ValueError, match="proprio_dim is 7, the data has 3"):
        make(proprio_dim=7).adopt_contract(contract())
    policy = ready()
    with pytest.raises(ValueError, match=r"control_hz: checkpoint 10.0, data 20.0"):
        policy.adopt_contract(contract() | {"control_hz": 20.0})


def test_observations_that_do_not_fit_the_contract_are_refused():
    policy, observation = ready(), demonstrations(2)["observation"]
    with pytest.raises(ValueError, match=r"observation\['video'\] has shape \(2, 1, 16, 16, 3\), expected \(2, 1, 32, 32, 3\)"):
        policy.predict_actions(observation | {"video": observation["video"][:, :, ::2, ::2]})
    with pytest.raises(ValueError, match=r"observation\['proprio'\] has shape \(2, 1, 2\), expected \(2, 1, 3\)"):
        policy.predict_actions(observation | {"proprio": observation["proprio"][..., :2]})
    with pytest.raises(ValueError, match="lacks 'video'"):
        policy.predict_actions({"proprio": observation["proprio"], "prompt": observation["prompt"]})
    with pytest.raises(ValueError, match="lacks 'prompt'"):
        policy.predict_actions({"proprio": observation["proprio"], "video": observation["video"]})
    with pytest.raises(ValueError, match=r"observation\['prompt'\] must be a list, a sentence for each sample: \['open the door'\]"):
        policy.predict_actions(observation | {"prompt": "open the door"})
    with pytest.raises(ValueError, match=r"observation\['video'\] must be a tensor, got ndarray: torch.from_numpy makes one"):
        policy.predict_actions(observation | {"video": observation["video"].numpy()})
    with pytest.raises(ValueError, match=r"observation\['proprio'\] holds numbers that are not finite: .*nan"):
        policy.predict_actions(observation | {"proprio": observation["proprio"] * torch.nan})
    with pytest.raises(RuntimeError, match="no contract yet"):
        make().predict_actions(observation)


@pytest.mark.parametrize("mode", ["variance", "min_max", "quantile", "identity", ["identity", "variance"]])
def test_units_of_every_mode_are_saved(mode: Any, tmp_path: Any) -> None:
    """What NanGuard lets into a checkpoint has no infinity: dimensions that are not clipped need none."""
    policy = make(normalization={"actions": mode})
    fit(policy, FakeData(), 1, tmp_path, enable_checkpointing=True, callbacks=[NanGuard(), SafeCheckpoint(tmp_path, save_last=True)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in saved.values())
    beyond = torch.full((1, 6, 2), 1e9)
    assert torch.equal(
        policy.action_normalizer.normalize(beyond) == beyond,
        torch.tensor([m == "identity" for m in policy.action_normalizer.modes]).expand(1, 6, 2),
    )
