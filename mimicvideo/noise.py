"""Where tau comes from: distributions for training, grids for sampling. tau = 0 is clean, tau = 1 is noise."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of the numbers that one generator draws for the batches of all of them.

    Every process draws for all and keeps its own rows, so that the numbers of a sample do not depend on how many processes there are.

    Attributes:
        generator: The CPU's, the same in all processes.
        first: Of the samples of all processes, the first that is this one's.
        count: This process's samples.
        total: All samples.
    """

    generator: torch.Generator
    first: int
    count: int
    total: int


Generators = torch.Generator | Share | Sequence[torch.Generator] | None  # one for all samples, a share of one, or one for each
_MOST_SHARED = 2**24  # numbers that each process draws for all; of larger draws each sample has its own generator
Grid = Literal["predict2", "predict2_5", "shifted", "even"]


class NoiseLevels(ABC):
    """A distribution over noise levels."""

    @abstractmethod
    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        """Draws `batch` independent levels in [0, 1], float32, on the CPU (move them where they are needed)."""


class LogNormalSigma(NoiseLevels):
    """sigma = scale * exp(n), n ~ N(0, 1), so logit(tau) ~ N(ln scale, 1), with a rare log-uniform tail near pure noise.

    Defaults are the paper's for both stages: scale sqrt(16) = 4 for 16 latent frames and a 5 % tail on [200, 100000]
    (official code, `world2action_model.py`, `high_sigma_ratio`).
    """

    def __init__(self, scale: float = 4.0, tail_probability: float = 0.05, tail_low: float = 200.0, tail_high: float = 1e5) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}")
        if not 0 <= tail_probability <= 1:
            raise ValueError(f"tail_probability must lie in [0, 1], got {tail_probability}")
        if not 0 < tail_low <= tail_high:
            raise ValueError(f"need 0 < tail_low <= tail_high, got {tail_low} and {tail_high}")
        self.scale, self.tail_probability, self.tail_low, self.tail_high = scale, tail_probability, tail_low, tail_high

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        sigma = self.scale * torch.randn(batch, generator=generator).exp()
        low, high = math.log(self.tail_low), math.log(self.tail_high)
        tail = (low + (high - low) * torch.rand(batch, generator=generator)).exp()
        sigma = torch.where(torch.rand(batch, generator=generator) < self.tail_probability, tail, sigma)
        return sigma / (1 + sigma)


class ShiftedLogitNormal(NoiseLevels):
    """tau = s u / (1 + (s - 1) u), u = sigmoid(n), n ~ N(0, 1): Predict2.5's distribution with shift s = 5."""

    def __init__(self, shift: float = 5.0) -> None:
        if shift <= 0:
            raise ValueError(f"shift must be positive, got {shift}")
        self.shift = shift

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        u = torch.sigmoid(torch.randn(batch, generator=generator))
        return self.shift * u / (1 + (self.shift - 1) * u)


class Uniform(NoiseLevels):
    """tau ~ U[low, high). The default is the released action flow's: [0.001, 1)."""

    def __init__(self, low: float = 0.001, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"need 0 <= low < high <= 1, got low={low}, high={high}")
        self.low, self.high = low, high

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        return self.low + (self.high - self.low) * torch.rand(batch, generator=generator)


class PowerTowardNoise(NoiseLevels):
    """Density proportional to (tau - low)^power on [low, 1]. Of the action flow the paper's text says power 1/2 and low 0.001.

    Power 0 is `Uniform(low)`, number by number.
    """

    def __init__(self, power: float = 0.5, low: float = 0.001) -> None:
        if power <= -1:
            raise ValueError(f"power must exceed -1, got {power}")
        if not 0 <= low < 1:
            raise ValueError(f"low must lie in [0, 1), got {low}")
        self.power, self.low = power, low

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        # Inverse of the cumulative distribution ((tau - low) / (1 - low))^(power + 1).
        return self.low + (1 - self.low) * torch.rand(batch, generator=generator) ** (1 / (self.power + 1))


class Fixed(NoiseLevels):
    """Always the same tau."""

    def __init__(self, tau: float) -> None:
        self.tau = check_tau(tau)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        return torch.full((batch,), self.tau, dtype=torch.float32)


def check_tau(tau: float, name: str = "tau") -> float:
    """Returns `tau`; raises ValueError if it lies outside [0, 1]."""
    if not 0 <= tau <= 1:
        raise ValueError(f"{name} must lie in [0, 1] (0 clean, 1 noise), got {tau}")
    return float(tau)


