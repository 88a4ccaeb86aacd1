"""Which samples a process has of what all processes train on or validate with."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor

from mimicvideo.noise import Share


def processes(module: LightningModule) -> int:
    """How many train together; 1 without a trainer."""
    return 1 if module._trainer is None else module._trainer.world_size


def training_share(generator: torch.Generator, size: int, module: LightningModule) -> Share:
    """What a process draws for its training batch, as `data.sampler.BatchStream` shares samples out.

    Args:
        generator: Of the batches of all processes; each has the same.
        size: Samples of one process.
        module: Knows which process this is.
    """
    return Share(generator, module.global_rank * size, size, processes(module) * size)


def validation_positions(batch: Mapping[str, Any], number: int, size: int, module: LightningModule) -> list[int]:
    """Places of a batch's samples in the list that is validated on: what the batch says, else counted in turns."""
    first = (number * processes(module) + module.global_rank) * size
    return batch["position"].tolist() if "position" in batch else list(range(first, first + size))


def counted(batch: Mapping[str, Any], size: int, module: LightningModule) -> Float[Tensor, " batch"]:
    """1 for each sample that counts in an average, 0 for those that another process has too.

    Every process validates on equally many samples, since they gather sharded weights together. Where the list does not divide,
    `data.sampler.FixedBatches` repeats its first samples; sample i belongs to process i mod processes.
    """
    if "position" not in batch:
        return torch.ones(size)
    return (batch["position"] % processes(module) == module.global_rank).float()


def average(errors: Float[Tensor, " batch"], counts: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over the samples that count; 0 if none does."""
    counts = counts.to(errors)
    return (counts * errors).sum() / counts.sum().clamp(min=1)


def log_weight(counts: Float[Tensor, " batch"], module: LightningModule) -> int:
    """What `log(batch_size=...)` must be told so that the metric of all processes is the mean over the samples that count.

    Lightning (2.6) averages the batch sizes over the processes in whole numbers; a multiple of their number survives that.
    """
    return int(counts.sum()) * processes(module)


def mean(value: Float[Tensor, ""], module: LightningModule) -> Float[Tensor, ""]:
    """Mean over all processes, without a gradient; unlike `log(sync_dist=True)` it lets a GPU work on."""
    value = value.detach().clone()
    if processes(module) > 1:
        torch.distributed.all_reduce(value)
    return value / processes(module)
