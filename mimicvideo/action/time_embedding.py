"""PairTimeEmbedding: the bilinear-affine embedding of (tau_action, tau_video) and the modulation it drives."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.action.layers import RMSNorm, linear

PERIODS = (4e-3, 4.0)  # shortest and longest period of psi: official `world2action_dit.py`, as in pi0
MARGINAL_BIAS = 0.38205  # initial b = c of the bilinear form: official `world2action_dit.py`


def sinusoids(tau: Float[Tensor, "*shape"], width: int) -> Float[Tensor, "*shape width"]:
    """psi(tau) = [sin(2 pi tau / period), cos(2 pi tau / period)] for width/2 periods, log-spaced from 4e-3 to 4, inclusive.

    float64: at period 4e-3, float32 angles near 1500 would be wrong in the fourth digit.
    """
    shortest, longest = (math.log10(period) for period in PERIODS)
    periods = torch.logspace(shortest, longest, width // 2, dtype=torch.float64, device=tau.device)
    angle = 2 * math.pi * tau.double()[..., None] / periods
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class PairTimeEmbedding(nn.Module):
    """z = (B phi_a + b) * (C phi_v + c) - b * c, with phi = SiLU(P psi(tau) + p); then a = A z and e = RMSNorm(z).

    The biases let each time through on its own; subtracting b * c removes the constant. `a` goes to every sublayer of every
    block as it is, `e` through each sublayer's own low-rank map (`Modulation`).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.action = linear(width, width, bias=True)  # P_a
        self.video = linear(width, width, bias=True)  # P_v
        self.action_factor = linear(width, width, bias=True)  # B, b
        self.video_factor = linear(width, width, bias=True)  # C, c
        self.shared = linear(width, 3 * width)  # A
        self.norm = RMSNorm(width)
        nn.init.constant_(self.action_factor.bias, MARGINAL_BIAS)
        nn.init.constant_(self.video_factor.bias, MARGINAL_BIAS)

    def forward(
        self, tau_action: Float[Tensor, "samples times"], tau_video: Float[Tensor, " samples"]
    ) -> tuple[Float[Tensor, "samples times three_width"], Float[Tensor, "samples times width"]]:
        """(a, e) for each pair of an action time and its sample's video time."""
        dtype = self.norm.weight.dtype
        phi_action = F.silu(self.action(sinusoids(tau_action, self.width).to(dtype)))
        phi_video = F.silu(self.video(sinusoids(tau_video, self.width).to(dtype)))
        z = self.action_factor(phi_action) * self.video_factor(phi_video)[:, None]
        z = z - self.action_factor.bias * self.video_factor.bias
        return self.shared(z), self.norm(z)


class Modulation(nn.Module):
    """AdaLN-LoRA: W2 W1 SiLU(e) + a, cut into `parts` vectors (shift, scale and, in a block, gate). W2 starts at zero, A does not."""

    def __init__(self, width: int, rank: int, parts: int) -> None:
        super().__init__()
        self.width, self.parts = width, parts
        self.down = linear(width, rank)
        self.up = linear(rank, parts * width)
        nn.init.zeros_(self.up.weight)

    def forward(
        self, shared: Float[Tensor, "samples times three_width"], embedding: Float[Tensor, "samples times width"]
    ) -> tuple[Float[Tensor, "samples times width"], ...]:
        own = self.up(self.down(F.silu(embedding)))
        return (own + shared[..., : self.parts * self.width]).chunk(self.parts, dim=-1)
