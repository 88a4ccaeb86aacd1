"""LeRobotWriter: the layout of LeRobotDataset v3.0, what is in it, and that nothing half-written remains."""

import errno
import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mimicvideo.data import lerobot_writer as module
from mimicvideo.data.feature_statistics import of_histogram, of_values
from mimicvideo.data.lerobot_writer import LeRobotWriter
from mimicvideo.data.video_encoding import VideoCodec, encode_video

STRIDE = 3


def _writer(root: Path, **changes) -> LeRobotWriter:
    cameras = [
        {"name": "front", "height": 24, "width": 32, "view": {"name": "front", "fovy": 40.0}},
        {"name": "wrist", "height": 16, "width": 16, "view": {}},
    ]
    facts = {
        "robot": "arm",
        "control_hz": 80.0,
        "stride": STRIDE,
        "cameras": cameras,
        "proprio_names": ["x", "y"],
        "action_names": ["dx", "dy"],
    }
    return LeRobotWriter(root, **{**facts, **changes})


def _episode(seed: int, rows: int) -> dict:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, 32)[None, None, :, None] * np.ones((rows, 24, 1, 3)) * rng.random((1, 1, 1, 3))
    return {
        "frames": {"front": ramp.astype(np.uint8), "wrist": np.full((rows, 16, 16, 3), 40 * seed, np.uint8)},
        "proprio": rng.standard_normal((rows, 2)).astype(np.float32),
        "actions": rng.standard_normal((rows * STRIDE, 2)).astype(np.float32),
        "instruction": f"Do number {seed % 2}.",
        "task": f"task-{seed % 2}",
        "seed": seed,
    }


EPISODES = [_episode(1, 7), _episode(2, 4), _episode(3, 5)]


def _write(root: Path, **changes) -> Path:
    with _writer(root, **changes) as writer:
        for episode in EPISODES:
            writer.add_episode(**episode, attempt=0)
        return writer.finish(counts={"task-0": 1, "task-1": 2})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "set")


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def _episodes(root: Path) -> list[dict]:
    return pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()


def test_layout_is_lerobots(dataset):
    files = sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file())
    videos = [f"videos/observation.images.{name}/chunk-000/file-{index:03d}.mp4" for name in ("front", "wrist") for index in range(3)]
    meta = ["meta/episodes/chunk-000/file-000.parquet", "meta/info.json", "meta/mimicvideo.json", "meta/stats.json", "meta/tasks.parquet"]
    assert files == ["data/chunk-000/file-000.parquet", *meta, *videos]
    info = _json(dataset / "meta/info.json")
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 16, 2, 27)
    assert info["splits"] == {"train": "0:3"}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [6], "names": ["dx_0", "dy_0", "dx_1", "dy_1", "dx_2", "dy_2"]}
    assert info["features"]["observation.images.front"]["shape"] == [24, 32, 3]
    assert (dataset.stat().st_mode & 0o777) == (0o777 & ~module.umask())


def test_columns_are_what_the_schema_says(dataset):
    """Every feature that is no video is a column of its type and length, and there is no other."""
    features = _json(dataset / "meta/info.json")["features"]
    schema = pq.read_schema(dataset / "data/chunk-000/file-000.parquet")
    assert set(schema.names) == {name for name, feature in features.items() if feature["dtype"] != "video"}
    numbers = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
    for name in schema.names:
        number, (length,) = numbers[features[name]["dtype"]], features[name]["shape"]
        assert schema.field(name).type == (number if length == 1 else pa.list_(number, length)), name


def test_rows_hold_what_was_given(dataset):
    rows = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    assert np.array_equal(np.array(rows["action"].to_pylist(), np.float32), np.concatenate([e["actions"].reshape(-1, 6) for e in EPISODES]))
    assert np.array_equal(np.array(rows["observation.state"].to_pylist(), np.float32), np.concatenate([e["proprio"] for e in EPISODES]))
    assert rows["episode_index"].to_pylist() == [0] * 7 + [1] * 4 + [2] * 5
    assert rows["frame_index"].to_pylist() == [*range(7), *range(4), *range(5)]
    assert rows["index"].to_pylist() == list(range(16))
    assert rows["task_index"].to_pylist() == [0] * 7 + [1] * 4 + [0] * 5
    assert rows["next.success"].to_pylist() == [False] * 6 + [True] + [False] * 3 + [True] + [False] * 4 + [True]
    assert np.allclose(rows["timestamp"].to_pylist(), [row / 27 for row in rows["frame_index"].to_pylist()])


