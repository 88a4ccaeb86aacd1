"""The encoded frames of video files, hashed: what tells one episode's pictures from another's without decoding them."""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from mimicvideo.data.decode import open_video
from mimicvideo.data.errors import VideoError


@dataclass(frozen=True)
class Packets:
    """The encoded frames of a file in the order in which they are decoded.

    Attributes:
        head: What the decoder is told beside them: codec, its parameters, size and colours.
        seconds: When each frame is shown.
        keys: Which are decoded without others.
        digests: SHA-256 of each.
    """

    head: str
    seconds: Float64[np.ndarray, " packets"] = field(repr=False)
    keys: Bool[np.ndarray, " packets"] = field(repr=False)
    digests: UInt8[np.ndarray, "packets 32"] = field(repr=False)


def span_digest(path: Path, first: int, count: int, fps: float) -> str:
    """SHA-256 of the encoded frames that frames `first ... first + count - 1` are decoded from, from the last keyframe before them on.

    Equal digests mean equal pictures. What else is in the file does not matter, nor where in the file they are: it stays the same when
    another episode is appended, as long as the frames are not encoded again.

    Args:
        path: The file, which is read from end to end, once per process and state of the file.
        first: The first frame, counted from time zero at `fps`.
        count: How many frames.
        fps: Frames per second of the recording.

    Raises:
        VideoError: If the file cannot be read or has none of the frames.
    """
    packets = _packets_of(path)
    numbers = np.rint(packets.seconds * fps).astype(np.int64)
    within = np.flatnonzero((numbers >= first) & (numbers < first + count))
    if not len(within):
        raise VideoError(f"it has none of the frames {first} ... {first + count - 1}")
    before = np.flatnonzero(packets.keys & (numbers <= first))
    start, end = int(before[-1]) if len(before) else 0, int(within[-1]) + 1
    digest = hashlib.sha256(f"{packets.head} {count} {fps:g}".encode())
    digest.update((numbers[start:end] - first).astype("<i8").tobytes())
    digest.update(packets.digests[start:end].tobytes())
    return digest.hexdigest()


def _packets_of(path: Path) -> Packets:
    try:
        stat = path.stat()
    except OSError as error:
        raise VideoError("there is no such file") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read(path: Path, _size: int, _changed: int) -> Packets:
    seconds, keys, digests = [], [], []
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        colours = [int(getattr(codec, name)) for name in ("color_range", "colorspace", "color_primaries", "color_trc")]
        extra = hashlib.sha256(codec.extradata or b"").hexdigest()
        head = f"{codec.name} {codec.pix_fmt} {codec.width} x {codec.height} {colours} {extra}"
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.time_base is None:
                raise VideoError("it holds a frame without a time")
            seconds.append(float(packet.pts * packet.time_base))
            keys.append(packet.is_keyframe)
            digests.append(hashlib.sha256(packet).digest())
    return Packets(head, np.array(seconds), np.array(keys, bool), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))
