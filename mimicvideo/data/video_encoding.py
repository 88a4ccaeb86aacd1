"""Frames to an mp4 file, with what LeRobot's statistics need to know about their pixels."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8


@dataclass(frozen=True)
class VideoCodec:
    """How videos are stored. The default keeps small pictures at 42 dB; chroma subsampling (yuv420p) would cost ten of them.

    Attributes:
        name: FFmpeg's encoder: libx264, libsvtav1 (yuv420p only) …
        crf: Its constant rate factor: lower is better and larger.
        keyframe_interval: Frames from one key frame to the next; a small one makes random access cheap.
        pixel_format: FFmpeg's name.
        preset: The encoder's trade of time for size.
    """

    name: str = "libx264"
    crf: int = 12
    keyframe_interval: int = 2
    pixel_format: str = "yuv444p"
    preset: str = "fast"

    def check(self, height: int, width: int) -> None:
        """Raises ValueError if FFmpeg does not have the encoder, or it cannot store pictures of that size."""
        try:
            codec = av.Codec(self.name, "w")
        except ValueError as error:  # av's UnknownCodecError
            raise ValueError(f"FFmpeg has no video encoder {self.name!r}: use libx264") from error
        formats = [pixel_format.name for pixel_format in codec.video_formats or []]
        if self.pixel_format not in formats:
            raise ValueError(f"encoder {self.name} cannot store {self.pixel_format!r}: use one of {', '.join(formats)}")
        if "420" in self.pixel_format and (height % 2 or width % 2):
            raise ValueError(f"{self.pixel_format} needs even sides, got height {height}, width {width}: use pixel_format yuv444p")


@dataclass(frozen=True)
class EncodedVideo:
    """An mp4 file and the histogram of its frames' pixels before they were encoded."""

    path: Path
    frames: int
    height: int
    width: int
    histogram: Int64[np.ndarray, "3 256"]


def encode_video(path: Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: int, codec: VideoCodec) -> EncodedVideo:
    """Writes frames to an mp4 file; the same frames give the same bytes.

    Raises:
        ValueError: If there is no frame, or they are not uint8 pictures.
        OSError: If the file cannot be written.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [frames, height, width, 3], at least one, got {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    with av.open(str(path), "w", format="mp4") as file:
        options = {"crf": str(codec.crf), "preset": codec.preset}
        if codec.name == "libx264":  # its macroblock tree reads memory that nobody wrote: other bytes now and then
            options["x264-params"] = "mbtree=0"
        stream = cast(VideoStream, file.add_stream(codec.name, rate=Fraction(fps), options=options))
        stream.height, stream.width, stream.pix_fmt = height, width, codec.pixel_format
        stream.gop_size, stream.max_b_frames, stream.thread_count = codec.keyframe_interval, 0, 1
        for image in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    histogram = np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])
    return EncodedVideo(path, len(frames), height, width, histogram)
