"""WeightAverage: the recursion, its warm-up, lending and giving back, and what it refuses to load."""

import pytest
import torch
from torch import nn

from mimicvideo.ema import WeightAverage


def model() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    return layer


def test_average_follows_the_recursion():
    layer = model()
    average = WeightAverage(layer, decay=0.5)
    expected = layer.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.state_dict()["average"]["weight"], expected)
    assert set(average.state_dict()["average"]) == {"weight"}  # the frozen bias is not averaged


def test_lent_weights_come_back_bit_for_bit_even_after_an_error():
    layer = model()
    average = WeightAverage(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.mul_(2)
    before = layer.weight.detach().clone()
    seen = []

    def borrow() -> None:
        with average.applied_to(layer):
            seen.append(layer.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        borrow()
    torch.testing.assert_close(seen[0], before / 2)
    assert torch.equal(layer.weight, before)


def test_a_restored_average_continues_exactly():
    layer, other = model(), model()
    first, second = WeightAverage(layer, 0.9), WeightAverage(other, 0.9)
    with torch.no_grad():
        layer.weight.add_(1)
    first.update()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        layer.weight.add_(1)
        other.weight.copy_(layer.weight)
    first.update()
    second.update()
    assert torch.equal(first.state_dict()["average"]["weight"], second.state_dict()["average"]["weight"])
    assert first.updates == second.updates == 2


def test_what_does_not_fit_is_listed():
    average = WeightAverage(model(), 0.9)
    with pytest.raises(RuntimeError, match=r"missing \['weight'\], unexpected \['w'\]"):
        average.load_state_dict({"updates": 1, "average": {"w": torch.zeros(2, 3)}})
    with pytest.raises(RuntimeError, match=r"weight: \(1, 3\) saved, \(2, 3\) here"):
        average.load_state_dict({"updates": 1, "average": {"weight": torch.zeros(1, 3)}})
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        WeightAverage(model(), 1.0)
