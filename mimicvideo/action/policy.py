"""ActionPolicy: stage 2, the LightningModule that trains an action decoder on a frozen video model and then acts with it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor

from mimicvideo import flow, ranks
from mimicvideo.action import state
from mimicvideo.action.acting import Acting, ActionSampler, integrate
from mimicvideo.action.context import check_blocks
from mimicvideo.action.contract import check_contract, check_observation, check_same_contract
from mimicvideo.action.decoder import DecoderFactory, DecoderShape, PreparedContext
from mimicvideo.action.flow_times import FlowTimes, check_flow_times
from mimicvideo.action.future import Future
from mimicvideo.action.options import check_policy_options
from mimicvideo.action.validation import errors
from mimicvideo.ema import WeightAverage
from mimicvideo.execution import sent
from mimicvideo.noise import Generators, NoiseLevels, check_validation_taus, gaussian, joined, standard_normal
from mimicvideo.normalize import Normalization, normalizer_pair
from mimicvideo.types import Demonstration, Observation
from mimicvideo.video.backbone import VideoBackbone, VideoCondition

Control = Literal["none", "zero", "shuffle"]
Hidden = tuple[Float[Tensor, "batch tokens context_dim"], ...]  # one for each of `blocks`

TRAINING, VALIDATION = 0, 1  # first word of a random draw's seed, so that the two never share numbers


class ActionPolicy(LightningModule):
    """Learns v(A_tau, proprio, h, tau_a, tau_v) = noise - clean, where h are hidden states of the frozen video model.

    Training: the true clip's latents are noised to tau_v, observed frames kept clean; `block`'s hidden states h come from one
    truncated pass; normalised actions are noised to tau_a, drawn as `flow_times` says; loss = loss_scale * mean square error of the
    velocity. Acting: `future` supplies the latents, then the action flow is integrated from 1 to 0 in `num_steps` Euler steps.
    Random numbers of training follow from the seed and the batch's number: a resumed run continues exactly, on any devices.

    Args:
        backbone: The video model; it is frozen here.
        decoder: Makes the decoder from the sizes.
        future: What the backbone sees of the future when acting.
        action_dim: Numbers per control step.
        proprio_dim: Numbers per observed state.
        horizon: Control steps in a chunk.
        video_noise: Distribution of tau_v in training.
        action_noise: Distribution of tau_a in training.
        flow_times: `decoupled`, tau_a and tau_v drawn apart, is the paper's; `tied`: see `mimicvideo.action.flow_times`.
        block: 0-based block whose output is read, 19 of 28 is the paper's; or several, for a decoder that takes them, from one pass.
        num_steps: Euler steps of the action flow.
        draws: (tau_a, noise) draws for each pass of the backbone: the same expected loss, with less noise, for little more time.
        loss_scale: Factor of the loss; 10 in the official code.
        normalization: Units; see `mimicvideo.normalize.Normalization`.
        context_control: `zero` replaces the hidden states by zeros, `shuffle` by those of the neighbour in the batch (in a batch of
            one when acting: by those of the previous call, zeros at the first). Also an attribute, for controls at rollout.
        latent_cache: Folder for the VAE's latents; without it every batch is encoded anew.
        validation_taus: tau_v at which validation noises the true future.
        ema_decay: Decay of the decoder's weight average, which then validates and acts; None for none.
        compile_decoder: Train with `torch.compile`: a minute at the start, then faster steps on a GPU.
        acting: How the policy acts where speed counts; see `mimicvideo.action.acting.Acting`. None is as in validation.
        optimizer: Makes the optimizer of the decoder's weights.
        scheduler: Makes the learning-rate schedule, stepped after every optimizer step.
        seed: Of all draws in training and validation.

    Attributes:
        contract: What observations and actions must be: robot, control rate, cameras, frames, names. Empty before `fit`.

    Raises:
        ValueError: If the block does not exist, a noise level lies outside [0, 1], or another number is out of range.
    """

    def __init__(
        self,
        backbone: VideoBackbone,
        decoder: DecoderFactory,
        future: Future,
        action_dim: int,
        proprio_dim: int,
        horizon: int,
        video_noise: NoiseLevels,
        action_noise: NoiseLevels,
        flow_times: FlowTimes = "decoupled",
        block: int | Sequence[int] = 19,
        num_steps: int = 10,
        draws: int = 1,
        loss_scale: float = 10.0,
        normalization: Normalization | None = None,
        context_control: Control = "none",
        latent_cache: str | None = None,
        validation_taus: Sequence[float] = (0.1, 0.5, 0.9),
        ema_decay: float | None = None,
        compile_decoder: bool = False,
        acting: Acting | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if _given_hyperparameters.get() is not None:  # built from a configuration: literals. Built by hand, they would be modules.
            self.save_hyperparameters()
        self.blocks = check_blocks(block, backbone.num_blocks)
        check_flow_times(flow_times, video_noise, future)
        check_policy_options(num_steps, draws, loss_scale, context_control, seed)
        self.backbone, self.future = backbone, future
        self.video_noise, self.action_noise, self.flow_times = video_noise, action_noise, flow_times
        self.num_steps, self.draws, self.loss_scale, self.seed = num_steps, draws, loss_scale, seed
        self.action_dim, self.proprio_dim, self.horizon = action_dim, proprio_dim, horizon
        self.context_control: Control = context_control
        self.latent_cache, self.compile_decoder = latent_cache, compile_decoder
        self.validation_taus = check_validation_taus(validation_taus)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.contract: dict[str, Any] = {}

        backbone.requires_grad_(False)
        backbone.eval()
        self.adapter: dict[str, Any] | None = None  # what stage 1 trained; filled when it is merged into the backbone
        shape = DecoderShape(backbone.hidden_dim, action_dim, proprio_dim, horizon, blocks=len(self.blocks))
        self.decoder = decoder(shape)
        self.action_normalizer, self.proprio_normalizer = normalizer_pair(
            normalization, actions=(action_dim, horizon), proprio=(proprio_dim, shape.history)
        )
        self.average = None if ema_decay is None else WeightAverage(self.decoder, ema_decay)
        self.act_as(acting)
        self._previous_hidden: Hidden | None = None  # for the shuffle control in batches of one

    def act_as(self, acting: Acting | None) -> None:
        """Acts so from now on; None is as in validation."""
        self.acting = acting
        self._sampler = None if acting is None else ActionSampler(self.decoder, acting, acting.num_steps or self.num_steps)

    # ---- data -----------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Takes contract and statistics from the data, and hands it the VAE if latents are to be kept.

        Raises:
            ValueError: If the data's sizes are not this policy's.
        """
        self.fuse_adapter()
        if stage == "fit" and self.compile_decoder:
            self.decoder.compile()
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        self.adopt_contract(data.contract())
        if stage == "fit" and not (self.action_normalizer.is_fitted and self.proprio_normalizer.is_fitted):
            state.fit_normalizers(self, data.statistics())
        if self.latent_cache is not None:
            device = self.trainer.strategy.root_device
            self.backbone.to(device)
            encode = torch.no_grad()(lambda video: self.backbone.encode_video(video.to(device)))
            data.attach_latents(encode, key=self.backbone.vae_hash, cache_dir=self.latent_cache)

    def fuse_adapter(self) -> None:
        """Keeps what stage 1 trained for the checkpoint, then merges it into the backbone's weights. Later calls do nothing."""
        if self.adapter is None:
            self.adapter = self.backbone.adapter_state()
            self.backbone.fuse_adapter()

    def adopt_contract(self, contract: dict[str, Any]) -> None:
        """Makes `contract` this policy's own. Raises ValueError if it is not the present one or its sizes do not fit."""
        check_contract(contract, self.action_dim, self.proprio_dim, self.horizon)
        if self.contract:
            check_same_contract(self.contract, contract)
        self.contract = contract

    @property
    def z_observed(self) -> int:
        """Latent frames that are kept clean."""
        return 1 + (self._contract["observed"] - 1) // 4

    @property
    def z_frames(self) -> int:
        """Latent frames of a whole clip."""
        return 1 + (self._contract["observed"] + self._contract["future"] - 1) // 4

    @property
    def _contract(self) -> dict[str, Any]:
        if not self.contract:
            raise RuntimeError("the policy has no contract yet: train it, or load a checkpoint with load_policy(...)")
        return self.contract

    @torch.no_grad()
    def _latents(self, batch: Demonstration) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """The true clip's latents, from the batch's cache or its pixels."""
        if "latents" in batch:
            latents = batch["latents"].float()
        else:
            video, future = batch["observation"].get("video"), batch.get("future")
            if video is None or future is None:
                raise ValueError("a batch needs either latents or both observation.video and future")
            latents = self.backbone.encode_video(torch.cat([video, future], dim=1))
        if latents.shape[2] != self.z_frames:
            raise ValueError(f"the batch has {latents.shape[2]} latent frames, the contract's clips have {self.z_frames}")
        return latents

    def _condition(self, prompts: list[str], latents: Tensor) -> VideoCondition:
        return VideoCondition(self.backbone.encode_prompt(prompts), latents[:, :, : self.z_observed])

    # ---- the two flows --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _hidden_states(self, noisy: Tensor, tau_video: Float[Tensor, " batch"], condition: VideoCondition) -> Hidden:
        states = self.backbone.hidden_states(noisy, tau_video, condition, self.blocks)
        hidden = tuple(states[block] for block in self.blocks)
        if self.context_control == "none":
            return hidden
        zeros = tuple(torch.zeros_like(one) for one in hidden)
        if self.context_control == "zero":
            return zeros
        previous, self._previous_hidden = self._previous_hidden, tuple(one[-1:] for one in hidden)
        if hidden[0].shape[0] > 1:
            return tuple(one.roll(1, dims=0) for one in hidden)
        return zeros if previous is None or previous[0].shape != hidden[0].shape else previous

    def _flow_loss(self, batch: Demonstration, generator: Generators) -> Float[Tensor, ""]:
        """loss_scale * mean (v - (noise - clean))^2 over samples, draws, steps and dimensions, in fp32."""
        return self._flow_losses(batch, generator).mean()

    def _flow_losses(self, batch: Demonstration, generator: Generators) -> Float[Tensor, " batch"]:
        """The loss of each sample."""
        latents = self._latents(batch)
        size, device = latents.shape[0], latents.device
        tau_video = sent(joined(self.video_noise.sample, size, generator), device)
        noisy = flow.interpolate(latents, standard_normal(latents.shape, generator, device), tau_video)
        hidden = self._hidden_states(noisy, tau_video, self._condition(batch["observation"]["prompt"], latents))

        clean = self.action_normalizer.normalize(batch["actions"]).repeat_interleave(self.draws, dim=0)
        proprio = self.proprio_normalizer.normalize(batch["observation"]["proprio"]).repeat_interleave(self.draws, dim=0)
        tau_action = tau_video_of_draw = tau_video.repeat_interleave(self.draws)
        if self.flow_times == "decoupled":
            tau_action = sent(joined(self.action_noise.sample, size * self.draws, generator), device)
        noise = standard_normal(clean.shape, generator, device)
        velocity = self.decoder(
            flow.interpolate(clean, noise, tau_action),
            tau_action,
            self.decoder.prepare_context(*hidden),
            tau_video_of_draw,
            proprio,
            generator,
        )
        errors = F.mse_loss(velocity.float(), flow.velocity_target(clean, noise).float(), reduction="none")
        return self.loss_scale * errors.unflatten(0, (size, self.draws)).flatten(1).mean(1)

    @torch.no_grad()
    def _sample_actions(
        self,
        context: PreparedContext,
        tau_video: Float[Tensor, " batch"],
        proprio: Float[Tensor, "batch history proprio_dim"],
        noise: Float[Tensor, "batch horizon action_dim"],
    ) -> Float[Tensor, "batch horizon action_dim"]:
        """Integrates the action flow from `noise`; dataset units in and out (of `proprio` and the result)."""
        proprio = self.proprio_normalizer.normalize(proprio.to(noise))
        training, _ = self.decoder.training, self.decoder.eval()  # no proprio is masked when acting
        try:
            return self.action_normalizer.unnormalize(integrate(self.decoder, context, tau_video, proprio, noise, self.num_steps))
        finally:
            self.decoder.train(training)

    @torch.no_grad()
    def predict_actions(
        self,
        observation: Observation,
        *,
        future_video: UInt8[Tensor, "batch future height width 3"] | None = None,
        generator: Generators = None,
    ) -> Float[Tensor, "batch horizon action_dim"]:
        """An action chunk for each observation, in dataset units, fp32.

        Args:
            observation: Must fit `contract`.
            future_video: The true future, for `OracleFuture`; others ignore it.
            generator: CPU generator of the noise, or one for each sample, which makes a sample's chunk independent of its batch.

        Raises:
            ValueError: If the observation is not what the contract says, or the true future is needed and missing.
        """
        acting = self.acting or Acting()
        video = acting.shrunk(sent(check_observation(observation, self._contract), self.device))
        clean = None
        if self.future.needs_video and future_video is not None:
            if future_video.shape[1] != self._contract["future"]:
                raise ValueError(f"future_video has {future_video.shape[1]} frames, the contract says {self._contract['future']}")
            clean = self.backbone.encode_video(torch.cat([video, acting.shrunk(future_video.to(self.device))], dim=1))
        observed = clean if clean is not None else self.backbone.encode_video(video)
        condition = self._condition(observation["prompt"], observed)
        batch, z_channels, _, z_height, z_width = observed.shape
        z_frames = acting.z_frames(self.z_observed, self.z_frames)
        noise = sent(gaussian((batch, z_channels, z_frames, z_height, z_width), generator), self.device)
        action_noise = sent(gaussian((batch, self.horizon, self.action_dim), generator), self.device)
        return self.act(condition, noise, clean, sent(observation["proprio"], self.device), action_noise)

    @torch.no_grad()
    def act(
        self, condition: VideoCondition, noise: Tensor, clean: Tensor | None, proprio: Tensor, action_noise: Tensor
    ) -> Float[Tensor, "batch horizon action_dim"]:
        """`predict_actions` of what is encoded already, with given noise; `noise` says how many latent frames the video model is shown."""
        hidden, tau_video = self._future_states(condition, noise, None if clean is None else clean[:, :, : noise.shape[2]])
        if self._sampler is None:
            context = self.decoder.prepare_context(*hidden)
            return self._sample_actions(context, tau_video, proprio, action_noise).float()
        proprio = self.proprio_normalizer.normalize(proprio.to(action_noise))
        return self.action_normalizer.unnormalize(self._sampler(hidden, tau_video, proprio, action_noise)).float()

    def _future_states(self, condition: VideoCondition, noise: Tensor, clean: Tensor | None) -> tuple[Hidden, Float[Tensor, " batch"]]:
        tau_video = torch.full(noise.shape[:1], self.future.tau, device=noise.device)
        latents = self.future.latents(self.backbone, condition, noise, clean)
        return self._hidden_states(latents, tau_video, condition), tau_video

    # ---- Lightning ------------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Demonstration, batch_idx: int) -> Float[Tensor, ""]:
        accumulate = self.trainer.accumulate_grad_batches
        number, size = self.global_step * accumulate + batch_idx % accumulate, len(batch["actions"])
        loss = self._flow_loss(batch, ranks.training_share(self._generator(TRAINING, number), size, self))
        self.log("train/loss", ranks.mean(loss, self), prog_bar=True, batch_size=size)
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # Lightning keeps the gradients until the next forward pass has all its activations
        if self.average is not None:
            self.average.update()

    @torch.no_grad()
    def validation_step(self, batch: Demonstration, batch_idx: int) -> None:
        """Logs the flow loss and the mean square error of sampled chunks, in dataset units.

        `val/action_mse_tau_0.50` reads the true future noised to that tau_v, `val/action_mse` is the mean over `validation_taus`,
        and `val/action_mse_generated` lets `future` supply the latents, as when acting. All noise is the same in every validation.
        """
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Demonstration, batch_idx: int) -> None:
        """As `validation_step`, logged as `test/...`."""
        self._evaluate(batch, batch_idx, "test")

    def _evaluate(self, batch: Demonstration, batch_idx: int, split: str) -> None:
        counts = ranks.counted(batch, len(batch["actions"]), self)
        positions = ranks.validation_positions(batch, batch_idx, len(counts), self)
        with self.averaged_weights():
            metrics = errors(self, batch, [self._generator(VALIDATION, position) for position in positions], counts)
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=ranks.log_weight(counts, self), sync_dist=True, add_dataloader_idx=False)

    @torch.no_grad()
    def predict_step(self, batch: Demonstration, batch_idx: int) -> dict[str, Tensor]:
        """`actions` for a batch's observations, with the averaged weights and noise of the sample's place; whose: `episode` and `row`."""
        with self.averaged_weights():
            positions = ranks.validation_positions(batch, batch_idx, len(batch["actions"]), self)
            generators = [self._generator(VALIDATION, position) for position in positions]
            actions = self.predict_actions(batch["observation"], future_video=batch.get("future"), generator=generators)
        return {"actions": actions, "episode": batch["episode"], "row": batch["row"]}

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The decoder with its weight average, if there is one, for the length of a `with` block."""
        return nullcontext() if self.average is None else self.average.applied_to(self.decoder)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.decoder.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def train(self, mode: bool = True) -> "ActionPolicy":
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state.pack(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state.unpack(self, checkpoint)

    @property
    def strict_loading(self) -> bool:
        """False: a checkpoint rightly lacks the base weights. `on_load_checkpoint` has compared all the others by then."""
        return False

    def _generator(self, split: int, position: int) -> torch.Generator:
        return torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.seed, split, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        )
