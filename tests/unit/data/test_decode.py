"""Frames come out of video files exactly where they are, and files that cannot be read are told apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

import mimicvideo.data.codec as codec_module
import mimicvideo.data.decode as decode_module
from mimicvideo.data.decode import decode_frames, inspect, resize
from mimicvideo.data.errors import VideoError
from tests.synthetic_episodes import picture, what_is_shown, write_video

FRAMES = [picture(episode=1, row=row) for row in range(30)]


@pytest.mark.parametrize(
    ("codec", "keyframes", "pixel_format"),
    [("libx264", 2, "yuv444p"), ("libx264", 250, "yuv420p"), ("libx264", 10, "yuv444p"), ("libsvtav1", 4, "yuv420p")],
)
def test_every_frame_is_found(tmp_path: Path, codec: str, keyframes: int, pixel_format: str) -> None:
    frames = [picture(1, row, height=64, width=64) for row in range(30)]
    write_video(tmp_path / "v.mp4", frames, codec=codec, keyframe_interval=keyframes, pixel_format=pixel_format)
    assert inspect(tmp_path / "v.mp4").frames == 30
    everything = decode_frames(tmp_path / "v.mp4", range(30), 10.0)
    assert [what_is_shown(frame)[:2] for frame in everything] == [(1, row) for row in range(30)]
    for rows in ([0], [29], [0, 29], [3, 4, 17, 18, 19, 28], list(range(1, 30, 5))):
        np.testing.assert_array_equal(decode_frames(tmp_path / "v.mp4", rows, 10.0), everything[rows])


class Counted:
    """A file that counts the packets it gives."""

    def __init__(self, container: Any) -> None:
        self._container, self.packets = container, 0

    def seek(self, *arguments: Any, **options: Any) -> None:
        self._container.seek(*arguments, **options)

    def demux(self, stream: Any) -> Iterator[Any]:
        for packet in self._container.demux(stream):
            self.packets += 1
            yield packet


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """The files that were opened, in order; they are read with PyAV."""
    opened, really = [], decode_module.open_video

    @contextmanager
    def opening(*arguments: Any) -> Iterator[tuple[Any, Any]]:
        with really(*arguments) as (container, stream):
            opened.append(Counted(container))
            yield opened[-1], stream

    monkeypatch.setattr(decode_module, "torchcodec_frames", lambda *_: None)
    monkeypatch.setattr(decode_module, "open_video", opening)
    return opened


def test_seeks_rather_than_decodes_everything(tmp_path: Path, counted: list[Counted]) -> None:
    write_video(tmp_path / "v.mp4", [picture(1, row) for row in range(400)], keyframe_interval=4)
    shown = [what_is_shown(frame)[1] for frame in decode_frames(tmp_path / "v.mp4", [100, 101, 350], 10.0)]
    assert shown == [100 % 36, 101 % 36, 350 % 36]
    assert counted[0].packets <= 10, f"{counted[0].packets} frames decoded for three"


def test_no_packet_is_decoded_beyond_the_wanted_frame(tmp_path: Path, counted: list[Counted]) -> None:
    """A decoder that allows for frames out of order would show each only after the next keyframe."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(tmp_path / "v.mp4", [np.roll(noise, row, 1) for row in range(60)], keyframe_interval=2)
    everything = decode_frames(tmp_path / "v.mp4", range(60), 10.0)
    with av.open(str(tmp_path / "v.mp4")) as file:
        assert file.streams.video[0].codec_context.has_b_frames, "x264 says that frames may be out of order"
    for first, packets in ((6, 1), (7, 2)):  # a keyframe, and the frame after one
        wanted = range(first, 60, 6)
        np.testing.assert_array_equal(decode_frames(tmp_path / "v.mp4", wanted, 10.0), everything[wanted])
        assert counted[-1].packets == packets * len(wanted)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": "keyint=12:open-gop=1:bframes=3:b-adapt=0"}),  # frames before a keyframe follow it in the file
        ("libx264", {"x264-params": "keyint=48:bframes=8:b-pyramid=normal:b-adapt=0"}),
        ("libx264", {"x264-params": "keyint=20:intra-refresh=1"}),  # no whole keyframe after the first
        ("libx264", {"x264-params": "keyint=24:bframes=3:interlaced=1"}),
        ("libx265", {"x265-params": "keyint=12:open-gop=1:log-level=none"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_out_of_order_are_those_of_decoding_everything(tmp_path: Path, codec: str, options: dict[str, str], ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path / f"v.{ending}"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = 64, 96, "yuv420p", 1
        for row in range(80):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, (row, 3 * row), (0, 1)), format="rgb24")))
        file.mux(stream.encode())
    with av.open(str(path)) as file:
        everything = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(everything) == 80
    for rows in [*([row] for row in range(80)), range(80), *(range(first, 80, step) for first in (0, 5) for step in (2, 6, 23))]:
        for row, frame in zip(rows, decode_frames(path, list(rows), 25.0), strict=True):
            np.testing.assert_array_equal(frame, everything[row], err_msg=f"frame {row} of {list(rows)}")


