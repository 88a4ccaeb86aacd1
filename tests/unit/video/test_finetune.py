"""Stage 1: its loss against the formula, exact resumption, checkpoints that hold what was trained, and what it refuses."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mimicvideo.noise import Fixed, LogNormalSigma, karras_taus
from mimicvideo.schedules import WarmupCosine
from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.finetune import VALIDATION, VideoFinetune

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice about workers and the like


def clips(position: int) -> dict[str, Any]:
    """A batch that is a function of its position."""
    generator = torch.Generator().manual_seed(position)
    video = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([position, position + 1])
    return {"video": video, "prompt": ["open the drawer", "press the button"], "episode": ids, "row": ids}


class Clips(LightningDataModule):
    """An endless stream and two validation batches; with cached latents once they are attached."""

    def __init__(self) -> None:
        super().__init__()
        self.encode: Callable | None = None
        self.attached: list[tuple[str, str]] = []

    def attach_latents(self, encode: Callable, key: str, cache_dir: str) -> None:
        self.encode = encode
        self.attached.append((key, cache_dir))

    def at(self, position: int) -> dict[str, Any]:
        batch = clips(position)
        if self.encode is not None:
            batch["latents"] = self.encode(batch.pop("video")).bfloat16()
        return batch

    def train_dataloader(self) -> Any:
        data = self

        class Stream:
            def __iter__(self) -> Any:
                return map(data.at, itertools.count(data.trainer.global_step * data.trainer.accumulate_grad_batches))

        return Stream()

    def val_dataloader(self) -> Any:
        return DataLoader([self.at(1000), self.at(1001)], batch_size=None)


class Losses(Callback):
    """The losses of all steps."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.val.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def make(build) -> Callable[..., VideoFinetune]:
    """`make(adaptation, **options)`, the same start each time."""

    def make(adaptation=None, **options) -> VideoFinetune:
        torch.manual_seed(0)
        defaults = {
            "noise": LogNormalSigma(),
            "prompt_dropout": 0.3,
            "ema_decay": 0.9,
            "validation_taus": (0.3, 0.9),
            "optimizer": functools.partial(torch.optim.AdamW, lr=3e-3),
            "scheduler": functools.partial(WarmupCosine, steps=8, warmup=2),
        }
        return VideoFinetune(build(adaptation or Lora(rank=4, alpha=8, dropout=0.2)), **(defaults | options))

    return make


def train(module: VideoFinetune, folder: Path, steps: int, resume: Path | None = None, **options) -> tuple[Losses, Trainer]:
    losses, data = Losses(), options.pop("data", None) or Clips()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[losses],
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return losses, trainer


# ---- the loss -----------------------------------------------------------------------------------------------------------------


def test_loss_is_the_formula(make) -> None:
    """With tau, noise and numbers of clean frames redrawn here, the loss is 100 mean (1 - m)(v - (eps - z))^2."""
    module = make(observed={1: 0.25, 2: 0.75}, noise=Fixed(0.6))
    module.eval()
    batch = clips(0)
    latents, prompt = module.latents(batch), module.backbone.encode_prompt(batch["prompt"])
    with torch.no_grad():
        loss = 100 * module.velocity_errors(latents, prompt, torch.tensor([0.6, 0.2]), torch.Generator().manual_seed(5)).mean()

        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(latents.shape, generator=generator)
        counts = torch.tensor([1, 2])[torch.multinomial(torch.tensor([0.25, 0.75]), 2, replacement=True, generator=generator)]
        kept = (torch.arange(3)[None] < counts[:, None]).float()[:, None, :, None, None]
        tau = torch.tensor([0.6, 0.2]).view(2, 1, 1, 1, 1)
        mixed = kept * latents + (1 - kept) * ((1 - tau) * latents + tau * noise)
        velocity = module.backbone.transformer(
            hidden_states=mixed,
            timestep=kept * (1e-4 / (1 + 1e-4)) + (1 - kept) * tau,
            encoder_hidden_states=prompt,
            condition_mask=kept.expand(2, 1, 3, 4, 4),
            padding_mask=torch.zeros(1, 1, 4, 4),
        ).sample
        expected = 100 * ((1 - kept) * (velocity - (noise - latents))).square().sum() / latents.numel()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_numbers_of_clean_frames_follow_their_probabilities(make) -> None:
    module = make(observed={1: 0.2, 2: 0.8})
    seen = []

    def watch(noisy, tau, condition):
        seen.append(condition.num_observed)
        return torch.zeros_like(noisy)

    module.backbone.velocity = watch
    latents = torch.zeros(4000, 16, 3, 2, 2)
    module.velocity_errors(latents, torch.zeros(4000, 8, 32), torch.full((4000,), 0.5), torch.Generator().manual_seed(0))
    assert (seen[0] == 1).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert set(seen[0].tolist()) == {1, 2}


