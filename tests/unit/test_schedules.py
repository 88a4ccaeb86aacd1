"""Learning rates over the steps of a schedule."""

import pytest
import torch

from mimicvideo.schedules import WarmupConstant, WarmupCosine, WarmupLinearDecay


def rates(build, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found


def test_constant_after_a_linear_warm_up() -> None:
    found = rates(lambda optimizer: WarmupConstant(optimizer, warmup=10), 30)
    assert found[0] == pytest.approx(1e-6)
    assert found[5] == pytest.approx(0.5, abs=1e-5)
    assert found[10:] == [1.0] * 20
    assert rates(lambda optimizer: WarmupConstant(optimizer, warmup=0), 3) == [1.0] * 3


def test_linear_decay_has_the_official_factors() -> None:
    """Official stage 2: warm-up of 1000 steps from 1e-6, then down to 0.2 at step 500,000; 0.979 at step 14,112."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = WarmupLinearDecay(optimizer).lr_lambdas[0]
    assert factor(0) == pytest.approx(1e-6)
    assert factor(1000) == 1
    assert factor(14_112) == pytest.approx(0.979, abs=5e-4)
    assert factor(500_000) == pytest.approx(0.2)
    assert factor(10**7) == pytest.approx(0.2)


def test_cosine_passes_its_middle_and_stays_at_its_end() -> None:
    found = rates(lambda optimizer: WarmupCosine(optimizer, steps=20, warmup=10, end=0.1), 30)
    assert found[10] == 1
    assert found[15] == pytest.approx(0.55)
    assert found[20:] == pytest.approx([0.1] * 10)


def test_state_is_safe_to_load_and_continues(tmp_path) -> None:
    whole = rates(lambda optimizer: WarmupCosine(optimizer, steps=20, warmup=5), 12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, steps=20, warmup=5)
    for _ in range(11):
        optimizer.step()
        schedule.step()
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(resumed, steps=20, warmup=5)
    resumed.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert resumed.param_groups[0]["lr"] / 2 == whole[11]


@pytest.mark.parametrize("build", [WarmupLinearDecay, WarmupCosine])
def test_decay_must_end_after_the_warm_up(build) -> None:
    with pytest.raises(ValueError, match="steps \\(10\\)"):
        rates(lambda optimizer: build(optimizer, steps=10, warmup=10), 1)
