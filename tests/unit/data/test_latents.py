"""Cached latents are the encoder's, of the right window; whatever is stale, partial or damaged is encoded anew."""

import errno
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

import mimicvideo.data.latents as latents_module
from mimicvideo.data.claims import Claims
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.window import Window
from tests.synthetic_episodes import by_writer

WINDOW = Window(observed=5, future=4, frame_interval=2)


class Encoder:
    """Latents that tell the rows shown; counts what it is given."""

    def __init__(self, factor: float = 1.0) -> None:
        self.windows, self.calls, self.factor = 0, 0, factor

    def __call__(self, video: Tensor) -> Tensor:
        assert video.dtype == torch.uint8 and video.shape[1:] == (9, 16, 16, 3)
        self.windows, self.calls = self.windows + len(video), self.calls + 1
        coarse = video[:, ::4].float().mean((2, 3))  # batch z_frames 3
        return self.factor * coarse.permute(0, 2, 1)[..., None, None].expand(-1, -1, -1, 2, 2).clone()


@pytest.fixture
def reader(tmp_path: Path) -> LeRobotEpisodes:
    by_writer(tmp_path / "d")
    return LeRobotEpisodes(tmp_path / "d")


def fill(tmp_path: Path, reader: LeRobotEpisodes, key: str = "vae", window: Window = WINDOW, encoder: Encoder | None = None) -> LatentCache:
    cache = LatentCache(tmp_path / "cache", reader, window, key)
    cache.encode(cache.missing(reader.episodes), encoder or Encoder(), progress=False)
    return cache


def name(cache: LatentCache, episode: int) -> str:
    """Of an episode's file."""
    return f"{cache.source.picture_key(cache.source.listed[episode])}.bf16"


def check(cache: LatentCache, reader: LeRobotEpisodes) -> None:
    for episode in reader.episodes:
        for anchor in range(WINDOW.clip_anchors(episode.length)):
            video = torch.from_numpy(reader.frames(episode, WINDOW.frame_rows(anchor, episode.length)))
            torch.testing.assert_close(cache.read(episode, anchor), Encoder()(video[None])[0].bfloat16(), rtol=0, atol=0)


