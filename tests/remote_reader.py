"""A process that reads files of a remote folder beside others; imported by the processes that tests start."""

import random
import time
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from mimicvideo.data.remote import fetched, local_folder, opened


def read(url: str, cache: Path, limit: int, start: Any, seed: int, rounds: int) -> None:
    """Opens files in random order; each must be whole, whatever the other processes do."""
    folder = local_folder(url, cache, limit / 1e9)
    chosen = random.Random(seed)
    start.wait(120)
    for _ in range(rounds):
        number = chosen.randrange(8)
        content = opened(folder / f"{number}.mp4", lambda path: path.read_bytes())
        assert content == bytes([number]) * 100_000, f"{number}.mp4 is not whole"


def stall(url: str, cache: Path, told: Any) -> None:
    """Fetches a file that never arrives whole."""

    def half(_self: Any, _source: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        told.set()
        time.sleep(600)

    folder = local_folder(url, cache)
    LocalFileSystem.get_file = half
    fetched(folder / "0.mp4")


def hold(url: str, cache: Path, told: Any, end: Any) -> None:
    """Keeps a dataset open."""
    local_folder(url, cache)
    told.set()
    end.wait(120)
