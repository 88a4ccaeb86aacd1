"""What future the backbone sees at inference: noise (one pass, the paper's default), a partly denoised one, or the true one."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from mimicvideo import flow
from mimicvideo.noise import Grid, check_tau, inference_taus
from mimicvideo.video.backbone import VideoBackbone, VideoCondition

PAPER_TAU = 80 / 81  # sigma = 80, the first level of the official grid, which the paper calls tau = 1


class Future(ABC):
    """Chooses the noisy latents and the noise level at which the hidden states are read.

    Attributes:
        tau: That noise level, in [0, 1].
        needs_video: Whether it wants the true future.
    """

    tau: float
    needs_video: bool = False

    @abstractmethod
    def latents(
        self,
        backbone: VideoBackbone,
        condition: VideoCondition,
        noise: Float[Tensor, "batch z_channels z_frames z_height z_width"],
        clean: Float[Tensor, "batch z_channels z_frames z_height z_width"] | None = None,
    ) -> Float[Tensor, "batch z_channels z_frames z_height z_width"]:
        """The latents at noise level `tau`; observed frames may hold anything, the backbone puts the clean ones there.

        Args:
            backbone: The video model.
            condition: Prompt and observed latents.
            noise: Standard normal.
            clean: Latents of the true clip, observed frames first, if they are known.
        """


class NoiseFuture(Future):
    """tau * noise: nothing is known of the future, and a single pass of the backbone suffices.

    At the default this is what the official code feeds: x_sigma / (1 + sigma) with x_sigma = 80 * noise.
    """

    def __init__(self, tau: float = PAPER_TAU) -> None:
        self.tau = check_tau(tau, "future.tau")

    def latents(self, backbone, condition, noise, clean=None):
        return self.tau * noise


class DenoisedFuture(Future):
    """The video flow integrated from noise down to `tau` on the official grid (the levels above `tau`, then `tau` itself).

    Args:
        tau: Where to stop.
        steps: Length of the whole grid, down to clean; 35 is official.
        solver: See `flow.integrate`; ab2 costs one backbone pass a step.
        grid: Which; see `noise.inference_taus`.
    """

    def __init__(self, tau: float = 0.5, steps: int = 35, solver: flow.Solver = "ab2", grid: Grid = "predict2") -> None:
        self.tau = check_tau(tau, "future.tau")
        self.steps = steps
        levels = inference_taus(grid, steps)
        self.taus = torch.cat([levels[levels > self.tau + 1e-6], torch.tensor([self.tau], dtype=levels.dtype)])
        self.solver: flow.Solver = flow.check_solver(solver)

    def latents(self, backbone, condition, noise, clean=None):
        start = self.taus[0].item() * noise
        return start if len(self.taus) == 1 else backbone.denoise(start, self.taus, condition, self.solver)


class StoppedFuture(DenoisedFuture):
    """`DenoisedFuture` whose end is a level of the grid, named by its number: the official `stop_after_step`.

    0 is one pass at 0.98765, the paper's "tau = 1"; 22 of 35 is 0.41710, its best for the true future.

    Args:
        step: How many steps are integrated before the pass that is read, in [0, steps].
        steps: Length of the whole grid; 35 is official.
        solver: See `flow.integrate`.
        grid: Which; see `noise.inference_taus`.
    """

    def __init__(self, step: int = 0, steps: int = 35, solver: flow.Solver = "ab2", grid: Grid = "predict2") -> None:
        if not 0 <= step <= steps:
            raise ValueError(f"future.step must lie in [0, {steps}], the steps of the grid, got {step}")
        super().__init__(inference_taus(grid, steps)[step].item(), steps, solver, grid)


class OracleFuture(Future):
    """The true future, noised to `tau` as in training: an upper bound, where somebody can film the future."""

    needs_video = True

    def __init__(self, tau: float = 0.4) -> None:
        self.tau = check_tau(tau, "future.tau")

    def latents(self, backbone, condition, noise, clean=None):
        if clean is None:
            raise ValueError("future OracleFuture needs the true future: pass future_video, or choose NoiseFuture or DenoisedFuture")
        return flow.interpolate(clean, noise, torch.full(clean.shape[:1], self.tau, device=clean.device))
