"""Captioning: which sentence goes with which sample of a training, where a caption policy is wanted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mimicvideo.data.captions import (
    CaptionCounts,
    EpisodeCaptions,
    content_of,
    match_long_captions,
    parse_captions,
    prepare_captions,
    read_long_captions,
    sidecar_path,
)
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.members import Member, Members
from mimicvideo.data.view import View


def instruction(member: Member, position: int) -> str:
    """The usual sentence of a member's episode, whatever the sample."""
    return member.episode.instruction


class Captioning:
    """The captions of all datasets of a training, sorted out as the policy says.

    Args:
        options: See `CaptionPolicy`.
        readers: The datasets by name. Long captions that `mimicvideo captions` wrote beside one are found, those of other data not taken.
        seed: Of the choices.

    Attributes:
        dropped: Why episodes are not used, by dataset and index.
        counts: What was found, by dataset.
        stale: Long captions of other data, by dataset.

    Raises:
        ValueError, FileNotFoundError: See `parse_captions`.
        DatasetError: If a file of long captions is damaged.
    """

    def __init__(self, options: Mapping[str, Any], readers: Mapping[str, Episodes], seed: int) -> None:
        self.policy, self._seed = parse_captions(options), seed
        self.dropped: dict[str, dict[int, str]] = {}
        self.counts: dict[str, CaptionCounts] = {}
        self.stale: dict[str, int] = {}
        self._of: dict[int, EpisodeCaptions] = {}  # by the member's number
        for source, (name, reader) in enumerate(readers.items()):
            places = np.flatnonzero(~np.isin(reader.listed.indices, list(reader.skipped)))
            members = Members(readers, np.full(len(places), source), places)
            long, self.stale[name] = _long_captions(reader, members)
            prepared = prepare_captions({str(member.episode.index): member.episode.instructions for member in members}, self.policy, long)
            self.dropped[name] = {int(index): reason for index, reason in prepared.dropped.items()}
            self.counts[name] = prepared.counts
            for member in members:
                if captions := prepared.episodes.get(str(member.episode.index)):
                    self._of[member.number] = captions

    def training(self, member: Member, position: int) -> str:
        """The sentence of the training sample at a position."""
        return self._of[member.number].training(self.policy, self._seed, position)

    def evaluation(self, member: Member, position: int) -> str:
        """The short sentence of an episode."""
        return self._of[member.number].evaluation()

    def all_texts(self) -> list[str]:
        """Every sentence that a sample may come with."""
        return list(dict.fromkeys(text for captions in self._of.values() for text in (*captions.short, *captions.long)))

    def __str__(self) -> str:
        lines = []
        for name, counts in self.counts.items():
            stale = f"; {self.stale[name]} long descriptions are of other data" if self.stale[name] else ""
            lines.append(f"captions of {name}: {counts}{stale}")
        return "\n".join(lines)


def _long_captions(reader: Episodes, members: Members) -> tuple[dict[str, list[str]], int]:
    """Long captions by episode index, and how many are of other data."""
    lines = read_long_captions(sidecar_path(reader.root))
    if not lines:
        return {}, 0
    stored = reader.source if isinstance(reader, View) else reader
    wanted = {line.episode for line in lines}
    contents = {
        str(member.episode.index): content_of(stored, getattr(member.episode, "source", member.episode))
        for member in members
        if str(member.episode.index) in wanted
    }
    return match_long_captions(lines, contents)
