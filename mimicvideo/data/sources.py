"""The datasets that a training reads: where they lie, what they are, how much they weigh, and whether they go together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.quarantine import read_quarantine
from mimicvideo.data.spec import DatasetSpec


@dataclass(frozen=True)
class Source:
    """One dataset of several.

    Attributes:
        root: Its folder.
        weight: How much more likely its samples are drawn than those of one of weight 1; see `weight_by` of `ClipData`.
        spec: What it is; see `DatasetSpec`. A name is looked up in conf/dataset.
        cameras: Its cameras from left to right, where they are not those of the other datasets.
    """

    root: str
    weight: float = 1.0
    spec: DatasetSpec | str | None = None
    cameras: list[str] | None = None

    def open(self, cameras: list[str] | None, quarantine: str | None = None, name: str | None = None, **options: Any) -> Episodes:
        """The dataset's episodes, without those of a quarantine.

        Raises:
            DatasetError: If it cannot be used, or the quarantine is of another dataset.
        """
        episodes = open_episodes(self.root, self.cameras or cameras, spec=self.spec, **options)
        if quarantine is not None:
            episodes.leave_out(read_quarantine(quarantine, episodes.root, episodes.tables_fingerprint, name), f"quarantine {quarantine}")
        return episodes


def require_same(readers: Mapping[str, Episodes], what: str, value: Callable[[Episodes], Any]) -> None:
    """Raises DatasetError if a property of datasets differs."""
    values = {name: value(reader) for name, reader in readers.items()}
    if len({repr(value) for value in values.values()}) > 1:
        raise DatasetError(f"sources differ in {what}: {'; '.join(f'{name} {value}' for name, value in values.items())}")
