"""The VAE's training: its loss terms, that it learns, and the statistics it writes."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from lightning import LightningDataModule
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mimicvideo.video.autoencoder import AutoencoderTraining, edge_loss, foreground_weights, latent_frame_weights, psnr, to_pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def squares(position: int) -> dict[str, Any]:
    """Coloured squares moving over grey; the same two clips at all even, and at all odd positions."""
    generator = torch.Generator().manual_seed(position % 2)
    video = torch.full((2, 5, 16, 16, 3), 128, dtype=torch.uint8)
    for sample in video:
        x, y = torch.randint(0, 5, (2,), generator=generator).tolist()
        colour = 255 * torch.randint(0, 2, (3,), generator=generator).to(torch.uint8)
        for time, frame in enumerate(sample):
            frame[y : y + 8, x + time : x + time + 8] = colour
    return {"video": video, "prompt": ["", ""]}


class Squares(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader([squares(position) for position in range(120)], batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader([squares(0), squares(1)], batch_size=None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[AutoencoderTraining, Path, dict[str, float]]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    optimizer = functools.partial(torch.optim.AdamW, lr=5e-3)
    module = AutoencoderTraining(
        base_dim=8, dim_mult=(1, 1, 2, 2), mse_weight=10.0, kl_weight=1e-6, statistics_batches=4, optimizer=optimizer
    )
    folder = tmp_path_factory.mktemp("vae")
    trainer = Trainer(
        max_steps=120,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, datamodule=Squares())
    return module, folder, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_it_learns_more_than_the_mean_colour(trained) -> None:
    _, _, metrics = trained
    pixels = to_pixels(torch.cat([squares(0)["video"], squares(1)["video"]]))
    flat = pixels.mean((2, 3, 4), keepdim=True).expand_as(pixels)
    assert metrics["val/psnr"] > psnr(flat, pixels).mean().item() + 2.5
    assert metrics["train/loss"] == pytest.approx(
        metrics["train/l1"] + 10 * metrics["train/mse"] + 0.5 * metrics["train/edge"] + 1e-6 * metrics["train/kl"], rel=1e-4
    )


def test_written_vae_has_latents_of_zero_mean_and_unit_deviation(trained) -> None:
    module, folder, _ = trained
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    video = torch.cat([squares(position)["video"] for position in range(4)])
    with torch.no_grad():
        latents = vae.encode(to_pixels(video)).latent_dist.mode()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
        normalised = (latents - mean) / std
        assert normalised.mean((0, 2, 3, 4)).abs().max() < 1e-3
        assert (normalised.std((0, 2, 3, 4)) - 1).abs().max() < 1e-2
        reconstruction = vae.decode(latents).sample
        torch.testing.assert_close(module.eval()(to_pixels(video)), reconstruction, rtol=1e-3, atol=1e-4)


def test_samples_are_reconstructions(trained) -> None:
    real, output = trained[0].sample_videos(squares(0))
    assert real.dtype == output.dtype == torch.uint8
    assert real.shape == output.shape
    assert (real.float() - output.float()).abs().mean() < 40


def test_metrics_by_hand() -> None:
    target = torch.zeros(2, 3, 2, 4, 4)
    output = torch.stack([torch.full((3, 2, 4, 4), 0.2), torch.full((3, 2, 4, 4), 2.0)])
    assert psnr(output, target).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)
    assert edge_loss(output, target).item() == 0  # a constant shift moves no edge
    output[0, :, 1] += 0.3  # 0.3 between the two frames of one of two samples, one of three axes
    assert edge_loss(output, target).item() == pytest.approx(0.3 / 2 / 3, abs=1e-6)
    assert edge_loss(output[:, :, :1], target[:, :, :1]).item() == 0


def test_every_latent_frame_weighs_the_same() -> None:
    weights = latent_frame_weights(9).flatten()
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0].item() == pytest.approx(weights[1:5].sum().item()) == pytest.approx(weights[5:].sum().item())
    assert latent_frame_weights(1).item() == 1


def test_what_differs_from_the_usual_picture_weighs_more() -> None:
    background = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = background[None, :, None].repeat(4, 1, 5, 1, 1)
    pixels[1, :, 3, 2, 5] = torch.tensor([0.5, -0.25, 0.0]) + background[:, 2, 5]
    weights = foreground_weights(pixels, 6.0)
    assert weights.shape == (4, 1, 5, 8, 8)
    assert weights[1, 0, 3, 2, 5].item() == pytest.approx(1 + 6 * 0.5)
    weights[1, 0, 3, 2, 5] = 1
    assert (weights == 1).all()
    assert foreground_weights(pixels, 0.0).item() == 1


COMPILED_STEP = """
import functools
import torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # all but the slow writing of kernels
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from mimicvideo.video.autoencoder import AutoencoderTraining

clips = {"video": torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8), "prompt": ["", ""]}
for compile in (False, True):
    torch.manual_seed(0)
    module = AutoencoderTraining(base_dim=4, dim_mult=(1, 1, 1, 1), foreground=4.0, compile=compile)
    module.on_train_end = lambda: None
    off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)
    trainer = Trainer(max_steps=2, accelerator="cpu", **off)
    trainer.fit(module, DataLoader([clips, clips], batch_size=None))
    print(float(trainer.callback_metrics["train/loss"]))
"""


def test_compiled_training_takes_the_same_steps() -> None:
    # In a process of its own: the tests' type checks of every call cannot be compiled.
    output = subprocess.run([sys.executable, "-c", COMPILED_STEP], capture_output=True, text=True, timeout=600, check=True).stdout
    plain, compiled = (float(line) for line in output.split())
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_impossible_options_and_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="kl_weight"):
        AutoencoderTraining(kl_weight=-1)
    with pytest.raises(ValueError, match="foreground"):
        AutoencoderTraining(foreground=-0.1)
    with pytest.raises(ValueError, match="colour_shuffle"):
        AutoencoderTraining(colour_shuffle=1.5)
    with pytest.raises(ValueError, match="shapes"):
        AutoencoderTraining(shapes=-1)
    with pytest.raises(ValueError, match="statistics_batches"):
        AutoencoderTraining(statistics_batches=0)
    with pytest.raises(ValueError, match="nearest are 5 and 9"):
        to_pixels(torch.zeros(1, 6, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no training batch"):
        AutoencoderTraining(base_dim=3).latent_statistics([])
