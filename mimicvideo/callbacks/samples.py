"""VideoSamples: generated beside real video after a validation, as strips, videos and one number."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy import ndarray
from torch import Tensor

from mimicvideo.media import strip, write_mp4, write_png
from mimicvideo.noise import karras_taus
from mimicvideo.types import Clip
from mimicvideo.video.backbone import VideoBackbone, VideoCondition


class VideoSamples(Callback):
    """Continues the first clips of the first validation batch and writes them to `<run_dir>/samples/step_<n>/`.

    `strip.png` has a row of true and a row of generated frames per clip, `sample_<i>.mp4` the two side by side, `samples.json`
    the instructions and errors. The strip also goes to TensorBoard and wandb, where they are in use. Logged is
    `val/sample_psnr`, in dB, over the generated frames. The noise is the same every time, so that strips can be compared.

    Args:
        samples: Clips.
        steps: Denoising steps; 35 is the official number.
        every: Validations from one time to the next.
        observed: Latent frames that are given, 1 + 4 (observed - 1) frames of the clip.
        fps: Of the videos.
        seed: Of the noise.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, samples: int = 4, steps: int = 10, every: int = 1, observed: int = 1, fps: float = 10.0, seed: int = 0) -> None:
        for name, value in {"samples": samples, "steps": steps, "every": every, "observed": observed, "fps": fps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.samples, self.steps, self.every, self.observed, self.fps, self.seed = samples, steps, every, observed, fps, seed
        self._validations = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Clip, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or batch_idx > 0 or dataloader_idx > 0:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        with getattr(pl_module, "averaged_weights", nullcontext)():  # the weights that validation used
            real, generated = self._generate(pl_module.backbone, batch)  # type: ignore[arg-type]
        given = 1 + 4 * (self.observed - 1)
        psnr = [peak_signal_to_noise(one[given:], other[given:]) for one, other in zip(real, generated, strict=True)]
        self.log("val/sample_psnr", float(np.mean(psnr)), batch_size=len(psnr), sync_dist=True)
        if trainer.is_global_zero:
            self._write(trainer, real, generated, batch["prompt"][: len(real)], psnr)

    @torch.no_grad()
    def _generate(self, backbone: VideoBackbone, batch: Clip) -> tuple[ndarray, ndarray]:
        """True and generated frames, uint8 [samples, frames, height, width, 3]. Without pixels, the true latents are decoded."""
        if "latents" in batch:
            latents = batch["latents"][: self.samples].float()
            real = batch["video"][: self.samples] if "video" in batch else backbone.decode_video(latents)
        else:
            real = batch["video"][: self.samples]
            latents = backbone.encode_video(real)
        if self.observed >= latents.shape[2]:
            raise ValueError(f"VideoSamples.observed={self.observed} leaves nothing to generate of {latents.shape[2]} latent frames")
        condition = VideoCondition(backbone.encode_prompt(batch["prompt"][: len(latents)]), latents[:, :, : self.observed])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(self.seed)).to(latents)
        taus = karras_taus(self.steps)
        generated = backbone.decode_video(backbone.denoise(taus[0].item() * noise, taus, condition, "ab2"))
        return _pixels(real), _pixels(generated)

    def _write(self, trainer: Trainer, real: ndarray, generated: ndarray, prompts: list[str], psnr: list[float]) -> None:
        step = trainer.global_step
        folder = Path(trainer.default_root_dir, "samples", f"step_{step:06d}")
        folder.mkdir(parents=True, exist_ok=True)
        rows = {}
        for index, (one, other) in enumerate(zip(real, generated, strict=True)):
            rows |= {f"{index} real": one, f"{index} generated": other}
            write_mp4(folder / f"sample_{index}.mp4", np.concatenate([one, other], axis=2), self.fps)
        image = strip(rows)
        write_png(folder / "strip.png", image)
        record = {"step": step, "prompts": prompts, "psnr": psnr, "steps": self.steps, "observed_latents": self.observed}
        (folder / "samples.json").write_text(json.dumps(record, indent=2))
        for logger in trainer.loggers:
            _log_image(logger, image, step)


def peak_signal_to_noise(one: UInt8[ndarray, "*shape"], other: UInt8[ndarray, "*shape"]) -> float:
    """20 log10(255 / RMS difference), in dB; 100 for equal images."""
    error = np.square(one.astype(np.float64) - other).mean()
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _pixels(video: Tensor) -> ndarray:
    return video.cpu().numpy()


def _log_image(logger: Logger, image: ndarray, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("samples", image, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image("samples", [image], step=step)
