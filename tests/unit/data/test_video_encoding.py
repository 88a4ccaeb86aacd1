"""Frames to mp4: the same frames give the same bytes."""

import numpy as np

from mimicvideo.data.video_encoding import VideoCodec, encode_video


def test_the_same_frames_give_the_same_bytes_whatever_the_memory_held_before(tmp_path):
    """x264's macroblock tree reads unwritten memory at some sizes, 48x32 among them: a few videos in a hundred differ."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(90, 160, (1, 32, 48, 3)), 19, axis=0).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame[8 : 8 + index, 10 + index : 20 + index] = 230
    seen = set()
    for _ in range(600):
        blocks = [np.full(int(rng.integers(100, 200_000)), int(rng.integers(256)), np.uint8) for _ in range(8)]
        del blocks
        seen.add(encode_video(tmp_path / "a.mp4", frames, 16, VideoCodec()).path.read_bytes())
    assert len(seen) == 1
