"""psi and the pair embedding: periods, precision, and what the bilinear form lets through."""

import math

import torch

from mimicvideo.action.time_embedding import PairTimeEmbedding, sinusoids


def test_periods_run_from_4e_3_to_4_inclusive():
    tau = torch.tensor([0.3], dtype=torch.float64)
    psi = sinusoids(tau, 1024)[0]
    assert psi.shape == (1024,)
    assert psi.dtype == torch.float64
    for index, period in {0: 4e-3, 511: 4.0}.items():
        assert abs(psi[index].item() - math.sin(2 * math.pi * 0.3 / period)) < 1e-9
        assert abs(psi[512 + index].item() - math.cos(2 * math.pi * 0.3 / period)) < 1e-9
    middle = 4e-3 * 1000 ** (255 / 511)
    assert abs(psi[255].item() - math.sin(2 * math.pi * 0.3 / middle)) < 1e-9


def test_angles_are_computed_in_float64():
    """The same fp32 time gives the same features as its float64 value, which fp32 angles near 1500 would not."""
    tau = torch.tensor([0.9], dtype=torch.float32)
    torch.testing.assert_close(sinusoids(tau, 64), sinusoids(tau.double(), 64), atol=0, rtol=0)


def test_each_time_comes_through_alone_and_the_constant_does_not():
    torch.manual_seed(0)
    embedding = PairTimeEmbedding(32).double()
    b = embedding.action_factor.bias
    action, video = torch.tensor([[0.2]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    for silent, other in ((embedding.action, video * 0.5), (embedding.video, video)):
        saved = silent.weight.detach().clone()
        with torch.no_grad():
            silent.weight.zero_()  # this time's features vanish: SiLU(0) = 0
            shared, _ = embedding(action, other)
            assert shared.abs().max() > 1e-3  # the other one still comes through, by way of the bias
            silent.weight.copy_(saved)
    with torch.no_grad():
        embedding.action.weight.zero_()
        embedding.video.weight.zero_()
        shared, _ = embedding(action, video)
    assert b.abs().min() > 0
    assert shared.abs().max() == 0


def test_all_pairs_of_times_are_told_apart():
    torch.manual_seed(0)
    embedding = PairTimeEmbedding(64)
    grid = torch.linspace(0, 1, 8)
    action, video = (axis.flatten() for axis in torch.meshgrid(grid, grid, indexing="ij"))
    _, e = embedding(action[:, None], video)
    distances = torch.cdist(e[:, 0], e[:, 0]) + 10 * torch.eye(64)
    assert distances.min() > 0.1
