"""FSDP2's sharded tensors as the rest of the package needs them: parameters of a module, whole copies, and the way back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """`module.named_parameters()`, of which those that FSDP2 shards are their shards even after a forward pass gathered them."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return dict(module.named_parameters())


def gathered(tensor: Tensor) -> Tensor:
    """The tensor with the shards of all processes, each of which must call this; an ordinary tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same in every process, cut and on the device as `other` is. Every process must call this."""
    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that hold a NaN or an infinity, in any process's shard: every process gets the same answer."""
    if not tensors:
        return []
    shards = [value.to_local() if isinstance(value, DTensor) else value for value in tensors.values()]
    finite = torch.stack([shard.isfinite().all().to(shards[0].device) for shard in shards]).int()
    if any(isinstance(value, DTensor) for value in tensors.values()):
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    return [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]


def is_writer() -> bool:
    """Whether this process writes what all of them hold: the first, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
