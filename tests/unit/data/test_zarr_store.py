"""Zarr episodes: streams at different rates, only wanted chunks, and nothing that could run code."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.rotations import Format, from_matrix, to_matrix
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.zarr_store import KEPT_ZIPS, ZarrStore
from tests.every_format import ZARR, write_zarr_episode, zarr_v2, zarr_v3, zarr_zips

START = 1_700_000_000_000_000_000  # ns; times are those of a clock


def group_of(root: Path, name: str = "episode_0") -> Any:
    return zarr.open_group(root, mode="a", zarr_format=2).require_group(name)


def stream(group: Any, key: str, values: np.ndarray, seconds: np.ndarray, chunk: int = 1024) -> None:
    group.create_array(key, data=values, chunks=(min(chunk, len(values)), *values.shape[1:]))
    group.create_array(f"{key}_timestamps", data=(np.round(seconds * 1e9).astype(np.int64) + START).astype(np.uint64))


def turned(angles: np.ndarray) -> np.ndarray:
    """Poses as 4 x 4 matrices, turned about z and moved along x by the angle."""
    poses = np.tile(np.eye(4), (len(angles), 1, 1))
    poses[:, :3, :3] = to_matrix(angles[:, None] * np.array([0.0, 0.0, 1.0]), "axis_angle")
    poses[:, 0, 3] = angles
    return poses


@pytest.fixture
def multi_rate(tmp_path: Path) -> Path:
    """5 Hz pictures, a wrist camera at 10 Hz that starts 20 ms later, poses at 20 Hz that start 30 ms earlier, gripper at 5 Hz."""
    group = group_of(tmp_path / "z")
    at = np.arange(8) / 5
    pictures = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], (8, 4, 4, 3))
    stream(group, "workspace_rgb", np.ascontiguousarray(pictures) * 10, at)
    wrist = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 4, 4, 3))
    stream(group, "wrist_rgb", np.ascontiguousarray(wrist) * 10 + 5, np.arange(16) / 10 + 0.02)
    fast = np.arange(40) / 20 - 0.03
    stream(group, "eef_pose_lowdim", turned(fast), fast)
    stream(group, "gripper_lowdim", np.arange(8, dtype=np.float32), at)
    stream(group, "gripper_action_lowdim", np.floor(fast * 20 + 1e-6), fast)
    return tmp_path / "z"


SPEC: dict[str, Any] = {
    "cameras": {"front": "workspace_rgb", "wrist": "wrist_rgb"},
    "proprio": ["eef_pose_lowdim", "gripper_lowdim"],
    "actions": ["gripper_action_lowdim"],
}


def test_streams_of_other_rates_are_brought_to_the_pictures_times(multi_rate: Path) -> None:
    reader = open_episodes(multi_rate, ["front", "wrist"], spec=DatasetSpec(**SPEC))
    (episode,) = reader.episodes
    assert (episode.length, reader.control_hz, reader.stride) == (8, 20.0, 4)
    at = np.arange(8) / 5
    poses = reader.proprio(episode)[:, :16].reshape(8, 4, 4)
    # Where the stored poses go on, they lie on the same motion: a constant turn is met exactly between its samples.
    inside = at <= 39 / 20 - 0.03
    np.testing.assert_allclose(poses[inside], turned(at[inside]), atol=1e-6)
    np.testing.assert_allclose(from_matrix(poses[:, :3, :3].astype(float), "axis_angle")[inside, 2], at[inside], atol=1e-6)
    np.testing.assert_array_equal(reader.proprio(episode)[:, 16], np.arange(8))
    # Commands are never mixed: the nearest in time, four for each picture.
    fast = np.arange(40) / 20 - 0.03
    expected = [np.floor(fast * 20 + 1e-6)[np.abs(fast - time).argmin()] for time in np.arange(32) / 20]
    np.testing.assert_array_equal(reader.actions(episode)[:, 0], expected)
    shown = reader.frames(episode, np.arange(8))
    np.testing.assert_array_equal(shown[:, 0, 0, 0], np.arange(8) * 10)
    wrist = [int(np.abs(np.arange(16) / 10 + 0.02 - time).argmin()) * 10 + 5 for time in at]
    np.testing.assert_array_equal(shown[:, 0, 4, 0], wrist)


def test_the_first_camera_says_the_rows(multi_rate: Path) -> None:
    reader = open_episodes(multi_rate, ["wrist", "front"], spec=DatasetSpec(**SPEC))
    assert (reader.episodes[0].length, reader.control_hz, reader.stride) == (16, 20.0, 2)
    shown = reader.frames(reader.episodes[0], np.arange(16))
    np.testing.assert_array_equal(shown[:, 0, 4, 0] // 10, [int(np.abs(np.arange(8) / 5 - row / 10 - 0.02).argmin()) for row in range(16)])


def test_what_is_interpolated_can_be_chosen(multi_rate: Path) -> None:
    linear = open_episodes(multi_rate, ["front"], spec=DatasetSpec(**SPEC, interpolate=["gripper_action_lowdim"]))
    fast, at = np.arange(40) / 20 - 0.03, np.arange(8) / 5
    expected = np.interp(np.arange(32) / 20, fast, np.floor(fast * 20 + 1e-6))
    np.testing.assert_allclose(linear.actions(linear.episodes[0])[:, 0], expected, atol=1e-6)
    poses = linear.proprio(linear.episodes[0])[:, 3]
    np.testing.assert_allclose(poses, [fast[np.abs(fast - time).argmin()] for time in at], atol=1e-6)


@pytest.mark.parametrize("kind", ["euler_xyz", "axis_angle", "quaternion_xyzw", "6d"])
def test_described_rotations_turn_the_short_way(tmp_path: Path, kind: Format) -> None:
    """A turn about z through pi, where angles jump; quaternions change their sign now and then, as estimators' do."""
    fast, at = np.arange(40) / 20 - 0.03, np.arange(8) / 5
    angles = np.pi - 0.61 + fast  # passes pi between two samples, where a row lies
    numbers = from_matrix(turned(angles)[:, :3, :3], kind)
    if kind.startswith("quaternion"):
        numbers[::3] *= -1
    group = group_of(tmp_path / "z")
    stream(group, "workspace_rgb", np.ones((8, 4, 4, 3), np.uint8), at)
    stream(group, "state_lowdim", np.column_stack([fast, numbers]), fast)
    stream(group, "action_lowdim", fast[:, None], fast)
    rotation = {"kind": "rotation", "dims": list(range(1, 1 + numbers.shape[1])), "format": kind}
    described: dict[str, Any] = {"x": {"kind": "joint", "dims": [0]}, "turn": rotation}
    representation = {"proprio": described, "actions": {"x": {"kind": "joint", "dims": [0]}}}
    keys: dict[str, Any] = {"proprio": ["state_lowdim"], "actions": ["action_lowdim"], "cameras": {"front": "workspace_rgb"}}
    reader = open_episodes(tmp_path / "z", spec=DatasetSpec(**keys, representation=representation))
    states = reader.proprio(reader.episodes[0]).astype(float)
    inside = at <= fast[-1]
    np.testing.assert_allclose(states[inside, 0], at[inside], atol=1e-6)
    np.testing.assert_allclose(to_matrix(states[inside, 1:], kind), turned(np.pi - 0.61 + at[inside])[:, :3, :3], atol=1e-6)


