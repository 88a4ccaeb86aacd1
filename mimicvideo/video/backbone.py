"""VideoBackbone: what both stages and the rollout need of a video model: latents, text, velocity, hidden states, samples."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from mimicvideo import flow
from mimicvideo.execution import Execution, sent


@dataclass(frozen=True)
class VideoCondition:
    """What the video flow is conditioned on.

    Attributes:
        prompt: Encoded instruction.
        observed: Clean latents of the observed frames; they replace the noisy ones at the network's input.
        num_observed: How many of `observed` each sample keeps clean, in [1, z_observed]; None means all of them.
    """

    prompt: Float[Tensor, "batch prompt_tokens prompt_dim"]
    observed: Float[Tensor, "batch z_channels z_observed z_height z_width"]
    num_observed: Int[Tensor, " batch"] | None = None

    def frame_mask(self, z_frames: int) -> Float[Tensor, "batch z_frames"]:
        """1 on latent frames that are kept clean, 0 on those to be predicted."""
        batch, z_observed = self.observed.shape[0], self.observed.shape[2]
        device = self.observed.device
        count = torch.full((batch,), z_observed, device=device) if self.num_observed is None else sent(self.num_observed, device)
        return (torch.arange(z_frames, device=device)[None] < count[:, None]).float()

    def repeat(self, times: int) -> "VideoCondition":
        """The whole batch, `times` times over."""
        count = None if self.num_observed is None else self.num_observed.repeat(times)
        return VideoCondition(self.prompt.repeat(times, 1, 1), self.observed.repeat(times, 1, 1, 1, 1), count)


class VideoBackbone(nn.Module, ABC):
    """A video model whose features a policy can read. Latents are fp32 at this border, whatever the model's dtype."""

    hidden_dim: int  # width of a block's output
    num_blocks: int
    weights_hash: str  # SHA-256 over the base weights of the transformer, VAE and text encoder
    vae_hash: str  # SHA-256 over the VAE alone: part of the key of cached latents

    @abstractmethod
    def encode_video(
        self, video: UInt8[Tensor, "batch frames height width 3"]
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """Normalised posterior means. Raises ValueError unless frames = 1 + 4n and the VAE takes height and width."""

    @abstractmethod
    def decode_video(
        self, latents: Float[Tensor, "batch z_channels z_frames z_height z_width"]
    ) -> UInt8[Tensor, "batch frames height width 3"]: ...

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> Float[Tensor, "batch prompt_tokens prompt_dim"]:
        """Text embeddings, zero beyond each prompt's length, kept on disk by prompt and encoder if a cache is configured."""

    @abstractmethod
    def no_prompt(self) -> Float[Tensor, "prompt_tokens prompt_dim"]:
        """What takes the place of a prompt that is dropped in training."""

    @abstractmethod
    def velocity(
        self,
        noisy: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        tau: Float[Tensor, " batch"],
        condition: VideoCondition,
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """The network's eps - x_0. Observed frames of `noisy` are ignored: the clean ones of `condition` take their place."""

    @abstractmethod
    def hidden_states(
        self,
        noisy: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        tau: Float[Tensor, " batch"],
        condition: VideoCondition,
        blocks: Sequence[int],
    ) -> dict[int, Float[Tensor, "batch tokens hidden_dim"]]:
        """Outputs of the given 0-based blocks from one pass that stops after the deepest of them.

        Raises:
            ValueError: If a block does not exist; the message gives the valid range.
        """

    def hidden_states_by_level(
        self,
        noisy: Float[Tensor, "levels batch z_channels z_frames z_height z_width"],
        taus: Float[Tensor, " levels"],
        condition: VideoCondition,
        blocks: Sequence[int],
    ) -> dict[int, Float[Tensor, "levels batch tokens hidden_dim"]]:
        """`hidden_states` of the same samples at several noise levels, in one pass over all of them."""
        levels, batch = noisy.shape[:2]
        states = self.hidden_states(noisy.flatten(0, 1), taus.repeat_interleave(batch), condition.repeat(levels), blocks)
        return {block: state.unflatten(0, (levels, batch)) for block, state in states.items()}

    def shard(self, mesh: DeviceMesh) -> None:
        """Divides weights, their gradients and optimizer states among the processes of `mesh` (FSDP2), block by block."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sharded: use --config conf/trainer/ddp.yaml")

    def execute(self, execution: Execution | None) -> None:
        """Runs the network so from now on; None is the plain way.

        Raises:
            ValueError: If this model has no other way.
        """
        if execution is not None:
            raise ValueError(f"{type(self).__name__} runs in one way only: leave execution out")

    def adapter_state(self) -> dict[str, Any]:
        """What tells this backbone from its base weights: nested dictionaries of tensors and plain values. Empty if nothing does."""
        return {}

    def load_adapter_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `adapter_state` gave. Raises ValueError if it does not fit."""
        if state:
            raise ValueError(f"{type(self).__name__} takes no adapter, got one with {', '.join(sorted(state))}")

    def fuse_adapter(self) -> None:
        """Merges the adapter, if any, into the weights: faster, same outputs."""

    def save_trained(self, run_dir: Path) -> Path:
        """Writes what was trained below `run_dir` and returns the new folder: an adapter, or a whole model if everything was.

        Every process must call this; the first writes.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained in stage 1: it has no save_trained")

    @torch.no_grad()
    def denoise(
        self,
        noise: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        taus: Float[Tensor, " steps_plus_1"],
        condition: VideoCondition,
        solver: flow.Solver = "euler",
        guidance: float = 0.0,
        negative_prompt: Float[Tensor, "batch prompt_tokens prompt_dim"] | None = None,
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """Integrates the video flow from x at `taus[0]` to `taus[-1]`; observed frames come back clean.

        The sum over steps is kept in float64, as in the official sampler.

        Args:
            noise: x at `taus[0]`.
            taus: Noise levels from there on; see `noise.karras_taus`.
            condition: Prompt and observed latents.
            solver: See `flow.integrate`.
            guidance: g of v + g (v - v_negative), the same sum for velocities as NVIDIA's for estimates of x_0. 0, which the paper
                uses, costs one pass a step, all others two; NVIDIA samples Predict2 with 7.
            negative_prompt: Embedded prompt of v_negative; `no_prompt`, which prompt dropout trains, if it is None.

        Raises:
            ValueError: If the guidance is not finite.
        """
        if not math.isfinite(guidance):
            raise ValueError(f"guidance must be a finite number, got {guidance}")
        mask = condition.frame_mask(noise.shape[2])[:, None, :, None, None]
        clean = torch.zeros_like(noise)
        clean[:, :, : condition.observed.shape[2]] = condition.observed.to(noise)
        if negative_prompt is None:
            negative_prompt = self.no_prompt().to(condition.prompt).expand_as(condition.prompt)
        negative = replace(condition, prompt=negative_prompt)

        def velocity(x: Tensor, tau: Tensor) -> Tensor:
            x, tau = x.to(noise), tau.to(noise).expand(len(x))
            predicted = self.velocity(x, tau, condition)
            if guidance != 0:
                predicted = predicted + guidance * (predicted - self.velocity(x, tau, negative))
            return ((1 - mask) * predicted).double()

        x = flow.integrate(velocity, (mask * clean + (1 - mask) * noise).double(), taus.double().to(noise.device), solver)
        return mask * clean + (1 - mask) * x.to(noise)
