"""The three futures: what latents they give, how many backbone passes they cost, and what they refuse."""

import pytest
import torch

from mimicvideo import flow
from mimicvideo.action.future import PAPER_TAU, DenoisedFuture, NoiseFuture, OracleFuture, StoppedFuture
from mimicvideo.noise import karras_taus, shifted_taus
from mimicvideo.video.backbone import VideoCondition
from tests.fake_backbone import FakeBackbone, demonstrations


@pytest.fixture
def scene():
    """A backbone, its condition on the first latent frame, clean latents, and noise."""
    backbone, batch = FakeBackbone(), demonstrations(2)
    clean = backbone.encode_video(torch.cat([batch["observation"]["video"], batch["future"]], dim=1))
    condition = VideoCondition(backbone.encode_prompt(batch["observation"]["prompt"]), clean[:, :, :1])
    return backbone, condition, clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def test_noise_is_scaled_noise_and_costs_nothing(scene):
    backbone, condition, _, noise = scene
    future = NoiseFuture()
    assert future.tau == PAPER_TAU == 80 / 81
    # The official input at sigma 80 is sigma noise / (1 + sigma).
    torch.testing.assert_close(future.latents(backbone, condition, noise), 80 * noise / 81)
    assert backbone.passes == 0


def test_denoised_integrates_the_official_grid_down_to_tau(scene):
    backbone, condition, _, noise = scene
    future = DenoisedFuture(tau=0.5, steps=35, solver="euler")
    got = future.latents(backbone, condition, noise)
    grid = karras_taus(35)
    above = grid[grid > 0.5]
    assert backbone.passes == len(above) == 21  # levels 0 ... 20 of the table, 0.98765 ... 0.56267
    x = above[0].item() * noise
    for tau, following in zip(above, [*above[1:], torch.tensor(0.5)], strict=True):
        step = following.item() - tau.item()
        update = step * backbone.velocity(x, tau.float().expand(2), condition)
        x = torch.cat([condition.observed, (x + update)[:, :, 1:]], dim=2)
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[:, :, :1], condition.observed)


def test_denoised_at_the_top_of_the_grid_is_noise(scene):
    backbone, condition, _, noise = scene
    for tau in (PAPER_TAU, 1.0):
        torch.testing.assert_close(DenoisedFuture(tau=tau).latents(backbone, condition, noise), tau * noise)
    assert backbone.passes == 0
    on_grid = DenoisedFuture(tau=float(karras_taus(35)[3]))
    assert len(on_grid.taus) == 4  # a level of the grid is not passed twice


def test_denoised_to_zero_ends_clean():
    assert DenoisedFuture(tau=0.0).taus[-1] == 0
    assert len(DenoisedFuture(tau=0.0, steps=5).taus) == 7


@pytest.mark.parametrize("step", [0, 1, 22, 34])
def test_stopping_after_k_steps_costs_k_passes_and_ends_at_level_k(scene, step):
    backbone, condition, _, noise = scene
    future = StoppedFuture(step)
    got = future.latents(backbone, condition, noise)
    assert backbone.passes == step
    assert future.tau == pytest.approx(karras_taus(35)[step].item(), abs=1e-12)
    expected = PAPER_TAU * noise
    if step:
        expected = backbone.denoise(expected, karras_taus(35)[: step + 1], condition, "ab2")
    torch.testing.assert_close(got, expected)


def test_predict25_is_denoised_on_its_own_grids():
    torch.testing.assert_close(StoppedFuture(7, grid="predict2_5").taus, karras_taus(35, sigma_max=200, sigma_min=0.01)[:8])
    torch.testing.assert_close(DenoisedFuture(tau=0.0, steps=10, grid="shifted").taus, shifted_taus(10))
    with pytest.raises(ValueError, match=r"unknown grid 'linear'.*predict2_5"):
        DenoisedFuture(grid="linear")


@pytest.mark.parametrize("step", [-1, 36])
def test_a_step_beyond_the_grid_is_refused(step):
    with pytest.raises(ValueError, match=rf"future\.step must lie in \[0, 35\].*{step}"):
        StoppedFuture(step)


def test_oracle_noises_the_truth_as_training_does(scene):
    backbone, condition, clean, noise = scene
    future = OracleFuture(tau=0.3)
    assert future.needs_video
    torch.testing.assert_close(future.latents(backbone, condition, noise, clean), flow.interpolate(clean, noise, torch.full((2,), 0.3)))
    with pytest.raises(ValueError, match="needs the true future"):
        future.latents(backbone, condition, noise)


@pytest.mark.parametrize("kind", [NoiseFuture, DenoisedFuture, OracleFuture])
@pytest.mark.parametrize("tau", [-0.1, 1.5, float("nan")])
def test_a_noise_level_outside_zero_to_one_is_refused(kind, tau):
    with pytest.raises(ValueError, match=r"future\.tau must lie in \[0, 1\]"):
        kind(tau=tau)


def test_an_unknown_solver_is_refused_before_it_is_used():
    with pytest.raises(ValueError, match="unknown solver 'rk': choose euler, heun or ab2"):
        DenoisedFuture(0.5, solver="rk")
