"""Datasets behind URLs: what is fetched when, what is kept, and what happens when it fails."""

import errno
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from mimicvideo.data import remote
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from mimicvideo.data.open import open_episodes
from mimicvideo.data.remote import fetched, files_below, local_folder
from tests.every_format import FORMATS, LENGTHS, lerobot_v21, zarr_v2

URL = "memory://bucket/data/set"
VIDEO = "videos/chunk-000/observation.images.corner2/episode_00000{}.mp4"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def upload(system: MemoryFileSystem, folder: Path) -> None:
    system.put(f"{folder}/", "/bucket/data/set/", recursive=True)


def cached(tmp_path: Path) -> Path:
    return next(path for path in (tmp_path / "cache/mimicvideo/remote").iterdir() if path.is_dir())


def copies(tmp_path: Path, suffix: str = "") -> set[str]:
    folder = cached(tmp_path)
    return {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}") if path.is_file()}


def used(tmp_path: Path) -> int:
    folder = cached(tmp_path)
    return sum((folder / name).stat().st_size for name in copies(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_from_a_remote_folder(tmp_path: Path, memory: MemoryFileSystem, name: str) -> None:
    spec = FORMATS[name][0](tmp_path / "local")
    upload(memory, tmp_path / "local")
    here, there = open_episodes(tmp_path / "local", spec=spec), open_episodes(URL, spec=spec)
    assert [episode.instructions for episode in here.episodes] == [episode.instructions for episode in there.episodes]
    for one, other in zip(here.episodes, there.episodes, strict=True):
        np.testing.assert_array_equal(here.frames(one, [0, 3]), there.frames(other, [0, 3]))
        np.testing.assert_array_equal(here.actions(one), there.actions(other))
    assert here.fingerprint == there.fingerprint
    assert here.tables_fingerprint == there.tables_fingerprint


def test_videos_are_fetched_when_they_are_shown(tmp_path: Path, memory: MemoryFileSystem) -> None:
    lerobot_v21(tmp_path / "local")
    upload(memory, tmp_path / "local")
    reader = open_episodes(URL, ram_cache_gb=0.0)
    assert copies(tmp_path, ".mp4") == set()
    reader.frames(reader.episodes[1], [4])
    assert copies(tmp_path, ".mp4") == {VIDEO.format(1)}


def test_chunks_are_fetched_when_they_are_shown(tmp_path: Path, memory: MemoryFileSystem) -> None:
    spec = zarr_v2(tmp_path / "local")
    upload(memory, tmp_path / "local")
    reader = open_episodes(URL, spec=spec, ram_cache_gb=0.0)
    assert not {name for name in copies(tmp_path) if "workspace_rgb/" in name and not name.endswith((".zarray", ".zattrs"))}
    reader.frames(reader.episodes[2], [6, 17])
    chunks = {name for name in copies(tmp_path) if "workspace_rgb/" in name and not name.endswith((".zarray", ".zattrs"))}
    assert chunks == {"episode_2/workspace_rgb/1.0.0.0", "episode_2/workspace_rgb/3.0.0.0"}


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(tmp_path: Path, memory: MemoryFileSystem) -> None:
    lerobot_v21(tmp_path / "local")
    upload(memory, tmp_path / "local")
    names = [VIDEO.format(0), VIDEO.format(1), VIDEO.format(2).replace("chunk-000", "chunk-001")]
    sizes = [memory.size(f"/bucket/data/set/{name}") for name in names]
    open_episodes(URL)
    limit = used(tmp_path) + sum(sizes) - 1
    reader = open_episodes(URL, ram_cache_gb=0.0, remote_cache_gb=limit / 1e9)
    for number in (0, 1, 0, 2):
        reader.frames(reader.episodes[number], [4])
        assert names[number] in copies(tmp_path) and used(tmp_path) <= limit
        time.sleep(0.1)  # file systems count time in steps
    assert names[1] not in copies(tmp_path), "0 was used after 1"
    assert copies(tmp_path, ".parquet"), "tables stay"
    again = open_episodes(URL)
    assert [len(again.frames(episode, [1])) for episode in again.episodes] == [1, 1, 1]


def test_a_limit_below_the_tables_is_refused(tmp_path: Path, memory: MemoryFileSystem) -> None:
    lerobot_v21(tmp_path / "local")
    upload(memory, tmp_path / "local")
    with pytest.raises(DatasetError, match="what is always needed of memory://bucket/data/set.* takes .* GB.*: raise remote_cache_gb"):
        open_episodes(URL, remote_cache_gb=1e-6)
    with pytest.raises(ValueError, match="remote_cache_gb must be positive"):
        open_episodes(URL, remote_cache_gb=0)


def test_what_changes_remotely_is_fetched_again(tmp_path: Path, memory: MemoryFileSystem) -> None:
    memory.pipe({"/bucket/data/set/a.txt": b"old", "/bucket/data/set/b.mp4": b"video", "/bucket/data/set/c.txt": b"gone soon"})
    folder = local_folder(URL)
    assert fetched(folder / "b.mp4").read_bytes() == b"video"
    memory.pipe({"/bucket/data/set/a.txt": b"newer", "/bucket/data/set/b.mp4": b"other"})
    memory.rm("/bucket/data/set/c.txt")
    assert local_folder(URL) == folder
    assert (folder / "a.txt").read_bytes() == b"newer" and not (folder / "c.txt").exists()
    assert fetched(folder / "b.mp4").read_bytes() == b"other"
    assert files_below(folder) == ["a.txt", "b.mp4"]


def test_unchanged_files_are_not_fetched_again(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/bucket/data/set/a.txt": b"1", "/bucket/data/set/b.mp4": b"2"})
    fetched(local_folder(URL) / "b.mp4")
    monkeypatch.setattr(remote, "_download", lambda *_: pytest.fail("fetched again"))
    assert fetched(local_folder(URL) / "b.mp4").read_bytes() == b"2"


def test_half_a_download_leaves_nothing(tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/bucket/data/set/a.txt": b"1", "/bucket/data/set/b.mp4": b"whole"})
    folder = local_folder(URL)

    def torn(_self: Any, _source: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(b"who")

    monkeypatch.setattr(MemoryFileSystem, "get_file", torn)
    with pytest.raises(DatasetError, match="set/b.mp4 cannot be fetched into .*: OSError: 3 of 5 bytes arrived"):
        fetched(folder / "b.mp4")
    assert {path.name for path in folder.iterdir()} == {"a.txt", ".remote.json", ".in-use"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_no_fault_of_an_episode(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    lerobot_v21(tmp_path / "local")
    upload(memory, tmp_path / "local")
    options: dict[str, Any] = {"max_bad_fraction": 0.9, "validation_fraction": 0.0, "ram_cache_gb": 0.0, "num_workers": workers}
    data = ClipData(root=URL, observed=1, future=4, batch_size=4, **options)
    data.setup()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "_download", full)
    with pytest.raises(DatasetError, match=r"mp4 cannot be fetched into .*No space left on device. Free some space, or let XDG_CACHE"):
        next(iter(data.train_dataloader()))
    assert not data.skipped
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sum(len(batch["row"]) for batch in islice(iter(data.train_dataloader()), 3)) == 12, "with room it goes on"


def test_copies_that_cannot_be_written_at_all(tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/bucket/data/set/a.txt": b"1"})
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(OSError, match="copies of remote files cannot be written to .*cache.*: free some space, or let XDG_CACHE_HOME lead"):
        local_folder(URL)


def test_a_vanished_file_is_named(tmp_path: Path, memory: MemoryFileSystem) -> None:
    lerobot_v21(tmp_path / "local")
    upload(memory, tmp_path / "local")
    reader = open_episodes(URL, ram_cache_gb=0.0)
    memory.rm(f"/bucket/data/set/{VIDEO.format(0)}")
    with pytest.raises(DatasetError, match="episode_000000.mp4 cannot be fetched into .*FileNotFoundError"):
        reader.frames(reader.episodes[0], [0])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "there is no dataset at memory://nowhere: the folder is missing or empty"),
        ("nosuchprotocol://x", "nosuchprotocol://x cannot be read: Protocol not known"),
    ],
)
def test_urls_without_a_dataset(url: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_episodes(url)


def test_data_workers_fetch_on_their_own(tmp_path: Path) -> None:
    """Through file://, since other processes do not see this one's memory."""
    lerobot_v21(tmp_path / "local")
    data = ClipData(
        root=f"file://{tmp_path / 'local'}", observed=5, future=4, batch_size=4, validation_fraction=0.0, num_workers=2, ram_cache_gb=0.0
    )
    local = ClipData(root=str(tmp_path / "local"), observed=5, future=4, batch_size=4, validation_fraction=0.0)
    for one, other in zip(islice(iter(data.train_dataloader()), 6), islice(iter(local.train_dataloader()), 6), strict=True):
        assert torch.equal(one["video"], other["video"])
    assert len(copies(tmp_path, ".mp4")) == len(LENGTHS)


def test_local_files_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"1")
    os.utime(file, (1, 1))
    assert fetched(file) == file and file.stat().st_mtime == 1
    assert fetched(tmp_path / "absent.mp4") == tmp_path / "absent.mp4"
