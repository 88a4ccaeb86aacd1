"""Datasets of both writers are read alike; whatever is wrong with one is named."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import mimicvideo.data.lerobot as lerobot
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot import LeRobotEpisodes
from tests.synthetic_episodes import (
    ACTION_NAMES,
    DATA_FILE,
    EPISODES_FILE,
    STATE_NAMES,
    VIEW,
    Made,
    by_lerobot,
    by_writer,
    change_rows,
    picture,
    what_is_shown,
    write_video,
)


def check(reader: LeRobotEpisodes, made: Made) -> None:
    assert [episode.length for episode in reader.episodes] == made.lengths
    for number, episode in enumerate(reader.episodes):
        np.testing.assert_array_equal(reader.actions(episode), made.actions[number])
        np.testing.assert_array_equal(reader.proprio(episode), made.states[number])
        rows = [made.lengths[number] - 1, 0, 0, 3]
        assert [what_is_shown(frame)[:2] for frame in reader.frames(episode, rows)] == [(number, row) for row in rows]


@pytest.mark.parametrize("stride", [1, 6])
def test_our_own_datasets(tmp_path: Path, stride: int) -> None:
    made = by_writer(tmp_path / "d", tasks=["reach-v3", "push-v3", "reach-v3"], stride=stride)
    reader = LeRobotEpisodes(tmp_path / "d")
    check(reader, made)
    assert (reader.robot, reader.control_hz, reader.stride) == ("test-arm", 80.0, stride)
    assert (reader.proprio_names, reader.action_names) == (STATE_NAMES, ACTION_NAMES)
    assert [(episode.instruction, episode.task) for episode in reader.episodes] == [(f"Do {task}.", task) for task in made.tasks]
    assert [(camera.name, camera.height, camera.width, camera.view) for camera in reader.cameras] == [("corner2", 16, 16, VIEW)]
    assert reader.actions(reader.episodes[1]).shape == (9 * stride, 3)


@pytest.mark.parametrize("key", ["observation.images.corner2", "observation.corner2", "corner2"])
@pytest.mark.parametrize(("codec", "size", "pixel_format"), [("libx264", 16, "yuv444p"), ("libsvtav1", 64, "yuv420p")])
def test_datasets_of_lerobot(tmp_path: Path, key: str, codec: str, size: int, pixel_format: str) -> None:
    made = by_lerobot(
        tmp_path / "d", instructions=["Lift.", "Push.", "Lift."], cameras=[key], codec=codec, size=size, pixel_format=pixel_format
    )
    for name in ("corner2", key):
        reader = LeRobotEpisodes(tmp_path / "d", [name])
        check(reader, made)
    assert (reader.robot, reader.control_hz, reader.stride) == ("so101", 10.0, 1)
    assert (reader.proprio_names, reader.action_names) == (STATE_NAMES, ACTION_NAMES)
    assert [(episode.instruction, episode.task) for episode in reader.episodes] == [
        ("Lift.", "Lift."),
        ("Push.", "Push."),
        ("Lift.", "Lift."),
    ]


def test_rows_in_any_order_and_instructions_by_index(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d", instructions=["Lift.", "Push.", "Lift."])
    shuffled = np.random.default_rng(0).permutation(sum(made.lengths))
    change_rows(tmp_path / "d", lambda columns: columns.update({name: [values[i] for i in shuffled] for name, values in columns.items()}))
    change_rows(tmp_path / "d", lambda columns: columns.pop("tasks"), EPISODES_FILE)
    reader = LeRobotEpisodes(tmp_path / "d")
    check(reader, made)
    assert [episode.instruction for episode in reader.episodes] == ["Lift.", "Push.", "Lift."]


def test_cameras_stand_side_by_side_in_the_order_given(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", cameras=("corner2", "wrist", "top"))
    reader = LeRobotEpisodes(tmp_path / "d", ["wrist", "corner2"])
    frame = reader.frames(reader.episodes[1], [4])[0]
    assert frame.shape == (16, 32, 3)
    assert (what_is_shown(frame[:, :16]), what_is_shown(frame[:, 16:])) == ((1, 4, 1), (1, 4, 0))
    small = LeRobotEpisodes(tmp_path / "d", ["wrist", "corner2"], size=(8, 12))
    frame = small.frames(small.episodes[1], [4])[0]
    assert frame.shape == (8, 24, 3) and [(c.height, c.width) for c in small.cameras] == [(8, 12), (8, 12)]
    assert (what_is_shown(frame[:, :12]), what_is_shown(frame[:, 12:])) == ((1, 4, 1), (1, 4, 0))


def test_pictures_of_different_heights_need_a_size(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", cameras=("a", "b"))
    path = tmp_path / "d/meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.b"]["shape"] = [8, 16, 3]
    path.write_text(json.dumps(info))
    for file in (tmp_path / "d/videos/observation.images.b").rglob("*.mp4"):
        write_video(file, [picture(0, row, 1, height=8) for row in range(20)], fps=80)
    with pytest.raises(DatasetError, match="cannot stand side by side: a 16 x 16, b 8 x 16. Set height and width"):
        LeRobotEpisodes(tmp_path / "d", ["a", "b"])
    reader = LeRobotEpisodes(tmp_path / "d", ["a", "b"], size=(16, 16))
    assert reader.frames(reader.episodes[0], [0]).shape == (1, 16, 32, 3)


def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the decoder asks for."""
    calls: list[int] = []
    decode = lerobot.decode_frames
    monkeypatch.setattr(lerobot, "decode_frames", lambda path, rows, *rest: calls.append(len(rows)) or decode(path, rows, *rest))
    return calls


