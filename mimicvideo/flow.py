"""Rectified flow, shared by both stages: x_tau = (1 - tau) x_0 + tau eps, velocity u = eps - x_0, integrated from 1 to 0.

Source of the convention: paper Eq. 1-3. It equals NVIDIA's EDM form of Predict2 with sigma = tau / (1 - tau).
"""

from collections.abc import Callable
from typing import Literal

import torch
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


def check_solver(solver: str) -> Solver:
    """Returns `solver`; raises ValueError if `integrate` does not know it."""
    if solver not in ("euler", "heun", "ab2"):
        raise ValueError(f"unknown solver {solver!r}: choose euler, heun or ab2")
    return solver


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
        solver: `euler`, `heun` (two calls a step), or `ab2`, the official two-step Adams-Bashforth rule in log sigma with an
            Euler start (one call a step); see `ab2_correction`.

    Raises:
        ValueError: If the grid has fewer than two entries or the solver is unknown.
    """
    if taus.ndim != 1 or len(taus) < 2:
        raise ValueError(f"taus must be a 1-D grid of at least two noise levels, got shape {tuple(taus.shape)}")
    check_solver(solver)
    x, previous = start, None
    for tau, next_tau in zip(taus[:-1], taus[1:], strict=True):
        step = next_tau - tau
        slope = velocity(x, tau)
        if solver == "heun":
            slope = (slope + velocity(x + step * slope, next_tau)) / 2
        following = x + step * slope
        if solver == "ab2":
            clean = x - tau * slope
            if previous is not None:
                previous_tau, previous_clean = previous
                following = following + ab2_correction(previous_tau, tau, next_tau) * (clean - previous_clean)
            previous = tau, clean
        x = following
    return x


def ab2_correction(previous_tau: Float[Tensor, ""], tau: Float[Tensor, ""], next_tau: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What the official solver adds to an Euler step, per unit of change of the estimated x_0 since the step before.

    With l = -log sigma and y = x_tau / (1 - tau) = x_0 + sigma eps, dy/dl = x_0 - y. Where x_0 is constant the solution is the
    Euler step; where it goes on linearly in l, as it did over the last step of length k, a step of length h adds
    (h - 1 + e^-h) / k of its change to y (`res_x0_rk2_step` of NVIDIA's sampler is the same in other words). Levels 0 and 1, where
    log sigma is infinite, get 0: the last step to a clean sample is then the estimate itself, as in the official code.
    """
    step, previous_step = tau.logit() - next_tau.logit(), previous_tau.logit() - tau.logit()
    correction = (1 - next_tau) * (step + torch.expm1(-step)) / previous_step
    levels = torch.stack([previous_tau, tau, next_tau])
    return torch.where(((levels > 0) & (levels < 1)).all(), correction, 0.0)  # nothing is read back from a GPU
