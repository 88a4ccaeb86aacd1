"""Where a resumed training stands in its stream of samples."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

FILES = {"data": "numbers, sentences or descriptions", "pictures": "files with pictures"}  # what is saved as a hash of them


@dataclass(frozen=True)
class Stretch:
    """Training since it was last started or resumed. The order counts samples, so that batches of another size go on in it.

    Attributes:
        batch: How many batches were behind when it began.
        position: How many samples were behind.
        samples: Samples of one batch, all ranks together.
        accumulate: Batches of one optimizer step.
    """

    batch: int = 0
    position: int = 0
    samples: int = 1
    accumulate: int = 1

    def at(self, batch: int) -> int:
        """How many samples are behind when `batch` batches are."""
        return self.position + (batch - self.batch) * self.samples


class Place:
    """The place of a training in its stream of samples, over interruptions.

    Args:
        samples: Samples of one batch, all ranks together.
        accumulate: Batches of one optimizer step.
    """

    def __init__(self, samples: int, accumulate: int) -> None:
        self.stretch = Stretch(0, 0, samples, accumulate)
        self._before: Stretch | None = None  # the interrupted training's, until the first batch is asked for

    @property
    def saved(self) -> Stretch:
        """What a checkpoint keeps."""
        return self._before or self.stretch

    def resume(self, before: Stretch) -> None:
        """The training goes on where one of another stretch stopped."""
        self._before = before

    def position(self, trainer: Trainer | None) -> int:
        """The first sample that is not in the weights yet."""
        before, self._before = self._before, None
        if before is None:
            return self.stretch.at(consumed_batches(trainer))
        batch = consumed_batches(trainer, before.accumulate)
        self.stretch = Stretch(batch, before.at(batch), self.stretch.samples, self.stretch.accumulate)
        return self.stretch.position


def interrupted(before: Mapping[str, Any], now: Mapping[str, Any]) -> Stretch:
    """The stretch of a training that stopped, out of what its data module saved; warns if it would have gone on otherwise.

    Args:
        before: What was saved; older versions saved `batch_size` and `ranks` instead of a stretch.
        now: What the module that goes on would save.
    """
    for name in before.keys() & now.keys() - {"stretch", "unreadable"}:
        if now[name] != before[name] and name in FILES:
            log.warning("resuming with other batches than before: %s of the datasets have changed since the training stopped", FILES[name])
        elif now[name] != before[name]:
            log.warning("resuming with other batches than before: %s was %s, now %s", name, before[name], now[name])
    present = Stretch(**now["stretch"])
    if "stretch" in before:
        stretch = Stretch(**before["stretch"])
    else:
        stretch = Stretch(samples=before["batch_size"] * before["ranks"], accumulate=present.accumulate)
    if stretch.samples != present.samples:
        log.warning("resuming with %d samples per batch over all ranks, before %d: their order goes on", present.samples, stretch.samples)
    return stretch


def consumed_batches(trainer: Trainer | None, accumulate: int | None = None) -> int:
    """How many batches have their gradients in the weights.

    Lightning (2.6) restores its counters before it asks for the first batch. `processed` counts whole training steps: neither batches
    that were fetched ahead nor one that was interrupted count. A checkpoint between two batches of one accumulated optimizer step
    holds no gradients; the first of them are done again then, and the counters are set back, so that this step is the same as well.

    Args:
        trainer: None if there is none.
        accumulate: Batches of one optimizer step when the counters were saved; None for the present number.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if not progress.is_last_batch:  # the last batch of an epoch is always followed by an optimizer step
        behind = progress.current.processed % (accumulate or trainer.accumulate_grad_batches)
        _set_back(progress.total, behind)
        _set_back(progress.current, behind)
        # Lightning ends an optimizer step where this counter says so: the first one shall have all its batches.
        _set_back(progress.current, progress.current.processed % trainer.accumulate_grad_batches)
    return progress.total.processed


def _set_back(tracker: Any, batches: int) -> None:
    for name in ("ready", "started", "processed", "completed"):
        setattr(tracker, name, getattr(tracker, name) - batches)