def test_small_sets_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_writer(tmp_path / "d")
    reader, calls = LeRobotEpisodes(tmp_path / "d"), decoded_rows(monkeypatch)
    for _ in range(3):
        for episode in reader.episodes:
            reader.frames(episode, [1, 2])
    assert calls == [12, 9, 20]
    assert pickle.loads(pickle.dumps(reader))._cache == {} and reader._cache, "workers fill caches of their own"


def test_large_sets_are_decoded_by_the_row_and_the_cache_keeps_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_writer(tmp_path / "d")
    calls = decoded_rows(monkeypatch)
    reader = LeRobotEpisodes(tmp_path / "d", ram_cache_gb=25 * 768 / 1e9)  # 25 of 41 frames
    for _ in range(2):
        assert what_is_shown(reader.frames(reader.episodes[2], [7])[0])[:2] == (2, 7)
    assert calls == [1, 1], "a few rows of a large set are not kept"
    for number in (0, 0, 1, 2, 0):
        reader.frames(reader.episodes[number], range(reader.episodes[number].length))
        assert reader._cache_bytes == sum(frames.nbytes for frames in reader._cache.values()) <= 25 * 768
    assert calls == [1, 1, 12, 9, 20, 12], "whole episodes are kept, the least recently used goes first"
    with pytest.raises(IndexError, match="outside episode 1 of 9 rows"):
        reader.frames(reader.episodes[1], [9])


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    by_writer(tmp_path / "a", cameras=("corner2", "wrist"))
    by_writer(tmp_path / "b", cameras=("corner2", "wrist"))
    first, second = (LeRobotEpisodes(tmp_path / name, ["corner2"]) for name in "ab")
    assert first.fingerprint == second.fingerprint and first.tables_fingerprint == second.tables_fingerprint
    assert LeRobotEpisodes(tmp_path / "a", ["wrist"]).fingerprint != first.fingerprint
    video = next((tmp_path / "b/videos/observation.images.corner2").rglob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"\0")
    changed = LeRobotEpisodes(tmp_path / "b", ["corner2"])
    assert changed.fingerprint != first.fingerprint and changed.tables_fingerprint == first.tables_fingerprint
    change_rows(tmp_path / "b", lambda columns: columns["action"][0].__setitem__(0, 5.0))
    assert LeRobotEpisodes(tmp_path / "b", ["corner2"]).tables_fingerprint != first.tables_fingerprint


