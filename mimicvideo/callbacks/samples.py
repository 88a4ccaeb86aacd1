"""VideoSamples: generated beside real video at validations, as strips, videos and one number."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy import ndarray
from torch import Tensor

from mimicvideo.flow import Solver, check_solver
from mimicvideo.media import strip, write_mp4, write_png
from mimicvideo.noise import Grid, inference_taus
from mimicvideo.types import Clip

_PLAIN = {"guidance": 0.0, "grid": "even", "solver": "euler"}  # what modules without such a choice do


class SamplesVideos(Protocol):
    """What a module needs for this: real clips, and continuations of their first `observed` latent frames."""

    def sample_videos(self, batch: Clip, steps: int, observed: int | None, **sampling: Any) -> tuple[Tensor, Tensor]: ...


class VideoSamples(Callback):
    """Continues the first clips of the first validation batch and writes them to `<run_dir>/samples/step_<n>/`.

    `strip.png` has a row of real and a row of generated frames for each clip, `sample_<i>.mp4` the two side by side,
    `samples.json` instructions and errors. The strip also goes to TensorBoard and wandb where they are in use. Logged is
    `val/sample_psnr`, in dB, over the frames that were not given.

    Args:
        samples: Clips.
        steps: Denoising steps.
        every: Validations from one time to the next.
        observed: Latent frames that are given, so 1 + 4 (observed - 1) frames of the clip.
        fps: Of the videos.
        guidance: See `VideoFinetune.sample_videos`; this and what follows only for modules whose sampling has it.
        grid: The same.
        solver: The same.

    Raises:
        ValueError: If a number is below 1, or grid or solver is unknown.
    """

    def __init__(
        self,
        samples: int = 4,
        steps: int = 10,
        every: int = 1,
        observed: int = 1,
        fps: float = 10.0,
        guidance: float = 0.0,
        grid: Grid = "even",
        solver: Solver = "euler",
    ) -> None:
        for name, value in {"samples": samples, "steps": steps, "every": every, "observed": observed, "fps": fps}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.samples, self.steps, self.every, self.observed, self.fps = samples, steps, every, observed, fps
        inference_taus(grid, steps)  # refuses an unknown grid
        self.sampling = {"guidance": guidance, "grid": grid, "solver": check_solver(solver)}
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises TypeError if the module generates no videos."""
        if not hasattr(pl_module, "sample_videos"):
            raise TypeError(f"{type(pl_module).__name__} generates no videos: leave the callback VideoSamples out")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Clip, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or batch_idx > 0 or dataloader_idx > 0:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        module: SamplesVideos = pl_module  # type: ignore[assignment]
        first: Clip = {key: value[: self.samples] for key, value in batch.items()}  # type: ignore[index, assignment]
        chosen = {name: value for name, value in self.sampling.items() if value != _PLAIN[name]}
        real, generated = (video.cpu().numpy() for video in module.sample_videos(first, self.steps, self.observed, **chosen))
        given = 1 + 4 * (self.observed - 1)
        if real.shape[1] <= given:
            raise ValueError(
                f"VideoSamples.observed is {self.observed}, which gives {given} frames, but clips have only {real.shape[1]}: lower it"
            )
        psnr = [peak_signal_to_noise(one[given:], other[given:]) for one, other in zip(real, generated, strict=True)]
        pl_module.log("val/sample_psnr", float(np.mean(psnr)), batch_size=len(psnr), sync_dist=True)
        if trainer.is_global_zero:
            self._write(trainer, real, generated, first["prompt"], psnr)

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
        record = {"step": step, "prompts": prompts, "psnr": psnr}
        record |= {"denoising_steps": self.steps, "observed_latents": self.observed, **self.sampling}
        (folder / "samples.json").write_text(json.dumps(record, indent=2))
        for logger in trainer.loggers:
            _log_image(logger, image, step)


def peak_signal_to_noise(one: UInt8[ndarray, "*shape"], other: UInt8[ndarray, "*shape"]) -> float:
    """20 log10(255 / RMS difference), in dB; 100 for equal pictures."""
    error = np.square(one.astype(np.float64) - other).mean()
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _log_image(logger: Logger, image: ndarray, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image("samples", image, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image("samples", [image], step=step)
