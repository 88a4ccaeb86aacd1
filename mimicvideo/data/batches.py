"""Lists of items become batches: pixels or cached latents, instructions, and for stage 2 states and actions."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mimicvideo.atomic import full_disk
from mimicvideo.data.captioning import instruction
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.faults import Fault
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.members import Member, Members
from mimicvideo.data.sampler import Item
from mimicvideo.data.window import EVERY_ROW, Anchors, Tail, Window, fill_tail, proprio_rows
from mimicvideo.types import Clip, Demonstration

Caption = Callable[[Member, int], str]

ATTEMPTS = 32  # windows in a row that may be unreadable
UNREADABLE = "unreadable"  # what a batch without samples says


class _Unreadable(Exception):
    """There can be no sample, for no fault of an episode or for many; with the faults that were found."""

    def __init__(self, reason: str, faults: list[Fault]) -> None:
        super().__init__(reason)
        self.faults = faults


class ClipBatches(Dataset[Any]):
    """Stage-1 batches. What cannot be read is replaced and reported under `faults`, which `loading.Loader` takes out again.

    Whether a sample is replaced depends on its own window alone, and by what on its position: batches stay a pure function of the seed
    and the files, whichever worker loads them and wherever a training was resumed.

    Args:
        members: The episodes that items count.
        window: The clips' geometry.
        latents: By source, the caches to read instead of pixels.
        seed: Of the choice of replacements.
        where: Anchors of replacements.
        caption: The sentence of a member's sample at a position of the training.
        unused: Indices of episodes, by source, that are replaced although they may be readable, and not reported: it is known of them.
    """

    def __init__(
        self,
        members: Members,
        window: Window,
        latents: dict[int, LatentCache] | None = None,
        seed: int = 0,
        where: Anchors = EVERY_ROW,
        caption: Caption = instruction,
        unused: Sequence[Collection[int]] | None = None,
    ) -> None:
        self._caption = caption
        self._unused = unused
        self.members, self.window, self._seed, self._where = members, window, seed, where
        # In pairs, not by id: a worker that does not start as a fork has objects of its own.
        self._latents = None if latents is None else [(reader, latents[id(reader)]) for reader in members.readers.values()]

    def __getitem__(self, items: Sequence[Item]) -> Clip:
        return cast(Clip, self._batch(items))

    def _batch(self, items: Sequence[Item]) -> dict[str, Any]:
        shown, faults = [], []
        for item in items:
            try:
                item, fields, wrong = self._readable(item)
            except _Unreadable as error:
                return {"faults": faults + error.faults, UNREADABLE: str(error)}
            shown.append((item, fields))
            faults += wrong
        members = [self.members[item.episode] for item, _ in shown]
        self._finish(members, [fields for _, fields in shown])
        batch: dict[str, Any] = {
            "prompt": [self._caption(member, item.position) for member, (item, _) in zip(members, shown, strict=True)],
            "dataset": [member.dataset for member in members],
            "episode": torch.tensor([member.number for member in members]),
            "row": torch.tensor([item.row for item, _ in shown]),
            "position": torch.tensor([item.position for item, _ in shown]),
            "faults": faults,
        }
        for name in shown[0][1]:
            batch[name] = _stacked([torch.as_tensor(fields[name]) for _, fields in shown])
        return batch

    def _readable(self, item: Item) -> tuple[Item, dict[str, Any], list[Fault]]:
        """The sample, or the first of its replacements that can be read: windows of other episodes of the same dataset.

        Raises:
            _Unreadable: If none of many can be read, or the disk has no room for copies of remote files.
        """
        wanted, faults = item, []
        for attempt in range(ATTEMPTS):
            member = self.members[item.episode]
            if self._unused is None or member.episode.index not in self._unused[self.members.source[item.episode]]:
                try:
                    return item, self._fields(member, item.row), faults
                except DatasetError as error:
                    if full_disk(error):
                        raise _Unreadable(str(error), faults) from error
                    faults.append(Fault(int(self.members.source[item.episode]), member.episode.index, str(error)))
            random = np.random.default_rng([self._seed, 2, wanted.position, attempt])
            episode = int(random.choice(np.flatnonzero(self.members.source == self.members.source[wanted.episode])))
            row = int(random.choice(self._where.rows(int(self.members.lengths[episode]))))
            item = Item(wanted.position, episode, row)
        raise _Unreadable(f"{ATTEMPTS} windows in a row cannot be read", faults)

    def _finish(self, members: Sequence[Member], samples: Sequence[dict[str, Any]]) -> None:
        """Completes what `_fields` returned for the samples of a batch, where that is done for many at once."""

    def _fields(self, member: Member, row: int) -> dict[str, Any]:
        """What a batch has of one window beside its names. Raises DatasetError if it cannot be read."""
        reader, length = member.source, member.episode.length
        about: dict[str, Any] = {
            "frame_mask": self.window.frames_within(row, length),
            "frame_hz": np.float32(reader.control_hz / reader.stride / self.window.frame_interval),
        }
        if self._latents is not None:
            cache = next(cache for own, cache in self._latents if own is reader)
            return {"latents": cache.read(member.episode, row), **about}
        return {"video": reader.frames(member.episode, self.window.frame_rows(row, length)), **about}


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
        members: Members,
        window: Window,
        history: int,
        tail: Tail,
        hold_dims: tuple[int, ...],
        latents: dict[int, LatentCache] | None = None,
        seed: int = 0,
        where: Anchors = EVERY_ROW,
        caption: Caption = instruction,
        unused: Sequence[Collection[int]] | None = None,
    ) -> None:
        super().__init__(members, window, latents, seed, where, caption, unused)
        self._history, self._hold_dims = history, hold_dims
        self._tail: Tail = tail

    def __getitem__(self, items: Sequence[Item]) -> Demonstration:  # type: ignore[override]
        batch = self._batch(items)
        if UNREADABLE in batch:
            return cast(Demonstration, batch)
        observation = {"prompt": batch.pop("prompt"), "proprio": batch.pop("proprio")}
        if self._latents is None:
            video = batch.pop("video")
            observation["video"], batch["future"] = video[:, : self.window.observed], video[:, self.window.observed :]
        return cast(Demonstration, {"observation": observation, **batch})

    def _fields(self, member: Member, row: int) -> dict[str, Any]:
        steps, beyond = self.window.action_steps(row, member.episode.length)
        actions, states = member.source.actions(member.episode), member.source.proprio(member.episode)
        numbers = {
            "actions": actions[steps],
            "action_mask": ~beyond,
            "proprio": states[proprio_rows(row, self._history)],
            "proprio_mask": np.arange(self._history - 1, -1, -1) <= row,
            "control_hz": np.float32(member.source.control_hz),
        }
        return {**numbers, **super()._fields(member, row)}

    def _finish(self, members: Sequence[Member], samples: Sequence[dict[str, Any]]) -> None:
        """Puts what policies learn of actions in their place, for all samples of a dataset at once: one by one takes many times as long."""
        by_source: dict[int, list[int]] = defaultdict(list)
        for place, member in enumerate(members):
            by_source[id(member.source)].append(place)
        for places in by_source.values():
            own = [samples[place] for place in places]
            actions, within = (np.stack([sample[name] for sample in own]) for name in ("actions", "action_mask"))
            beyond = ~within
            if (representation := members[places[0]].source.representation) is None:
                chunks = fill_tail(actions, beyond, self._tail, self._hold_dims)
            else:
                newest = np.stack([sample["proprio"][-1] for sample in own])
                chunks = representation.windows(actions, beyond, newest, self._tail).astype(np.float32)
            for sample, chunk in zip(own, chunks, strict=True):
                sample["actions"] = chunk


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """In a worker the stack is built in shared memory, so that sending it copies nothing."""
    if get_worker_info() is None:
        return torch.stack(list(tensors))
    storage: Any = tensors[0].untyped_storage()._new_shared(tensors[0].nbytes * len(tensors))
    shared = torch.empty(0, dtype=tensors[0].dtype).set_(storage).view(len(tensors), *tensors[0].shape)
    return torch.stack(list(tensors), out=shared)
