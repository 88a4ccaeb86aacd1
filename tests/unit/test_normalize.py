"""Normalizer: every mode against its formula, round trips, clipping, constant dimensions, and what it refuses."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from mimicvideo.normalize import Normalizer
from tests.fake_backbone import describe

STEPS, DIMS = 3, 2


@pytest.fixture
def values() -> torch.Tensor:
    """(samples, steps, dims) with different scales and one far outlier in dimension 0 of step 0."""
    values = torch.randn(400, STEPS, DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values * torch.tensor([[0.1, 5.0]]) * torch.tensor([[1.0], [2.0], [4.0]]) + torch.tensor([3.0, -20.0])
    values[0, 0, 0] = 9.0
    return values


def fitted(values: torch.Tensor, mode, per_step: bool = True) -> Normalizer:
    normalizer = Normalizer(DIMS, STEPS, mode, per_step)
    normalizer.fit(describe(values if per_step else values.flatten(0, 1)))
    return normalizer


def test_variance_is_the_papers_formula(values):
    normalizer = fitted(values, "variance")
    expected = np.empty(values.shape)
    for step in range(STEPS):
        for dim in range(DIMS):
            x = values[:, step, dim].numpy()
            mean, p2, p98 = x.mean(), np.percentile(x, 2), np.percentile(x, 98)
            clipped = np.clip(x, mean + 1.5 * (p2 - mean), mean + 1.5 * (p98 - mean))
            expected[:, step, dim] = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(normalizer.normalize(values).numpy(), expected, atol=2e-5)


def test_normalise_clips_and_unnormalise_does_not(values):
    normalizer = fitted(values, "variance")
    top = normalizer.unnormalize(normalizer.normalize(values))[0, 0, 0]
    assert top < 4  # the outlier was cut
    far = torch.full((1, STEPS, DIMS), 1e6)
    torch.testing.assert_close(normalizer.unnormalize(far), far * normalizer.scale + normalizer.offset)


@pytest.mark.parametrize("mode", ["variance", "min_max", "quantile", "identity", ["variance", "identity"]])
@pytest.mark.parametrize("per_step", [True, False])
def test_round_trip_inside_the_clip_range(values, mode, per_step):
    normalizer = fitted(values, mode, per_step)
    inside = values.clamp(normalizer.low, normalizer.high)
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(inside)), inside)


def test_min_max_and_quantile_reach_plus_minus_one(values):
    ranged = fitted(values, "min_max").normalize(values)
    torch.testing.assert_close(ranged.amin(0), torch.full((STEPS, DIMS), -1.0, dtype=torch.float64), atol=2e-4, rtol=0)
    torch.testing.assert_close(ranged.amax(0), torch.full((STEPS, DIMS), 1.0, dtype=torch.float64), atol=2e-4, rtol=0)
    quantiled = fitted(values, "quantile").normalize(values)
    assert quantiled.abs().max() <= 1 + 1e-5
    low = values.quantile(0.01, dim=0)
    torch.testing.assert_close(fitted(values, "quantile").normalize(low), torch.full_like(low, -1.0), atol=1e-5, rtol=0)


def test_each_dimension_may_have_its_own_mode(values):
    normalizer = fitted(values, ["identity", "min_max"])
    result = normalizer.normalize(values)
    torch.testing.assert_close(result[..., 0], values[..., 0])
    torch.testing.assert_close(result[..., 1], fitted(values, "min_max").normalize(values)[..., 1])


def test_pooled_statistics_are_one_for_all_steps(values):
    normalizer = fitted(values, "variance", per_step=False)
    assert normalizer.offset.shape == (1, DIMS)
    x = torch.full((1, 5, DIMS), -19.0)  # any number of steps
    assert torch.equal(normalizer.normalize(x)[:, 0], normalizer.normalize(x)[:, 4])


@pytest.mark.parametrize("mode", ["variance", "min_max", "quantile"])
def test_constant_dimensions_are_safe(mode):
    values = torch.full((50, STEPS, DIMS), 0.7, dtype=torch.float64)
    normalizer = fitted(values, mode)
    assert torch.equal(normalizer.scale, torch.ones(STEPS, DIMS))
    assert normalizer.normalize(values).abs().max() < 1e-6
    torch.testing.assert_close(normalizer.unnormalize(torch.zeros(STEPS, DIMS)), torch.full((STEPS, DIMS), 0.7))


def test_buffers_are_fp32_and_travel_with_the_state(values):
    saved = fitted(values, "variance").state_dict()
    assert {name: value.dtype for name, value in saved.items()} == {
        **dict.fromkeys(("offset", "scale", "low", "high"), torch.float32),
        "fitted": torch.bool,
    }
    other = Normalizer(DIMS, STEPS)
    other.load_state_dict(saved)
    assert torch.equal(other.normalize(values), fitted(values, "variance").normalize(values))


def test_use_before_fit_is_refused_except_for_identity():
    with pytest.raises(RuntimeError, match="no statistics yet"):
        Normalizer(DIMS, STEPS).normalize(torch.zeros(1, STEPS, DIMS))
    with pytest.raises(RuntimeError, match="no statistics yet"):
        Normalizer(DIMS, STEPS, ["identity", "min_max"]).unnormalize(torch.zeros(1, STEPS, DIMS))
    assert torch.equal(Normalizer(DIMS, STEPS, "identity").normalize(torch.ones(1, STEPS, DIMS)), torch.ones(1, STEPS, DIMS))


def test_wrong_input_is_named(values):
    with pytest.raises((ValueError, TypeCheckError), match=r"(unknown normalisation mode|Actual value:) 'varianc'"):
        Normalizer(DIMS, STEPS, "varianc")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="each of the 2 dimensions, got 3"):
        Normalizer(DIMS, STEPS, ["identity"] * 3)
    statistics = describe(values)
    with pytest.raises(ValueError, match="lack 'clipped_std'"):
        Normalizer(DIMS, STEPS).fit({name: value for name, value in statistics.items() if name != "clipped_std"})
    with pytest.raises(ValueError, match=r"'max' has shape \(3, 2\), expected \(4, 2\)"):
        Normalizer(DIMS, 4, "min_max").fit(statistics)
    statistics["p98"][1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"'p98' is not finite in dimensions \[1\]"):
        Normalizer(DIMS, STEPS).fit(statistics)
    with pytest.raises(ValueError, match=r"expected \(..., 3, 2\) to normalise, got \(1, 4, 2\)"):
        fitted(values, "min_max").normalize(torch.zeros(1, 4, 2))