def test_prompt_dropout_zeroes_whole_prompts(make, tmp_path: Path) -> None:
    module, seen = make(prompt_dropout=0.5), []
    velocity = module.backbone.velocity
    module.backbone.velocity = lambda noisy, tau, condition: (seen.append(condition.prompt), velocity(noisy, tau, condition))[1]
    train(module, tmp_path, 8, limit_val_batches=0)
    dropped = torch.cat(seen).abs().amax((1, 2)) == 0
    assert 2 <= dropped.sum() <= 14


# ---- training -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_equals_an_uninterrupted_one(make, tmp_path: Path, accumulate: int) -> None:
    options = {"accumulate_grad_batches": accumulate}
    whole, reference = train(make(), tmp_path / "whole", 6, **options)
    first, trainer = train(make(), tmp_path / "parts", 3, **options)
    trainer.save_checkpoint(tmp_path / "step3.ckpt")
    second, resumed = train(make(), tmp_path / "parts", 6, tmp_path / "step3.ckpt", **options)
    assert first.train + second.train == whole.train
    assert second.val == whole.val[-len(second.val) :] != []
    assert len(set(whole.train)) == len(whole.train)
    final, expected = resumed.lightning_module.backbone.adapter_state(), reference.lightning_module.backbone.adapter_state()
    assert all(torch.equal(tensor, expected["tensors"][name]) for name, tensor in final["tensors"].items())
    one, other = (path.read_bytes() for path in (tmp_path / run / "adapter/adapter_model.safetensors" for run in ("whole", "parts")))
    assert one == other  # the averages, which are what is written


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_of_a_step_is_kept_while_the_next_computes(make, tmp_path: Path, accumulate: int) -> None:
    """Lightning calls `on_before_zero_grad` after a step's first forward pass."""
    kept: list[bool] = []
    module = make()
    module.on_before_zero_grad = lambda optimizer: kept.append(any(weight.grad is not None for weight in module.parameters()))
    train(module, tmp_path, 3, accumulate_grad_batches=accumulate)
    assert kept == [False] * 3


def test_checkpoint_holds_what_trains_and_its_average_only(make, tmp_path: Path) -> None:
    module = make()
    _, trainer = train(module, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert sum(tensor.numel() for tensor in checkpoint["state_dict"].values()) == trained
    assert sum(tensor.numel() for tensor in checkpoint["mimicvideo"]["average"]["average"].values()) == trained
    assert checkpoint["mimicvideo"]["adapter_config"]["base_weights_hash"] == module.backbone.weights_hash


def test_training_moves_what_adapts_and_nothing_else(make, build, tmp_path: Path) -> None:
    module, base = make(), dict(build().named_parameters())
    train(module, tmp_path, 4)
    moved = set()
    for name, parameter in module.backbone.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if plain not in base:
            moved |= {name} if "lora_B" in name and parameter.abs().sum() > 0 else set()
        elif not torch.equal(parameter, base[plain]):
            moved.add(name)
    adapts = {name for name, parameter in module.backbone.named_parameters() if parameter.requires_grad and "lora_A" not in name}
    assert moved == adapts
    with module.averaged_weights():
        expected = module.backbone.adapter_state()["tensors"]
    saved = build(Lora(rank=4, alpha=8), adapter=str(tmp_path / "adapter")).adapter_state()["tensors"]
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())


def test_full_adaptation_learns_and_writes_a_model(make, build, tmp_path: Path) -> None:
    module = make(Full(), noise=Fixed(0.9), prompt_dropout=0.0, observed={1: 1.0}, scheduler=None, ema_decay=None)
    losses, _ = train(module, tmp_path, 40, limit_val_batches=0)
    assert sum(losses.train[-5:]) < 0.8 * sum(losses.train[:5])
    again = build(pretrained=str(tmp_path / "backbone"))
    for name, parameter in again.transformer.named_parameters():
        assert torch.equal(parameter, module.backbone.transformer.get_parameter(name))


def test_cached_latents_give_the_losses_of_pixels(make, tmp_path: Path) -> None:
    pixels, _ = train(make(), tmp_path / "pixels", 2)
    data, module = Clips(), make(latent_cache=str(tmp_path / "cache"))
    losses, _ = train(module, tmp_path / "latents", 2, data=data)
    assert data.attached == [(module.backbone.vae_hash, str(tmp_path / "cache"))]
    assert losses.train == pytest.approx(pixels.train, rel=1e-2)  # the cache is bf16


