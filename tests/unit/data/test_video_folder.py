"""Folders of videos with captions."""

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.video_folder import VideoFolderStore
from tests.synthetic_episodes import picture, what_is_shown, write_video


def clip(path: Path, episode: int = 0, rows: int = 12, fps: int = 10, size: tuple[int, int] = (16, 16)) -> None:
    write_video(path, [picture(episode, row, 0, *size) for row in range(rows)], fps)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "Pick it up.\n", ["Pick it up."]),
        ("a.txt", "Pick it up.\n\n  Lift it.\nPick it up.\n", ["Pick it up.", "Lift it."]),
        ("a.json", json.dumps("Pick it up."), ["Pick it up."]),
        ("a.json", json.dumps(["Pick it up.", "Lift it."]), ["Pick it up.", "Lift it."]),
        ("a.json", json.dumps({"caption": "Pick it up.", "fps": 10}), ["Pick it up."]),
        ("a.json", json.dumps({"captions": ["Pick it up.", "Lift it."]}), ["Pick it up.", "Lift it."]),
        ("a.json", json.dumps({"prompt": "Heb das auf, schön."}), ["Heb das auf, schön."]),
        ("b.txt", "Of another video.", [""]),
    ],
)
def test_captions(tmp_path: Path, name: str, content: str, told: list[str]) -> None:
    clip(tmp_path / "deep/er/a.mp4")
    (tmp_path / "deep/er" / name).write_text(content, encoding="utf-8")
    (episode,) = open_episodes(tmp_path).episodes
    assert list(episode.instructions) == told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json cannot be read"),
        ('{"other": 1}', "none of the keys caption, .*; it has other"),
        ("[1]", "holds 1 where a"),
    ],
)
def test_captions_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    clip(tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DatasetError, match=f"episode 0: .*{message}"):
        open_episodes(tmp_path)


def test_captions_of_nvidias_layout(tmp_path: Path) -> None:
    for split in ("train", "val"):
        clip(tmp_path / f"{split}/videos/sub/a.mp4")
        (tmp_path / f"{split}/metas/sub").mkdir(parents=True)
        (tmp_path / f"{split}/metas/sub/a.txt").write_text(f"In {split}.")
    assert [episode.instruction for episode in open_episodes(tmp_path).episodes] == ["In train.", "In val."]


