"""Frames through torchcodec where it is installed and finds FFmpeg; they are the same as PyAV's, bit for bit."""

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

log = logging.getLogger(__name__)


def torchcodec_frames(path: Path, wanted: Int[np.ndarray, " frames"], fps: float) -> UInt8[np.ndarray, "frames height width 3"] | None:
    """Frames of a file as RGB, counted from time zero at `fps`, in ascending order.

    None if torchcodec is not there, or does not find just these frames: PyAV then gives them, or says what is wrong with the file.
    """
    decoder = _decoder()
    if decoder is None or not len(wanted):
        return None
    try:
        # approximate: by the rate in the header, without reading the whole file first; whether it hit is checked below
        opened = decoder(str(path), seek_mode="approximate", num_ffmpeg_threads=1, dimension_order="NHWC")
        found = opened.get_frames_at(wanted.tolist())
    except Exception:  # torchcodec raises whatever it meets; PyAV tells it better
        return None
    shown = np.rint(found.pts_seconds.numpy() * fps).astype(np.int64)
    return found.data.numpy() if np.array_equal(shown, wanted) else None


@functools.cache
def _decoder() -> Any:
    """torchcodec's decoder, or None."""
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    except (OSError, RuntimeError) as error:  # it is there, but FFmpeg's or CUDA's shared libraries are not
        log.info("torchcodec is installed but cannot be loaded, videos are decoded with PyAV: %s", str(error).strip().splitlines()[0])
        return None
    return VideoDecoder
