"""Rectified flow, shared by both stages: x_tau = (1 - tau) x_0 + tau eps, velocity u = eps - x_0, integrated from 1 to 0.

Source of the convention: paper Eq. 1-3. It equals NVIDIA's EDM form of Predict2 with sigma = tau / (1 - tau).
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Solver = Literal["euler", "heun", "ab2"]


def expand_like(tau: Float[Tensor, " batch"], like: Float[Tensor, "batch *rest"]) -> Tensor:
    """Views per-sample `tau` so that it broadcasts over everything but the batch axis of `like`."""
    return tau.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(
    clean: Float[Tensor, "batch *rest"], noise: Float[Tensor, "batch *rest"], tau: Float[Tensor, " batch"]
) -> Float[Tensor, "batch *rest"]:
    """x_tau = (1 - tau) x_0 + tau eps. `tau` in [0, 1], one per sample."""
    tau = expand_like(tau, clean)
    return (1 - tau) * clean + tau * noise


def velocity_target(clean: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """u = dx/dtau = eps - x_0."""
    return noise - clean


def clean_from_velocity(
    noisy: Float[Tensor, "batch *rest"], velocity: Float[Tensor, "batch *rest"], tau: Float[Tensor, " batch"]
) -> Float[Tensor, "batch *rest"]:
    """x_0 = x_tau - tau u."""
    return noisy - expand_like(tau, noisy) * velocity


def sigma_from_tau(tau: Tensor) -> Tensor:
    """sigma = tau / (1 - tau), the noise level of the variance-exploding form. tau = 1 gives infinity."""
    return tau / (1 - tau)


def tau_from_sigma(sigma: Tensor) -> Tensor:
    """tau = sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    start: Float[Tensor, "batch *rest"],
    taus: Float[Tensor, " steps_plus_1"],
    solver: Solver = "euler",
) -> Float[Tensor, "batch *rest"]:
    """Integrates dx/dtau = velocity(x, tau) along the grid `taus` and returns x at its last entry.

    Args:
        velocity: Called with x and a scalar tensor tau.
        start: x at `taus[0]`.
        taus: Noise levels in the order in which they are passed, say linspace(1, 0, 11).
        solver: `euler`, `heun` (two calls a step), or `ab2`, the two-step Adams-Bashforth rule with uneven steps and an
            Euler start (one call a step).

    Raises:
        ValueError: If the grid has fewer than two entries or the solver is unknown.
    """
    if taus.ndim != 1 or len(taus) < 2:
        raise ValueError(f"taus must be a 1-D grid of at least two noise levels, got shape {tuple(taus.shape)}")
    if solver not in ("euler", "heun", "ab2"):
        raise ValueError(f"unknown solver {solver!r}: choose euler, heun or ab2")
    x, previous, previous_step = start, None, None
    for tau, next_tau in zip(taus[:-1], taus[1:], strict=True):
        step = next_tau - tau
        slope = velocity(x, tau)
        if solver == "heun":
            slope = (slope + velocity(x + step * slope, next_tau)) / 2
        elif solver == "ab2":
            current = slope
            if previous is not None and previous_step is not None:
                ratio = step / (2 * previous_step)
                slope = (1 + ratio) * current - ratio * previous
            previous, previous_step = current, step
        x = x + step * slope
    return x
