"""How a trained policy acts: the decoder's precision and launches, and how much of the future the video model is shown."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mimicvideo import flow
from mimicvideo.action.decoder import ActionDecoder, PreparedContext
from mimicvideo.action.tokens import COMPILED
from mimicvideo.execution import FEW_QUERIES, CudaGraphs, Twin, attention_kernels, product_dtype

UNIT = 16  # pixels come in so many: 8 to a latent, 2 latents to a token


@dataclass(frozen=True)
class Acting:
    """How actions are computed when acting. Validation and training know nothing of it.

    Attributes:
        dtype: Of the decoder's matrix products; its sums, norms and actions stay fp32. bfloat16 is what a policy trained with
            Lightning's bf16-mixed precision has seen.
        compile: `torch.compile` the decoder's blocks, once for all of them.
        cuda_graphs: Replay context and all integration steps as one CUDA graph, captured anew for each shape. Ignored off GPU.
        future_latents: Latent frames after the observed ones that the video model is shown. None is the whole clip, as in training;
            fewer is faster and not exact, 0 leaves the observed frames alone.
        scale: Pictures are shrunk by it before they are encoded, to whole sixteens of pixels: also faster and not exact.
        num_steps: Euler steps of the action flow; None takes the policy's.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    cuda_graphs: bool = True
    future_latents: int | None = None
    scale: float = 1.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"acting.dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.future_latents is not None and self.future_latents < 0:
            raise ValueError(f"acting.future_latents must not be negative, got {self.future_latents}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"acting.scale must lie in (0, 1], got {self.scale}")
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"acting.num_steps must be at least 1, got {self.num_steps}")

    def shrunk_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in which the video model sees pictures of this size."""
        if self.scale == 1:
            return height, width
        height, width = (max(round(side * self.scale / UNIT), 1) * UNIT for side in (height, width))
        return height, width

    def shrunk(self, video: UInt8[Tensor, "batch frames height width 3"]) -> UInt8[Tensor, "batch frames shrunk_height shrunk_width 3"]:
        """Pictures as the video model sees them."""
        size = self.shrunk_size(*video.shape[2:4])
        if size == video.shape[2:4]:
            return video
        pixels = F.interpolate(video.flatten(0, 1).movedim(-1, 1).float(), size, mode="bilinear", antialias=True)
        return pixels.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).unflatten(0, video.shape[:2])

    def z_frames(self, observed: int, whole: int) -> int:
        """Latent frames that the video model is shown, of `whole` in a clip whose first `observed` are seen.

        Raises:
            ValueError: If a clip does not have so many.
        """
        if self.future_latents is None:
            return whole
        if observed + self.future_latents > whole:
            raise ValueError(
                f"acting.future_latents is {self.future_latents}, but this policy's clips have only {whole - observed} of them"
            )
        return observed + self.future_latents


class ActionSampler:
    """Integrates a decoder's flow as `Acting` says. The decoder stays its owner's: what runs is a twin, brought up to date if need be."""

    def __init__(self, decoder: ActionDecoder, acting: Acting, num_steps: int) -> None:
        self.decoder, self.acting, self.num_steps = decoder, acting, num_steps
        self.graphs = CudaGraphs()
        self._twin = Twin([decoder], self._new_twin)

    @torch.no_grad()
    def __call__(
        self,
        hidden: tuple[Float[Tensor, "batch tokens context_dim"], ...],
        tau_video: Float[Tensor, " batch"],
        proprio: Float[Tensor, "batch history proprio_dim"],
        noise: Float[Tensor, "batch horizon action_dim"],
    ) -> Float[Tensor, "batch horizon action_dim"]:
        """The action flow from `noise` at tau 1 to 0 in equal Euler steps; everything normalised."""
        decoder: ActionDecoder = self._twin()

        def sample(tau_video: Tensor, proprio: Tensor, noise: Tensor, *hidden: Tensor) -> Tensor:
            return integrate(decoder, decoder.prepare_context(*hidden), tau_video, proprio, noise, self.num_steps)

        with self._precision(noise.device), attention_kernels(noise.device, FEW_QUERIES):
            if not self.acting.cuda_graphs:
                return sample(tau_video, proprio, noise, *hidden)
            key = self._twin.made, product_dtype(noise.device, noise.dtype)  # the caller's autocast, which is part of what is captured
            return self.graphs(key, sample, tau_video, proprio, noise, *hidden)

    def _precision(self, device: torch.device) -> AbstractContextManager:
        # Without autocast's cache: its copies of weights would be freed under a graph that reads them.
        bfloat16 = self.acting.dtype == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bfloat16 else nullcontext()

    def _new_twin(self) -> ActionDecoder:
        """In evaluation mode, its matrices in `dtype` already."""
        twin = copy.deepcopy(self.decoder).requires_grad_(False).eval()
        for part in twin.modules():  # compiled for training, these would be the original's
            for name in COMPILED:
                vars(part).pop(name, None)
        if self.acting.dtype == "bfloat16":
            for layer in twin.modules():
                if isinstance(layer, nn.Linear):  # its matrix alone: biases also enter sums in fp32, and autocast rounds them itself
                    layer.weight.data = layer.weight.data.bfloat16()
        if self.acting.compile:
            twin.compile_blocks()
        return twin


def integrate(
    decoder: ActionDecoder,
    context: PreparedContext,
    tau_video: Float[Tensor, " batch"],
    proprio: Float[Tensor, "batch history proprio_dim"],
    noise: Float[Tensor, "batch horizon action_dim"],
    num_steps: int,
) -> Float[Tensor, "batch horizon action_dim"]:
    """The action flow from `noise` at tau 1 to 0 in `num_steps` Euler steps, normalised units; the decoder is to be in evaluation mode."""

    samples, taus = noise.shape[0], torch.linspace(1, 0, num_steps + 1, device=noise.device)
    times = iter(decoder.prepare_times(taus[:-1].repeat_interleave(samples), tau_video.repeat(num_steps)).split(samples))

    def velocity(actions: Tensor, tau: Tensor) -> Tensor:
        return decoder(actions, tau.expand(samples), context, tau_video, proprio, times=next(times))

    return flow.integrate(velocity, noise, taus)
