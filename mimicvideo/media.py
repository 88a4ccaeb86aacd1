"""Frames to files: mp4 videos, labelled strips and grids of videos, for samples, rollouts and reports."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray


def write_mp4(path: str | Path, frames: UInt8[ndarray, "frames height width 3"], fps: float) -> None:
    """Writes H.264 in yuv420p, which every browser plays; odd sizes grow by one repeated row or column.

    Raises:
        ValueError: If the frames are not uint8 RGB, or there is none.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"{path}: need uint8 frames [n, height, width, 3] with n >= 1, got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def read_mp4(path: str | Path) -> UInt8[ndarray, "frames height width 3"]:
    """All frames of a video."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def grid(videos: Sequence[UInt8[ndarray, "_ height width 3"]], columns: int) -> UInt8[ndarray, "frames grid_height grid_width 3"]:
    """Tiles equally large videos, row by row; shorter ones hold their last frame, empty places are white."""
    frames = max(len(video) for video in videos)
    rows = -(-len(videos) // columns)
    height, width = videos[0].shape[1:3]
    tiled = np.full((frames, rows * height, columns * width, 3), 255, dtype=np.uint8)
    for place, video in enumerate(videos):
        top, left = place // columns * height, place % columns * width
        held = video[np.minimum(np.arange(frames), len(video) - 1)]
        tiled[:, top : top + height, left : left + width] = held
    return tiled


def strip(
    rows: Mapping[str, UInt8[ndarray, "_ height width 3"]], most: int = 9, gap: int = 2
) -> UInt8[ndarray, "strip_height strip_width 3"]:
    """One labelled row of frames per video, on white; of long videos `most` evenly spaced frames, first and last included."""
    from PIL import Image, ImageDraw, ImageFont

    count = min(most, max(len(frames) for frames in rows.values()))
    height, width = next(iter(rows.values())).shape[1:3]
    size = max(11, height // 8)
    font = ImageFont.load_default(size)
    margin = int(max(font.getlength(label) for label in rows)) + 2 * gap + size // 2
    image = Image.new("RGB", (margin + count * (width + gap), len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(image)
    for row, (label, frames) in enumerate(rows.items()):
        top = row * (height + gap)
        draw.text((gap, top + height // 2), label, fill="black", font=font, anchor="lm")
        for column, index in enumerate(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)):
            image.paste(Image.fromarray(frames[index]), (margin + column * (width + gap), top))
    return np.asarray(image)


def write_png(path: str | Path, image: UInt8[ndarray, "height width 3"]) -> None:
    """Writes one image."""
    from PIL import Image

    Image.fromarray(image).save(path)
