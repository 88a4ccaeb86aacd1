"""How networks run, not what they compute: the choice for a video model, the order of attention kernels, and CUDA graphs."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

# Many queries, as in a video model: cuDNN's kernels reach about twice the rate of the flash ones on Hopper GPUs.
MANY_QUERIES = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
# A few queries against a long context, as in an action decoder: flash alone divides the keys of one query among processors.
FEW_QUERIES = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@dataclass(frozen=True)
class Execution:
    """How a video model runs faster: see `video.fast_transformer`. Without FP8 it computes what the plain one does, up to rounding.

    What it keeps of weights and prompts follows them when they are written to, loaded or moved. Writes that go through a tensor's `.data`
    are the exception, since torch counts them nowhere: call the model's `execute` again after such.

    Attributes:
        compile: Mode of `torch.compile` for the blocks, compiled once for all of them; None leaves them as they are.
        cuda_graphs: Replay passes without gradients from CUDA graphs, captured anew for each shape. Ignored off GPU.
        attention: Kernels of self-attention on a GPU: `torch` takes the first of `MANY_QUERIES` that fits, `flash4` FlashAttention-4's
            where numbers have 16 bits, `fp8` cuDNN's in 8 bits in passes without gradients: not exact. The last two must be installed.
        fp8: In passes without gradients, products in 8 bits with a scale for each `row` (token and output channel) or for each
            `tensor`: not exact. None for the weights' own dtype.
        fp8_training: In passes with gradients too, of the layers whose weights are frozen (LoRA's base).
        merge_lora: While a LoRA trains, multiply by the sum of weights and updates, formed after every step in the products' dtype.
            In bf16 the sum is rounded up or down by a fixed pattern, which errs about three times as much as all other roundings to bf16
            (gradients of the 2B: 1.0 % against 0.3 %, `experiments/benchmarks/lora_step_2b_h200.json`).
    """

    compile: Literal["default", "max-autotune-no-cudagraphs"] | None = "default"
    cuda_graphs: bool = True
    attention: Literal["torch", "flash4", "fp8"] = "torch"
    fp8: Literal["row", "tensor"] | None = None
    fp8_training: bool = False
    merge_lora: bool = False

    def __post_init__(self) -> None:
        if self.compile not in (None, "default", "max-autotune-no-cudagraphs"):
            raise ValueError(f"execution.compile must be default, max-autotune-no-cudagraphs or null, got {self.compile!r}")
        if self.attention not in ("torch", "flash4", "fp8"):
            raise ValueError(f"execution.attention must be torch, flash4 or fp8, got {self.attention!r}")
        if self.fp8 not in (None, "row", "tensor"):
            raise ValueError(f"execution.fp8 must be row, tensor or null, got {self.fp8!r}")
        if self.fp8_training and self.fp8 is None:
            raise ValueError("execution.fp8_training is true and execution.fp8 is null: set it to row or tensor")
        if self.fp8_training and self.merge_lora:
            raise ValueError("execution.fp8_training and merge_lora are both true, but FP8 cannot hold LoRA's updates: choose one")


@contextmanager
def lasting() -> Iterator[None]:
    """Within it tensors are made that may be kept: without gradients, yet none of inference mode's, which no later step may use."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. Onto a GPU it is sent without waiting for what that still computes, as `to` would."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def attention_kernels(device: torch.device, order: tuple[SDPBackend, ...] = MANY_QUERIES) -> AbstractContextManager:
    """Within it `scaled_dot_product_attention` takes the first of `order` that fits dtype, head size and mask; off GPU it is as ever."""
    return sdpa_kernel(list(order), set_priority=True) if device.type == "cuda" else nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention for (batch, tokens, heads, head_dim), in the queries' dtype whatever autocast makes of it."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).to(q.dtype)


def product_dtype(device: torch.device, own: torch.dtype) -> torch.dtype:
    """Of matrix products on a device: autocast's where that is on, else their factors' `own`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else own


def with_parts(module: nn.Module, replacement: Callable[[str, nn.Module], nn.Module], name: str = "") -> nn.Module:
    """A twin of `module` that shares all of its parts and weights but those for which `replacement` gives others.

    Args:
        module: It stays as it is, and is returned itself if nothing is replaced.
        replacement: Of a part by its dotted name, which starts with a dot, and itself; what it returns as it is, is looked into.
        name: Of `module`.
    """
    other = replacement(name, module)
    if other is not module:
        return other
    children = {key: child and with_parts(child, replacement, f"{name}.{key}") for key, child in module._modules.items()}
    if all(child is module._modules[key] for key, child in children.items()):
        return module
    twin = copy.copy(module)
    twin._modules = children
    return twin


def compile_method(owner: Any, name: str, *args: Any, **kwargs: Any) -> None:
    """Compiles a method of one object. In a deep copy it is the copy's, where `torch.compile(owner.method)` stays the owner's."""
    setattr(owner, name, MethodType(torch.compile(getattr(type(owner), name), *args, **kwargs), owner))


class Weights:
    """All weights of some modules, each once, in the order of `parameters()`. The modules are walked through anew only when one of
    them was added, replaced or removed: in a model of thousands of layers a walk takes longer than the launch of its CUDA graph.

    Args:
        modules: Whose weights they are.
        kind: Parts of this type are listed too.

    Attributes:
        found: Those, as of the latest call.
    """

    def __init__(self, *modules: nn.Module, kind: type | None = None) -> None:
        self._modules, self._kind = modules, kind
        self.found: list[Any] = []
        self._tree: list[tuple[dict[str, Any], tuple[Any, ...]]] = []  # each module's children, and who they were
        self._owners: list[dict[str, nn.Parameter | None]] = []

    def __call__(self) -> list[nn.Parameter]:
        if not self._tree or any(tuple(children.values()) != known for children, known in self._tree):
            parts = list(dict.fromkeys(part for module in self._modules for part in module.modules()))
            self._tree = [(part._modules, tuple(part._modules.values())) for part in parts]
            self._owners = [part._parameters for part in parts if part._parameters]
            self.found = [] if self._kind is None else [part for part in parts if isinstance(part, self._kind)]
        return list(dict.fromkeys(weight for owner in self._owners for weight in owner.values() if weight is not None))


Fingerprint = tuple[tuple[Hashable, int], ...]


def fingerprint(weights: Iterable[Tensor]) -> Fingerprint:
    """Of each weight where it lies, which changes when it is moved or replaced, and a count of the times it was written to.

    Raises:
        RuntimeError: If a weight was made in inference mode, where nothing is counted.
    """
    try:
        return tuple((weight.data_ptr(), weight._version) for weight in weights)
    except RuntimeError as error:
        if "version counter" not in str(error):
            raise
        raise RuntimeError(f"the model was built or loaded under torch.inference_mode() ({error}): do that outside of it") from error


def places(version: Fingerprint) -> tuple[Hashable, ...]:
    """The part of a fingerprint that values written in place leave as it is."""
    return tuple(place for place, _ in version)


class Twin:
    """A copy of a network that may be laid out otherwise, and whose weights follow the original's.

    They follow in place, where a captured graph reads them. Only when the original's device or dtype changes is a new copy made.

    Args:
        originals: Whose weights are followed.
        make: Returns the copy, whose parameters are the originals' in their order.
    """

    def __init__(self, originals: Sequence[nn.Module], make: Callable[[], Any]) -> None:
        self._weights, self._make = Weights(*originals), make
        self.made = 0  # how many copies: what was captured of one is of no use to the next
        self._twin: Any = None
        self._place: Hashable = None
        self._taken: Hashable = None

    def __call__(self) -> Any:
        """The copy, with the present weights."""
        weights = self._weights()
        place, version = (weights[0].device, weights[0].dtype), fingerprint(weights)
        with lasting():
            if self._twin is None or self._place != place:
                self._twin, self._place, self.made = self._make(), place, self.made + 1
            elif self._taken != version:
                for mine, given in zip(self._twin.parameters(), weights, strict=True):
                    mine.copy_(given)
        self._taken = version
        return self._twin


@dataclass
class _Captured:
    graph: Any
    inputs: list[Tensor]
    outputs: list[Tensor]
    structure: Any


class CudaGraphs:
    """Calls functions of tensors by replaying CUDA graphs: one launch instead of thousands. Off GPU it just calls them.

    A graph is captured at the first call and again for every new `key` and every new shape, dtype or device of the inputs. It reads
    its weights from where they lay at capture, so `key` must change when they move (see `places`); values may change in place.

    Args:
        limit: How many graphs are kept, the most recently used; each holds the memory of one call.
    """

    WARM_UP = 3  # calls before the capture, which compile, choose kernels and allocate workspaces

    def __init__(self, limit: int = 4) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()

    def __len__(self) -> int:
        return len(self._captured)

    def __deepcopy__(self, _memo: dict[int, Any]) -> "CudaGraphs":
        """Without graphs: these read the original's weights."""
        return CudaGraphs(self.limit)

    def clear(self) -> None:
        """Frees all graphs."""
        self._captured.clear()

    def __call__(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """`function(*inputs)`, whose results, tensors in any nest of containers, are the caller's own.

        `function` must be pure, draw no random numbers and read nothing back to the CPU.
        """
        if not all(tensor.is_cuda for tensor in inputs):
            return function(*inputs)
        with lasting():
            return self._replay(key, function, inputs)

    def _replay(self, key: Hashable, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        signature = (key, *((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        captured = self._captured.get(signature)
        if captured is None:
            captured = self._captured[signature] = self._capture(function, inputs)
            while len(self._captured) > self.limit:
                self._captured.popitem(last=False)
        self._captured.move_to_end(signature)
        for static, tensor in zip(captured.inputs, inputs, strict=True):
            static.copy_(tensor)
        captured.graph.replay()
        return pytree.tree_unflatten([output.clone() for output in captured.outputs], captured.structure)

    def _capture(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Captured:
        static = [tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                function(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads, say a data loader's, may go on
            result = function(*static)
        outputs, structure = pytree.tree_flatten(result)
        return _Captured(graph, static, outputs, structure)
