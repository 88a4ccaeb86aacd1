"""Identities of the flow: the interpolant and its inverse, NVIDIA's form of the loss, and the solvers' orders."""

import pytest
import torch
from torch import Tensor

from mimicvideo import flow
from mimicvideo.noise import karras_sigmas


@pytest.fixture
def samples() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    return clean, noise, torch.linspace(0.05, 0.95, 5, dtype=torch.float64)


def test_interpolant_runs_from_clean_to_noise(samples: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, noise, tau = samples
    torch.testing.assert_close(flow.interpolate(clean, noise, torch.zeros_like(tau)), clean, rtol=0, atol=0)
    torch.testing.assert_close(flow.interpolate(clean, noise, torch.ones_like(tau)), noise, rtol=0, atol=0)


def test_velocity_is_the_derivative_of_the_interpolant(samples: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, noise, tau = samples
    step = 1e-6
    difference = (flow.interpolate(clean, noise, tau + step) - flow.interpolate(clean, noise, tau - step)) / (2 * step)
    torch.testing.assert_close(difference, flow.velocity_target(clean, noise), rtol=1e-8, atol=1e-8)


def test_clean_sample_comes_back_from_noisy_sample_and_velocity(samples: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, noise, tau = samples
    noisy = flow.interpolate(clean, noise, tau)
    torch.testing.assert_close(flow.clean_from_velocity(noisy, flow.velocity_target(clean, noise), tau), clean)


def test_sigma_and_tau_are_inverse() -> None:
    tau = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(flow.tau_from_sigma(flow.sigma_from_tau(tau)), tau)
    assert flow.tau_from_sigma(torch.tensor(80.0, dtype=torch.float64)).item() == pytest.approx(80 / 81)


def test_velocity_loss_equals_the_weighted_edm_loss(samples: tuple[Tensor, Tensor, Tensor]) -> None:
    """NVIDIA trains (1 + sigma)^2 / sigma^2 |x0_hat - x0|^2 with x0_hat = c_skip x_sigma + c_out F(c_in x_sigma)."""
    clean, noise, tau = samples
    network = torch.sin  # any function of its input
    velocity_loss = (network(flow.interpolate(clean, noise, tau)) - flow.velocity_target(clean, noise)).square().mean()

    sigma = flow.expand_like(flow.sigma_from_tau(tau), clean)
    level = sigma / (1 + sigma)
    x_sigma = clean + sigma * noise
    estimate = (1 - level) * x_sigma - level * network((1 - level) * x_sigma)
    edm_loss = ((1 + sigma) ** 2 / sigma**2 * (estimate - clean).square()).mean()
    assert edm_loss.item() == pytest.approx(velocity_loss.item(), rel=1e-12)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_straight_flow_is_exact_in_any_number_of_steps(solver: flow.Solver, samples: tuple[Tensor, Tensor, Tensor]) -> None:
    clean, noise, _ = samples
    velocity = flow.velocity_target(clean, noise)
    for taus in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.7, 0.6, 0.1, 0.0])):
        end = flow.integrate(lambda x, tau: velocity, noise, taus.double(), solver)
        torch.testing.assert_close(end, clean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2)])
def test_error_falls_with_the_solvers_order(solver: flow.Solver, order: int) -> None:
    """dx/dtau = x has x(0.1) = x(0.9) e^-0.8. Halving uneven steps must divide the error by 2^order."""
    errors = []
    for steps in (256, 512, 1024):
        taus = 0.1 + 0.8 * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 1.5
        end = flow.integrate(lambda x, tau: x, torch.ones(1, dtype=torch.float64), taus, solver)
        errors.append(abs(end.item() - torch.e**-0.8))
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


def official_ab2(estimate, start: Tensor, sigmas: Tensor) -> Tensor:
    """The reference's formula in sigma: x_0 form, phi functions, c_2; `estimate(x_sigma, sigma)` is x_0."""
    x, previous = start, None
    for now, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        clean = estimate(x, now)
        if previous is None:
            x = (now - following) / now * clean + following / now * x
        else:
            step = now.log() - following.log()
            c_2 = (now.log() - previous[0].log()) / step
            phi_1 = torch.expm1(-step) / -step
            phi_2 = (phi_1 - 1) / -step
            x = (-step).exp() * x + step * ((phi_1 - phi_2 / c_2) * clean + phi_2 / c_2 * previous[1])
        previous = now, clean
    return x


def test_ab2_is_the_official_solver() -> None:
    sigmas = karras_sigmas(35)[:24]
    taus = flow.tau_from_sigma(sigmas)
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        return torch.sin(3 * x) + tau * x

    def estimate(x_sigma: Tensor, sigma: Tensor) -> Tensor:
        tau = flow.tau_from_sigma(sigma)
        return (1 - tau) * x_sigma - tau * velocity((1 - tau) * x_sigma, tau)

    expected = (1 - taus[-1]) * official_ab2(estimate, start / (1 - taus[0]), sigmas)
    torch.testing.assert_close(flow.integrate(velocity, start, taus, "ab2"), expected, rtol=1e-10, atol=1e-12)


def test_ab2_is_exact_where_the_estimate_is_linear_in_log_sigma_after_its_euler_start() -> None:
    """x_0(l) = l = -log sigma has the solution y = l - 1 + c e^-l; the Euler start, which misses it, is taken to the exact point."""
    sigmas = torch.tensor([9.0, 8.0, 3.0, 2.5, 0.2], dtype=torch.float64)
    taus, logs = flow.tau_from_sigma(sigmas), -sigmas.log()
    exact = (1 - taus) * (logs - 1 + 0.7 * sigmas)
    x = exact[1]
    for index in range(1, 4):
        estimate, before = logs[index], logs[index - 1]
        x = x + (taus[index + 1] - taus[index]) * (x - estimate) / taus[index]
        x = x + flow.ab2_correction(*taus[index - 1 : index + 2]) * (estimate - before)
        assert x.item() == pytest.approx(exact[index + 1].item(), abs=1e-12)


def test_ab2_ends_clean_with_the_last_estimate() -> None:
    """The official sampler's last pass gives its estimate of x_0; pure noise, where sigma is infinite, is no obstacle either."""
    seen = []
    taus = torch.tensor([1.0, 0.8, 0.4, 0.0], dtype=torch.float64)
    end = flow.integrate(lambda x, tau: (seen.append(x - tau * x.cos()), x.cos())[1], torch.ones(1).double(), taus, "ab2")
    torch.testing.assert_close(end, seen[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 4), ("heun", 8), ("ab2", 4)])
def test_number_of_network_calls(solver: flow.Solver, calls: int) -> None:
    seen = []
    flow.integrate(lambda x, tau: (seen.append(float(tau)), x)[1], torch.ones(1), torch.linspace(1, 0, 5), solver)
    assert len(seen) == calls
    assert max(seen) == 1


def test_bad_grids_and_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two noise levels"):
        flow.integrate(lambda x, tau: x, torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="rk4"):
        flow.integrate(lambda x, tau: x, torch.ones(1), torch.linspace(1, 0, 3), "rk4")  # type: ignore[arg-type]


def test_ab2_reads_nothing_back_from_the_device() -> None:
    """On a GPU each read would wait for the whole pass before it; tensors without values refuse to be read."""
    taus = torch.linspace(1, 0, 5, device="meta")
    end = flow.integrate(lambda x, tau: x * tau, torch.ones(2, 3, device="meta"), taus, "ab2")
    assert end.shape == (2, 3)
