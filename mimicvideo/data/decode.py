"""Frames out of video files with PyAV or torchcodec: what a file holds, told cheaply, and just the frames that are wanted."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float64, Int, UInt8

from mimicvideo.data.codec import torchcodec_frames
from mimicvideo.data.errors import VideoError
from mimicvideo.data.remote import fetched, opened

Clock = float | np.ndarray  # frames per second from time zero on, or the ascending seconds at which each frame is shown


@dataclass(frozen=True)
class VideoFacts:
    """What the container says about its video stream."""

    frames: int
    height: int
    width: int
    fps: float
    even: bool  # whether frames are certainly shown at `fps` from time zero on
    bytes: int  # of the file


_intervals: dict[Path, int] = {}  # frames between keyframes by file: long files have long indices


def inspect(path: Path) -> VideoFacts:
    """Reads a file's headers and decodes its first frame; a truncated, damaged or empty file does not pass.

    Raises:
        VideoError: Saying what is wrong, without the file's name.
    """
    with open_video(path) as (container, stream):
        entries = list(stream.index_entries)
        if entries:
            needed, size = max(entry.pos + entry.size for entry in entries), path.stat().st_size
            if needed > size:
                raise VideoError(f"it is truncated: {size} bytes of at least {needed}")
        first = next(container.decode(stream), None)
        if first is None:
            raise VideoError("it holds no frames")
        frames = len(entries) or stream.frames
        if not frames:  # a container without an index: count its packets
            container.seek(0, stream=stream)
            frames = sum(packet.size > 0 for packet in container.demux(stream))
        intervals = np.diff([entry.timestamp for entry in entries])
        even = bool(entries) and stream.start_time == 0 and (not len(intervals) or np.ptp(intervals) <= max(2, 0.02 * intervals.mean()))
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        return VideoFacts(frames, first.height, first.width, rate, bool(even), path.stat().st_size)


def frame_times(path: Path) -> Float64[np.ndarray, " frames"]:
    """The seconds at which each frame is shown, ascending. The whole file is read, but not decoded.

    Raises:
        VideoError: If it cannot be read, or a frame has no time.
    """
    times = []
    with open_video(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(_seconds(packet.pts, stream))
    return np.unique(np.array(times, np.float64))


def decode_frames(
    path: Path,
    indices: Sequence[int] | Int[np.ndarray, " frames"],
    clock: Clock,
    size: tuple[int, int] | None = None,
    strict: bool = False,
) -> UInt8[np.ndarray, "frames height width 3"]:
    """Frames of a file as RGB.

    torchcodec gives them where it is installed, unless `strict`. With PyAV, wanted frames that lie close together are decoded in one
    stretch; it seeks to a keyframe where that skips more than it repeats.

    Args:
        path: The file.
        indices: Which frames, in ascending order, counted by the clock.
        clock: Frames per second of the recording, counted from time zero; or when each frame is shown, see `frame_times`.
        size: Height and width to resize to, bilinear with antialiasing; None keeps the file's.
        strict: Whether FFmpeg shall stop at damage that it could paint over.

    Raises:
        VideoError: If the file cannot be read, lacks a frame, or (strict) is damaged.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    if (np.diff(wanted) <= 0).any():
        raise ValueError("frame indices must ascend without repetition")
    if not strict and not isinstance(clock, np.ndarray) and (found := torchcodec_frames(fetched(path), wanted, clock)) is not None:
        return resize(found, size)
    frames = np.empty((0, 0, 0, 3), np.uint8)
    with open_video(path, strict) as (container, stream):
        to_rgb = VideoReformatter()
        if path not in _intervals:
            _intervals[path] = _keyframe_interval(stream)
        for number, frame in enumerate(_frames(container, stream, wanted, clock, _intervals[path], strict)):
            if strict and frame.is_corrupt:
                raise VideoError(f"frame {wanted[number]} is damaged")
            if number == 0:
                frames = np.empty((len(wanted), frame.height, frame.width, 3), np.uint8)
            if (frame.height, frame.width) != frames.shape[1:3]:
                raise VideoError(
                    f"frame {wanted[number]} is {frame.height} x {frame.width} pixels, those before {frames.shape[1]} x {frames.shape[2]}"
                )
            frames[number] = _rgb(to_rgb.reformat(frame, format="rgb24", threads=1))
    return resize(frames, size)


def resize(
    frames: UInt8[np.ndarray, "frames height width 3"], size: tuple[int, int] | None
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
    """Bilinear with antialiasing, as the official pipeline; nothing happens if the frames have that size."""
    if size is None or frames.shape[1:3] == size:
        return frames
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)  # a channels-last view
    resized = torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