def same_as_picture(columns: Any) -> Any:
    return columns


def test_actions_that_fit_no_whole_number_of_steps_are_told(multi_rate: Path, caplog: pytest.LogCaptureFixture) -> None:
    group = group_of(multi_rate)
    stream(group, "odd_lowdim", np.arange(20, dtype=np.float32), np.arange(20) / 12.5)
    reader = open_episodes(multi_rate, ["front"], spec=DatasetSpec(**{**SPEC, "actions": ["odd_lowdim"]}))
    assert reader.stride == 1 and "2.5 actions per picture: only the nearest in time" in caplog.text
    np.testing.assert_array_equal(reader.actions(reader.episodes[0])[:, 0], np.round(np.arange(8) * 2.5 - 1e-3))
    caplog.clear()
    standard = f"{__name__}:same_as_picture"
    described = open_episodes(multi_rate, ["front"], spec=DatasetSpec(**SPEC, standardise=standard))
    assert described.stride == 1 and "standardise wants one per row" in caplog.text


def test_times_must_ascend(multi_rate: Path) -> None:
    stamps = group_of(multi_rate)["wrist_rgb_timestamps"]
    stamps[3] = stamps[2]
    with pytest.raises(DatasetError, match="episode_0: wrist_rgb: time stamps do not increase.*at sample 3"):
        open_episodes(multi_rate, ["front", "wrist"], spec=DatasetSpec(**SPEC))
    assert open_episodes(multi_rate, ["front"], spec=DatasetSpec(**SPEC)).episodes, "a camera that is not read does not matter"


