"""FullySharded: Lightning's strategy for FSDP2 with the checkpoints of a single device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from mimicvideo.sharding import gathered, placed_like


class FullySharded(ModelParallelStrategy):
    """Weights, gradients and optimizer states are divided among all devices by what the module does in `configure_model`.

    A checkpoint is one file, written by the first process, with the tensors of all: one device, DDP and any number of sharding
    devices write and read the same. Weights that train are gathered and their gradients averaged in fp32, so that steps equal
    those of DDP to rounding.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def connect(self, model: LightningModule) -> None:  # type: ignore[override]
        """Raises ValueError if the module does not say how it is divided."""
        if not is_overridden("configure_model", model):
            raise ValueError(f"{type(model).__name__} cannot be sharded: use --config conf/trainer/ddp.yaml (in a sweep: trainer=ddp)")
        super().connect(model)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # Lightning's own way needs the whole model once more, names optimizer states otherwise and passes the safe files by.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shards; `save_checkpoint` gathers those that a module leaves in its checkpoint."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Shards likewise, numbered as on one device."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Gathers what is sharded, tensor by tensor, and writes the file in the first process."""

        def gather(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            tensor = gathered(value)
            return tensor.cpu() if self.is_global_zero else None

        Strategy.save_checkpoint(self, tree_map(gather, checkpoint), self.broadcast(filepath), storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every process reads the whole file, on the CPU."""
        return Strategy.load_checkpoint(self, self.broadcast(checkpoint_path), weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        here = self.lightning_module.state_dict()
        tensors = {name: placed_like(tensor, here[name]) if name in here else tensor for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(tensors, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Divides the states as the weights that they belong to are divided."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            of_number = dict(zip(numbers, weights, strict=True))

            def divide(value: Any, weight: torch.Tensor) -> Any:
                belongs = isinstance(value, torch.Tensor) and value.shape == weight.shape
                return placed_like(value, weight) if belongs else value

            states = {
                number: {name: divide(value, of_number[number]) for name, value in one.items()} for number, one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": states})