def test_every_window_has_its_own_latents(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = fill(tmp_path, reader)
    assert cache.missing(reader.episodes) == []
    check(cache, reader)
    again = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    assert again.missing(reader.episodes) == []
    check(pickle.loads(pickle.dumps(again)), reader)


def test_windows_that_show_the_same_are_encoded_once_and_frames_decoded_once(
    tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mimicvideo.data.lerobot as lerobot

    decoded: list[int] = []
    decode = lerobot.decode_frames
    monkeypatch.setattr(lerobot, "decode_frames", lambda path, rows, *rest: decoded.append(len(rows)) or decode(path, rows, *rest))
    monkeypatch.setattr(latents_module, "MAX_BATCH", 8)
    reader._all_fit, reader._cache_limit = False, 0
    encoder = Encoder()
    check_cache = fill(tmp_path, reader, encoder=encoder)
    distinct = [
        len({tuple(WINDOW.frame_rows(anchor, episode.length)) for anchor in range(WINDOW.clip_anchors(episode.length))})
        for episode in reader.episodes
    ]
    assert encoder.windows == sum(distinct) and decoded == [12, 9, 20]
    assert encoder.calls == sum(-(-count // 8) for count in distinct)
    check(check_cache, reader)


def test_a_one_row_episode_is_one_window(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", lengths=(1,))
    encoder, reader = Encoder(), LeRobotEpisodes(tmp_path / "d", min_rows=1)
    cache = fill(tmp_path, reader, encoder=encoder)
    assert encoder.windows == 1 and WINDOW.clip_anchors(1) == 9
    check(cache, reader)


def test_only_what_is_missing_is_encoded(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    cache.encode(reader.episodes[:1], Encoder(), progress=False)
    rest = LatentCache(tmp_path / "cache", reader, WINDOW, "vae").missing(reader.episodes)
    assert [episode.index for episode in rest] == [1, 2]
    check(fill(tmp_path, reader), reader)


def test_anything_else_is_another_cache(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    fill(tmp_path, reader)
    others = {
        "encoder": LatentCache(tmp_path / "cache", reader, WINDOW, "another vae"),
        "interval": LatentCache(tmp_path / "cache", reader, Window(5, 4, 1), "vae"),
        "frames": LatentCache(tmp_path / "cache", reader, Window(1, 8, 2), "vae"),
        "size": LatentCache(tmp_path / "cache", LeRobotEpisodes(reader.root, size=(8, 8)), WINDOW, "vae"),
    }
    for what, cache in others.items():
        assert len(cache.missing(reader.episodes)) == 3, what
    assert len({cache.folder for cache in others.values()}) == 4
    (reader.root / "meta/info.json").write_text((reader.root / "meta/info.json").read_text() + " ")
    same = LatentCache(tmp_path / "cache", LeRobotEpisodes(reader.root), WINDOW, "vae")
    assert same.missing(reader.episodes) == [], "pictures do not depend on the rest of the dataset"
    horizon = LatentCache(tmp_path / "cache", reader, Window(5, 4, 2, horizon=7, stride=6), "vae")
    assert horizon.missing(reader.episodes) == [], "stage 2 shares the cache of stage 1"


@pytest.mark.parametrize("damage", ["flip", "flip_digest", "cut", "longer", "empty", "header"])
def test_damage_is_found_and_mended(tmp_path: Path, reader: LeRobotEpisodes, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = fill(tmp_path, reader)
    path = cache.folder / ("header.json" if damage == "header" else name(cache, 1))
    data = bytearray(path.read_bytes())
    if damage.startswith("flip"):
        data[-1 if damage == "flip_digest" else 100] ^= 1
    path.write_bytes({"cut": data[:-7], "longer": data + b"1", "empty": b"", "header": data[:20]}.get(damage, data))
    again = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    assert [episode.index for episode in again.missing(reader.episodes)] == ([0, 1, 2] if damage == "header" else [1])
    assert "damaged" in caplog.text and path.name in caplog.text
    check(fill(tmp_path, reader), reader)


def test_an_interrupted_encoding_leaves_whole_files_only(tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents_module, "MAX_BATCH", 4)
    encoder = Encoder()

    def stops(video: Tensor) -> Tensor:
        if encoder.windows > 30:
            raise KeyboardInterrupt
        return encoder(video)

    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    with pytest.raises(KeyboardInterrupt):
        cache.encode(reader.episodes, stops, progress=False)
    assert {path.name for path in cache.folder.iterdir()} == {name(cache, 0), "header.json"}
    left = LatentCache(tmp_path / "cache", reader, WINDOW, "vae").missing(reader.episodes)
    assert [episode.index for episode in left] == [1, 2]
    check(fill(tmp_path, reader), reader)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_said_and_costs_the_new_file_only(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    cache.encode(reader.episodes[:1], Encoder(), progress=False)
    size = os.path.getsize(cache.folder / name(cache, 0))
    with largest_file(size), pytest.raises(OSError, match="could not write latents to .*free some space, or choose another latent_cache"):
        cache.encode(reader.episodes[2:], Encoder(), progress=False)
    assert {path.name for path in cache.folder.iterdir()} == {name(cache, 0), "header.json"}
    check(fill(tmp_path, reader), reader)


def test_too_little_room_is_said_before_work_starts(tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(latents_module.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match="latents of 3 episodes need .*e-06 GB, .* has 1e-06 GB left: free some space"):
        fill(tmp_path, reader)


def test_room_is_needed_only_for_what_others_have_not_written(
    tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process encodes the first two episodes just before this one knows how large latents are."""
    from collections import namedtuple

    mine, other = (LatentCache(tmp_path / "cache", reader, WINDOW, "vae") for _ in range(2))
    fresh, usage = Encoder(), namedtuple("usage", "total used free")

    def slow(video: Tensor) -> Tensor:
        if not fresh.calls:
            other.encode(other.missing(reader.episodes)[:2], Encoder(), progress=False)
            last = other._bytes(reader.episodes[2])
            monkeypatch.setattr(latents_module.shutil, "disk_usage", lambda path: usage(10**9, 0, last))
        return fresh(video)

    monkeypatch.setattr(Claims, "take", lambda *_: True)
    monkeypatch.setattr(Claims, "release", lambda *_: None)
    mine.encode(mine.missing(reader.episodes), slow, progress=False)
    check(mine, reader)


def test_what_killed_processes_left_is_deleted_when_it_is_old(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = fill(tmp_path, reader)
    old, young = (cache.folder / f".{name(cache, 1)}..{which}.partial" for which in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    (cache.folder / name(cache, 1)).unlink()
    check(fill(tmp_path, reader), reader)
    assert not old.exists() and young.exists()


@pytest.mark.parametrize("left", ["claims", "latents"])
def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Claims, "_open", refuse) if left == "claims" else monkeypatch.setattr(latents_module, "_write", refuse)
    with pytest.raises(OSError, match=r"could not write latents to .* \(Read-only file system\): make it writable, or choose another"):
        fill(tmp_path, reader)


def test_encoders_that_misbehave(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    with pytest.raises(ValueError, match="returned NaN or infinity for episode 0, rows 0 ... 8"):
        cache.encode(reader.episodes, lambda video: Encoder()(video).index_fill(0, torch.tensor([0]), torch.nan), progress=False)
    with pytest.raises(ValueError, match="returned \\(20, 3\\) for 20 windows"):
        cache.encode(reader.episodes, lambda video: torch.zeros(len(video), 3), progress=False)
    cache.encode(reader.episodes[:1], Encoder(), progress=False)
    with pytest.raises(ValueError, match="expected \\(17, 3, 3, 2, 2\\)"):
        cache.encode(reader.episodes[1:], lambda video: torch.zeros(len(video), 3, 3, 4, 4), progress=False)


def test_reading_decodes_nothing(tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fill(tmp_path, reader)
    monkeypatch.setattr(LeRobotEpisodes, "frames", lambda *_: pytest.fail("pixels were decoded"))
    value = cache.read(reader.episodes[0], 3)
    value.zero_()
    assert cache.read(reader.episodes[0], 3).abs().sum() > 0, "a copy"
    assert (
        value.dtype == torch.bfloat16
        and value.shape == (3, 3, 2, 2)
        and np.prod(value.shape) * 2 * 20 + 32 == os.path.getsize(cache.folder / name(cache, 0))
    )


def open_files(path: Path) -> int:
    """How many descriptors of this process lead to a file."""
    return sum(os.path.realpath(place) == str(path) for place in Path("/proc/self/fd").iterdir())


def test_a_few_files_stay_open_however_many_episodes_there_are(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    cache = fill(tmp_path, reader)
    path, latents = cache.folder / name(cache, 1), cache.read(reader.episodes[1], 2)
    for changed in range(latents_module.KEPT_MAPS + 50):  # each is another state of the file, as other episodes' would be
        os.utime(path, ns=(changed, changed))
        assert torch.equal(cache.read(reader.episodes[1], 2), latents)
    assert 1 <= open_files(path) <= latents_module.KEPT_MAPS


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path: Path, reader: LeRobotEpisodes, damage: str) -> None:
    cache = fill(tmp_path, reader)
    path = cache.folder / name(cache, 1)
    cache.read(reader.episodes[1], 2)
    path.unlink() if damage == "gone" else os.truncate(path, 0 if damage == "empty" else 100)
    with pytest.raises(
        DatasetError, match=f"episode 1 of .*: its latents .*{path.name} cannot be read .*: starting again encodes them anew"
    ):
        cache.read(reader.episodes[1], 2)
    check(fill(tmp_path, reader), reader)