def test_only_chunks_with_wanted_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr_v2(tmp_path / "z")
    reader = open_episodes(tmp_path / "z", spec=ZARR, ram_cache_gb=0.0)
    asked: list[str] = []
    get = zarr.storage.LocalStore.get

    async def noting(self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", noting)
    reader.frames(reader.episodes[2], [6, 8, 17])  # chunks of 5
    assert sorted(asked) == ["episode_2/workspace_rgb/1.0.0.0", "episode_2/workspace_rgb/3.0.0.0"]


def test_a_few_zip_files_stay_open_however_many_there_are(tmp_path: Path) -> None:
    zarr_zips(tmp_path / "zips")
    reader = open_episodes(tmp_path / "zips", spec=ZARR, ram_cache_gb=0.0)
    path, frames = tmp_path / "zips/episode_1.zarr.zip", reader.frames(reader.episodes[1], [6, 8])
    for changed in range(KEPT_ZIPS + 20):  # each is another state of the file, as other files would be
        os.utime(path, ns=(changed, changed))
        assert np.array_equal(reader.frames(reader.episodes[1], [6, 8]), frames)
    assert 1 <= sum(os.path.realpath(place) == str(path) for place in Path("/proc/self/fd").iterdir()) <= KEPT_ZIPS


def metadata(change: dict[str, Any]) -> Any:
    def damage(root: Path) -> None:
        path = root / "episode_0/state_lowdim/.zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]},
            "array 'episode_0/state_lowdim' .*Python objects, which",
        ),
        ({"dtype": "|O", "filters": None}, "Python objects, which is refused: .* could run code"),
        ({"filters": [{"id": "pickle", "protocol": 5}]}, "encoded with 'pickle', which is refused: .* could run code"),
        ({"compressor": {"id": "pickle", "protocol": 5}}, "encoded with 'pickle', which is refused"),
        ({"compressor": {"id": "mine"}}, "encoded with 'mine', which is refused: it is none of the known harmless"),
        ({"dtype": [["a", "|O"]]}, "holds records"),
        ({"shape": None}, "metadata of array 'episode_0/state_lowdim' .* are damaged"),
    ],
)
def test_codecs_that_could_run_code_are_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    zarr_v2(tmp_path / "z")
    metadata(change)(tmp_path / "z")
    monkeypatch.setattr(numcodecs.Pickle, "decode", lambda *_: pytest.fail("a pickle was loaded"))
    with pytest.raises(DatasetError, match=message):
        open_episodes(tmp_path / "z", spec=ZARR)


def test_pickles_in_zarr_3_and_in_zip_files_are_refused(tmp_path: Path) -> None:
    container = zarr.open_group(tmp_path / "z", mode="w", zarr_format=3)
    write_zarr_episode(container.create_group("episode_0"), 0)
    path = tmp_path / "z/episode_0/state_lowdim/zarr.json"
    meta = json.loads(path.read_text())
    meta["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    path.write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match="'pickle', which is refused"):
        ZarrStore(tmp_path / "z")
    zarr_zips(tmp_path / "zips")
    with zarr.storage.ZipStore(tmp_path / "zips/evil.zarr.zip", mode="w") as store:
        write_zarr_episode(zarr.open_group(store, mode="w", zarr_format=2), 0)
        text = json.dumps({"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle"}], "compressor": None})
        store._zf.writestr("evil/.zarray", text)
    with pytest.raises(DatasetError, match=r"array 'evil' of .*evil.zarr.zip .*Python objects, which is refused"):
        ZarrStore(tmp_path / "zips")