def test_tasks_are_a_pandas_table_indexed_by_sentence(dataset):
    table = pq.read_table(dataset / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["Do number 1.", "Do number 0."]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_episodes_table_points_into_data_and_videos(dataset):
    episodes = _episodes(dataset)
    assert [(e["dataset_from_index"], e["dataset_to_index"], e["length"]) for e in episodes] == [(0, 7, 7), (7, 11, 4), (11, 16, 5)]
    assert [e["tasks"] for e in episodes] == [["Do number 1."], ["Do number 0."], ["Do number 1."]]
    assert [(e["task_name"], e["seed"], e["attempt"]) for e in episodes] == [("task-1", 1, 0), ("task-0", 2, 0), ("task-1", 3, 0)]
    for index, episode in enumerate(episodes):
        for name in ("front", "wrist"):
            key = f"videos/observation.images.{name}"
            assert (episode[f"{key}/chunk_index"], episode[f"{key}/file_index"], episode[f"{key}/from_timestamp"]) == (0, index, 0.0)
            assert episode[f"{key}/to_timestamp"] == pytest.approx(episode["length"] / 27)


def test_videos_show_what_was_given(dataset):
    info = _json(dataset / "meta/info.json")["features"]["observation.images.front"]["info"]
    for index, episode in enumerate(EPISODES):
        for name, frames in episode["frames"].items():
            with av.open(str(dataset / f"videos/observation.images.{name}/chunk-000/file-{index:03d}.mp4")) as file:
                stream = file.streams.video[0]
                assert stream.codec_context.name == info["video.codec"] == "h264"
                assert stream.codec_context.pix_fmt == info["video.pix_fmt"] == "yuv444p"
                pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
            assert [time for time, _ in pictures] == pytest.approx(
                [row / 27 for row in range(len(frames))], abs=1e-4
            )  # LeRobot's tolerance
            assert np.abs(np.stack([image for _, image in pictures]).astype(int) - frames).mean() < 2


def test_statistics_are_those_of_the_data(dataset):
    stats = _json(dataset / "meta/stats.json")
    assert set(stats) == set(_json(dataset / "meta/info.json")["features"])
    actions = np.concatenate([episode["actions"].reshape(-1, 6) for episode in EPISODES]).astype(np.float64)
    assert np.allclose(stats["action"]["mean"], actions.mean(0))
    assert np.allclose(stats["action"]["std"], actions.std(0))
    assert np.allclose(stats["action"]["q90"], np.quantile(actions, 0.9, axis=0))
    assert stats["action"]["count"] == [16]
    pixels = np.concatenate([episode["frames"]["front"] for episode in EPISODES]) / 255
    seen = stats["observation.images.front"]
    assert np.allclose(np.array(seen["mean"])[:, 0, 0], pixels.mean((0, 1, 2)))
    assert np.allclose(np.array(seen["std"])[:, 0, 0], pixels.std((0, 1, 2)))
    assert np.array(seen["max"]).shape == (3, 1, 1)


def test_statistics_of_each_episode(dataset):
    for episode, given in zip(_episodes(dataset), EPISODES, strict=True):
        assert np.allclose(episode["stats/observation.state/max"], given["proprio"].max(0))
        assert np.allclose(np.array(episode["stats/observation.images.wrist/mean"])[:, 0, 0], given["frames"]["wrist"].mean() / 255)
        assert episode["stats/observation.images.wrist/count"] == [len(given["proprio"])]


def test_quantiles_of_pixels_are_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 3))
    histogram = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])
    found = of_histogram(histogram, 1)
    exact = of_values(pixels / 255)
    for name in ("min", "max", "mean", "std"):
        assert np.allclose(np.array(found[name])[:, 0, 0], exact[name]), name
    for name in ("q01", "q10", "q50", "q90", "q99"):  # one of the 256 values, where numpy may interpolate between two
        assert np.abs(np.array(found[name])[:, 0, 0] - exact[name]).max() <= 1 / 255, name


