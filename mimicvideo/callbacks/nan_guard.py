"""NanGuard: stops training at a loss or weight that is not a number, names the samples, and keeps it out of every checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mimicvideo.sharding import not_finite


class NanGuard(Callback):
    """Raises FloatingPointError with step and samples; the process ends with a status that is not zero.

    Losses are kept on their device and looked at together, since asking a GPU for a number makes it wait. They are also looked
    at, with the weights, before a checkpoint is written: what is saved last is always good.

    Args:
        every: Steps between two looks at the losses on a GPU; on a CPU, where a look costs nothing, every step has one.

    Raises:
        ValueError: If `every` is below 1.
    """

    def __init__(self, every: int = 16) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.every = every
        self._pending: list[tuple[int, Tensor, Any]] = []  # step, loss, batch's ids

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        ids = {name: batch[name] for name in ("episode", "row") if isinstance(batch, dict) and name in batch}
        self._pending.append((trainer.global_step, loss.detach(), ids))
        if loss.device.type == "cpu" or len(self._pending) >= self.every:
            self._look_at_losses(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at_losses(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_at_losses(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks at the losses so far and at what is about to be saved; nothing is written if either is bad."""
        self._look_at_losses(trainer)
        tensors = {name: value for name, value in checkpoint.get("state_dict", {}).items() if value.is_floating_point()}
        bad = not_finite(tensors)
        if not bad:
            return
        shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise FloatingPointError(
            f"weights are not finite after step {trainer.global_step} though the losses were ({shown}); not saved. {_advice(trainer)}"
        )

    def _look_at_losses(self, trainer: Trainer) -> None:
        pending, self._pending = self._pending, []
        if not pending or torch.stack([loss for _, loss, _ in pending]).isfinite().all():
            return
        step, loss, ids = next(entry for entry in pending if not entry[1].isfinite())
        samples = "; ".join(f"{name}s {', '.join(map(str, torch.as_tensor(values).tolist()))}" for name, values in ids.items())
        raise FloatingPointError(
            f"the loss is {loss.item()} at step {step}, batch of {samples or 'unnamed samples'}. {_advice(trainer)} "
            "Look for bad values in these samples, or lower the learning rate."
        )


def _advice(trainer: Trainer) -> str:
    """Names the newest checkpoint that was written before."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    paths = {getattr(callback, name, "") for callback in callbacks for name in ("last_model_path", "best_model_path")}
    written = [Path(path) for path in paths if path and Path(path).is_file()]
    if not written:
        return "No checkpoint was written before."
    return f"The last good checkpoint is {max(written, key=lambda path: path.stat().st_mtime)}."
