"""The cache of remote files never takes more than its limit, whoever fills it, and what is dropped is fetched again."""

import asyncio
import contextlib
import fcntl
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from zarr.core.buffer import default_buffer_prototype

from mimicvideo.data import bounded, zarr_store
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.remote import awaits, fetched, local_folder, opened
from tests.remote_reader import hold, read, stall

SPAWN = multiprocessing.get_context("spawn")
SIZE = 100_000


@pytest.fixture
def url(tmp_path: Path) -> str:
    return remote_folder(tmp_path / "remote", *(f"{number}.mp4" for number in range(8)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def remote_folder(folder: Path, *names: str) -> str:
    """Files of `SIZE` bytes, each of another one."""
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * SIZE)
    return f"file://{folder}"


def taken(cache: Path) -> int:
    """Bytes of all copies at one moment; of one that is being fetched, those that are there."""
    with contextlib.ExitStack() as stack:
        if (cache / bounded.TOTAL).is_file():
            fcntl.flock(stack.enter_context((cache / bounded.TOTAL).open("rb")), fcntl.LOCK_EX)
        return counted(cache)


def counted(cache: Path) -> int:
    total = 0
    for place, _, names in os.walk(cache):
        for name in names:
            path = Path(place, name)
            try:
                total += path.stat().st_size if not name.startswith(".") or name.endswith(".partial") else 0
            except FileNotFoundError:
                continue
    return total


def test_processes_together_stay_within_the_limit(url: str, cache: Path) -> None:
    limit, start = int(3.5 * SIZE), SPAWN.Barrier(4)
    processes = [SPAWN.Process(target=read, args=(url, cache, limit, start, seed, 60)) for seed in range(3)]
    for process in processes:
        process.start()
    start.wait(120)
    seen = []
    while any(process.is_alive() for process in processes):
        seen.append(taken(cache))
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert SIZE < max(seen) <= limit
    assert not list(cache.rglob("*.partial"))


def test_a_file_takes_its_name_while_nobody_counts(url: str, cache: Path) -> None:
    folder = local_folder(url, cache)
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def fetch() -> None:
        with bounded.reserved(folder / "0.mp4", SIZE, 10 * SIZE, lambda _: True) as temporary:
            temporary.write_bytes(bytes(SIZE))
            begun.set()
            go_on.wait(60)
        done.set()

    thread = threading.Thread(target=fetch)
    with (cache / bounded.TOTAL).open("rb") as ledger:
        thread.start()
        assert begun.wait(60)
        fcntl.flock(ledger, fcntl.LOCK_EX)
        go_on.set()
        assert not done.wait(0.3)
        assert len(list(folder.glob(".*.partial"))) == 1 and not (folder / "0.mp4").exists()
    thread.join(60)
    assert (folder / "0.mp4").read_bytes() == bytes(SIZE) and not list(folder.glob(".*.partial"))


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_file(url: str, cache: Path) -> None:
    told = SPAWN.Event()
    process = SPAWN.Process(target=stall, args=(url, cache, told))
    process.start()
    assert told.wait(120)
    (half,) = local_folder(url, cache).glob(".*.partial")
    process.kill()
    process.join()
    folder = local_folder(url, cache)
    assert not half.exists(), "as long as it had a writer it was there"
    assert not (folder / "0.mp4").exists() and awaits(folder / "0.mp4")
    assert fetched(folder / "0.mp4").read_bytes() == bytes(SIZE)


def test_the_oldest_goes_first_and_a_lower_limit_holds_at_once(url: str, cache: Path) -> None:
    folder = local_folder(url, cache)
    for number in (0, 1, 2, 3, 0):
        fetched(folder / f"{number}.mp4")
    changed = (folder / "0.mp4").stat().st_mtime_ns
    assert local_folder(url, cache, 2.5 * SIZE / 1e9) == folder
    assert {path.name for path in folder.glob("*.mp4")} == {"3.mp4", "0.mp4"}
    fetched(folder / "0.mp4")
    assert (folder / "0.mp4").stat().st_mtime_ns == changed, "use is no change: hashes of the file stay known"


def test_a_file_beyond_the_limit_is_refused(url: str, cache: Path) -> None:
    folder = local_folder(url, cache, 0.5 * SIZE / 1e9)
    with pytest.raises(DatasetError, match="there is no room for 0.0001 GB more in .*: .* of 5e-05 GB .*raise remote_cache_gb"):
        fetched(folder / "0.mp4")


def test_tables_are_dropped_only_of_datasets_that_nobody_reads(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = remote_folder(tmp_path / "one", "a.hdf5", "b.hdf5")
    two = remote_folder(tmp_path / "two", "a.hdf5", "b.hdf5")
    told, end = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(one, cache, told, end))
    process.start()
    assert told.wait(120)
    with pytest.raises(DatasetError, match="no room for .* 0.0002 of 0.0003 GB are taken by files that are in use; raise remote_cache_gb"):
        local_folder(two, cache, 3 * SIZE / 1e9)
    end.set()
    process.join()
    folder = local_folder(two, cache, 3 * SIZE / 1e9)
    assert sorted(path.name for path in folder.glob("*.hdf5")) == ["a.hdf5", "b.hdf5"] and taken(cache) <= 3 * SIZE
    monkeypatch.setattr(bounded, "_held", {})  # as another process would
    folder = local_folder(one, cache, 4.5 * SIZE / 1e9)
    assert all((folder / name).read_bytes() for name in ("a.hdf5", "b.hdf5"))


def test_copies_without_their_list_are_fetched_again(url: str, cache: Path, tmp_path: Path) -> None:
    folder = local_folder(url, cache)
    fetched(folder / "0.mp4")
    (folder / ".remote.json").unlink()
    (tmp_path / "remote/0.mp4").write_bytes(b"1" * SIZE)
    assert fetched(local_folder(url, cache) / "0.mp4").read_bytes() == b"1" * SIZE


def test_what_is_dropped_before_it_is_opened_is_fetched_again(url: str, cache: Path) -> None:
    folder, attempts = local_folder(url, cache), []

    def unlucky(path: Path) -> bytes:
        attempts.append(path)
        if len(attempts) < 3:
            path.unlink()
        return path.read_bytes()

    assert opened(folder / "0.mp4", unlucky) == bytes(SIZE) and len(attempts) == 3
    with pytest.raises(FileNotFoundError):
        opened(folder / "absent.mp4", lambda path: path.read_bytes())


def test_a_dropped_chunk_is_never_taken_for_zeros(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, drops = local_folder(remote_folder(tmp_path / "remote", "x/zarr.json", "x/c/0"), cache), [3]

    def dropping(path: Path) -> Any:
        fetched(path)
        if drops[0]:
            drops[0] -= 1
            path.unlink()

    monkeypatch.setattr(zarr_store, "fetched", dropping)
    store = zarr_store._fetching_store(folder)
    content = asyncio.run(store.get("x/c/0", default_buffer_prototype()))
    assert content.to_bytes() == bytes([1]) * SIZE and drops == [0]
    assert asyncio.run(store.get("x/c/1", default_buffer_prototype())) is None
    drops[0] = 99
    with pytest.raises(DatasetError, match="x/c/0 is dropped as soon as it is fetched: raise remote_cache_gb"):
        asyncio.run(store.get("x/c/0", default_buffer_prototype()))