def test_wrong_requests(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", FRAMES)
    with pytest.raises(VideoError, match="ends before frame 30"):
        decode_frames(tmp_path / "v.mp4", [29, 30], 10.0)
    with pytest.raises(VideoError, match="no frame at 0.050 s"):
        decode_frames(tmp_path / "v.mp4", [1], 20.0)
    with pytest.raises(ValueError, match="ascend"):
        decode_frames(tmp_path / "v.mp4", [2, 1], 10.0)


def test_unreadable_files(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", FRAMES, movflags="faststart")
    data = (tmp_path / "v.mp4").read_bytes()
    write_video(tmp_path / "end.mp4", FRAMES)
    for name, content, message in [
        ("cut.mp4", data[:-200], "truncated"),  # the index is there, frames are not
        ("headless.mp4", (tmp_path / "end.mp4").read_bytes()[:-200], "cannot read"),  # the index was at the end
        ("empty.mp4", b"", "cannot read"),
        ("text.mp4", b"no video at all " * 50, "cannot read"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=message):
            inspect(tmp_path / name)
    with pytest.raises(VideoError, match="no such file"):
        inspect(tmp_path / "absent.mp4")


def test_headers_that_are_damaged(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", FRAMES)
    content = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(content.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(VideoError, match="encoded in a way that FFmpeg does not know"):
        inspect(tmp_path / "v.mp4")
    (tmp_path / "v.mp4").write_bytes(content.replace(b"VideoHandler", b"VideoH\xffndler"))
    with pytest.raises(VideoError, match="FFmpeg cannot read it .*0xff"):
        inspect(tmp_path / "v.mp4")


def test_strict_decoding_finds_damage_in_the_middle(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_video(tmp_path / "v.mp4", [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(30)])
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    (tmp_path / "v.mp4").write_bytes(data)
    assert inspect(tmp_path / "v.mp4").frames == 30, "headers and the first frame are fine"
    with pytest.raises(VideoError):
        decode_frames(tmp_path / "v.mp4", range(30), 10.0, strict=True)


def test_resize_is_bilinear_with_antialiasing() -> None:
    ramp = np.broadcast_to(np.arange(0, 64, dtype=np.uint8)[None, None, :, None] * 4, (2, 32, 64, 3)).copy()
    small = resize(ramp, (8, 16))
    assert small.shape == (2, 8, 16, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small[0, 0, 1:-1, 0], [4 * (4 * column + 1.5) for column in range(1, 15)], atol=1)
    checkers = np.indices((32, 32)).sum(0) % 2 * 255
    grey = resize(np.broadcast_to(checkers[None, :, :, None], (1, 32, 32, 3)).astype(np.uint8), (8, 8))
    assert np.abs(grey[0, 2:-2, 2:-2].astype(int) - 127).max() <= 8, "without antialiasing checkers would stay black and white"
    assert resize(ramp, (32, 64)) is ramp and resize(ramp, None) is ramp


@pytest.mark.parametrize(
    ("codec", "keyframes", "pixel_format"),
    [("libx264", 2, "yuv444p"), ("libx264", 250, "yuv420p"), ("libx264", 10, "yuv420p"), ("libsvtav1", 4, "yuv420p")],
)
def test_torchcodec_gives_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, keyframes: int, pixel_format: str
) -> None:
    if codec_module._decoder() is None:
        pytest.skip("torchcodec, or FFmpeg's shared libraries, are not installed")
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(
        tmp_path / "v.mp4",
        [np.roll(noise, 3 * row, 1) for row in range(40)],
        codec=codec,
        keyframe_interval=keyframes,
        pixel_format=pixel_format,
    )
    for rows in ([0], [39], [3, 4, 17, 18, 38], list(range(40))):
        fast = codec_module.torchcodec_frames(tmp_path / "v.mp4", np.array(rows), 10.0)
        assert fast is not None
        with monkeypatch.context() as patch:
            patch.setattr(decode_module, "torchcodec_frames", lambda *_: None)
            np.testing.assert_array_equal(fast, decode_frames(tmp_path / "v.mp4", rows, 10.0))


class Decoder:
    """torchcodec's decoder as far as it is used; it shows the frame after the one that is asked for."""

    def __init__(self, path: str, **options: object) -> None:
        pass

    def get_frames_at(self, rows: list[int]) -> SimpleNamespace:
        return SimpleNamespace(pts_seconds=torch.tensor(rows) / 10 + 0.1, data=torch.zeros(len(rows), 16, 16, 3, dtype=torch.uint8))


class Broken(Decoder):
    def get_frames_at(self, rows: list[int]) -> SimpleNamespace:
        raise RuntimeError("whatever")


@pytest.mark.parametrize("decoder", [Decoder, Broken])
def test_frames_that_torchcodec_misses_come_from_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: type[Decoder]) -> None:
    write_video(tmp_path / "v.mp4", FRAMES)
    monkeypatch.setattr(codec_module, "_decoder", lambda: decoder)
    assert [what_is_shown(frame)[1] for frame in decode_frames(tmp_path / "v.mp4", [2, 7], 10.0)] == [2, 7]


def test_what_torchcodec_finds_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exact(Decoder):
        def get_frames_at(self, rows: list[int]) -> SimpleNamespace:
            shown = super().get_frames_at(rows)
            return SimpleNamespace(pts_seconds=shown.pts_seconds - 0.1, data=shown.data + 7)

    write_video(tmp_path / "v.mp4", FRAMES)
    monkeypatch.setattr(codec_module, "_decoder", lambda: Exact)
    assert (decode_frames(tmp_path / "v.mp4", [2, 7], 10.0) == 7).all()
    assert (decode_frames(tmp_path / "v.mp4", [2, 7], 10.0, strict=True) != 7).any(), "damage is PyAV's to find"
