"""An episode's latents are found again by its pictures: adding, removing or changing one episode concerns that one alone."""

import logging
import shutil
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import tests.every_format as every_format
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.open import open_episodes
from mimicvideo.data.packets import span_digest
from mimicvideo.data.view import View
from mimicvideo.data.window import Window
from tests.every_format import FORMATS
from tests.synthetic_episodes import by_lerobot, by_writer, picture, write_video

WINDOW = Window(observed=1, future=4)
# Here pictures lie in one table with those of other episodes, or in one file that the test encodes as a whole.
TOGETHER = {"lerobot_v3.0", "lerobot_v3.0_described"}


def video_of(reader: LeRobotEpisodes, place: int) -> Path:
    """The file that holds an episode's pictures."""
    span = reader._meta.listing.video(reader.episodes[place].place, reader.cameras[0].key)
    assert span is not None
    return span.path


def encode(video: Tensor) -> Tensor:
    return video[:, ::4].float().mean((2, 3)).permute(0, 2, 1)[..., None, None]


def fill(folder: Path, reader: Episodes) -> list[int]:
    """Lengths of the episodes that had to be encoded."""
    cache = LatentCache(folder, reader, WINDOW, "vae")
    missing = cache.missing(reader.episodes)
    cache.encode(missing, encode, progress=False)
    assert LatentCache(folder, reader, WINDOW, "vae").missing(reader.episodes) == []
    for episode in reader.episodes:
        video = torch.from_numpy(reader.frames(episode, WINDOW.frame_rows(2, episode.length)))
        assert torch.equal(cache.read(episode, 2), encode(video[None])[0].bfloat16())
    return sorted(episode.length for episode in missing)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in TOGETHER])
