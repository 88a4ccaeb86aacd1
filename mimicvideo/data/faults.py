"""Ledger: the episodes that turn out to be unusable while a training runs, each told once and counted against the limit."""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mimicvideo.data.episodes import Episodes, refuse

log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """An episode that could not be read: its dataset (counted from 0), its index there, and why."""

    source: int
    index: int
    reason: str


class Ledger:
    """Counts together with what was found at opening. In a training of several processes each counts what it has read itself.

    Args:
        readers: The datasets by name.
        max_bad_fraction: Share of the episodes of each that may be skipped.
    """

    def __init__(self, readers: Mapping[str, Episodes], max_bad_fraction: float) -> None:
        self._readers, self._limit = dict(readers), max_bad_fraction
        self._found: dict[str, dict[int, str]] = {name: {} for name in readers}

    @property
    def found(self) -> dict[str, str]:
        """What was wrong with the episodes that were found while training, by source and index."""
        return {f"{name}/{index}": reason for name, found in self._found.items() for index, reason in found.items()}

    def add(self, faults: Iterable[Fault]) -> None:
        """Takes note of faults, warning of each episode once.

        Raises:
            DatasetError: If more episodes than allowed cannot be used, with the list of them.
        """
        names, grown = list(self._readers), {}
        for source, index, reason in faults:
            name = names[source]
            reader, found = self._readers[name], self._found[name]
            if index in found:
                continue
            found[index] = reason = reason.removeprefix(f"episode {index} of {reader.root}: ")
            problems = {number: text for number, text in {**reader.skipped, **found}.items() if number not in reader.left_out}
            grown[name] = problems
            log.warning("skipping episode %d of %s (%d of %d): %s", index, name, len(problems), len(reader.listed), reason)
        for name, problems in grown.items():
            refuse(self._readers[name].root, problems, len(self._readers[name].listed), self._limit)

    def restore(self, found: Mapping[str, str]) -> None:
        """Counts what an interrupted training found as well."""
        for key, reason in found.items():
            name, _, index = key.rpartition("/")
            if name in self._found:
                self._found[name].setdefault(int(index), reason)

    @property
    def lines(self) -> str:
        """What was wrong with the episodes that were found while training, a line for each."""
        return "".join(f"\n  {name}: {reason}" for name, reason in self.found.items())

    def tell(self) -> None:
        """Lists every episode that was skipped while training."""
        if self.found:
            log.warning("%d episodes could not be read while training, others took their place:%s", len(self.found), self.lines)
