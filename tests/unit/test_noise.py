"""Distributions and grids of noise levels against the paper's and the official code's figures."""

import pytest
import torch

from mimicvideo import noise


def draw(levels: noise.NoiseLevels, count: int = 400_000) -> torch.Tensor:
    return levels.sample(count, torch.Generator().manual_seed(0))


def test_paper_distribution_has_the_derived_quantiles() -> None:
    """mimic-video: logit(tau) ~ N(ln 4, 1), 5 % of draws with sigma log-uniform on [200, 100000]."""
    tau = draw(noise.LogNormalSigma()).double()
    levels = {0.01: 0.285, 0.05: 0.442, 0.10: 0.534, 0.25: 0.680, 0.5: 0.811, 0.75: 0.899, 0.9: 0.953, 0.95: 0.994, 0.99: 0.99996}
    for share, expected in levels.items():
        assert tau.quantile(share).item() == pytest.approx(expected, abs=0.004), share
    assert (tau > 0.98765).double().mean().item() == pytest.approx(0.051, abs=0.002)
    assert (tau < 0.4).double().mean().item() == pytest.approx(0.035, abs=0.002)


def test_tail_can_be_switched_off_and_lies_near_pure_noise() -> None:
    body = torch.logit(draw(noise.LogNormalSigma(tail_probability=0)).double())
    assert body.mean().item() == pytest.approx(1.386, abs=0.01)
    assert body.std().item() == pytest.approx(1, abs=0.01)
    tail = draw(noise.LogNormalSigma(tail_probability=1))
    assert tail.min() >= 200 / 201 - 1e-6
    assert tail.max() <= 1


def test_predict25_distribution_is_a_shifted_logit_normal() -> None:
    tau = draw(noise.ShiftedLogitNormal(5))
    for share, expected in {0.05: 0.492, 0.25: 0.718, 0.5: 0.834, 0.75: 0.908, 0.95: 0.963}.items():
        assert tau.quantile(share).item() == pytest.approx(expected, abs=0.005)


def test_action_distributions() -> None:
    uniform = draw(noise.Uniform())
    assert uniform.min() >= 0.001
    assert uniform.mean().item() == pytest.approx(0.5005, abs=0.002)
    power = draw(noise.PowerTowardNoise())  # density ~ sqrt: mean of u^(2/3) is 3/5
    assert power.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.002)
    assert (draw(noise.Fixed(0.3), 4) == torch.tensor(0.3)).all()


@pytest.mark.parametrize("levels", [noise.LogNormalSigma(), noise.ShiftedLogitNormal(), noise.Uniform(), noise.PowerTowardNoise()])
def test_draws_are_fp32_levels_and_a_function_of_the_generator(levels: noise.NoiseLevels) -> None:
    one, two = draw(levels, 1000), draw(levels, 1000)
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert ((one >= 0) & (one <= 1)).all()


def test_karras_grid_has_the_official_levels() -> None:
    """mimic-video's table of the stop step k against sigma and tau."""
    taus = noise.karras_taus()
    assert len(taus) == 36
    table = {0: 0.98765, 1: 0.98558, 5: 0.97222, 10: 0.93197, 15: 0.82260, 20: 0.56267, 22: 0.41710, 23: 0.34353, 30: 0.03399, 35: 0.00200}
    for step, tau in table.items():
        assert taus[step].item() == pytest.approx(tau, abs=6e-6), step
    sigmas = {1: 68.33, 10: 13.70, 17: 2.855, 24: 0.3771}
    for step, sigma in sigmas.items():
        assert (taus[step] / (1 - taus[step])).item() == pytest.approx(sigma, rel=5e-3), step
    assert (taus.diff() < 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: noise.Fixed(1.5), r"\[0, 1\].*1\.5"),
        (lambda: noise.Fixed(float("nan")), r"\[0, 1\].*nan"),
        (lambda: noise.LogNormalSigma(scale=0), "scale"),
        (lambda: noise.LogNormalSigma(tail_probability=2), "tail_probability"),
        (lambda: noise.LogNormalSigma(tail_low=10, tail_high=1), "tail_low"),
        (lambda: noise.ShiftedLogitNormal(-1), "shift"),
        (lambda: noise.Uniform(0.9, 0.1), "low=0.9"),
        (lambda: noise.PowerTowardNoise(power=-1), "power"),
        (lambda: noise.karras_taus(0), "steps"),
    ],
)
def test_impossible_numbers_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
