"""WeightAverage: an exponential moving average of a module's trainable weights, shared by both stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn

from mimicvideo.sharding import gathered, parameters, placed_like


class AverageState(TypedDict):
    """Plain tensors and a number, safe for `torch.load(weights_only=True)`."""

    updates: int
    average: dict[str, Tensor]


def check_decay(ema_decay: float | None) -> None:
    """Raises ValueError for a decay outside [0, 1); None is none."""
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")


class WeightAverage:
    """average <- d average + (1 - d) weights after every optimizer step, over the weights that train and nothing else.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that short runs are not stuck at their random start.
    The averages are fp32, whatever the weights are, and lie where the weights lie.

    Args:
        module: Its parameters with `requires_grad` are averaged; set that before.
        decay: In [0, 1).

    Raises:
        ValueError: If the decay lies outside [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        check_decay(decay)
        self.decay = decay
        self.updates = 0
        self._module = module
        self._average = {name: weight.detach().float().clone() for name, weight in _trainable(module).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the module's present weights in. Call it once after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = _trainable(self._module)
        for name, average in self._average.items():
            if average.device != weights[name].device or type(average) is not type(weights[name].data):
                self._average[name] = placed_like(average, weights[name])  # the module was moved or sharded after this was built
        torch._foreach_lerp_(list(self._average.values()), [weights[name].float() for name in self._average], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrites the module's weights with their averages."""
        weights = parameters(module)
        for name, average in self._average.items():
            weights[name].copy_(average if type(average) is type(weights[name].data) else placed_like(average, weights[name]))

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Lends the averages to `module` for the length of a `with` block; the weights come back bit for bit."""
        saved = {name: weight.detach().clone() for name, weight in parameters(module).items() if name in self._average}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                weights = parameters(module)
                for name, weight in saved.items():
                    weights[name].copy_(weight)

    def state_dict(self) -> AverageState:
        """What `load_state_dict` takes; tensors that are not sharded are this object's own."""
        return {"updates": self.updates, "average": {name: gathered(average) for name, average in self._average.items()}}

    def load_state_dict(self, state: AverageState) -> None:
        """Continues from a saved average.

        Raises:
            RuntimeError: If names or shapes differ from the module's trainable weights; all of them are listed.
        """
        saved = state["average"]
        missing, unexpected = sorted(self._average.keys() - saved.keys()), sorted(saved.keys() - self._average.keys())
        reshaped = [
            f"{name}: {tuple(saved[name].shape)} saved, {tuple(average.shape)} here"
            for name, average in self._average.items()
            if name in saved and saved[name].shape != average.shape
        ]
        if missing or unexpected or reshaped:
            raise RuntimeError(
                f"the saved weight average does not fit the model: missing {missing}, unexpected {unexpected}, other shape {reshaped}"
            )
        self.updates = state["updates"]
        self._average = {name: placed_like(saved[name].float(), average).clone() for name, average in self._average.items()}


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in parameters(module).items() if weight.requires_grad}