def check_validation_taus(taus: Sequence[float]) -> list[float]:
    """Levels that metrics are named after, as numbers; raises ValueError for one outside [0, 1] or two of the same name."""
    levels = [check_tau(tau, "validation_taus") for tau in taus]
    if len({f"{tau:.2f}" for tau in levels}) < len(levels):
        raise ValueError(f"validation_taus must differ in their first two decimals, which name the metrics, got {list(taus)}")
    return levels


def karras_sigmas(steps: int = 35, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Float[Tensor, " steps_plus_1"]:
    """The grid of Karras et al., from noise to clean; defaults are Predict2's (`rectified_flow_scheduler.py`), Predict2.5's is 200 to 0.01.

    Entry k is where the official `stop_after_step = k` reads the hidden states, after k passes of the whole network.

    Returns:
        float64 levels sigma_i = (sigma_max^(1/rho) + i / steps (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0 ... steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def karras_taus(steps: int = 35, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Float[Tensor, " steps_plus_1"]:
    """`karras_sigmas` as sigma / (1 + sigma), float64; the first is 80/81 = 0.98765, the paper's "tau = 1"."""
    sigma = karras_sigmas(steps, sigma_max, sigma_min, rho)
    return sigma / (1 + sigma)


def shifted_taus(steps: int = 35, shift: float = 5.0, start: float = 0.999) -> Float[Tensor, " steps_plus_1"]:
    """tau = s u / (1 + (s - 1) u) over even u from `start` to 0: the grid of Predict2.5 before its post-training, and of its 14B.

    Returns:
        float64 levels, the last of them 0.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    u = torch.linspace(check_tau(start, "start"), 0, steps + 1, dtype=torch.float64)
    return shift * u / (1 + (shift - 1) * u)


def inference_taus(grid: Grid, steps: int = 35) -> Float[Tensor, " steps_plus_1"]:
    """The grid on which a video model's own code samples, in float64, from noise to clean.

    Args:
        grid: `predict2`, Karras from sigma 80 to 0.002; `predict2_5`, Karras from 200 to 0.01, for Predict2.5 after its
            post-training; `shifted`, for Predict2.5 before it and at 14B; `even`, from 1 to 0 in equal steps, nobody's own.
        steps: Its length.
    """
    if grid == "predict2":
        return karras_taus(steps)
    if grid == "predict2_5":
        return karras_taus(steps, sigma_max=200.0, sigma_min=0.01)
    if grid == "shifted":
        return shifted_taus(steps)
    if grid == "even":
        return shifted_taus(steps, shift=1.0, start=1.0)
    raise ValueError(f"unknown grid {grid!r}: choose from {', '.join(get_args(Grid))}")


def standard_normal(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Standard normal numbers on `device` that depend on `generator` alone.

    The generator is the CPU's. Large draws for a GPU are made there, by a generator that this one seeds: a CPU core needs longer
    for the noise of a batch of latents than the GPU for a training step of a small model. With one generator per sample, row i comes
    from generator i.
    """
    if not isinstance(generator, torch.Generator):
        size = math.prod(shape[1:])
        return joined(lambda count, one: standard_normal((count, *shape[1:]), one, device), shape[0], generator, size)
    if device.type == "cpu":
        return torch.randn(tuple(shape), generator=generator)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.randn(tuple(shape), generator=torch.Generator(device).manual_seed(seed), device=device)


def joined(draw: Callable[[int, Any], Tensor], count: int, generator: Generators, size: int = 1) -> Tensor:
    """`draw(count, generator)`; with one generator per sample, the rows that each of them draws, sample by sample.

    Args:
        draw: Draws so many rows with a generator.
        count: Rows, the same number for each sample.
        generator: See `Generators`.
        size: Numbers of a row, which decide how a share is drawn.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return draw(count, generator)
    if isinstance(generator, Share):
        rows, last = count // generator.count, generator.first + generator.count
        if generator.total * rows * size <= _MOST_SHARED:
            return draw(generator.total * rows, generator.generator)[generator.first * rows : last * rows]
        seeds = torch.randint(2**63 - 1, (generator.total,), generator=generator.generator)[generator.first : last].tolist()
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([draw(count // len(generator), one) for one in generator])


def gaussian(shape: Sequence[int], generator: Generators) -> Tensor:
    """Standard normal numbers on the CPU; with one generator per sample, row i comes from generator i."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator)
    if isinstance(generator, Share):
        return standard_normal(shape, generator, torch.device("cpu"))
    if len(generator) != shape[0]:
        raise ValueError(f"got {len(generator)} generators for a batch of {shape[0]}")
    return torch.stack([torch.randn(tuple(shape[1:]), generator=one) for one in generator])