def test_texts_of_any_length_are_read(tmp_path: Path) -> None:
    zarr_v2(tmp_path / "z")
    group = group_of(tmp_path / "z")
    del group["language_instruction"]
    array = group.create_array("language_instruction", shape=(2,), dtype=str, chunks=(1,))
    array[:] = np.array(["Öffne die Schublade.\nOpen it.", "Open it."], dtype=object)
    store = ZarrStore(tmp_path / "z")
    assert store.texts(store.entries[0], "language_instruction") == ["Öffne die Schublade.", "Open it."]
    assert store.texts(store.entries[1], "language_instruction") == ["Do the other thing."]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "workspace_rgb/1.0.0.0").unlink(),
            "chunks of its pictures .* missing: episode_1/workspace_rgb/1.0.0.0",
        ),
        (lambda root: (root / "state_lowdim/0.0").write_bytes(b"nonsense"), "episode_1: state_lowdim cannot be read"),
        (lambda root: (root / "workspace_rgb/0.0.0.0").write_bytes(b"nonsense"), "workspace_rgb cannot be read"),
        (
            lambda root: group_of(root.parent, "episode_1")["workspace_rgb"].resize((12, 16, 16, 3)),
            "12 pictures workspace_rgb, but 9",
        ),
        (lambda root: group_of(root.parent, "episode_1")["state_lowdim"].resize((5, 2)), "state_lowdim has 5 rows, but 9 times"),
    ],
)
def test_damaged_episodes_are_named_and_can_be_skipped(tmp_path: Path, damage: Any, message: str) -> None:
    zarr_v2(tmp_path / "z")
    damage(tmp_path / "z/episode_1")
    with pytest.raises(DatasetError, match=f"episode 1: .*{message}"):
        open_episodes(tmp_path / "z", spec=ZARR)
    assert [episode.index for episode in open_episodes(tmp_path / "z", spec=ZARR, max_bad_fraction=0.4).episodes] == [0, 2]


def spoil(path: Path, what: bytes, by: bytes) -> None:
    content = path.read_bytes()
    assert what in content and len(what) == len(by)
    path.write_bytes(content.replace(what, by))


@pytest.mark.parametrize(
    ("what", "by"),
    [
        (b'"zarr_format"', b'"zarr_farmat"'),  # CRC-32 of a stored file does not match
        (b"\x14\x03\x14\x00\x00\x00\x00\x00", b"\x14\x03\x14\x00\x00\x00\x63\x00"),  # a way of compressing that nobody has
        (b"PK\x03\x04", b"PX\x03\x04"),
        (b"\x14\x03\x14\x00\x00\x00", b"\x14\x03\xff\x00\x00\x00"),  # of a version to come
    ],
)
def test_damaged_zip_files_are_named_and_can_be_skipped(tmp_path: Path, what: bytes, by: bytes) -> None:
    zarr_zips(tmp_path / "z")
    reader = open_episodes(tmp_path / "z", spec=ZARR, ram_cache_gb=0.0)
    spoil(tmp_path / "z/episode_1.zarr.zip", what, by)
    with pytest.raises(DatasetError, match="episode_1.zarr.zip"):
        open_episodes(tmp_path / "z", spec=ZARR)
    assert [episode.index for episode in open_episodes(tmp_path / "z", spec=ZARR, max_bad_fraction=0.4).episodes] == [0, 2]
    with suppress(DatasetError):  # what is needed may be sound
        reader.picture_key(reader.episodes[1])
    with suppress(DatasetError):
        reader.frames(reader.episodes[1], [1])


