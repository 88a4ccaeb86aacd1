"""A process that fills a latent cache slowly, beside others; imported by the processes that tests start."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from mimicvideo.data.latents import LatentCache
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.window import Window

WINDOW = Window(observed=1, future=4)


def encode(video: Tensor) -> Tensor:
    return video[:, ::4].float().mean((2, 3)).permute(0, 2, 1)[..., None, None]


def fill(folder: Path, reader: LeRobotEpisodes, start: Any, dies: bool = False, locks: bool = True) -> None:
    """What each process does; `done-PID` says how many episodes it encoded. All wait for each other with their first episode."""
    done = 0

    def slowly(video: Tensor) -> Tensor:
        nonlocal done
        if not done:
            start.wait(120)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return encode(video)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    cache = LatentCache(folder / "cache", reader, WINDOW, "vae")
    if locks:
        cache.encode(cache.missing(reader.episodes), slowly, progress=False)
    else:
        with patch("mimicvideo.data.claims.fcntl.flock", refuse):
            cache.encode(cache.missing(reader.episodes), slowly, progress=False)
    (folder / f"done-{os.getpid()}").write_text(json.dumps(done))
