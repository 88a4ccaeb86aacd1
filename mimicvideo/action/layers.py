"""Small layers of the action decoder with the paper's initialisation: linear maps, RMSNorm, token embedders."""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-6  # of every norm: official `world2action_dit.py`


def truncated_normal_(weight: Tensor, fan_in: int) -> Tensor:
    """Fills with a normal of standard deviation 1/sqrt(fan_in), cut at three of them."""
    std = 1 / math.sqrt(fan_in)
    return nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


def linear(in_features: int, out_features: int, bias: bool = False) -> nn.Linear:
    """A linear map with truncated normal weights and, if any, zero biases."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    truncated_normal_(layer.weight, in_features)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in at least fp32; returns the dtype it was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest width"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), EPSILON).to(x.dtype)


def hop_widths(in_features: int, out_features: int) -> list[int]:
    """Widths from in to out in round(log4(out / in)) hops (at least one) of equal ratio: 10 -> 47 -> 220 -> 1024."""
    hops = max(1, round(math.log(out_features / in_features, 4)))
    ratio = (out_features / in_features) ** (1 / hops)
    widths = [in_features]
    for _ in range(hops - 1):
        widths.append(round(widths[-1] * ratio))
    return [*widths, out_features]


class TokenEmbedder(nn.Module):
    """An MLP from one token's numbers to the decoder's width: GELU between its layers, output times 1/sqrt(width)."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        widths = hop_widths(in_features, width)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.scale = 1 / math.sqrt(width)

    def forward(self, x: Float[Tensor, "*rest in_features"]) -> Float[Tensor, "*rest width"]:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x) * self.scale
