"""Where a resumed training stands in its stream of batches."""

from typing import Any

from lightning.pytorch import Trainer


def consumed_batches(trainer: Trainer | None) -> int:
    """How many batches have their gradients in the weights.

    Lightning (2.6) restores its counters before it asks for the first batch. `processed` counts whole training steps: neither batches
    that were fetched ahead nor one that was interrupted count. A checkpoint between two batches of one accumulated optimizer step
    holds no gradients; the first of them are done again then, and the counters are set back, so that this step is the same as well.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if not progress.is_last_batch:  # the last batch of an epoch is always followed by an optimizer step
        behind = progress.current.processed % trainer.accumulate_grad_batches
        for tracker in (progress.current, progress.total) if behind else ():
            for name in ("ready", "started", "processed", "completed"):
                setattr(tracker, name, getattr(tracker, name) - behind)
    return progress.total.processed
