"""CUDA graphs and the order of attention kernels; a graph itself needs a GPU, all else is tested without one."""

import copy
from threading import Lock

import pytest
import torch
from torch import nn

from mimicvideo.execution import CudaGraphs, attention_kernels, compile_method, fingerprint, places


def test_off_gpu_functions_are_just_called() -> None:
    graphs, calls = CudaGraphs(), []

    def function(x):
        calls.append(x)
        return {"twice": 2 * x}

    x = torch.ones(3)
    assert torch.equal(graphs("key", function, x)["twice"], 2 * x)
    assert len(calls) == 1 and calls[0] is x and len(graphs) == 0


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        CudaGraphs(limit=0)


def test_a_deep_copy_has_no_graphs_of_its_own_yet() -> None:
    graphs = CudaGraphs(3)
    graphs._captured["key"] = Lock()  # pyright: ignore[reportArgumentType]  # as little to be copied as a graph
    twin = copy.deepcopy(graphs)
    assert (len(twin), twin.limit, len(graphs)) == (0, 3, 1)


def test_a_compiled_method_of_a_deep_copy_is_the_copys() -> None:
    layer = nn.Linear(2, 3)
    compile_method(layer, "forward", backend="eager")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.mul_(2)
    x = torch.randn(4, 2)
    for each in (layer, twin):
        torch.testing.assert_close(each(x), x @ each.weight.t() + each.bias)


def test_attention_off_gpu_is_as_ever() -> None:
    q = torch.randn(1, 2, 5, 16)
    with attention_kernels(torch.device("cpu")):
        inside = nn.functional.scaled_dot_product_attention(q, q, q)
    assert torch.equal(inside, nn.functional.scaled_dot_product_attention(q, q, q))


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="was built or loaded under torch.inference_mode.*do that outside of it"):
        fingerprint(layer.parameters())


def test_fingerprints_follow_values_and_places() -> None:
    layer = nn.Linear(3, 3)
    first, place = fingerprint(layer.parameters()), places(fingerprint(layer.parameters()))
    assert fingerprint(layer.parameters()) == first
    with torch.no_grad():
        layer.weight.add_(1)
    assert fingerprint(layer.parameters()) != first and places(fingerprint(layer.parameters())) == place
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert places(fingerprint(layer.parameters())) != place


@pytest.mark.gpu
def test_a_graph_computes_the_function_for_every_input_and_shape() -> None:
    torch.manual_seed(0)
    layer, graphs, calls = nn.Linear(8, 8, device="cuda"), CudaGraphs(limit=2), []

    def function(x, y):
        calls.append(x.shape)
        return {"sum": layer(x) + y, "parts": [x * y]}

    for rows in (3, 3, 5, 3):
        x, y = torch.randn(2, rows, 8, device="cuda")
        result = graphs("key", function, x, y)
        with torch.no_grad():
            torch.testing.assert_close(result["sum"], layer(x) + y)
        torch.testing.assert_close(result["parts"][0], x * y)
    assert len(calls) == 2 * (CudaGraphs.WARM_UP + 1)  # twice captured, never called otherwise
    kept = result["sum"].clone()
    graphs("key", function, torch.zeros_like(x), torch.zeros_like(y))
    assert torch.equal(result["sum"], kept)  # results are the caller's own
    with torch.no_grad():
        layer.weight.mul_(2)  # weights may change in place
        torch.testing.assert_close(graphs("key", function, x, y)["sum"], layer(x) + y)
    graphs("another", function, x, y)
    assert len(graphs) == 2


@pytest.mark.gpu
def test_bfloat16_attention_takes_the_first_kernel_of_the_order() -> None:
    q = torch.randn(1, 4, 256, 128, device="cuda", dtype=torch.bfloat16)
    with attention_kernels(q.device), torch.profiler.profile() as profile:
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert any("cudnn" in event.name for event in profile.events())
