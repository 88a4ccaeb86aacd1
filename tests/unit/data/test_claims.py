"""Processes that fill a cache at once divide the work; what one leaves behind, another does; nothing is written twice or half."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import mimicvideo.data.latents as latents_module
from mimicvideo.data.claims import Claims
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.lerobot import LeRobotEpisodes
from tests.cache_writer import WINDOW, encode, fill
from tests.synthetic_episodes import by_writer

SPAWN = multiprocessing.get_context("spawn")  # a process whose parent has used several threads may hang after a fork


@pytest.fixture
def reader(tmp_path: Path) -> LeRobotEpisodes:
    by_writer(tmp_path / "d", (6,) * 8)
    return LeRobotEpisodes(tmp_path / "d")


def run(folder: Path, reader: LeRobotEpisodes, *arguments: tuple[Any, ...]) -> list[int | None]:
    start = SPAWN.Barrier(len(arguments))
    processes = [SPAWN.Process(target=fill, args=(folder, reader, start, *given)) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def check(folder: Path, reader: LeRobotEpisodes) -> None:
    cache = LatentCache(folder / "cache", reader, WINDOW, "vae")
    assert cache.missing(reader.episodes) == []
    assert {path.name for path in cache.folder.iterdir()} == {*(f"{reader.picture_key(k)}.bf16" for k in reader.episodes), "header.json"}
    assert [path.name for path in (folder / "cache").iterdir()] == [cache.folder.name], "no lock is left"
    for episode in reader.episodes:
        video = torch.from_numpy(reader.frames(episode, WINDOW.frame_rows(3, episode.length)))
        assert torch.equal(cache.read(episode, 3), encode(video[None])[0].bfloat16())


def test_two_writers_at_once_divide_the_episodes(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    assert run(tmp_path, reader, (), ()) == [0, 0]
    done = [json.loads(path.read_text()) for path in tmp_path.glob("done-*")]
    assert sum(done) == 8 and min(done) >= 1
    check(tmp_path, reader)


def test_what_a_killed_writer_had_claimed_is_done_by_the_other(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    assert run(tmp_path, reader, (True,), ()) == [-signal.SIGKILL, 0]
    (done,) = [json.loads(path.read_text()) for path in tmp_path.glob("done-*")]
    assert done == 8
    check(tmp_path, reader)


def test_a_disk_without_locks_grants_everything(tmp_path: Path, reader: LeRobotEpisodes) -> None:
    assert run(tmp_path, reader, (False, False), (False, False)) == [0, 0]
    check(tmp_path, reader)


def test_a_claim_ends_with_its_release(tmp_path: Path) -> None:
    one, two = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert one.take("a") and not two.take("a") and two.take("b")
    one.release("a")
    assert two.take("a")
    two.release_all()
    assert one.take("a"), "also where the folder has been removed"
    one.release_all()
    assert not (tmp_path / "claims").exists()


def test_a_disk_that_fills_up_under_way(tmp_path: Path, reader: LeRobotEpisodes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, written = latents_module._write, []

    def full(path: Path, pieces: Any) -> None:
        if len(written) == 4:
            whole(path, (piece for number, piece in enumerate([b"first", None]) if number == 0 or _no_space()))
        whole(path, pieces)
        written.append(path.name)

    monkeypatch.setattr(latents_module, "_write", full)
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    with pytest.raises(OSError, match="could not write latents to .* \\(No space left on device\\): free some space, or choose another"):
        cache.encode(reader.episodes, encode, progress=False)
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted(written), "no half-written file"
    monkeypatch.undo()
    again = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    missing = again.missing(reader.episodes)
    assert [episode.index for episode in missing] == [3, 4, 5, 6, 7]
    again.encode(missing, encode, progress=False)
    check(tmp_path, reader)


def _no_space() -> bool:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
