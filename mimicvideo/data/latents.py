"""LatentCache: the VAE's latents of all windows of episodes on disk, one flat memory-mapped file per episode."""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Int, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mimicvideo.atomic import PARTIAL, is_old, told, whole_file
from mimicvideo.data.claims import Claims
from mimicvideo.data.episodes import Episode, Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.faults import Fault
from mimicvideo.data.window import Window

log = logging.getLogger(__name__)

VERSION = 2  # of the files' layout and of what names them
DIGEST_BYTES = 32
BATCH_BYTES, MAX_BATCH = 32 * 2**20, 64  # pixels in one call of the encoder, unless one window alone has more
POLL_SECONDS = 0.5
KEPT_MAPS = 256  # in each process: a map holds its file open, and usually no more than 1024 may be

Encode = Callable[[Tensor], Tensor]  # UInt8[batch frames height width 3] -> Float[batch z_channels z_frames z_height z_width]


class LatentCache:
    """Latents of a dataset's episodes, for one window geometry, picture size and encoder.

    A causal VAE encodes a clip's first frame alone, so latents belong to a window, not to a frame. An episode's file holds those of
    all stage-1 anchors in order as bfloat16, then the SHA-256 of all that; stage 2's anchors are the first of them. Files appear whole
    or not at all. Encoder and geometry are hashed into the folder's name, and spelled out in its header.json; what the episode's pictures
    are decoded from is hashed into the file's name (`Episodes.picture_key`). So latents of something else are never found, an episode
    that is added or changed is encoded alone, and datasets that share episodes share their latents. Files of episodes that are gone stay.

    Args:
        cache_dir: Where caches of all kinds lie.
        source: The dataset.
        window: Its geometry; horizon and stride do not matter.
        key: Names the encoder: a hash of its weights.
        every: Only every so manieth anchor is kept, from the first on.
    """

    def __init__(self, cache_dir: str | Path, source: Episodes, window: Window, key: str, every: int = 1) -> None:
        self.source, self.window, self.every = source, window, every
        self._key = key
        self._about = {
            "version": VERSION,
            "encoder": key,
            "cameras": [[camera.height, camera.width] for camera in source.cameras],
            "observed": window.observed,
            "future": window.future,
            "frame_interval": window.frame_interval,
            **({"anchor_interval": every} if every > 1 else {}),
        }
        name = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = Path(cache_dir).expanduser() / f"latents-{name}"
        self.shape: tuple[int, ...] | None = self._read_header()  # of one window
        self._keys: dict[int, str] = {}  # of pictures, by episode

    def missing(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Those without a sound file. Every byte of the others is compared with its SHA-256."""
        self.shape = self.shape or self._read_header()
        if self.shape is None:
            return list(episodes)
        with ThreadPoolExecutor(4) as pool:
            return [episode for episode, sound in zip(episodes, pool.map(self._is_sound, episodes), strict=True) if not sound]

    def encode(self, episodes: Sequence[Episode], encode: Encode, progress: bool = True) -> dict[int, str]:
        """Encodes the windows of these episodes and writes their files. Processes that do so at once divide the episodes.

        Args:
            episodes: Usually what `missing` returns.
            encode: Called with uint8 video; may return any float type on any device.
            progress: Whether to show a bar on the standard error.

        Returns:
            What was wrong with episodes whose pictures cannot be read, by index; they have no file.

        Raises:
            OSError: If a file cannot be written, such as on a full disk; files that are there already stay good.
            ValueError: If the encoder returns something of another shape, or not finite.
        """
        columns = (TextColumn("encoding windows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with _disk(self.folder):
            claims = Claims(self.folder.with_name(f".claims-{self.folder.name}"))
        unreadable = self._unnamed(episodes)
        left, prepared = [episode for episode in episodes if episode.index not in unreadable], False
        before = {episode.index: _signature(self._path(episode)) for episode in left}
        with ThreadPoolExecutor(1) as pool, Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task("", total=sum(self._anchors(episode) for episode in left))
            try:
                while left:
                    for episode, frames in self._decoded(self._unclaimed(left, claims, before), pool):
                        if isinstance(frames, DatasetError):
                            unreadable[episode.index] = str(frames)
                        else:
                            latents = self._encode_episode(episode, frames, encode)
                            first = next(latents)
                            if not prepared:
                                self._prepare(tuple(first.shape[1:]), left)
                                prepared = True
                            self._write(episode, itertools.chain([first], latents), lambda count: bar.advance(task, count))
                        claims.release(self._path(episode).name)
                    left = [episode for episode in left if episode.index not in unreadable and self._unchanged(episode, before)]
                    time.sleep(POLL_SECONDS if left else 0)  # others are at work on these, or have been ended
            finally:
                claims.release_all()
        self.shape = self.shape or self._read_header()
        return unreadable

    def _unnamed(self, episodes: Sequence[Episode]) -> dict[int, str]:
        """Why episodes have no key, by index."""
        with ThreadPoolExecutor(4) as pool:
            return {episode.index: reason for episode, reason in zip(episodes, pool.map(self._no_key, episodes), strict=True) if reason}

    def _no_key(self, episode: Episode) -> str | None:
        try:
            self._path(episode)
        except DatasetError as error:
            return str(error)
        return None

    def _unclaimed(self, episodes: Sequence[Episode], claims: Claims, before: Mapping[int, tuple[int, int] | None]) -> Iterator[Episode]:
        """Episodes that no other process is at work on or has done since, claimed one by one."""
        for episode in episodes:
            name = self._path(episode).name
            with _disk(self.folder):
                mine = claims.take(name)
            if mine:
                if self._unchanged(episode, before):
                    yield episode
                else:
                    claims.release(name)

    def _unchanged(self, episode: Episode, before: Mapping[int, tuple[int, int] | None]) -> bool:
        return _signature(self._path(episode)) == before[episode.index]

    def read(self, episode: Episode, anchor: int) -> BFloat16[Tensor, "z_channels z_frames z_height z_width"]:
        """The latents of one window, a copy.

        Raises:
            DatasetError: If the file has vanished, or is shorter than it was, or the cache does not keep this anchor.
        """
        place, beside = divmod(anchor, self.every)
        if beside:
            raise DatasetError(f"{self.folder} keeps every {self.every}th anchor, not {anchor}: set anchor_interval to {self.every}")
        assert self.shape is not None
        path = self._path(episode)
        try:
            there = path.stat()
            if there.st_size != self._bytes(episode):  # to read a map beyond the end of its file kills the process
                raise ValueError(f"it has {there.st_size} bytes, expected {self._bytes(episode)}")
            latents = _mapped(path, (self._anchors(episode), *self.shape), there.st_ino, there.st_mtime_ns)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"episode {episode.index} of {self.source.root}: its latents {path} cannot be read ({error}): "
                "starting again encodes them anew"
            ) from error
        return torch.from_numpy(np.array(latents[place])).view(torch.bfloat16)

    def _decoded(
        self, episodes: Iterator[Episode], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Episode, UInt8[np.ndarray, "rows height width 3"] | DatasetError]]:
        """Episodes with all their frames, or why there are none; the next one is decoded while the encoder has this one."""
        episode = next(episodes, None)
        pending = pool.submit(self._frames, episode) if episode else None
        while episode and pending:
            frames, following = pending.result(), next(episodes, None)
            pending = pool.submit(self._frames, following) if following else None
            yield episode, frames
            episode = following

    def _frames(self, episode: Episode) -> UInt8[np.ndarray, "rows height width 3"] | DatasetError:
        try:
            frames = self.source.frames(episode, np.arange(episode.length))
            if self.source.picture_key(episode) != self._keys[episode.index]:
                return DatasetError(f"episode {episode.index} of {self.source.root} changed since the dataset was opened: start again")
            return frames
        except DatasetError as error:
            return error

    def _encode_episode(self, episode: Episode, frames: UInt8[np.ndarray, "rows height width 3"], encode: Encode) -> Iterator[Tensor]:
        """Latents of all anchors in order, batch by batch; neighbours that show the same frames are encoded once."""
        rows = np.stack([self.window.frame_rows(anchor, episode.length) for anchor in self._kept(episode)])
        starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(axis=1)]))
        repeats = np.diff(np.append(starts, len(rows)))
        size = max(1, min(MAX_BATCH, BATCH_BYTES // (self.window.frames * self.source.frame_bytes)))
        for first in range(0, len(starts), size):
            chosen = starts[first : first + size]
            latents = encode(torch.from_numpy(frames[rows[chosen]])).to("cpu", torch.bfloat16)
            self._check(latents, len(chosen), episode, rows[chosen])
            yield latents.repeat_interleave(torch.from_numpy(repeats[first : first + size]), dim=0).contiguous()

    def _check(self, latents: Tensor, count: int, episode: Episode, rows: Int[np.ndarray, "count frames"]) -> None:
        expected = (count, *(self.shape or latents.shape[1:]))
        if latents.ndim != 5 or tuple(latents.shape) != expected:
            raise ValueError(f"the encoder returned {tuple(latents.shape)} for {count} windows, expected {expected}")
        finite = latents.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = rows[int((~finite).nonzero()[0])]
            raise ValueError(f"the encoder returned NaN or infinity for episode {episode.index}, rows {bad[0]} ... {bad[-1]}")

    def _prepare(self, shape: tuple[int, ...], episodes: Sequence[Episode]) -> None:
        """Writes the header once the shape is known, and makes sure that there is room."""
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.shape is None:
                self.shape = shape
                _write(self.folder / "header.json", [json.dumps({**self._about, "latents": shape}, indent=2).encode()])
            for partial in self.folder.glob(f".*{PARTIAL}"):
                with contextlib.suppress(FileNotFoundError):
                    if is_old(partial):
                        partial.unlink()
        left = [episode for episode in episodes if not self._path(episode).is_file()]  # others may be at work, too
        needed, free = sum(self._bytes(episode) for episode in left), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"the latents of {len(left)} episodes need {needed / 1e9:.3g} GB, {self.folder} has {free / 1e9:.3g} GB left: "
                "free some space, or choose another latent_cache"
            )

    def _write(self, episode: Episode, batches: Iterable[Tensor], advance: Callable[[int], None]) -> None:
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            for latents in batches:
                piece = latents.view(torch.int16).numpy().tobytes()
                digest.update(piece)
                yield piece
                advance(len(latents))
            yield digest.digest()

        with _disk(self.folder):
            _write(self._path(episode), pieces())

    def _is_sound(self, episode: Episode) -> bool:
        if self._no_key(episode) is not None or not (path := self._path(episode)).is_file():
            return False
        if path.stat().st_size != self._bytes(episode):
            problem = f"it has {path.stat().st_size} bytes, expected {self._bytes(episode)}"
        else:
            with path.open("rb") as file:
                digest, left = hashlib.sha256(), self._bytes(episode) - DIGEST_BYTES
                while left:
                    piece = file.read(min(left, 2**22))
                    digest.update(piece)
                    left -= len(piece)
                if file.read() == digest.digest():
                    return True
            problem = "its SHA-256 does not match"
        log.warning("%s is damaged (%s): encoding episode %d anew", path, problem, episode.index)
        return False

    def _bytes(self, episode: Episode) -> int:
        assert self.shape is not None
        return 2 * self._anchors(episode) * int(np.prod(self.shape)) + DIGEST_BYTES

    def _kept(self, episode: Episode) -> range:
        return range(0, self.window.clip_anchors(episode.length), self.every)

    def _anchors(self, episode: Episode) -> int:
        return len(self._kept(episode))

    def covering(self) -> "LatentCache":
        """This cache, or if it has none of the episodes another one there that keeps its anchors and more.

        Raises:
            DatasetError: If what is there of these episodes is of the same windows, but keeps other anchors.
        """
        headers = self._headers()
        if not headers:
            return self
        names = {self._path(episode).name for episode in self.source.episodes if self._no_key(episode) is None}
        intervals = []
        for folder, header in headers.items():
            interval = header.pop("anchor_interval", 1)
            same = header == {name: value for name, value in self._about.items() if name != "anchor_interval"}
            if same and not names.isdisjoint(os.listdir(folder)):
                intervals.append(interval)
            elif header.get("version") == 1:
                log.warning("%s holds latents of an earlier version of mimicvideo, which are not read: it can be deleted", folder)
        if self.every in intervals:
            return self
        for interval in sorted(intervals):
            if self.every % interval == 0:
                return LatentCache(self.folder.parent, self.source, self.window, self._key, interval)
        if intervals:
            raise DatasetError(
                f"{self.folder.parent} has latents of every {min(intervals)}th anchor of {self.source.root}, training asks for every "
                f"{self.every}: set anchor_interval to {min(intervals)} or a multiple, or choose another latent_cache to encode the others"
            )
        return self

    def _headers(self) -> dict[Path, dict[str, Any]]:
        """What the headers of all caches there say but the latents' shape, by folder."""
        headers = {}
        for path in sorted(self.folder.parent.glob("latents-*/header.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OSError):  # a damaged header is another's concern
                header = json.loads(path.read_text())
                del header["latents"]
                headers[path.parent] = dict(header)
        return headers

    def _path(self, episode: Episode) -> Path:
        """Raises DatasetError if the episode's pictures cannot be read."""
        if episode.index not in self._keys:
            self._keys[episode.index] = self.source.picture_key(episode)
        return self.folder / f"{self._keys[episode.index]}.bf16"

    def _read_header(self) -> tuple[int, ...] | None:
        try:
            header = json.loads((self.folder / "header.json").read_text())
            shape = tuple(int(size) for size in header.pop("latents"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            log.warning("%s is damaged (%s): encoding everything anew", self.folder / "header.json", error)
            return None
        return shape if header == self._about and len(shape) == 4 else None


def filled_caches(
    readers: Mapping[str, Episodes], window: Window, encode: Encode, key: str, cache_dir: str, every: int, rank: int, ranks: int
) -> tuple[dict[int, LatentCache], list[Fault]]:
    """Caches of all datasets, by the identity of their readers, after encoding what is missing; and the episodes that have no latents.

    Args:
        readers: The datasets by name.
        window: See `LatentCache`, as `key`, `cache_dir` and `every`.
        encode: See `LatentCache.encode`.
        rank: Of this process, which encodes its part of the episodes.
        ranks: How many there are.

    Raises:
        OSError: If the disk is full, or what other processes were to encode is not there.
        DatasetError: If there are latents of other anchors.
    """
    caches, faults = {}, []
    for number, reader in enumerate(readers.values()):
        cache, unreadable = LatentCache(cache_dir, reader, window, key, every).covering(), {}
        if missing := cache.missing(reader.episodes[rank::ranks]):
            unreadable = cache.encode(missing, encode, progress=rank == 0)
        if ranks > 1:
            everyone: list[Any] = [None] * ranks
            torch.distributed.all_gather_object(everyone, unreadable)  # waits for all, too
            unreadable = {index: reason for part in everyone for index, reason in part.items()}
            if left := [episode for episode in cache.missing(reader.episodes) if episode.index not in unreadable]:
                raise OSError(f"{cache.folder} lacks {len(left)} episodes that other processes were to encode: is it on a shared disk?")
        faults += [Fault(number, index, reason) for index, reason in unreadable.items()]
        caches[id(reader)] = cache
    return caches, faults


@functools.lru_cache(maxsize=KEPT_MAPS)
def _mapped(path: Path, shape: tuple[int, ...], _file: int, _changed: int) -> np.memmap:
    """The latents in this state of a file, without the digest at its end."""
    return np.memmap(path, np.int16, "r", shape=shape)


def _signature(path: Path) -> tuple[int, int] | None:
    """Tells one file from another of the same name; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _disk(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Says in plain words what went wrong when a file could not be written."""
    remedy = "choose another latent_cache. Episodes that are there already stay good and are not encoded again."
    return told("could not write latents to", folder, remedy)


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a whole file, which is on the disk when it gets its name."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