def test_a_group_that_cannot_be_read_is_one_episode(tmp_path: Path) -> None:
    zarr_v2(tmp_path / "z")
    (tmp_path / "z/episode_1/state_lowdim/.zarray").unlink()
    (tmp_path / "z/episode_1/state_lowdim/.zarray").symlink_to(tmp_path / "z/loop")
    (tmp_path / "z/loop").symlink_to(tmp_path / "z/loop")
    assert [episode.index for episode in open_episodes(tmp_path / "z", spec=ZARR, max_bad_fraction=0.4).episodes] == [0, 2]


def test_damage_that_only_a_full_look_finds(tmp_path: Path) -> None:
    zarr_v2(tmp_path / "z")
    (tmp_path / "z/episode_2/workspace_rgb/3.0.0.0").write_bytes(b"nonsense")
    assert len(open_episodes(tmp_path / "z", spec=ZARR).episodes) == 3
    with pytest.raises(DatasetError, match="episode 2: .*workspace_rgb cannot be read"):
        open_episodes(tmp_path / "z", spec=ZARR, verify="full")


def test_folders_without_arrays(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no dataset"):
        ZarrStore(tmp_path / "absent")
    (tmp_path / "z").mkdir()
    with pytest.raises(DatasetError, match="holds no zarr arrays"):
        ZarrStore(tmp_path / "z")
    (tmp_path / "z/a.zarr.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DatasetError, match="a.zarr.zip is damaged"):
        ZarrStore(tmp_path / "z")
    zarr_v2(tmp_path / "other")
    with pytest.raises(DatasetError, match="no proprio key 'pose'; it has action_lowdim, state_lowdim"):
        open_episodes(tmp_path / "other", spec=DatasetSpec(proprio=["pose"]))


def test_the_fingerprint_of_numbers_leaves_out_pictures(tmp_path: Path) -> None:
    zarr_v2(tmp_path / "z")
    before = open_episodes(tmp_path / "z", spec=ZARR)
    assert before.fingerprint != before.tables_fingerprint
    chunk = tmp_path / "z/episode_0/workspace_rgb/0.0.0.0"
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    after = open_episodes(tmp_path / "z", spec=ZARR)
    assert (after.tables_fingerprint == before.tables_fingerprint, after.fingerprint == before.fingerprint) == (True, False)


@pytest.mark.parametrize("write", [zarr_v2, zarr_v3, zarr_zips])
def test_what_we_write_beside_the_data_does_not_change_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    spec = write(tmp_path / "d")
    options: dict[str, Any] = {"observed": 5, "future": 4, "horizon": 4, "action_dim": 3, "proprio_dim": 2, "validation_fraction": 0.0}

    def data() -> DemonstrationData:
        return DemonstrationData(root=str(tmp_path / "d"), spec=spec, **options)

    first, reader = data().statistics(), open_episodes(tmp_path / "d", spec=spec)
    (tmp_path / "d/mimicvideo_captions.jsonl").write_text("")
    again = open_episodes(tmp_path / "d", spec=spec)
    assert (again.tables_fingerprint, again.fingerprint) == (reader.tables_fingerprint, reader.fingerprint)
    monkeypatch.setattr(DemonstrationData, "_compute_statistics", lambda _: pytest.fail("they are on disk"))
    np.testing.assert_array_equal(data().statistics()["actions"]["pooled"]["mean"], first["actions"]["pooled"]["mean"])


def test_any_change_of_numbers_changes_the_data(tmp_path: Path) -> None:
    spec = zarr_v2(tmp_path / "d")
    before = open_episodes(tmp_path / "d", spec=spec)
    shown = before.fingerprint, before.tables_fingerprint
    group = zarr.open_group(tmp_path / "d", mode="r+")
    group["episode_1/action_lowdim"][0, 0] += 1
    after = open_episodes(tmp_path / "d", spec=spec)
    assert (after.fingerprint != shown[0], after.tables_fingerprint != shown[1]) == (True, True)
    group["episode_1/workspace_rgb"][0, 0, 0, 0] ^= 255
    last = open_episodes(tmp_path / "d", spec=spec)
    assert (last.fingerprint != after.fingerprint, last.tables_fingerprint != after.tables_fingerprint) == (True, False)
