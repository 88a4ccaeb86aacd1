"""The peak that is found on tensors without data, against what PyTorch's allocator and autograd really do with the same model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimicvideo.peak import gpu_autocast, gpu_norms, peak_of, training_peak, without_data
from mimicvideo.video.adaptation import Full, Lora
from mimicvideo.video.footprint import Clips, Precision, _loss, _transformer, training_activations
from tests.tiny_trio import build

HALF = Precision(torch.bfloat16, torch.float32, torch.bfloat16)
SINGLE = Precision(torch.float32, torch.float32, None)
CLIPS = Clips(batch=2, frames=9, height=128, width=160, prompt_tokens=24)


def allocated_peak(function: Callable[[], Any]) -> int:
    """Most bytes that the CPU's allocator gave out at one time, as the profiler records every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def saved_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """What autograd keeps for the backward pass, without weights."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), gpu_autocast():
        kept = loss()
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    total = sum(tensor.untyped_storage().nbytes() for key, tensor in storages.items() if key not in weights)
    assert kept.requires_grad
    return total


@pytest.fixture(scope="module", params=[(2, 16, 3), (4, 16, 2), (2, 32, 5)], ids=["narrow", "heads", "deep"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Folder and configuration of a model of another size each time."""
    heads, head_dim, layers = request.param
    folder = build(tmp_path_factory.mktemp("trio"), heads=heads, head_dim=head_dim, layers=layers)
    from mimicvideo.video.sizes import transformer_config

    return str(folder), transformer_config(str(folder))


def real(pretrained: str, config: dict[str, Any], adaptation: Any, precision: Precision, checkpointing: bool) -> tuple[Any, Any]:
    transformer = _transformer(pretrained, adaptation, precision, config["num_layers"]).to_empty(device="cpu").train()
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.normal_(std=0.02)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer, lambda: _loss(transformer, config, precision, CLIPS)


@pytest.mark.parametrize(
    ("adaptation", "precision", "checkpointing"),
    [(Lora(rank=8), HALF, True), (Lora(rank=8), HALF, False), (Full(), SINGLE, True)],
    ids=["lora, checkpointing", "lora", "full, checkpointing"],
)
def test_the_prediction_is_what_the_allocator_gives(model: Any, adaptation: Any, precision: Precision, checkpointing: bool) -> None:
    """From models of one and two blocks to the whole one; gradients are dropped at once, as the prediction counts them apart."""
    pretrained, config = model
    predicted, _ = training_activations(pretrained, adaptation, precision, CLIPS, checkpointing)
    transformer, loss = real(pretrained, config, adaptation, precision, checkpointing)
    for weight in transformer.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))

    def step() -> None:
        with gpu_autocast():
            loss().backward()

    assert predicted == pytest.approx(allocated_peak(step), rel=0.15)


def test_it_is_what_autograd_saves_and_little_more(model: Any) -> None:
    pretrained, config = model
    predicted, _ = training_activations(pretrained, Lora(rank=8), HALF, CLIPS, False)
    transformer, loss = real(pretrained, config, Lora(rank=8), HALF, False)
    assert saved_bytes(transformer, loss) == pytest.approx(predicted, rel=0.15)


def test_the_size_of_a_small_computation_is_exact() -> None:
    """y = relu(x W): x and y are alive together, and the view costs nothing."""
    with torch.device("meta"):
        layer = nn.Linear(10, 20, bias=False)
    with without_data(layer), torch.no_grad():
        assert peak_of(layer, lambda: layer(torch.empty(4, 10)).relu_().view(80)) == 4 * 4 * (10 + 20)


def test_what_is_given_back_is_counted_once() -> None:
    with torch.device("meta"):
        layer = nn.Linear(8, 8, bias=False)
    with without_data(layer):

        def one_after_the_other() -> None:
            for _ in range(5):
                torch.empty(1000)

        assert peak_of(layer, one_after_the_other) == 4000
        assert training_peak(layer, lambda: layer(torch.empty(2, 8)).sum()) > 0
        assert layer.weight.grad is None


def saved_by_rms_norm(device: str, dtype: torch.dtype) -> list[int]:
    """Sizes of what one RMSNorm of 6 rows of 8, with fp32 weights, keeps for its backward pass."""
    kept: list[int] = []
    x, weight = torch.randn(6, 8, device=device, dtype=dtype, requires_grad=True), torch.ones(8, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        y = F.rms_norm(x, (8,), weight, 1e-6)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape and weight.grad is not None and weight.grad.shape == weight.shape
    return sorted(kept)


def test_a_norm_keeps_what_the_fused_one_takes_back() -> None:
    """Input, weight and one number a row: the tensors among the arguments of PyTorch's own derivative, beside the gradient."""
    schema = torch.ops.aten._fused_rms_norm_backward.default._schema
    assert [argument.name for argument in schema.arguments] == ["grad_out", "input", "normalized_shape", "rstd", "weight", "output_mask"]
    with gpu_norms():
        assert saved_by_rms_norm("cpu", torch.float32) == [6, 8, 48]
        mixed = saved_by_rms_norm("cpu", torch.bfloat16)
    assert mixed == saved_by_rms_norm("cpu", torch.bfloat16) != [6, 8, 48]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_keeps_on_the_cpu_what_it_keeps_on_a_gpu(dtype: torch.dtype) -> None:
    with gpu_norms():
        expected = saved_by_rms_norm("cpu", dtype)
    assert saved_by_rms_norm("cuda", dtype) == expected
