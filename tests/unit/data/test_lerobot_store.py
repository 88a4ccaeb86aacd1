"""LeRobot datasets of version 2, with pictures in their rows, and with several states and actions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.stored import StoredEpisodes
from tests.every_format import LENGTHS, TOLD, film, lerobot_v21, lerobot_v21_images, png
from tests.synthetic_episodes import VIEW, by_lerobot, by_writer, what_is_shown


def v21(root: Path) -> Path:
    lerobot_v21(root)
    return root


def images(root: Path) -> Path:
    lerobot_v21_images(root)
    return root


def rows_of(root: Path, episode: int) -> Path:
    return root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"


def test_version_2_through_both_readers(tmp_path: Path) -> None:
    plain, described = open_episodes(v21(tmp_path / "d")), open_episodes(tmp_path / "d", spec=DatasetSpec(robot="mine"))
    assert (type(plain), type(described)) == (LeRobotEpisodes, StoredEpisodes)
    assert (plain.robot, described.robot) == ("so101", "mine")
    for one, other in zip(plain.episodes, described.episodes, strict=True):
        np.testing.assert_array_equal(plain.actions(one), described.actions(other))
        np.testing.assert_array_equal(plain.frames(one, [2, 5]), described.frames(other, [2, 5]))


def test_version_2_0_has_the_same_layout(tmp_path: Path) -> None:
    path = v21(tmp_path / "d") / "meta/info.json"
    path.write_text(path.read_text().replace("v2.1", "v2.0"))
    assert [episode.length for episode in open_episodes(tmp_path / "d").episodes] == list(LENGTHS)


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("meta/episodes.jsonl", Path.unlink, "is truncated: meta/episodes.jsonl is missing"),
        ("meta/episodes.jsonl", cut, "meta/episodes.jsonl is damaged or truncated in line 3"),
        ("meta/tasks.jsonl", Path.unlink, "meta/tasks.jsonl is missing"),
        ("meta/episodes.jsonl", lambda path: path.write_text('{"episode_index": 0}\n'), "lacks episode_index or length in line 1"),
        ("data/chunk-001/episode_000002.parquet", Path.unlink, "data/chunk-001/episode_000002.parquet is missing"),
    ],
)
def test_truncated_version_2(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    damage(v21(tmp_path / "d") / name)
    with pytest.raises(DatasetError, match=f"{message}.*again"):
        open_episodes(tmp_path / "d")


def without_actions(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


def narrow(path: Path) -> None:
    table = pq.read_table(path)
    values = pa.array([row[:2] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", values), path)


def in_words(path: Path) -> None:
    table = pq.read_table(path)
    values = pa.array([[str(number) for number in row] for row in table["action"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", values), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "episode_000001.parquet is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "episode_000001.parquet is damaged or truncated"),
        (lambda path: path.write_bytes(b""), "episode_000001.parquet is damaged or truncated"),
        (without_actions, "episode_000001.parquet lacks the column action"),
        (narrow, "holds 2 numbers of action per row"),
        (in_words, "holds string where numbers of action should be"),
        (lambda path: pq.write_table(pq.read_table(path).slice(2), path), "it has 7 rows, meta/episodes.jsonl says 9"),
    ],
)
@pytest.mark.parametrize("spec", [None, DatasetSpec(robot="so101")])
def test_a_damaged_file_of_version_2_costs_its_episode_only(
    damage: Callable[[Path], Any], message: str, spec: DatasetSpec | None, tmp_path: Path
) -> None:
    damage(v21(tmp_path / "d") / "data/chunk-000/episode_000001.parquet")
    episodes = open_episodes(tmp_path / "d", spec=spec, max_bad_fraction=0.34)
    assert list(episodes.skipped) == [1] and [episode.index for episode in episodes.episodes] == [0, 2]
    if spec is None:
        assert message in episodes.skipped[1]
    assert episodes.actions(episodes.episodes[1]).shape == (LENGTHS[2], 3)
    assert len(episodes.fingerprint) == 64
    with pytest.raises(DatasetError, match="1 of 3 episodes .* cannot be used: .*max_bad_fraction=0.34"):
        open_episodes(tmp_path / "d", spec=spec)


@pytest.mark.parametrize("fps", [0, -10, "10", None])
def test_a_rate_that_is_none(fps: Any, tmp_path: Path) -> None:
    path = v21(tmp_path / "d") / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fps": fps}))
    with pytest.raises(DatasetError, match=f"says fps {fps!r}, which is no rate"):
        open_episodes(tmp_path / "d")


def test_lists_that_are_no_text(tmp_path: Path) -> None:
    path = v21(tmp_path / "d") / "meta/episodes.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Do it.", b"Do \xd2t."))
    with pytest.raises(DatasetError, match=r"episodes.jsonl is damaged or truncated in line 1 \(.*0xd2"):
        open_episodes(tmp_path / "d")


def test_rows_with_pictures_that_vanish(tmp_path: Path) -> None:
    reader = open_episodes(images(tmp_path / "d"))
    rows_of(tmp_path / "d", 1).unlink()
    with pytest.raises(DatasetError, match="episode 1 of .*: pictures cannot be read: .*episode_000001.parquet"):
        reader.picture_key(reader.episodes[1])


def test_missing_videos_of_version_2(tmp_path: Path) -> None:
    (v21(tmp_path / "d") / "videos/chunk-000/observation.images.corner2/episode_000001.mp4").unlink()
    for spec in (None, DatasetSpec(robot="mine")):
        with pytest.raises(DatasetError, match="1: its video videos/chunk-000/.*/episode_000001.mp4 is unreadable: there is no"):
            open_episodes(tmp_path / "d", spec=spec)


def test_pictures_in_rows(tmp_path: Path) -> None:
    reader = open_episodes(images(tmp_path / "d"), ram_cache_gb=0.0)
    for number, episode in enumerate(reader.episodes):
        np.testing.assert_array_equal(reader.frames(episode, [8, 0, 4, 4]), film(number)[[8, 0, 4, 4]])
    small = open_episodes(tmp_path / "d", size=(8, 8))
    assert what_is_shown(small.frames(small.episodes[1], [3])[0]) == (1, 3, 0)


def replace_picture(root: Path, episode: int, row: int, content: dict[str, Any]) -> None:
    table = pq.read_table(rows_of(root, episode))
    name = "observation.images.corner2"
    cells = table[name].to_pylist()
    cells[row] = content
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(cells, table[name].type)), rows_of(root, episode))


def test_damaged_pictures_in_rows(tmp_path: Path) -> None:
    replace_picture(images(tmp_path / "d"), 0, 0, {"bytes": b"nonsense", "path": None})
    replace_picture(tmp_path / "d", 1, 0, {"bytes": None, "path": "images/frame.png"})
    replace_picture(tmp_path / "d", 2, 0, {"bytes": png(np.zeros((8, 16, 3), np.uint8)), "path": None})
    with pytest.raises(DatasetError) as caught:
        open_episodes(tmp_path / "d", max_bad_fraction=0.0)
    for part in ("0: .* picture in row 0 is damaged", "1: .* row 0 holds no picture, only a ref", "2: .* 8 x 16 pixels, .* says 16 x 16"):
        assert caught.match(f"episode {part}")


def test_damage_in_rows_that_only_a_full_look_finds(tmp_path: Path) -> None:
    replace_picture(images(tmp_path / "d"), 1, 7, {"bytes": b"nonsense", "path": None})
    assert len(open_episodes(tmp_path / "d").episodes) == 3
    with pytest.raises(DatasetError, match="episode 1: .*the picture in row 7 is damaged"):
        open_episodes(tmp_path / "d", verify="full")


def bimanual(root: Path) -> Path:
    """Two arms with states and actions of their own, and a sentence per row."""
    v21(root)
    info = json.loads((root / "meta/info.json").read_text())
    for side in ("left", "right"):
        info["features"][f"observation.{side}.joints"] = {"dtype": "float64", "shape": [2], "names": [f"{side}_a", f"{side}_b"]}
        info["features"][f"action.{side}"] = {"dtype": "float32", "shape": [1], "names": None}
    info["features"]["annotation"] = {"dtype": "string", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    for episode, rows in enumerate(LENGTHS):
        table = pq.read_table(rows_of(root, episode))
        for sign, side in ((1, "left"), (-1, "right")):
            joints = [[sign * row, episode] for row in range(rows)]
            table = table.append_column(f"observation.{side}.joints", pa.array(joints, pa.list_(pa.float64())))
            table = table.append_column(f"action.{side}", pa.array([sign * row for row in range(rows)], pa.float32()))
        words = ["first half"] * 4 + ["second half"] * (rows - 4)
        pq.write_table(table.append_column("annotation", pa.array(words)), rows_of(root, episode))
    return root


def test_several_states_and_actions(tmp_path: Path) -> None:
    spec = DatasetSpec(
        proprio=["observation.right.joints", "observation.left.joints"],
        actions=["action.left", "action.right"],
        instruction=["task", "annotation"],
        action_names=["left", "right"],
    )
    reader = open_episodes(bimanual(tmp_path / "d"), spec=spec)
    assert (reader.proprio_names, reader.action_names) == (["right_a", "right_b", "left_a", "left_b"], ["left", "right"])
    rows = np.arange(9, dtype=np.float32)
    ones = np.ones(9, np.float32)
    np.testing.assert_array_equal(reader.proprio(reader.episodes[1]), np.stack([-rows, ones, rows, ones], axis=1))
    np.testing.assert_array_equal(reader.actions(reader.episodes[1]), np.stack([rows, -rows], axis=1))
    assert reader.episodes[1].instructions == (TOLD[1], "first half", "second half")
    without = DatasetSpec(proprio=["action.left"], actions=["action.right"])
    assert open_episodes(tmp_path / "d", spec=without).proprio_names == ["state_0"]


@pytest.mark.parametrize("stride", [1, 3])
def test_descriptions_of_what_we_write(tmp_path: Path, stride: int) -> None:
    made = by_writer(tmp_path / "d", stride=stride, cameras=("corner2", "wrist"))
    plain = open_episodes(made.root, ["wrist"])
    described = open_episodes(made.root, ["side"], spec=DatasetSpec(cameras={"side": "observation.images.wrist"}))
    assert described.control_hz == pytest.approx(plain.control_hz) and described.stride == stride
    assert (described.action_names, described.proprio_names) == (plain.action_names, plain.proprio_names)
    assert described.cameras[0].view == VIEW
    for one, other in zip(plain.episodes, described.episodes, strict=True):
        np.testing.assert_array_equal(plain.actions(one), described.actions(other))
        np.testing.assert_array_equal(plain.proprio(one), described.proprio(other))
        assert (one.instructions, one.task) == (other.instructions, other.task)


def test_rows_of_several_episodes_in_any_order(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d")
    path = made.root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    reader = open_episodes(made.root, spec=DatasetSpec(robot="mine"))
    for episode, actions in zip(reader.episodes, made.actions, strict=True):
        np.testing.assert_array_equal(reader.actions(episode), actions)


def test_keys_that_a_dataset_does_not_have(tmp_path: Path) -> None:
    v21(tmp_path / "d")
    with pytest.raises(DatasetError, match=r"has no actions key 'actions' \(did you mean 'action'\?\); it has action, observation.state"):
        open_episodes(tmp_path / "d", spec=DatasetSpec(actions=["actions"]))
    with pytest.raises(DatasetError, match="has no pictures 'top' for camera 'front'; it has observation.images.corner2"):
        open_episodes(tmp_path / "d", spec=DatasetSpec(cameras={"front": "top"}))
    with pytest.raises(DatasetError, match="has 2 numbers for proprio, but 1 names: x"):
        open_episodes(tmp_path / "d", spec=DatasetSpec(proprio_names=["x"]))
