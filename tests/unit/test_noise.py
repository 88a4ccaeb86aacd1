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
    assert torch.equal(draw(noise.PowerTowardNoise(power=0.0)), uniform)
    assert (draw(noise.Fixed(0.3), 4) == torch.tensor(0.3)).all()


@pytest.mark.parametrize("levels", [noise.LogNormalSigma(), noise.ShiftedLogitNormal(), noise.Uniform(), noise.PowerTowardNoise()])
def test_draws_are_fp32_levels_and_a_function_of_the_generator(levels: noise.NoiseLevels) -> None:
    one, two = draw(levels, 1000), draw(levels, 1000)
    assert one.dtype == torch.float32
    assert torch.equal(one, two)
    assert ((one >= 0) & (one <= 1)).all()


# The reference's table of the stop step k against sigma and tau, digit by digit.
STOP_STEPS = """
 0 80.0  0.98765 | 12 9.060 0.90060 | 24 0.3771 0.27386
 1 68.33 0.98558 | 13 7.299 0.87950 | 25 0.2675 0.21103
 2 58.14 0.98309 | 14 5.839 0.85378 | 26 0.1864 0.15708
 3 49.29 0.98011 | 15 4.637 0.82260 | 27 0.1273 0.11293
 4 41.62 0.97654 | 16 3.654 0.78512 | 28 0.0851 0.07842
 5 34.99 0.97222 | 17 2.855 0.74059 | 29 0.0555 0.05257
 6 29.29 0.96699 | 18 2.211 0.68855 | 30 0.0352 0.03399
 7 24.41 0.96064 | 19 1.695 0.62899 | 31 0.0216 0.02116
 8 20.24 0.95292 | 20 1.287 0.56267 | 32 0.0128 0.01264
 9 16.70 0.94349 | 21 0.965 0.49120 | 33 0.0073 0.00722
10 13.70 0.93197 | 22 0.716 0.41710 | 34 0.0039 0.00391
11 11.17 0.91786 | 23 0.523 0.34353 | 35 0.0020 0.00200
"""


def test_karras_grid_is_the_stop_step_table_to_its_printed_digits() -> None:
    sigmas, taus = noise.karras_sigmas(), noise.karras_taus()
    rows = [row.split() for line in STOP_STEPS.strip().splitlines() for row in line.split("|")]
    assert sorted(int(step) for step, _, _ in rows) == list(range(36)) and len(sigmas) == len(taus) == 36
    for step, sigma, tau in rows:
        assert f"{sigmas[int(step)].item():.{len(sigma.split('.')[1])}f}" == sigma, step
        assert f"{taus[int(step)].item():.5f}" == tau, step


def test_predict25_grids() -> None:
    """After its post-training Karras from 200 to 0.01, before it and at 14B even steps from 0.999 to 0 with shift 5."""
    karras = noise.karras_taus(sigma_max=200, sigma_min=0.01)
    assert (karras[0].item(), karras[-1].item()) == pytest.approx((200 / 201, 0.01 / 1.01))
    shifted = noise.shifted_taus(4, shift=5, start=0.8)  # u = 0.8, 0.6, 0.4, 0.2, 0
    torch.testing.assert_close(shifted, torch.tensor([4 / 4.2, 3 / 3.4, 2 / 2.6, 1 / 1.8, 0], dtype=torch.float64))
    assert noise.shifted_taus()[0].item() == pytest.approx(4.995 / 4.996)
    torch.testing.assert_close(noise.shifted_taus(10, shift=1, start=1), torch.linspace(1, 0, 11, dtype=torch.float64))


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
        (lambda: noise.karras_sigmas(sigma_min=80), "sigma_min < sigma_max"),
        (lambda: noise.shifted_taus(0), "steps"),
        (lambda: noise.shifted_taus(shift=0), "shift"),
        (lambda: noise.shifted_taus(start=1.2), "start"),
    ],
)
def test_impossible_numbers_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("size", [3, noise._MOST_SHARED // 8 + 1])
def test_shares_of_processes_are_the_rows_of_one(size: int) -> None:
    """Small draws and large ones, two rows per sample."""

    def drawn(first: int, count: int) -> torch.Tensor:
        return noise.standard_normal((2 * count, size), noise.Share(torch.Generator().manual_seed(5), first, count, 6), torch.device("cpu"))

    whole = drawn(0, 6)
    assert torch.equal(torch.cat([drawn(0, 2), drawn(2, 1), drawn(3, 3)]), whole)
    assert len(set(whole[:, 0].tolist())) == 12
