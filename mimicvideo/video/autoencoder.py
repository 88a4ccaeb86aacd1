"""AutoencoderTraining: the LightningModule that trains a video VAE from scratch, before any video model can exist."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor

from mimicvideo.types import Clip
from mimicvideo.video import wan
from mimicvideo.video.augment import paste_shapes, shuffle_colours
from mimicvideo.video.inputs import check_clip_size
from mimicvideo.video.new_trio import new_vae

TRAINING, VALIDATION = 0, 1  # first word of a random draw's seed, so that the two never share numbers
_LOG_VARIANCE_RANGE = (-30.0, 20.0)  # diffusers' own


class AutoencoderTraining(LightningModule):
    """loss = w (|x - y| + mse_weight (x - y)^2) + edge_weight |dx - dy| + kl_weight KL(q(z|x) || N(0, 1)), all means over elements.

    x are pixels in [-1, 1], y their reconstruction from a posterior sample, and d the differences between neighbours along
    time, height and width. w counts every latent frame alike, and pixels the more the further they are from what the batch
    mostly shows at their place: `latent_frame_weights` and `foreground_weights`. At the end the per-channel mean and deviation
    of the latents are measured on training clips and written, with the weights, to `<run_dir>/vae`.

    Args:
        base_dim: Channels at full resolution (96 in Wan 2.1).
        dim_mult: Their multiples at resolutions 1, 1/2, 1/4 and 1/8.
        res_blocks: Residual blocks per resolution.
        z_dim: Latent channels.
        decoder_base_dim: Channels of the decoder at full resolution; None is `base_dim`.
        mse_weight: See the formula.
        edge_weight: See the formula.
        kl_weight: See the formula.
        foreground: How much more a pixel counts per unit of its distance from the background; for fixed cameras. 0 is off.
        colour_shuffle: Probability with which a training clip gets its colours shuffled, so that none is foreign to the VAE.
        shapes: Small coloured shapes that are pasted over each training clip, at most; see `augment.py`.
        compile: `torch.compile` encoder and decoder: slow at first, then faster on a GPU.
        statistics_batches: Training batches over which the latents are measured.
        optimizer: Makes the optimizer.
        scheduler: Makes the learning-rate schedule, stepped after every optimizer step.
        seed: Of the posterior samples.

    Raises:
        ValueError: If a weight is negative, `colour_shuffle` no probability or `statistics_batches` below 1.
    """

    def __init__(
        self,
        base_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        res_blocks: int = 1,
        z_dim: int = 16,
        decoder_base_dim: int | None = None,
        mse_weight: float = 1.0,
        edge_weight: float = 0.5,
        kl_weight: float = 1e-4,
        foreground: float = 0.0,
        colour_shuffle: float = 0.0,
        shapes: int = 0,
        compile: bool = False,
        statistics_batches: int = 64,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:  # built from a configuration: literals. Built by hand, they would be factories.
            self.save_hyperparameters()
        for name, weight in {
            "mse_weight": mse_weight,
            "edge_weight": edge_weight,
            "kl_weight": kl_weight,
            "foreground": foreground,
        }.items():
            if weight < 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if not 0 <= colour_shuffle <= 1:
            raise ValueError(f"colour_shuffle is a probability in [0, 1], got {colour_shuffle}")
        if shapes < 0:
            raise ValueError(f"shapes must not be negative, got {shapes}")
        if statistics_batches < 1:
            raise ValueError(f"statistics_batches must be at least 1, got {statistics_batches}")
        self.vae = new_vae(base_dim, dim_mult, res_blocks, z_dim, decoder_base_dim)
        self.mse_weight, self.edge_weight, self.kl_weight, self.foreground = mse_weight, edge_weight, kl_weight, foreground
        self.colour_shuffle, self.shapes = colour_shuffle, shapes
        self._encode: Any = torch.compile(wan.encode_moments) if compile else wan.encode_moments
        self._decode: Any = torch.compile(wan.decode_pixels) if compile else wan.decode_pixels
        self.statistics_batches, self.seed = statistics_batches, seed
        self.optimizer, self.scheduler = optimizer, scheduler

    def forward(self, pixels: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Reconstruction from the posterior mean, clamped to [-1, 1] as a user of the VAE gets it."""
        mean, _ = wan.encode_moments(self.vae, pixels).chunk(2, dim=1)
        return wan.decode_pixels(self.vae, mean).float().clamp(-1, 1)

    def training_step(self, batch: Clip, batch_idx: int) -> Float[Tensor, ""]:
        accumulate = self.trainer.accumulate_grad_batches
        generator = self._generator(TRAINING, self.global_step * accumulate + batch_idx % accumulate)
        pixels = paste_shapes(to_pixels(video_of(batch)), self.shapes, generator)
        # A pixel's distance from the background stays the same in other colours; the background itself would not.
        weights = latent_frame_weights(pixels.shape[2]).to(pixels.device) * foreground_weights(pixels, self.foreground)
        pixels = shuffle_colours(pixels, self.colour_shuffle, generator)
        mean, log_variance = self._encode(self.vae, pixels).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*_LOG_VARIANCE_RANGE)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        output = self._decode(self.vae, mean + (log_variance / 2).exp() * noise).float()

        error = (output - pixels).abs()
        losses = {"l1": (weights * error).mean(), "mse": (weights * error.square()).mean(), "edge": edge_loss(output, pixels)}
        losses["kl"] = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        loss = losses["l1"] + self.mse_weight * losses["mse"] + self.edge_weight * losses["edge"] + self.kl_weight * losses["kl"]
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(pixels))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(pixels))
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Clip, batch_idx: int) -> None:
        """Logs `val/psnr` in dB, the mean over clips, and `val/loss`, the L1 error, of reconstructions from the posterior mean."""
        pixels = to_pixels(video_of(batch))
        output = self(pixels)
        metrics = {"val/psnr": psnr(output, pixels).mean(), "val/loss": F.l1_loss(output, pixels)}
        self.log_dict(metrics, batch_size=len(pixels), sync_dist=True, prog_bar=True, add_dataloader_idx=False)

    @torch.no_grad()
    def sample_videos(
        self, batch: Clip, steps: int = 10, observed: int | None = None
    ) -> tuple[UInt8[Tensor, "batch frames height width 3"], UInt8[Tensor, "batch frames height width 3"]]:
        """Real clips and their reconstructions, for the same callback that shows a video model's samples; the numbers are unused."""
        output = self(to_pixels(video_of(batch)))
        return video_of(batch), ((output + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.vae.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def on_train_end(self) -> None:
        """Measures the latents, while the model is still on its device, and writes the VAE."""
        if self.trainer.is_global_zero:
            data = getattr(self.trainer, "datamodule", None)
            batches: Any = data.train_dataloader() if data is not None else self.trainer.train_dataloader
            mean, std = self.latent_statistics(islice(iter(batches), self.statistics_batches))
            self.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
            self.vae.save_pretrained(Path(self.trainer.default_root_dir) / "vae")

    @torch.no_grad()
    def latent_statistics(self, batches: Any) -> tuple[Float[Tensor, " z_channels"], Float[Tensor, " z_channels"]]:
        """Mean and standard deviation per channel over all latents of the batches, in fp64."""
        count, total, squares = 0, 0.0, 0.0
        for batch in batches:
            latents, _ = wan.encode_moments(self.vae, to_pixels(batch["video"].to(self.device))).double().chunk(2, dim=1)
            count += latents.numel() // latents.shape[1]
            total = total + latents.sum((0, 2, 3, 4))
            squares = squares + latents.square().sum((0, 2, 3, 4))
        if count == 0:
            raise ValueError("no training batch to measure the latents on")
        mean = torch.as_tensor(total / count)
        return mean, (squares / count - mean.square()).clamp_min(1e-12).sqrt()

    def _generator(self, split: int, position: int) -> torch.Generator:
        words = [self.seed, split, position, self.global_rank]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def video_of(batch: Clip) -> UInt8[Tensor, "batch frames height width 3"]:
    """A batch's pixels. Raises ValueError if it carries latents instead."""
    if "video" not in batch:
        raise ValueError(f"a VAE is trained on pixels, but the batch has only {', '.join(batch)}: attach no latents to this data")
    return batch["video"]


def to_pixels(video: UInt8[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch 3 frames height width"]:
    """Bytes to [-1, 1]. Raises ValueError if the VAE cannot take the clip's size."""
    check_clip_size(*video.shape[1:4], patch=1)
    return video.movedim(-1, 1).float() / 127.5 - 1


def latent_frame_weights(frames: int) -> Float[Tensor, "frames 1 1"]:
    """Weights of a clip's 1 + 4n frames, of mean 1, with which the first frame, which has a latent frame of its own, counts as
    much as four others: it is what a policy observes."""
    weights = torch.full((frames, 1, 1), 1 / wan.FRAMES_PER_LATENT)
    weights[0] = 1.0
    return weights / weights.mean()


def foreground_weights(
    pixels: Float[Tensor, "batch 3 frames height width"], strength: float
) -> Float[Tensor, "batch 1 frames height width"] | Float[Tensor, ""]:
    """1 + strength * (largest distance over the colours from the background), in which a small marker is not lost among the rest.

    The background is the median over the batch's clips and frames at each place, so that it is right for cameras that stand
    still, and for others no more than a blur from which everything is about equally far.
    """
    if strength == 0:
        return torch.ones((), device=pixels.device)
    background = pixels.movedim(2, 1).flatten(0, 1).median(dim=0).values
    return 1 + strength * (pixels - background[:, None]).abs().amax(dim=1, keepdim=True)


def edge_loss(output: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean absolute error of neighbour differences along time (if there is any), height and width: keeps edges and motion sharp."""
    axes = [axis for axis in (2, 3, 4) if output.shape[axis] > 1]
    return torch.stack([F.l1_loss(output.diff(dim=axis), target.diff(dim=axis)) for axis in axes]).mean()


def psnr(output: Float[Tensor, "batch *rest"], target: Float[Tensor, "batch *rest"]) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio of each sample in dB, for values in [-1, 1]: 10 log10(4 / mean square error)."""
    error = (output - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-12))