def test_sizes_and_rates_must_agree_or_be_brought_together(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", 0, rows=12, fps=10)
    clip(tmp_path / "b.mp4", 1, rows=12, fps=10, size=(16, 24))
    clip(tmp_path / "c.mp4", 2, rows=12, fps=10)
    with pytest.raises(DatasetError, match="1: its pictures of camera video are 16 x 24 pixels, others 16 x 16: set height"):
        open_episodes(tmp_path)
    resized = open_episodes(tmp_path, size=(8, 8))
    assert [resized.frames(episode, [0, 5]).shape for episode in resized.episodes] == [(2, 8, 8, 3)] * 3
    clip(tmp_path / "d.mp4", 3, rows=18, fps=30)
    with pytest.raises(DatasetError, match=r"episode 3: d.mp4 has 30 frames per second, most have 10: give hz in the description"):
        open_episodes(tmp_path, size=(8, 8))
    assert len(open_episodes(tmp_path, size=(8, 8), max_bad_fraction=0.25).episodes) == 3
    for name in ("e.mp4", "f.mp4"):
        clip(tmp_path / name, 3, rows=18, fps=30)
    with pytest.raises(DatasetError, match=r"differ in frames per second: 10 \(3 files\), 30 \(3 files\). Give hz in the description"):
        open_episodes(tmp_path, size=(8, 8))


@pytest.mark.parametrize(
    ("hz", "rows", "expected"),
    [(10.0, 6, [0, 3, 6, 9, 12, 15]), (30.0, 18, list(range(18))), (60.0, 36, [min(round(row / 2), 17) for row in range(36)])],
)
def test_videos_at_a_described_rate(tmp_path: Path, hz: float, rows: int, expected: list[int]) -> None:
    clip(tmp_path / "a.mp4", rows=18, fps=30)
    reader = open_episodes(tmp_path, spec=DatasetSpec(hz=hz))
    (episode,) = reader.episodes
    assert (reader.control_hz, episode.length) == (hz, rows)
    assert [what_is_shown(frame)[1] for frame in reader.frames(episode, np.arange(rows))] == expected


def timed(path: Path, ticks: list[int], rate: int = 1000) -> None:
    """A clip whose frames are shown at these ticks."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv444p"
        stream.codec_context.time_base = Fraction(1, rate)
        for row, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(picture(0, row, 0, 16, 16), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


RANDOM = np.random.default_rng(0)
UNEVEN = {
    "a frame is missing": [100 * row + 100 * (row > 8) for row in range(18)],
    "slower and slower": np.cumsum(np.arange(30, 30 + 8 * 18, 8)).tolist(),
    "it starts late": [250 + 100 * row for row in range(18)],
    "jitter": (100 * np.arange(18) + RANDOM.integers(-40, 40, 18)).clip(0).tolist(),
}


@pytest.mark.parametrize("ticks", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("hz", [None, 7.0, 25.0])
def test_uneven_videos_are_read_by_their_times(tmp_path: Path, ticks: list[int], hz: float | None) -> None:
    timed(tmp_path / "a.mp4", ticks)
    spec = DatasetSpec(hz=hz)
    reader = open_episodes(tmp_path, spec=spec, verify="full")
    (episode,) = reader.episodes
    times = (np.array(ticks) - ticks[0]) / 1000
    shown = [what_is_shown(frame)[1] for frame in reader.frames(episode, np.arange(episode.length))]
    distance = np.abs(times - np.arange(episode.length)[:, None] / reader.control_hz)
    assert (distance[np.arange(len(shown)), shown] <= distance.min(axis=1) + 1e-3).all()
    assert abs(episode.length / reader.control_hz - times[-1]) < 2 / reader.control_hz + 0.2
    few = [episode.length - 1, 2, episode.length // 2]
    assert [what_is_shown(frame)[1] for frame in open_episodes(tmp_path, spec=spec).frames(episode, few)] == [shown[row] for row in few]


def test_damaged_videos_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    for number in range(3):
        clip(tmp_path / f"{number}.mp4", number)
    (tmp_path / "1.mp4").write_bytes((tmp_path / "1.mp4").read_bytes()[:300])
    with pytest.raises(DatasetError, match="episode 1: .*"):
        open_episodes(tmp_path)
    reader = open_episodes(tmp_path, max_bad_fraction=0.4)
    assert [episode.entry.name for episode in reader.episodes] == ["0.mp4", "2.mp4"]


@pytest.mark.parametrize("captions", [True, False])
def test_folders_with_the_same_captions_or_none_are_told_apart(captions: bool, tmp_path: Path) -> None:
    """Two cameras of the same recordings, and one of them with another video at its start, which moves all others' numbers."""
    for camera, brighter in (("left", 0), ("right", 9)):
        for number in (1, 2):
            clip(tmp_path / camera / f"{number}.mp4", number + brighter)
            if captions:
                (tmp_path / camera / f"{number}.txt").write_text("Pick it up.")
    left, right = (open_episodes(tmp_path / camera).stored_fingerprint for camera in ("left", "right"))
    shutil.copytree(tmp_path / "left", tmp_path / "moved")
    assert open_episodes(tmp_path / "moved").stored_fingerprint == left != right
    clip(tmp_path / "left" / "0.mp4")
    assert open_episodes(tmp_path / "left").stored_fingerprint != left


def test_stage_2_needs_numbers(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4")
    options: dict[str, Any] = {"observed": 5, "future": 4, "validation_fraction": 0.0}
    with pytest.raises(DatasetError, match="it serves stage 1"):
        DemonstrationData(root=str(tmp_path), action_dim=3, proprio_dim=2, horizon=4, **options).setup()
    with pytest.raises(DatasetError, match="no actions key 'x'; it has none"):
        open_episodes(tmp_path, spec=DatasetSpec(actions=["x"]))


def test_folders_without_videos(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        VideoFolderStore(tmp_path / "absent")
    with pytest.raises(DatasetError, match="holds no mp4 files"):
        VideoFolderStore(tmp_path)
