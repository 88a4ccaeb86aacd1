"""VideoFinetune: stage 1, the LightningModule that adapts a video model to robot video by velocity regression."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mimicvideo import flow, ranks
from mimicvideo.ema import WeightAverage
from mimicvideo.execution import sent
from mimicvideo.noise import Generators, Grid, NoiseLevels, check_validation_taus, inference_taus, joined, standard_normal
from mimicvideo.types import Clip
from mimicvideo.video.backbone import VideoBackbone, VideoCondition
from mimicvideo.video.options import NOTHING_TRAINS, check_finetune_options, check_observed

KIND = "VideoFinetune"
KEY = "mimicvideo"  # where a checkpoint of ours keeps what Lightning does not know
TRAINING, VALIDATION, DROPOUT = 0, 1, 2  # first word of a random draw's seed, so that no two share numbers


class VideoFinetune(LightningModule):
    """loss = loss_scale * mean over all latent elements of (1 - m) (v(x_tau, tau, prompt) - (eps - z))^2.

    z are a clip's latents, x_tau = (1 - tau) z + tau eps, and m is 1 on the first one or two latent frames, which the network
    gets clean: they add zeros to the mean. Every random number of training is a function of the seed and the batch's number in
    the whole training: a resumed run continues exactly, and it does not matter how many devices share a batch (but for dropout on
    LoRA's input, a function of step and rank).

    At the end, what was trained is written to `<run_dir>/adapter` (`<run_dir>/backbone` if everything was), with the averaged
    weights if there are any.

    Args:
        backbone: The video model with its adaptation.
        noise: Distribution of tau; the paper's is `LogNormalSigma()`.
        observed: How many latent frames are kept clean, with probabilities; the paper's is {1: 0.5, 2: 0.5}.
        prompt_dropout: Probability that a sample's prompt is replaced by `VideoBackbone.no_prompt` (paper 0, NVIDIA 0.2).
        loss_scale: Factor of the loss; 100 in the official code.
        latent_cache: Folder for the VAE's latents; without it every batch is encoded anew.
        validation_taus: Noise levels at which validation measures the velocity error.
        ema_decay: Decay of the trained weights' average, which then validates and is saved; None for none.
        optimizer: Makes the optimizer of the trained weights.
        scheduler: Makes the learning-rate schedule, stepped after every optimizer step.
        seed: Of all draws in training and validation.

    Raises:
        ValueError: If a probability or noise level is out of range.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        noise: NoiseLevels,
        observed: dict[int, float] | None = None,
        prompt_dropout: float = 0.0,
        loss_scale: float = 100.0,
        latent_cache: str | None = None,
        validation_taus: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98765),
        ema_decay: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:  # built from a configuration: literals. Built by hand, they would be modules.
            self.save_hyperparameters()
        check_finetune_options(observed, prompt_dropout, loss_scale, seed)
        observed = {1: 0.5, 2: 0.5} if observed is None else observed
        self.backbone, self.noise, self.prompt_dropout = backbone.train(), noise, prompt_dropout
        self.observed = {count: probability for count, probability in observed.items() if probability > 0}
        self.loss_scale, self.latent_cache, self.seed = loss_scale, latent_cache, seed
        self.validation_taus = check_validation_taus(validation_taus)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.average = None if ema_decay is None else WeightAverage(backbone, ema_decay)

    # ---- data -----------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Hands the VAE to the data if latents are to be kept."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and self.latent_cache is not None:
            device = self.trainer.strategy.root_device
            self.backbone.to(device)  # Lightning moves the model only after this hook
            data.attach_latents(lambda video: self.backbone.encode_video(video.to(device)), self.backbone.vae_hash, self.latent_cache)

    def configure_model(self) -> None:
        """Divides the backbone among the devices if the trainer's strategy is `FullySharded`."""
        mesh = self._device_mesh
        if mesh is not None and not any(isinstance(module, FSDPModule) for module in self.backbone.modules()):
            self.backbone.shard(mesh["data_parallel"])

    @torch.no_grad()
    def latents(self, batch: Clip) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """A batch's latents in fp32, from its cache or its pixels.

        Raises:
            ValueError: If clips have too few latent frames to keep the largest of `observed` clean.
        """
        if "latents" in batch:
            latents = batch["latents"].float()
        elif "video" in batch:
            latents = self.backbone.encode_video(batch["video"])
        else:
            raise ValueError(f"the batch has neither latents nor video, only {', '.join(batch)}")
        check_observed(self.observed, latents.shape[2])
        return latents

    # ---- the flow -------------------------------------------------------------------------------------------------------------

    def velocity_errors(
        self,
        latents: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        prompt: Float[Tensor, "batch prompt_tokens prompt_dim"],
        tau: Float[Tensor, " batch"],
        generator: Generators,
    ) -> Float[Tensor, " batch"]:
        """Each sample's part of the loss, without its scale.

        Draws the noise and the numbers of clean frames from a generator on the CPU, or from one for each sample.
        """
        noise = standard_normal(latents.shape, generator, latents.device)
        counts, chances = list(self.observed), torch.tensor(list(self.observed.values()))
        choice = joined(lambda count, one: torch.multinomial(chances, count, replacement=True, generator=one), len(latents), generator)
        condition = VideoCondition(prompt, latents[:, :, : max(counts)], torch.tensor(counts)[choice])
        predicted = 1 - condition.frame_mask(latents.shape[2])[:, None, :, None, None]
        noisy = flow.interpolate(latents, noise, sent(tau, latents.device))
        error = self.backbone.velocity(noisy, tau, condition) - flow.velocity_target(latents, noise)
        return (predicted * error).square().flatten(1).mean(1)

    @torch.no_grad()
    def sample_videos(
        self,
        batch: Clip,
        steps: int = 10,
        observed: int | None = None,
        guidance: float = 0.0,
        negative_prompt: str | None = None,
        grid: Grid = "even",
        solver: flow.Solver = "euler",
    ) -> tuple[UInt8[Tensor, "batch frames height width 3"], UInt8[Tensor, "batch frames height width 3"]]:
        """Real clips and the model's continuations of their first `observed` latent frames, with the averaged weights.

        Both have passed the VAE, so that they differ by the transformer's doing only. The noise is the same at every call.
        `guidance`, `negative_prompt` and `solver` are those of `VideoBackbone.denoise`, `grid` that of `noise.inference_taus`: NVIDIA
        samples Predict2 on grid predict2 with ab2, 35 steps and guidance 7.
        """
        latents = self.latents(batch)
        observed = observed or min(self.observed)
        noise = torch.randn(latents.shape, generator=self._generator(VALIDATION, 0)).to(latents)
        with self.averaged_weights():
            condition = VideoCondition(self.backbone.encode_prompt(batch["prompt"]), latents[:, :, :observed])
            negative = None if negative_prompt is None else self.backbone.encode_prompt([negative_prompt] * len(latents))
            taus = inference_taus(grid, steps)
            start = taus[0].item() * noise
            generated = self.backbone.denoise(start, taus, condition, solver, guidance=guidance, negative_prompt=negative)
        return self.backbone.decode_video(latents), self.backbone.decode_video(generated)

    # ---- Lightning ------------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Clip, batch_idx: int) -> Float[Tensor, ""]:
        accumulate = self.trainer.accumulate_grad_batches
        number = self.global_step * accumulate + batch_idx % accumulate
        torch.manual_seed(self._seed(DROPOUT, number, self.global_rank))  # dropout layers take no generator
        latents, prompt = self.latents(batch), self.backbone.encode_prompt(batch["prompt"])
        generators = ranks.training_share(self._generator(TRAINING, number), len(latents), self)
        tau = joined(self.noise.sample, len(latents), generators)
        if self.prompt_dropout:
            kept = joined(lambda count, one: torch.rand(count, generator=one), len(latents), generators) >= self.prompt_dropout
            prompt = torch.where(kept.to(prompt.device)[:, None, None], prompt, self.backbone.no_prompt().to(prompt))
        loss = self.loss_scale * self.velocity_errors(latents, prompt, tau, generators).mean()
        self.log("train/loss", ranks.mean(loss, self), prog_bar=True, batch_size=len(latents))
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Clip, batch_idx: int) -> None:
        """Logs `val/velocity_tau_0.50`, ... (velocity error at each level, not scaled) and `val/loss`, loss_scale times their mean.

        Noise and numbers of clean frames depend on the sample's number only: every validation measures the same thing, however many
        devices share it. A sample that only fills up a device's share is not counted.
        """
        self._evaluate(batch, batch_idx, "val")

    @torch.no_grad()
    def test_step(self, batch: Clip, batch_idx: int) -> None:
        """As `validation_step`, logged as `test/...`."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Clip, batch_idx: int, split: str) -> None:
        latents, metrics = self.latents(batch), {}
        positions = ranks.validation_positions(batch, batch_idx, len(latents), self)
        counted = ranks.counted(batch, len(latents), self)
        with self.averaged_weights():
            prompt = self.backbone.encode_prompt(batch["prompt"])
            for tau in self.validation_taus:
                levels, generators = torch.full((len(latents),), tau), [self._generator(VALIDATION, position) for position in positions]
                errors = self.velocity_errors(latents, prompt, levels, generators)
                metrics[f"{split}/velocity_tau_{tau:.2f}"] = ranks.average(errors, counted)
        if metrics:
            metrics[f"{split}/loss"] = self.loss_scale * torch.stack(list(metrics.values())).mean()
            self.log_dict(metrics, batch_size=ranks.log_weight(counted, self), sync_dist=True, add_dataloader_idx=False)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # Lightning keeps the gradients until the next forward pass has all its activations
        if self.average is not None:
            self.average.update()

    def configure_optimizers(self) -> Any:
        weights = [weight for weight in self.backbone.parameters() if weight.requires_grad]
        if not weights:
            raise ValueError(NOTHING_TRAINS)
        optimizer = self.optimizer(weights)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The backbone with its weight average, if there is one, for the length of a `with` block."""
        if self.average is None:
            yield
        else:
            with self.average.applied_to(self.backbone):
                yield

    def on_fit_end(self) -> None:
        """Writes what was trained into the run's folder."""
        with self.averaged_weights():
            self.backbone.save_trained(Path(self.trainer.default_root_dir))

    # ---- checkpoints ----------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what was trained, under the adapter's names, and leaves out what pretrained files hold."""
        state = self.backbone.adapter_state()
        checkpoint["state_dict"] = state["tensors"]
        average = self.average.state_dict() if self.average is not None else None
        checkpoint[KEY] = {"kind": KIND, "adapter_config": state["config"], "average": average}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads it; Lightning's own loading afterwards finds no name that it knows.

        Raises:
            ValueError: If the checkpoint is of another kind, or does not fit the backbone; see `load_adapter_state`.
        """
        saved = checkpoint.get(KEY)
        if not isinstance(saved, dict) or saved.get("kind") != KIND:
            raise ValueError(f"this is no checkpoint of {KIND}: resume stage 1 from a checkpoint that stage 1 wrote")
        self.backbone.load_adapter_state({"config": saved["adapter_config"], "tensors": checkpoint["state_dict"]})
        if self.average is not None:
            if saved["average"] is None:
                raise ValueError("the checkpoint has no weight average: set ema_decay to null, or train from the start")
            self.average.load_state_dict(saved["average"])

    @property
    def strict_loading(self) -> bool:
        """False: `on_load_checkpoint` has compared and loaded everything by then."""
        return False

    def _generator(self, split: int, position: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(split, position))

    def _seed(self, *words: int) -> int:
        words = (self.seed, *words)
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