@contextmanager
def open_video(path: Path, strict: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream; whatever FFmpeg complains about inside becomes a VideoError.

    Args:
        path: The file; fetched if it is a remote one.
        strict: Whether FFmpeg shall stop at damage that it could paint over.
    """
    try:
        with opened(path, lambda file: av.open(str(file))) as container:
            if not container.streams.video:
                raise VideoError("it holds no video")
            stream = container.streams.video[0]
            if stream.codec_context is None:  # PyAV gives none if FFmpeg has no decoder
                raise VideoError("it is encoded in a way that FFmpeg does not know")
            stream.codec_context.thread_count = 1  # data workers are the parallelism
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except FileNotFoundError as error:
        raise VideoError("there is no such file") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"FFmpeg cannot read it ({error.strerror or type(error).__name__})") from error
    except UnicodeDecodeError as error:  # of what it says about itself
        raise VideoError(f"FFmpeg cannot read it ({error})") from error


def _frames(
    container: InputContainer, stream: VideoStream, wanted: Int[np.ndarray, " frames"], clock: Clock, interval: int, strict: bool
) -> Iterator[av.VideoFrame]:
    """The wanted frames. It seeks where the next one lies farther away than the longest `interval` between keyframes."""
    first = True
    for stretch in np.split(wanted, np.flatnonzero(np.diff(wanted) > interval) + 1):
        start, back = int(stretch[0]) if len(stretch) else 0, 0
        while True:
            if back or not first or start >= interval:
                container.seek(_timestamp(max(start - back, 0), clock, stream), stream=stream, backward=True)
            try:
                yield from _stretch(container, stream, stretch.tolist(), clock, strict)
                break
            except _Late as late:  # the keyframe that it found is shown later, or frames after it need still earlier ones
                if back >= start:
                    raise VideoError(str(late)) from None
                back = max(interval, 2 * back)
        first = False


class _Late(VideoError):
    """No frame is shown at or before the first that is wanted."""


def _stretch(container: InputContainer, stream: VideoStream, wanted: list[int], clock: Clock, strict: bool) -> Iterator[av.VideoFrame]:
    """The wanted frames, decoded one after another from the keyframe at which the file stands.

    The decoder gets no packet beyond those that are needed and is then asked for what it holds back: one that expects frames out of
    order shows a frame only when it has decoded later ones, keyframes perhaps, which cost as much as the wanted ones. Frames that no
    other one refers to are left out unless they are wanted (only in H.264, whose marks are reliable).

    Raises:
        VideoError: If one is not there; `_Late` if it is the first.
    """
    decoder, skips = stream.codec_context, not strict and stream.codec_context.name == "h264"
    unsent, due, ended, shown = set(wanted), deque(wanted), True, None

    def found(frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        nonlocal shown
        for frame in frames:
            shown = _index(frame.pts, clock, stream)
            if due and shown >= due[0]:
                if shown > due[0]:
                    raise missing()
                due.popleft()
                yield frame

    def missing() -> VideoError:
        kind = _Late if len(due) == len(wanted) else VideoError
        told = "as it had" if isinstance(clock, np.ndarray) else f"at {clock:g} per second"
        return kind(f"it has no frame at {_shown_at(due[0], clock):.3f} s (frame {due[0]} {told})")

    decoder.flush_buffers()
    for packet in container.demux(stream):
        if not packet.size:  # the end of the file; the decoder is asked below
            continue
        at = None if packet.pts is None else _index(packet.pts, clock, stream)
        if skips:
            decoder.skip_frame = "DEFAULT" if at is None or at in unsent else "NONREF"
        yield from found(decoder.decode(packet))
        unsent.discard(at)
        if not due or not unsent or (packet.dts is not None and _index(packet.dts, clock, stream) > wanted[-1]):
            ended = False  # no later packet is shown at or before the last wanted frame
            break
    if due:
        yield from found(decoder.decode(None))
    if due:
        raise VideoError(f"it ends before frame {due[0]}") if ended and shown is not None else missing()


def _rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an rgb24 frame where they lie; `to_ndarray` would copy them once more."""
    plane: Any = frame.planes[0]  # has the buffer protocol
    lines = np.frombuffer(plane, np.uint8).reshape(frame.height, -1)
    return lines[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def _seconds(timestamp: int | None, stream: VideoStream) -> float:
    """A time of the stream's clock."""
    if timestamp is None:
        raise VideoError("it holds a frame without a time")
    assert stream.time_base is not None
    return timestamp * float(stream.time_base)


def _index(timestamp: int | None, clock: Clock, stream: VideoStream) -> int:
    """Which frame is shown at a time of the stream's clock; -1 before the first of those whose times are known."""
    seconds = _seconds(timestamp, stream)
    if not isinstance(clock, np.ndarray):
        return round(seconds * clock)
    return int(np.searchsorted(clock, seconds, side="right")) - 1  # the same numbers, calculated alike, are compared


def _shown_at(index: int, clock: Clock) -> float:
    return float(clock[index]) if isinstance(clock, np.ndarray) else index / clock


def _timestamp(index: int, clock: Clock, stream: VideoStream) -> int:
    assert stream.time_base is not None
    return round(_shown_at(index, clock) / stream.time_base)


def _keyframe_interval(stream: VideoStream) -> int:
    """The largest number of frames from one keyframe to the next; a plain guess where the container has no index."""
    keys = [number for number, entry in enumerate(stream.index_entries) if entry.is_keyframe]
    return int(np.diff([*keys, len(stream.index_entries)]).max()) if keys else 32