def test_mimicvideo_json_says_what_robot_and_cameras(dataset):
    about = _json(dataset / "meta/mimicvideo.json")
    assert (about["version"], about["robot"], about["control_hz"], about["stride"], about["fps"]) == (1, "arm", 80.0, 3, 80 / 3)
    assert (about["proprio"], about["actions"], about["counts"]) == (["x", "y"], ["dx", "dy"], {"task-0": 1, "task-1": 2})
    assert [camera["name"] for camera in about["cameras"]] == ["front", "wrist"]
    assert about["cameras"][0]["view"] == {"name": "front", "fovy": 40.0}
    files = {path.relative_to(dataset).as_posix(): path for path in dataset.rglob("*") if path.is_file()}
    del files["meta/mimicvideo.json"]
    assert about["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_same_episodes_same_bytes(dataset, tmp_path):
    assert _json(_write(tmp_path / "again") / "meta/mimicvideo.json") == _json(dataset / "meta/mimicvideo.json")


def test_encoded_videos_are_moved_in(dataset, tmp_path):
    with _writer(tmp_path / "set") as writer:
        for number, episode in enumerate(EPISODES):
            frames = episode["frames"].items()
            videos = {
                name: encode_video(writer.incoming / f"{number}-{name}.mp4", images, writer.fps, writer.codec) for name, images in frames
            }
            writer.add_episode(**{**episode, "frames": videos}, attempt=0)
        root = writer.finish(counts={"task-0": 1, "task-1": 2})
    assert _json(root / "meta/mimicvideo.json") == _json(dataset / "meta/mimicvideo.json")


def test_rows_are_split_over_files_at_lerobots_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DATA_FILE_MB", 1e-6)
    monkeypatch.setattr(module, "CHUNK_FILES", 2)
    root = _write(tmp_path / "set")
    places = [(e["data/chunk_index"], e["data/file_index"]) for e in _episodes(root)]
    assert places == [(0, 0), (0, 1), (1, 0)]
    for (chunk, file), episode in zip(places, _episodes(root), strict=True):
        index = pq.read_table(root / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet")["index"].to_pylist()
        assert index == list(range(episode["dataset_from_index"], episode["dataset_to_index"]))
    assert (root / "videos/observation.images.front/chunk-001/file-000.mp4").is_file()


def test_stride_1_is_plain_lerobot(tmp_path):
    with _writer(tmp_path / "set", stride=1) as writer:
        writer.add_episode(**{**EPISODES[0], "actions": EPISODES[0]["actions"][:7]})
        root = writer.finish()
    assert _json(root / "meta/info.json")["features"]["action"]["names"] == ["dx", "dy"]
    assert _json(root / "meta/info.json")["fps"] == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": EPISODES[0]["actions"][:-1]}, r"actions \[20, 2\], expected \[7 rows \* stride 3, 2\]"),
        ({"actions": np.where(np.arange(42).reshape(21, 2) == 5, np.nan, 0).astype(np.float32)}, "actions is not finite"),
        ({"proprio": np.full((7, 2), np.inf, np.float32)}, "proprio is not finite"),
        ({"frames": {"front": EPISODES[0]["frames"]["front"]}}, "cameras.*front.*wrist"),
        (
            {"frames": {**EPISODES[0]["frames"], "wrist": EPISODES[1]["frames"]["wrist"]}},
            r"video of wrist \[4, 16, 16\], expected \[7, 16, 16\]",
        ),
        (
            {**{name: EPISODES[0][name][:0] for name in ("proprio", "actions")}, "frames": {"front": np.zeros((0, 24, 32, 3), np.uint8)}},
            "no rows",
        ),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path, change, message):
    with _writer(tmp_path / "set") as writer, pytest.raises(ValueError, match=message):
        writer.add_episode(**{**EPISODES[0], **change})
    assert not list(tmp_path.iterdir())


def test_frames_must_be_pictures(tmp_path):
    for frames in (np.zeros((2, 8, 8, 4), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises((ValueError, TypeError), match="frames"):
            encode_video(tmp_path / "video.mp4", frames, 10, VideoCodec())


def test_a_dataset_needs_an_episode(tmp_path):
    with _writer(tmp_path / "set") as writer, pytest.raises(ValueError, match="no episode"):
        writer.finish()


def test_until_it_is_finished_there_is_no_dataset(tmp_path):
    root = tmp_path / "set"
    with _writer(root) as writer:
        writer.add_episode(**EPISODES[0])
        assert not root.exists()
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with _writer(tmp_path / "set") as writer:
            writer.add_episode(**EPISODES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["write_table", "write_json", "file_sha256", "encode_video"])
def test_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch, place):
    monkeypatch.setattr(module, place, _full)
    with pytest.raises(OSError, match=r"set: the disk is full; nothing was left behind") as caught:
        _write(tmp_path / "set")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_existing_dataset_is_kept_unless_told_otherwise(tmp_path, monkeypatch):
    root = _write(tmp_path / "set")
    with pytest.raises(FileExistsError, match="overwrite"):
        _writer(root)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", _full)
        with pytest.raises(OSError, match="nothing was left"):
            _write(root, overwrite=True)
    assert _json(root / "meta/info.json")["robot_type"] == "arm"
    _write(root, overwrite=True, robot="leg")
    assert _json(root / "meta/info.json")["robot_type"] == "leg"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write a dataset to .*file/set"):
        _writer(tmp_path / "file/set")


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (VideoCodec(name="h266"), "h266"),
        (VideoCodec(pixel_format="yuv444"), "'yuv444'.*yuv444p"),
        (VideoCodec(name="libsvtav1"), "libsvtav1.*'yuv444p'.*yuv420p"),
    ],
)
def test_codecs_that_cannot_be_had(tmp_path, codec, message):
    with pytest.raises(ValueError, match=message):
        _writer(tmp_path / "set", codec=codec)
    assert not list(tmp_path.iterdir())


def test_lerobots_own_codec(tmp_path):
    cameras = [{"name": "front", "height": 64, "width": 64, "view": {}}]
    frames = np.full((3, 64, 64, 3), 90, np.uint8)
    codec = VideoCodec(name="libsvtav1", crf=30, pixel_format="yuv420p", preset="12")
    with _writer(tmp_path / "set", cameras=cameras, codec=codec) as writer:
        writer.add_episode({"front": frames}, np.zeros((3, 2), np.float32), np.zeros((9, 2), np.float32), "Do it.", "it", 0)
        root = writer.finish()
    with av.open(str(root / "videos/observation.images.front/chunk-000/file-000.mp4")) as file:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert pictures.shape == frames.shape
    assert np.abs(pictures.astype(int) - 90).max() < 6
