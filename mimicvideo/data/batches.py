"""Lists of items become batches: pixels or cached latents, instructions, and for stage 2 states and actions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.sampler import Item
from mimicvideo.data.window import Tail, Window, fill_tail, proprio_rows
from mimicvideo.types import Clip, Demonstration


@dataclass(frozen=True)
class Member:
    """An episode of a list that is trained or validated on.

    Attributes:
        source: The dataset that it comes from.
        episode: Its place there.
        number: Its number over all sources; with one source, its index in the dataset.
        weight: Relative probability in stage 1.
    """

    source: Episodes
    episode: Episode
    number: int
    weight: float = 1.0


class ClipBatches(Dataset[Any]):
    """Stage-1 batches.

    Args:
        members: The episodes that items count.
        window: The clips' geometry.
        latents: By source, the caches to read instead of pixels.
    """

    def __init__(self, members: Sequence[Member], window: Window, latents: dict[int, LatentCache] | None = None) -> None:
        self.members, self.window = list(members), window
        self._caches = None if latents is None else [latents[id(member.source)] for member in members]

    def __getitem__(self, items: Sequence[Item]) -> Clip:
        batch: dict[str, Any] = {"prompt": self._prompts(items), **self._identity(items)}
        if self._caches is not None:
            batch["latents"] = self._latents(items)
        else:
            batch["video"] = self._video(items)
        return cast(Clip, batch)

    def _prompts(self, items: Sequence[Item]) -> list[str]:
        return [self.members[item.episode].episode.instruction for item in items]

    def _identity(self, items: Sequence[Item]) -> dict[str, Tensor]:
        return {
            "episode": torch.tensor([self.members[item.episode].number for item in items]),
            "row": torch.tensor([item.row for item in items]),
            "position": torch.tensor([item.position for item in items]),
        }

    def _latents(self, items: Sequence[Item]) -> Tensor:
        assert self._caches is not None
        return torch.stack([self._caches[item.episode].read(self.members[item.episode].episode, item.row) for item in items])

    def _video(self, items: Sequence[Item]) -> UInt8[Tensor, "batch frames height width 3"]:
        clips = []
        for item in items:
            member = self.members[item.episode]
            clips.append(member.source.frames(member.episode, self.window.frame_rows(item.row, member.episode.length)))
        return torch.from_numpy(np.stack(clips))


class DemonstrationBatches(ClipBatches):
    """Stage-2 batches.

    Args:
        members: The episodes that items count.
        window: The clips' and chunks' geometry.
        history: States per observation.
        tail: What actions beyond an episode's end are.
        hold_dims: See `fill_tail`.
        latents: By source, the caches to read instead of pixels.
    """

    def __init__(
        self,
        members: Sequence[Member],
        window: Window,
        history: int,
        tail: Tail,
        hold_dims: tuple[int, ...],
        latents: dict[int, LatentCache] | None = None,
    ) -> None:
        super().__init__(members, window, latents)
        self._history, self._hold_dims = history, hold_dims
        self._tail: Tail = tail

    def __getitem__(self, items: Sequence[Item]) -> Demonstration:  # type: ignore[override]
        actions, proprio = zip(*(self._numbers(item) for item in items), strict=True)
        batch: dict[str, Any] = {
            "observation": {"prompt": self._prompts(items), "proprio": torch.from_numpy(np.stack(proprio))},
            "actions": torch.from_numpy(np.stack(actions)),
            **self._identity(items),
        }
        if self._caches is not None:
            batch["latents"] = self._latents(items)
        else:
            video = self._video(items)
            batch["observation"]["video"], batch["future"] = video[:, : self.window.observed], video[:, self.window.observed :]
        return cast(Demonstration, batch)

    def _numbers(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        member = self.members[item.episode]
        steps, beyond = self.window.action_steps(item.row, member.episode.length)
        actions, states = member.source.actions(member.episode), member.source.proprio(member.episode)
        if (representation := member.source.representation) is None:
            chunk = fill_tail(actions[steps], beyond, self._tail, self._hold_dims)
        else:
            chunk = representation.window(actions, steps, beyond, states[item.row], self._tail).astype(np.float32)
        return chunk, states[proprio_rows(item.row, self._history)]