def test_validation_measures_the_same_thing_each_time_with_the_averaged_weights(make, tmp_path: Path) -> None:
    module = make()
    losses, trainer = train(module, tmp_path, 2)
    assert {"val/loss", "val/velocity_tau_0.30", "val/velocity_tau_0.90", "train/loss"} <= trainer.callback_metrics.keys()
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    mean = (metrics["val/velocity_tau_0.30"] + metrics["val/velocity_tau_0.90"]) / 2
    assert metrics["val/loss"] == pytest.approx(100 * mean, rel=1e-5)
    again = trainer.validate(module, datamodule=Clips(), verbose=False)[0]
    assert again["val/loss"] == losses.val[-1]
    module.average = None
    raw = trainer.validate(module, datamodule=Clips(), verbose=False)[0]
    assert raw["val/loss"] != again["val/loss"]


def test_sampled_videos_start_as_the_real_ones(make) -> None:
    real, generated = make().sample_videos(clips(0), steps=2, observed=2)
    assert real.shape == generated.shape == (2, 9, 32, 32, 3)
    assert real.dtype == torch.uint8
    assert torch.equal(real[:, :5], generated[:, :5])  # two latent frames
    assert not torch.equal(real, generated)


def test_sampling_hands_guidance_and_the_encoded_negative_prompt_on(make, monkeypatch) -> None:
    module, seen = make(), {}

    def denoise(noise, taus, condition, solver, **options):
        seen.update(options)
        return noise

    monkeypatch.setattr(module.backbone, "denoise", denoise)
    module.sample_videos(clips(0), steps=2, guidance=7.0, negative_prompt="blurry")
    assert seen["guidance"] == 7.0
    assert torch.equal(seen["negative_prompt"], module.backbone.encode_prompt(["blurry", "blurry"]))
    module.sample_videos(clips(0), steps=2)
    assert seen == {"guidance": 0.0, "negative_prompt": None}


def test_sampling_integrates_the_chosen_grid_with_the_chosen_solver(make) -> None:
    """From tau_0 times the noise: what is left of the data there is not known."""
    module = make()
    latents = module.latents(clips(0))
    condition = VideoCondition(module.backbone.encode_prompt(clips(0)["prompt"]), latents[:, :, :1])
    noise = torch.randn(latents.shape, generator=module._generator(VALIDATION, 0))
    even = module.sample_videos(clips(0), steps=4, observed=1)[1]
    expected = module.backbone.denoise(noise, torch.linspace(1, 0, 5), condition)
    assert torch.equal(even, module.backbone.decode_video(expected))
    official = module.sample_videos(clips(0), steps=4, observed=1, grid="predict2", solver="ab2")[1]
    expected = module.backbone.denoise(karras_taus(4)[0].item() * noise, karras_taus(4), condition, "ab2")
    assert torch.equal(official, module.backbone.decode_video(expected)) and not torch.equal(official, even)


# ---- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": {1: 0.5, 2: 0.6}}, "sum to 1"),
        ({"observed": {0: 1.0}}, "latent frames >= 1"),
        ({"observed": {}}, "sum to 1"),
        ({"prompt_dropout": 1.5}, "prompt_dropout"),
        ({"validation_taus": [0.5, 1.2]}, r"validation_taus must lie in \[0, 1\].*1.2"),
        ({"validation_taus": [0.501, 0.502]}, "first two decimals"),
        ({"seed": -1}, "seed"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_impossible_options_are_refused(make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_clips_too_short_for_their_clean_frames_are_refused(make) -> None:
    batch = clips(0)
    batch["video"] = batch["video"][:, :5]
    with pytest.raises(ValueError, match="up to 2 latent frames clean, but clips have only 2"):
        make().latents(batch)
    assert make(observed={1: 1.0, 2: 0.0}).latents(batch).shape[2] == 2  # what is never drawn needs no room


def test_nothing_to_train_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing trains"):
        train(make(Frozen()), tmp_path, 1)


def test_checkpoints_that_do_not_fit_are_refused(make, tmp_path: Path) -> None:
    _, trainer = train(make(), tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "step1.ckpt")
    for module, message in [
        (make(Lora(rank=2, alpha=8)), "rank 4 saved, 2 here"),
        (make(Lora(rank=4, alpha=8, targets=["to_q"])), "targets"),
        (make(Full()), "LoRA"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(module, tmp_path, 2, tmp_path / "step1.ckpt")
    _, trainer = train(make(ema_decay=None), tmp_path, 1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="no weight average"):
        train(make(), tmp_path, 2, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of VideoFinetune"):
        make().on_load_checkpoint({"state_dict": {}, "mimicvideo": {"kind": "ActionPolicy"}})
