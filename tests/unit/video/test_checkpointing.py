"""Activation checkpointing: losses and gradients stay, and what is computed again is what was asked for."""

import copy

import pytest
import torch

from mimicvideo.execution import Execution
from mimicvideo.video.adaptation import Lora

EXECUTIONS = [None, Execution(compile=None)]


def step(backbone, sample) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = backbone.velocity(*sample.all()).square().mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("execution", EXECUTIONS, ids=["plain", "fast"])
@pytest.mark.parametrize("checkpointing", [True, "selective", 2, 3])
def test_losses_and_gradients_are_those_without(build, inputs, perturb, checkpointing, execution) -> None:
    results = []
    for value in (False, checkpointing):
        torch.manual_seed(0)
        backbone = build(Lora(rank=2, alpha=2), gradient_checkpointing=value, execution=execution)
        perturb(backbone)
        results.append(step(backbone, inputs(backbone)))
    (loss, gradients), (other_loss, other_gradients) = results
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == other_gradients.keys() and len(gradients) > 50
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=["plain", "fast"])
@pytest.mark.parametrize("checkpointing", [True, "selective", 2])
def test_a_deep_copy_trains_its_own_weights(build, inputs, perturb, checkpointing, execution) -> None:
    backbone = build(Lora(rank=2, alpha=2), gradient_checkpointing=checkpointing, execution=execution)
    perturb(backbone)
    sample = inputs(backbone)
    twin = copy.deepcopy(backbone)
    loss, gradients = step(backbone, sample)
    assert all(weight.grad is None for weight in twin.parameters())
    other_loss, other_gradients = step(twin, sample)
    assert torch.equal(loss, other_loss)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=["plain", "fast"])
@pytest.mark.parametrize(
    ("checkpointing", "mlps", "attentions"),
    [(False, [1, 1, 1, 1], 8), (True, [2, 2, 2, 2], 16), ("selective", [2, 2, 2, 2], 8), (2, [2, 1, 2, 1], 12), (3, [2, 1, 1, 2], 12)],
)
def test_what_is_computed_again(build, inputs, monkeypatch, checkpointing, mlps, attentions, execution) -> None:
    """Of four blocks with two attentions each: an attention that is kept never reaches its kernel again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    kernels = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in str(func) and "backward" not in str(func):
                kernels.append(func)
            return func(*args, **(kwargs or {}))

    backbone = build(Lora(rank=2, alpha=2), gradient_checkpointing=checkpointing, execution=execution)
    counts = [0] * 4
    for index, block in enumerate(backbone.transformer.transformer_blocks):
        block.ff.register_forward_pre_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    sample = inputs(backbone)
    with Recorder():  # below the modes of selective checkpointing, which answer from what they kept
        step(backbone, sample)
    assert counts == mlps
    assert len(kernels) == attentions


def test_states_stop_early_under_checkpointing(build, inputs, perturb) -> None:
    for execution in EXECUTIONS:
        backbone = build(Lora(rank=2, alpha=2), gradient_checkpointing="selective", execution=execution)
        perturb(backbone)
        backbone.hidden_states(*inputs(backbone).all(), [1])[1].square().mean().backward()
        trained = {name for name, weight in backbone.transformer.named_parameters() if weight.grad is not None}
        assert any(".1." in name for name in trained) and not any("transformer_blocks.2." in name for name in trained)


@pytest.mark.parametrize("value", [1, 0.5, -2, "attention"])
def test_other_values_are_refused(build, value) -> None:
    with pytest.raises((ValueError, TypeError), match="gradient_checkpointing"):
        build(gradient_checkpointing=value)
