"""Episodes: what every dataset is to the rest of the program, whatever its format: frames, states, actions and instructions."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.hashes import file_sha256
from mimicvideo.data.listing import Listing
from mimicvideo.data.remote import is_copy, remote_mark
from mimicvideo.messages import similar

if TYPE_CHECKING:
    from mimicvideo.data.representation import Representation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """One demonstration. Formats add where they find its data.

    Attributes:
        index: Its number in the dataset.
        length: Rows, which are video frames.
        instructions: Sentences that go with it; the first is the usual one. At least one, empty if it has no label.
        task: The task's name in its benchmark; the instruction if the dataset does not say.
    """

    index: int
    length: int
    instructions: tuple[str, ...]
    task: str

    @property
    def instruction(self) -> str:
        """The usual sentence."""
        return self.instructions[0]


@dataclass(frozen=True)
class Camera:
    """A camera's name, the key of its feature, the size of its pictures, and its pose if the dataset knows it."""

    name: str
    key: str
    height: int
    width: int
    view: dict[str, Any]


class Episodes(ABC):
    """A dataset on disk, read in place. A format gives `_decode`, `actions`, `proprio` and `_files`, and passes on what it found.

    Args:
        root: The dataset's folder.
        listed: All its episodes; a `Listing` where there are too many to make each an object.
        problems: What is wrong with those that cannot be used, by index.
        cameras: Those that are read, as stored, from left to right.
        robot: Its name.
        control_hz: Control steps per second.
        stride: Control steps per row.
        proprio_names: Of the numbers of a state; empty if there is none.
        action_names: Of the numbers of one control step's action; likewise.
        size: Height and width that each camera's pictures are resized to; None keeps them.
        max_bad_fraction: The share of episodes, in [0, 1], that may be skipped because they cannot be used.
        ram_cache_gb: Decoded frames that are kept, in 10^9 bytes, in each process that reads.

    Attributes:
        episodes: Those that can be used.
        skipped: What was wrong with the others, by episode index.
        left_out: Which of these somebody decided to leave out, such as by a quarantine; they count towards no limit.
        cameras: With their size after resizing.

    Raises:
        DatasetError: If pictures cannot stand side by side, or too many episodes cannot be used.
    """

    representation: "Representation | None" = None  # what a window's actions are made with; see `View`
    left_out: frozenset[int] = frozenset()
    remarks: Sequence[str] = ()  # what seems to be wrong with the dataset beyond its episodes
    described_representation: Mapping[str, Any] | None = None  # what the dataset's description says of its numbers

    def __init__(
        self,
        root: Path,
        listed: Sequence[Any],
        problems: Mapping[int, str],
        cameras: Sequence[Camera],
        *,
        robot: str,
        control_hz: float,
        stride: int,
        proprio_names: Sequence[str],
        action_names: Sequence[str],
        size: tuple[int, int] | None = None,
        max_bad_fraction: float = 0.0,
        ram_cache_gb: float = 2.0,
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in [0, 1], got {max_bad_fraction}")
        self.root, self.skipped = root, dict(problems)
        self.listed = listed if isinstance(listed, Listing) else Listing.of(listed)
        self.robot, self.control_hz, self.stride = robot, control_hz, stride
        self.proprio_names, self.action_names = list(proprio_names), list(action_names)
        self._stored_cameras, self._size = list(cameras), size
        self.cameras = self._stored_cameras if size is None else [replace(camera, height=size[0], width=size[1]) for camera in cameras]
        if len({camera.height for camera in self.cameras}) > 1:
            sizes = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in self.cameras)
            raise DatasetError(f"cameras of {root} cannot stand side by side: {sizes}. Set height and width to resize them.")
        refuse(root, self.skipped, len(listed), max_bad_fraction)
        if self.skipped:
            text = "; ".join(f"episode {index}: {problem}" for index, problem in self.skipped.items())
            log.warning("skipped %d of %d episodes of %s: %s", len(self.skipped), len(listed), root, text)
        bad = np.isin(self.listed.indices, list(self.skipped)) if self.skipped else np.zeros(len(listed), bool)
        self.episodes = self.listed.take(np.flatnonzero(~bad))
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._cache_bytes, self._cache_limit = 0, int(ram_cache_gb * 1e9)
        self._all_fit = int(self.episodes.lengths.sum()) * self.frame_bytes <= self._cache_limit

    def interface(self) -> dict[str, Any]:
        """What a policy's contract says beyond names and rates; see `View`."""
        return {}

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded row, all cameras."""
        return 3 * self.cameras[0].height * sum(camera.width for camera in self.cameras)

    @abstractmethod
    def actions(self, episode: Any) -> Float32[np.ndarray, "steps action_dim"]:
        """The actions of all control steps, `length * stride` of them."""

    @abstractmethod
    def proprio(self, episode: Any) -> Float32[np.ndarray, "rows proprio_dim"]:
        """The states at the times of the frames."""

    @abstractmethod
    def _decode(self, episode: Any, camera: Camera, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height width 3"]:
        """Frames of ascending rows of one camera, resized to `self._size` if that is given.

        Raises:
            VideoError: If they cannot be read, saying why.
        """

    @abstractmethod
    def _files(self) -> tuple[list[Path], list[Path]]:
        """The files that hold numbers, and those that hold the pictures of `cameras`. One file may be both."""

    def _shown(self, episode: Any, camera: Camera) -> list[Any]:
        """All that `_decode` of an episode depends on beside `self._size`, as JSON; here any change of the dataset's files.

        Raises:
            VideoError, DatasetError: If the pictures cannot be read.
        """
        return [self.fingerprint, episode.index]

    def picture_key(self, episode: Any) -> str:
        """SHA-256 of all that an episode's `frames` depend on: what is stored of them, which of that are its rows, and the cameras' sizes.

        Neither its number nor the dataset's other episodes matter. What is stored is read, but not decoded.

        Raises:
            DatasetError: If the pictures cannot be read.
        """
        return hashlib.sha256(json.dumps([episode.length, self._size, self.stored_pictures(episode)]).encode()).hexdigest()

    def stored_pictures(self, episode: Any) -> list[Any]:
        """The same without the sizes, as JSON: what tells an episode's pictures from others at whatever size they are read.

        Raises:
            DatasetError: If the pictures cannot be read.
        """
        try:
            return [self._shown(episode, camera) for camera in self._stored_cameras]
        except (VideoError, OSError) as error:
            raise DatasetError(f"episode {episode.index} of {self.root}: pictures cannot be read: {error}") from error

    def frames(self, episode: Any, rows: Sequence[int] | Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height tiled_width 3"]:
        """Frames of the given rows, in any order and with repetitions, cameras side by side.

        An episode is decoded once and kept if all episodes fit into the cache, or if most of it is asked for; otherwise only these
        rows are decoded.

        Raises:
            DatasetError: If a video has become unreadable, or is damaged where only `verify: full` looks.
        """
        rows = np.asarray(rows, dtype=np.int64)
        whole = self._cache.get(episode.index)
        if whole is not None:
            self._cache.move_to_end(episode.index)
            return whole[rows]
        wanted, back = np.unique(rows, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= episode.length:
            raise IndexError(f"rows {wanted[0]} ... {wanted[-1]} lie outside episode {episode.index} of {episode.length} rows")
        if self._all_fit or 2 * len(wanted) >= episode.length:
            whole = self._tiled(episode, np.arange(episode.length, dtype=np.int64))
            self._keep(episode.index, whole)
            return whole[rows]
        tiled = self._tiled(episode, wanted)
        return tiled if np.array_equal(rows, wanted) else tiled[back]  # the usual case is not copied

    def times(self, episode: Any) -> Float64[np.ndarray, " rows"] | None:
        """Seconds at which the rows were recorded; None if the dataset says no more than its rate."""
        return None

    def picture_rows(self, episode: Any) -> Int[np.ndarray, " pictures"]:
        """The first row of each stored picture: all, unless a picture is shown in several rows because a higher rate is wanted."""
        return np.arange(episode.length, dtype=np.int64)

    def damage(self, episode: Any) -> str | None:
        """What is wrong with an episode's pictures when every one is decoded strictly, which `frames` does not do; None if nothing is."""
        return None

    def leave_out(self, reasons: Mapping[int, str], because: str, decided: bool = True) -> None:
        """Moves episodes to `skipped`, saying so. If somebody has `decided` it they do not count towards `max_bad_fraction`.

        Raises:
            DatasetError: If no episode is left.
        """
        left_out = {index: reasons[index] for index in self.episodes.indices.tolist() if index in reasons}
        self.skipped.update({index: f"{because}: {reason}" for index, reason in left_out.items()})
        self.left_out = self.left_out.union(left_out if decided else ())
        self.episodes = self.episodes.take(np.flatnonzero(~np.isin(self.episodes.indices, list(left_out))))
        if left_out:
            text = "; ".join(f"episode {index}: {reason}" for index, reason in left_out.items())
            log.warning("left out %d of %d episodes of %s for %s: %s", len(left_out), len(self.listed), self.root, because, text)
        if not self.episodes:
            raise DatasetError(f"no usable episode of {self.root} is left after {because}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of every file that this reads: meta, tables, and the videos of its cameras."""
        numbers, pictures = self._files()
        return self._hash([*numbers, *sorted(set(pictures) - set(numbers))])

    @cached_property
    def tables_fingerprint(self) -> str:
        """The same without the videos: what numbers depend on."""
        return self._hash(self._files()[0])

    @cached_property
    def pictures_mark(self) -> str:
        """Names and sizes of all files with pictures, of remote ones their versions: a cheap sign that tells most changes."""
        signs = [f"{path.relative_to(self.root).as_posix()} {_sign(path)}" for path in self._picture_files()]
        return hashlib.sha256("\n".join(sorted(signs)).encode()).hexdigest()

    def _picture_files(self) -> list[Path]:
        """Those of all episodes, also of those that cannot be used."""
        return self._files()[1]

    @property
    def stored_fingerprint(self) -> str:
        """`tables_fingerprint` of the dataset as it lies on disk, whatever a training makes of it."""
        return self.tables_fingerprint

    def _hash(self, files: Iterable[Path]) -> str:
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(self.root).as_posix()} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def _tiled(self, episode: Any, rows: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n height tiled_width 3"]:
        views = []
        for camera in self._stored_cameras:
            try:
                views.append(self._decode(episode, camera, rows))
            except VideoError as error:
                raise DatasetError(
                    f"episode {episode.index} of {self.root}: pictures of camera {camera.name} cannot be decoded: {error}. "
                    "Set verify to full to find all such episodes before training, and max_bad_fraction to skip them."
                ) from error
        return views[0] if len(views) == 1 else np.concatenate(views, axis=2)

    def _keep(self, index: int, frames: np.ndarray) -> None:
        if frames.nbytes > self._cache_limit:
            return
        self._cache[index] = frames
        self._cache_bytes += frames.nbytes
        while self._cache_bytes > self._cache_limit:
            self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded frames: another process fills a cache of its own."""
        return {**self.__dict__, "_cache": OrderedDict(), "_cache_bytes": 0}


def _sign(path: Path) -> str:
    if is_copy(path.parent):
        return remote_mark(path) or ""
    try:
        return str(path.stat().st_size)
    except OSError:
        return "missing"


def choose_cameras(root: Path, there: Mapping[str, Camera], names: Sequence[str] | None) -> list[Camera]:
    """The cameras of these names or keys; the only one if None.

    Raises:
        DatasetError: If there is none of that name, or names are missing or repeated.
    """
    if names is None:
        if len(there) > 1:
            raise DatasetError(f"{root} has several cameras, say which: cameras=[{', '.join(there)}]")
        names = list(there)
    by_key = {camera.key: camera for camera in there.values()}
    for name in names:
        if name not in there and name not in by_key:
            raise DatasetError(f"{root} has no camera {name!r}{similar(name, there)}; it has {', '.join(there)}")
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"cameras must name at least one camera, each once, got {list(names)}")
    return [there[name] if name in there else by_key[name] for name in names]


def refuse(root: Path, problems: Mapping[int, str], episodes: int, max_bad_fraction: float) -> None:
    """Raises DatasetError, listing every bad episode, if there are more of them than allowed or no good one is left."""
    if not problems or (len(problems) <= max_bad_fraction * episodes and len(problems) < episodes):
        return
    lines = "".join(f"\n  episode {index}: {text}" for index, text in problems.items())
    advice = (
        "no usable episode is left"
        if len(problems) == episodes
        else f"mend or remove them, or allow to skip them with max_bad_fraction={_round_up(len(problems) / episodes)}"
    )
    raise DatasetError(f"{len(problems)} of {episodes} episodes of {root} cannot be used: {advice}{lines}")


def _round_up(fraction: float) -> float:
    """To two digits, so that what the message advises is enough."""
    return min(1.0, np.ceil(fraction * 100 - 1e-9) / 100)
