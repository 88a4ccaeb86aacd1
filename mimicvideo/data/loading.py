"""Loader: a DataLoader that reports unreadable episodes to the training process and says what a dead worker may have died of."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mimicvideo.data.batches import UNREADABLE
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.faults import Ledger

DEAD = ("exited unexpectedly", "killed by signal", "exited with exit code")  # torch.utils.data's words
ADVICE = (
    "a data worker has died: {error}. Likely causes: the machine ran out of memory (each of the {workers} workers keeps up to "
    "ram_cache_gb of decoded frames: lower ram_cache_gb, num_workers or prefetch_factor), /dev/shm is too small for prefetched "
    "batches (enlarge it: docker run --shm-size), or a video file crashes its decoder (num_workers: 0 shows which). "
    "Training can be resumed from its last checkpoint."
)


class Loader(DataLoader):
    """A DataLoader over `ClipBatches`.

    Args:
        dataset: Gives batches with `faults`, which are taken out here.
        ledger: Where they go.
        kwargs: See DataLoader.

    Raises:
        DatasetError: While iterating, if more episodes than allowed cannot be read.
        RuntimeError: While iterating, if a worker dies.
    """

    def __init__(self, dataset: Any, ledger: Ledger, **kwargs: Any) -> None:
        self.ledger = ledger
        super().__init__(dataset, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._watched(super().__iter__())

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if advice := died(error, self.num_workers):
                    raise RuntimeError(advice) from error
                raise
            self.ledger.add(batch.pop("faults"))
            if UNREADABLE in batch:
                found = f"\nFound while training:{self.ledger.lines}" if self.ledger.found else ""
                raise DatasetError(f"{batch[UNREADABLE]}{found}")
            yield batch


def died(error: BaseException, workers: int) -> str | None:
    """What to tell a user whose worker died; None if the error is another one."""
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text or not any(words in text for words in DEAD):
        return None
    return ADVICE.format(error=text.splitlines()[0].rstrip("."), workers=workers)
