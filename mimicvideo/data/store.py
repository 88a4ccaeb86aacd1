"""Store: one dataset in one format, as it lies on disk: entries with columns of numbers, sentences and pictures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, UInt8


@dataclass(frozen=True)
class Entry:
    """An episode as its format knows it.

    Attributes:
        index: Its number in the dataset, from 0, the same at every reading.
        name: What messages call it: a file, a record.
        rows: Pictures per camera; steps where there is no camera.
        place: Where the format finds it.
        problem: Why it cannot be used, if opening found that already; then nothing of it is read.
    """

    index: int
    name: str
    rows: int
    place: Any = None
    problem: str | None = None


class Store(ABC):
    """What a format gives. Nothing is converted here: names are the format's own, joined by `/` where they nest.

    Attributes:
        root: The dataset's folder or file.
        robot: Its name; `unknown` if the format does not say.
        hz: Rows per second; None if the format does not say.
        stride: Control steps per row; a row of actions holds those of all its steps, one after another.
        entries: All episodes.
        cameras: Height and width of the pictures by key.
        keys: Shape of one row of numbers by key, `()` for plain numbers.
        text_keys: Where sentences are.
        defaults: Which keys are `proprio`, `actions`, `instruction` and `task` where the format has a custom; lists of keys.
        names: Names of the numbers of a key, of one control step, where the format has them.
        views: Poses of cameras by key, where it has them.
        remarks: What seems to be wrong with the dataset beyond its entries.

    Opening raises `DatasetError` if the dataset is missing, empty, damaged or of a version that this does not read.
    """

    root: Path
    robot: str = "unknown"
    hz: float | None = None
    stride: int = 1
    entries: Sequence[Entry]
    cameras: Mapping[str, tuple[int, int]]
    keys: Mapping[str, tuple[int, ...]]
    text_keys: Sequence[str] = ()
    defaults: Mapping[str, Sequence[str]] = {}
    names: Mapping[str, Sequence[str]] = {}
    views: Mapping[str, dict[str, Any]] = {}
    remarks: Sequence[str] = ()

    @abstractmethod
    def numbers(self, entry: Entry, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns by key, one row per step, in the type they are stored in. Pictures are not touched.

        Raises:
            DatasetError: If they cannot be read; the message names the entry, the file and what is wrong.
        """

    @abstractmethod
    def texts(self, entry: Entry, key: str) -> list[str]:
        """The different sentences of an entry in the order of their appearance; several lines of one text are one sentence each.

        Raises:
            DatasetError: As for `numbers`.
        """

    @abstractmethod
    def frames(
        self, entry: Entry, key: str, rows: Int[np.ndarray, " n"], size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """Pictures of ascending, different rows as RGB, resized to height and width if `size` is given; others are not decoded.

        Raises:
            VideoError: If they cannot be read, saying why without naming the entry.
        """

    @abstractmethod
    def identity(self, entry: Entry, key: str) -> list[Any]:
        """All that the pictures of an entry are decoded from, as JSON: digests of what is stored of them.

        It does not depend on other entries, nor on the entry's number, as far as the format lets the stored bytes of one entry be told
        from those of others; nothing is decoded that is not stored plainly.

        Raises:
            VideoError, DatasetError: If they cannot be read.
        """

    @abstractmethod
    def problem(self, entry: Entry, cameras: Sequence[str], full: bool) -> str | None:
        """Why these pictures of an entry cannot be used: missing, too few, of another size; with `full`, every one is decoded."""

    @abstractmethod
    def files(self, cameras: Sequence[str]) -> tuple[list[Path], list[Path]]:
        """The files that hold numbers and sentences, and those that hold pictures of these cameras; one file may be both."""

    def marks(self) -> list[Any]:
        """What tells this dataset from others beside the files with numbers and sentences, as JSON; nothing is read for it."""
        return []

    def times(self, entry: Entry, key: str) -> Float64[np.ndarray, " rows"] | None:
        """Seconds at which each row of a key was taken, from any start that all keys of the entry share; None if they are `1 / hz` apart.

        Raises:
            DatasetError: As for `numbers`.
        """
        return None

    def size(self, entry: Entry, key: str) -> tuple[int, int]:
        """Height and width of an entry's pictures; another than in `cameras` is read only if pictures are resized."""
        return self.cameras[key]

    def camera_name(self, key: str) -> str:
        """What a camera is called where the description does not name it: the last part of its key."""
        return key.rsplit("/", 1)[-1]