def test_one_more_episode_is_encoded_alone(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = every_format.LENGTHS
    spec = FORMATS[name][0](tmp_path / "three")
    assert fill(tmp_path / "cache", open_episodes(tmp_path / "three", spec=spec)) == sorted(lengths)
    monkeypatch.setattr(every_format, "LENGTHS", (*lengths, 7))
    monkeypatch.setattr(every_format, "TOLD", (*every_format.TOLD, "Do the other thing."))
    if name == "hdf5":  # into a file that is there already
        shutil.copytree(tmp_path / "three", tmp_path / "four")
        with h5py.File(tmp_path / "four/do_it_demo.hdf5", "a") as file:
            demo = file["data"].create_group("demo_2")
            demo["actions"], demo["obs/x"], demo["obs/y"] = np.zeros((7, 3)), np.zeros(7, np.float32), np.zeros((7, 1), np.float32)
            demo.create_dataset("obs/agentview_rgb", data=every_format.film(3), compression="gzip")
    else:
        FORMATS[name][0](tmp_path / "four")
    assert fill(tmp_path / "cache", open_episodes(tmp_path / "four", spec=spec)) == [7]
    assert fill(tmp_path / "cache", open_episodes(tmp_path / "three", spec=spec)) == []


def test_a_changed_or_removed_episode_concerns_no_other(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", (6, 7, 8))
    reader = LeRobotEpisodes(tmp_path / "d")
    assert fill(tmp_path / "cache", reader) == [6, 7, 8]
    video = video_of(reader, 1)
    write_video(video, [picture(9, row, 0, 16, 16) for row in range(7)], round(reader._meta.fps))
    changed = LeRobotEpisodes(tmp_path / "d")
    assert fill(tmp_path / "cache", changed) == [7]
    changed.leave_out({0: "it is bad"}, "a test")
    assert fill(tmp_path / "cache", changed) == []


def test_what_is_shown_otherwise_is_another_key(tmp_path: Path) -> None:
    spec = every_format.hdf5(tmp_path / "d")
    keys = {}
    for name, options in {
        "as it is": {},
        "not turned": {"rotate_180": None},
        "other colours": {"swap_colours": ["corner2"]},
        "shorter": {"drop_first": 1},
        "other state": {"proprio": ["obs/y"], "proprio_names": ["y"]},
    }.items():
        reader = open_episodes(tmp_path / "d", spec=type(spec)(**{**spec.__dict__, **options}))
        keys[name] = reader.picture_key(reader.episodes[0])
    assert keys["as it is"] == keys["other state"] and len(set(keys.values())) == 4
    small = open_episodes(tmp_path / "d", spec=spec, size=(8, 8))
    views = [View(open_episodes(tmp_path / "d", spec=spec), hz, numbers=False) for hz in (5, 20)]
    more = [small.picture_key(small.episodes[0]), *(view.picture_key(view.episodes[0]) for view in views)]
    assert len({*keys.values(), *more}) == 7


def appended(source: Path, target: Path, more: Path) -> None:
    """One mp4 file after another without encoding anything anew, as LeRobot adds episodes to a file."""
    with av.open(str(target), "w") as out:
        stream, offset = None, 0
        for path in (source, more):
            with av.open(str(path)) as file:
                stream = stream or out.add_stream_from_template(file.streams.video[0])
                end = 0
                for packet in file.demux(file.streams.video[0]):
                    if packet.dts is not None:
                        end = max(end, packet.pts + packet.duration)
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                        out.mux(packet)
                offset += end


def test_frames_are_known_again_in_a_file_that_others_were_appended_to(tmp_path: Path) -> None:
    first = [picture(0, row, 0, 16, 16) for row in range(12)]
    write_video(tmp_path / "a.mp4", first, keyframe_interval=4)
    write_video(tmp_path / "b.mp4", [picture(1, row, 0, 16, 16) for row in range(8)], keyframe_interval=4)
    appended(tmp_path / "a.mp4", tmp_path / "ab.mp4", tmp_path / "b.mp4")
    appended(tmp_path / "b.mp4", tmp_path / "ba.mp4", tmp_path / "a.mp4")
    for span in ((0, 12), (4, 8), (5, 3)):
        assert span_digest(tmp_path / "a.mp4", *span, 10) == span_digest(tmp_path / "ab.mp4", *span, 10)
        assert span_digest(tmp_path / "a.mp4", *span, 10) == span_digest(tmp_path / "ba.mp4", span[0] + 8, span[1], 10)
    spans = [span_digest(tmp_path / "ab.mp4", *span, 10) for span in ((0, 12), (0, 11), (1, 11), (12, 8), (4, 8))]
    assert len(set(spans)) == len(spans)


def test_episodes_that_share_a_file_have_keys_of_their_own(tmp_path: Path) -> None:
    by_lerobot(tmp_path / "d", (12, 9, 20), ("a", "b", "a"), fps=10, size=16)
    reader = LeRobotEpisodes(tmp_path / "d")
    assert len({reader.picture_key(episode) for episode in reader.episodes}) == 3


def test_pictures_that_cannot_be_read_are_told_and_nothing_is_kept(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", (6, 7))
    reader = LeRobotEpisodes(tmp_path / "d")
    video_of(reader, 0).unlink()
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    unreadable = cache.encode(cache.missing(reader.episodes), encode, progress=False)
    assert list(unreadable) == [0] and "there is no such file" in unreadable[0]
    assert len(list(cache.folder.glob("*.bf16"))) == 1
    with pytest.raises(DatasetError, match="there is no such file"):
        cache.read(reader.episodes[0], 0)


def test_a_file_that_changes_while_it_is_encoded_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_writer(tmp_path / "d", (6,))
    reader, frames = LeRobotEpisodes(tmp_path / "d"), LeRobotEpisodes.frames
    video = video_of(reader, 0)

    def overtaken(self: Any, episode: Any, rows: Any) -> np.ndarray:
        shown = frames(self, episode, rows)
        write_video(video, [picture(9, row, 0, 16, 16) for row in range(6)])
        return shown

    monkeypatch.setattr(LeRobotEpisodes, "frames", overtaken)
    cache = LatentCache(tmp_path / "cache", reader, WINDOW, "vae")
    assert "changed since the dataset was opened" in cache.encode(reader.episodes, encode, progress=False)[0]
    assert not list(cache.folder.glob("*.bf16"))


def test_latents_of_an_earlier_version_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_writer(tmp_path / "d", (6,))
    old = tmp_path / "cache/latents-0123"
    old.mkdir(parents=True)
    (old / "header.json").write_text('{"version": 1, "dataset": "abc", "latents": [1, 1, 1, 1]}')
    with caplog.at_level(logging.WARNING):
        LatentCache(tmp_path / "cache", LeRobotEpisodes(tmp_path / "d"), WINDOW, "vae").covering()
    assert f"{old} holds latents of an earlier version of mimicvideo, which are not read: it can be deleted" in caplog.text
