"""This project's part of data.py, which runs it in a process of its own: one row of the table per call."""

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from loader_timing import timed
from torch import Tensor

import mimicvideo.data.codec as codec
import mimicvideo.data.decode as decode
from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.modules import ClipData
from mimicvideo.data.spec import DatasetSpec

FRAMES, OBSERVED, INTERVAL, ACTIONS = 61, 5, 6, 60
LATENTS_BATCH, LATENTS_STEP = 32, 0.1


def data(root: Path, spec: DatasetSpec | None, numbers: bool, **options: Any) -> ClipData:
    """Windows of 61 frames at 5 fps out of 30 fps; no decoded frame is kept from one to the next."""
    given: dict[str, Any] = {"root": str(root), "spec": spec, "observed": OBSERVED, "future": FRAMES - OBSERVED}
    given |= {"frame_interval": INTERVAL, "validation_fraction": 0.0, "ram_cache_gb": 0.0, **options}
    return DemonstrationData(7, 7, ACTIONS, **given) if numbers else ClipData(**given)


def as_in_training() -> None:
    """Loader workers start as those of a training do, not as this process did, and torch takes one core as they do."""
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)


def torchcodec_is_there() -> bool:
    """Whether it is installed and finds FFmpeg."""
    return codec._decoder() is not None


def windows(
    root: Path, spec: DatasetSpec | None, numbers: bool, decoder: str, batch_size: int, workers: int, seconds: float, step: float
) -> dict[str, float]:
    """Times windows from pixels.

    Args:
        root: The dataset.
        spec: Its description.
        numbers: Whether it has states and actions.
        decoder: `PyAV` or `torchcodec`, of videos.
        batch_size: Windows of a batch.
        workers: Processes that load.
        seconds: See `timed`.
        step: See `timed`.
    """
    as_in_training()
    if decoder == "PyAV":
        decode.torchcodec_frames = lambda *_: None  # this process ends with its dataset
    module = data(root, spec, numbers, batch_size=batch_size, num_workers=workers)
    module.setup()
    return timed(lambda: iter(module.train_dataloader()), batch_size, FRAMES, seconds, step)


def cached_latents(root: Path, spec: DatasetSpec | None, folder: Path, workers: int, seconds: float) -> dict[str, float]:
    """Windows whose latents are on disk: 16 x 16 x 60 x 80 bfloat16, those of 61 frames of 480 x 640 pixels, 2.5 MB each."""
    as_in_training()
    module = data(root, spec, True, batch_size=LATENTS_BATCH, num_workers=workers)

    def encode(video: Tensor) -> Tensor:
        return video[:, ::4, ::8, ::8, :1].permute(0, 4, 1, 2, 3).float().expand(-1, 16, -1, -1, -1)

    module.attach_latents(encode, "benchmark", str(folder))
    return timed(lambda: iter(module.train_dataloader()), LATENTS_BATCH, FRAMES, seconds, LATENTS_STEP)