# ---- what is wrong with a whole dataset ---------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"there is no dataset folder {tmp_path}/absent: give .* mimicvideo demos"):
        LeRobotEpisodes(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty is empty: give"):
        LeRobotEpisodes(tmp_path / "empty")
    (tmp_path / "empty/file").touch()
    with pytest.raises(DatasetError, match="has no meta/info.json"):
        LeRobotEpisodes(tmp_path / "empty")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v1.6", "version 'v1.6', this reads v2.0, v2.1, v3.0: convert it with LeRobot's script convert_dataset_v1_to_v2$"),
        ("v4.0", "version 'v4.0', this reads v2.0, v2.1, v3.0: use a version of mimicvideo that knows it"),
        (None, "version None"),
    ],
)
def test_other_versions(tmp_path: Path, version: Any, message: str) -> None:
    by_lerobot(tmp_path / "d", version=version)
    with pytest.raises(DatasetError, match=message):
        LeRobotEpisodes(tmp_path / "d")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (DATA_FILE, os.remove, f"is truncated: {DATA_FILE} is missing"),
        (DATA_FILE, cut, f"{DATA_FILE} is damaged or truncated"),
        (EPISODES_FILE, os.remove, "is truncated: it has no meta/episodes"),
        (EPISODES_FILE, cut, f"{EPISODES_FILE} is damaged or truncated"),
        ("meta/tasks.parquet", os.remove, "meta/tasks.parquet is missing"),
        ("meta/info.json", cut, "meta/info.json is damaged or truncated"),
        ("meta/mimicvideo.json", os.remove, "written by mimicvideo demos but lacks meta/mimicvideo.json"),
        ("meta/mimicvideo.json", cut, "meta/mimicvideo.json is damaged or truncated"),
    ],
)
def test_truncated_datasets(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    by_writer(tmp_path / "d", stride=2)
    damage(tmp_path / "d" / name)
    with pytest.raises(DatasetError, match=f"{message}.*again"):
        LeRobotEpisodes(tmp_path / "d")


def test_tables_that_contradict_each_other(tmp_path: Path) -> None:
    by_writer(tmp_path / "rows")
    table = pq.read_table(tmp_path / "rows" / DATA_FILE)
    pq.write_table(table.slice(0, 38), tmp_path / "rows" / DATA_FILE)
    with pytest.raises(DatasetError, match="episode 2: it has 17 rows, meta/episodes says 20"):
        LeRobotEpisodes(tmp_path / "rows")
    by_writer(tmp_path / "list")
    table = pq.read_table(tmp_path / "list" / EPISODES_FILE)
    pq.write_table(table.slice(0, 2), tmp_path / "list" / EPISODES_FILE)
    with pytest.raises(DatasetError, match="total_episodes 3, meta/episodes lists 2"):
        LeRobotEpisodes(tmp_path / "list")
    by_writer(tmp_path / "moved")
    change_rows(tmp_path / "moved", lambda columns: columns["episode_index"].__setitem__(0, 1))
    with pytest.raises(DatasetError, match="episode 0: it has 11 rows, meta/episodes says 12"):
        LeRobotEpisodes(tmp_path / "moved")


def test_unknown_cameras(tmp_path: Path) -> None:
    by_writer(tmp_path / "d", cameras=("corner2", "wrist"))
    with pytest.raises(DatasetError, match="has no camera 'corner' \\(did you mean 'corner2'\\?\\); it has corner2, wrist"):
        LeRobotEpisodes(tmp_path / "d", ["corner"])
    with pytest.raises(DatasetError, match="several cameras, say which: cameras=\\[corner2, wrist\\]"):
        LeRobotEpisodes(tmp_path / "d")
    with pytest.raises(DatasetError, match="each once"):
        LeRobotEpisodes(tmp_path / "d", ["wrist", "wrist"])


# ---- what is wrong with episodes ----------------------------------------------------------------------------------------------------


def set_number(column: str, row: int, dimension: int, value: float) -> Any:
    return lambda columns: columns[column][row].__setitem__(dimension, value)


def video(root: Path, episode: int) -> Path:
    return root / f"videos/observation.images.corner2/chunk-000/file-{episode:03d}.mp4"


def damage_everything(root: Path) -> None:
    """Six episodes; 1 ... 5 have a fault each."""
    by_writer(root, lengths=(12, 9, 20, 1, 8, 10))
    change_rows(root, set_number("action", 12 + 4, 2, float("nan")))
    change_rows(root, set_number("observation.state", 21 + 6, 1, float("-inf")))
    cut(video(root, 4))
    write_video(video(root, 5), [picture(5, row) for row in range(7)], fps=80)


def test_all_bad_episodes_are_listed(tmp_path: Path) -> None:
    damage_everything(tmp_path / "d")
    with pytest.raises(DatasetError) as caught:
        LeRobotEpisodes(tmp_path / "d", max_bad_fraction=0.8)
    message = str(caught.value)
    assert (
        f"5 of 6 episodes of {tmp_path}/d cannot be used: mend or remove them, or allow to skip them with max_bad_fraction=0.84" in message
    )
    for line in (
        "episode 1: action is NaN or infinite in row 4, dimension 2",
        "episode 2: observation.state is NaN or infinite in row 6, dimension 1",
        "episode 3: it has 1 rows, fewer than 2",
        "episode 4: its video videos/observation.images.corner2/chunk-000/file-004.mp4 is unreadable: FFmpeg cannot read it",
        "episode 5: its video videos/observation.images.corner2/chunk-000/file-005.mp4 is shorter than its parquet rows: 7 of 10 frames",
    ):
        assert line in message
    assert "episode 0" not in message


def test_bad_episodes_are_skipped_counted_and_logged_when_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage_everything(tmp_path / "d")
    reader = LeRobotEpisodes(tmp_path / "d", max_bad_fraction=0.84)
    assert [episode.index for episode in reader.episodes] == [0]
    assert sorted(reader.skipped) == [1, 2, 3, 4, 5]
    assert "skipped 5 of 6 episodes" in caplog.text and "episode 5: its video" in caplog.text
    with pytest.raises(DatasetError, match="6 of 6 .* no usable episode is left"):
        LeRobotEpisodes(tmp_path / "d", max_bad_fraction=1.0, min_rows=13)
    with pytest.raises(ValueError, match="max_bad_fraction must lie in \\[0, 1\\], got 2"):
        LeRobotEpisodes(tmp_path / "d", max_bad_fraction=2.0)


def test_short_episodes_count_when_asked(tmp_path: Path) -> None:
    by_writer(tmp_path / "d")
    with pytest.raises(DatasetError, match="episode 1: it has 9 rows, fewer than 10"):
        LeRobotEpisodes(tmp_path / "d", min_rows=10)


def test_missing_video(tmp_path: Path) -> None:
    by_writer(tmp_path / "d")
    video(tmp_path / "d", 1).unlink()
    with pytest.raises(DatasetError, match="episode 1: its video .*file-001.mp4 is unreadable: there is no such file"):
        LeRobotEpisodes(tmp_path / "d")


def test_only_the_last_episodes_of_a_short_shared_video_are_bad(tmp_path: Path) -> None:
    by_lerobot(tmp_path / "d")
    frames = [picture(episode, row) for episode, rows in enumerate((12, 9, 20)) for row in range(rows)]
    write_video(tmp_path / "d/videos/observation.images.corner2/chunk-000/file-000.mp4", frames[:25])
    with pytest.raises(DatasetError, match="1 of 3 episodes .*\n  episode 2: its video .* shorter than its parquet rows: 4 of 20 frames"):
        LeRobotEpisodes(tmp_path / "d")


def noise_with_a_hole(path: Path, frames: int, fps: int) -> None:
    """A video file of which a stretch in the middle is lost."""
    random = np.random.default_rng(0)
    write_video(path, [random.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(frames)], fps)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
    path.write_bytes(data)


def test_damage_inside_a_video_of_ours_is_found_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_writer(tmp_path / "d")
    LeRobotEpisodes(tmp_path / "d")
    assert not caplog.text
    write_video(video(tmp_path / "d", 1), [picture(7, row) for row in range(9)], fps=80)
    assert LeRobotEpisodes(tmp_path / "d").skipped == {}, "another file than the one that was written, but a sound one"
    assert "changed since" in caplog.text and "file-001.mp4" in caplog.text and "file-002.mp4" not in caplog.text
    noise_with_a_hole(video(tmp_path / "d", 2), 20, 80)
    with pytest.raises(DatasetError, match="1 of 3 episodes .*\n  episode 2: its video .*file-002.mp4 is damaged"):
        LeRobotEpisodes(tmp_path / "d")


def test_full_verification_decodes_videos_of_others(tmp_path: Path) -> None:
    by_lerobot(tmp_path / "d", lengths=(10, 21, 10))
    noise_with_a_hole(tmp_path / "d/videos/observation.images.corner2/chunk-000/file-000.mp4", 41, 10)
    reader = LeRobotEpisodes(tmp_path / "d")
    with pytest.raises(DatasetError, match="episode 1 of .*camera corner2 cannot be decoded: file-000.mp4: .*Set verify to full"):
        for episode in reader.episodes:
            reader.frames(episode, range(episode.length))
    with pytest.raises(DatasetError, match="1 of 3 episodes .*\n  episode 1: its video .* is damaged"):
        LeRobotEpisodes(tmp_path / "d", verify="full")
    told = [reader.damage(episode) for episode in reader.episodes]
    assert told[0] is None and told[2] is None and "file-000.mp4 is damaged" in told[1]
