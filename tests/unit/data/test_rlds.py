"""RLDS datasets are read in place: numbers exactly, pictures as their codec gives them, and only the bytes that are asked for."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimicvideo.data.rlds.records as records
from mimicvideo.data.decode import resize
from mimicvideo.data.errors import DatasetError, VideoError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.rlds import RldsStore
from mimicvideo.data.rlds.schema import Column
from mimicvideo.data.rlds.values import decode_picture, picture_spans
from mimicvideo.data.spec import DatasetSpec
from tests.rlds_episodes import CAMERAS, MadeRlds, make_rlds

KEYS = ["action", "observation/state"]
SPEC = DatasetSpec(hz=5, cameras={camera: f"observation/{camera}" for camera in CAMERAS})
JPEG_TOLERANCE = 12  # grey levels at quality 95, of these pictures


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path) -> MadeRlds:
    return make_rlds(tmp_path / "bridge" / "1.0.0")


def check_contents(store: RldsStore, made: MadeRlds, tolerance: int) -> None:
    assert [entry.rows for entry in store.entries] == [len(actions) for actions in made.actions]
    for entry in store.entries:
        numbers = store.numbers(entry, [*KEYS, "is_last", "episode_metadata/has_image_0"])
        np.testing.assert_array_equal(numbers["action"], made.actions[entry.index], strict=True)
        np.testing.assert_array_equal(numbers["observation/state"], made.states[entry.index], strict=True)
        np.testing.assert_array_equal(numbers["is_last"], np.arange(entry.rows) == entry.rows - 1, strict=True)
        np.testing.assert_array_equal(numbers["episode_metadata/has_image_0"], np.ones(entry.rows, bool), strict=True)
        assert store.texts(entry, "language_instruction") == [made.sentences[entry.index]]
        assert store.texts(entry, "episode_metadata/file_path") == [f"/data/success/{entry.index}.npy"]
        for camera in CAMERAS:
            frames = store.frames(entry, f"observation/{camera}", np.arange(entry.rows), None)
            difference = np.abs(frames.astype(int) - made.pictures[entry.index][camera])
            assert difference.max() <= tolerance
        assert store.problem(entry, list(store.cameras), full=True) is None


@pytest.mark.parametrize(
    ("file_format", "encoding", "picture"),
    [("tfrecord", "none", "jpeg"), ("tfrecord", "zlib", "png"), ("array_record", "bytes", "jpeg"), ("array_record", "none", "png")],
)
def test_what_was_written_is_read(tmp_path: Path, file_format: str, encoding: str, picture: str) -> None:
    made = make_rlds(tmp_path / "1.0.0", file_format=file_format, encoding=encoding, picture=picture)
    tolerance = JPEG_TOLERANCE if picture == "jpeg" else 0
    check_contents(RldsStore(made.root), made, tolerance)
    check_contents(RldsStore(made.root), made, tolerance)  # from the index that the first one left
    store = RldsStore(tmp_path)
    assert store.root == made.root  # the dataset's folder has one version
    assert store.keys["action"] == (7,) and store.keys["reward"] == ()
    assert store.cameras == {f"observation/{camera}": (32, 48) for camera in CAMERAS}
    assert store.defaults == {"proprio": ["observation/state"], "actions": ["action"], "instruction": ["language_instruction"]}


def test_it_equals_what_tfds_reads(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    made = make_rlds(tmp_path / "bridge_dataset" / "1.0.0", file_format="array_record")
    store, theirs = RldsStore(made.root), tfds.builder_from_directory(made.root).as_data_source("train")
    assert len(store.entries) == len(theirs)
    for entry, episode in zip(store.entries, theirs, strict=True):
        steps = list(episode["steps"])
        assert entry.rows == len(steps)
        np.testing.assert_array_equal(store.numbers(entry, ["action"])["action"], [step["action"] for step in steps])
        frames = store.frames(entry, "observation/image_1", np.arange(entry.rows), None)
        theirs_frames = np.stack([step["observation"]["image_1"] for step in steps])
        assert np.abs(frames.astype(int) - theirs_frames).max() <= 10  # tfds takes OpenCV's decoder where there is one


def test_it_equals_the_parser_of_tfds(made: MadeRlds) -> None:
    from tensorflow_datasets.core.example_parser import ExampleParserNp

    from tests.rlds_episodes import features

    store, parser = RldsStore(made.root), ExampleParserNp(features().get_serialized_info())
    for entry in store.entries:
        record = store._record(entry)
        whole = parser.parse_example(record.read(0, record.size))["steps"]
        np.testing.assert_array_equal(store.numbers(entry, ["action"])["action"], whole["action"])
        pictures = [decode_picture(content) for content in whole["observation"]["image_2"]]
        np.testing.assert_array_equal(store.frames(entry, "observation/image_2", np.arange(entry.rows), None), pictures)
        rows = np.array([1, entry.rows - 1])
        small = store.frames(entry, "observation/image_2", rows, (16, 20))
        np.testing.assert_array_equal(small, resize(np.stack(pictures)[rows], (16, 20)))


def test_only_the_wanted_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RldsStore(make_rlds(tmp_path / "1.0.0", [30], 1, size=(128, 128)).root)
    entry, size, read, pread = store.entries[0], store._record(store.entries[0]).size, [0], os.pread

    def counted(descriptor: int, count: int, position: int) -> bytes:
        content = pread(descriptor, count, position)
        read[0] += len(content)
        return content

    monkeypatch.setattr(os, "pread", counted)
    for work, share in [
        (lambda: store.numbers(entry, KEYS), 0.35),
        (lambda: store.texts(entry, "language_instruction"), 0.3),
        (lambda: store.frames(entry, "observation/image_0", np.array([2, 3]), None), 0.45),
    ]:
        read[0] = 0
        work()
        assert 0 < read[0] < share * size


def test_episodes_of_a_described_dataset(made: MadeRlds) -> None:
    episodes = open_episodes(made.root.parent, ["image_1", "image_3"], spec=SPEC)  # the format is found out
    assert [episode.instruction for episode in episodes.episodes] == made.sentences
    assert episodes.control_hz == 5 and [camera.name for camera in episodes.cameras] == ["image_1", "image_3"]
    episode = episodes.episodes[2]
    np.testing.assert_array_equal(episodes.actions(episode), made.actions[2])
    np.testing.assert_array_equal(episodes.proprio(episode), made.states[2])
    frames = episodes.frames(episode, [4, 4, 0])
    assert frames.shape == (3, 32, 96, 3)
    assert np.abs(frames[0, :, 48:].astype(int) - made.pictures[2]["image_3"][4]).max() <= JPEG_TOLERANCE
    assert len(episodes.fingerprint) == 64 and episodes.fingerprint != episodes.tables_fingerprint[:-1]
    with pytest.raises(DatasetError, match="give hz in its description"):
        open_episodes(made.root, ["image_1"])


# -- the index -----------------------------------------------------------------------------------------------------------------


def test_the_index_is_remembered_until_a_file_changes(made: MadeRlds, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    find = records.find_records
    monkeypatch.setattr(records, "find_records", lambda path: looked.append(path) or find(path))
    RldsStore(made.root)
    assert looked == [made.shard(0), made.shard(1)] or looked == [made.shard(1), made.shard(0)]
    looked.clear()
    RldsStore(made.root)
    assert not looked
    os.utime(made.shard(1), (1, 1))
    check_contents(RldsStore(made.root), made, JPEG_TOLERANCE)
    assert looked == [made.shard(1)]


def test_a_damaged_or_foreign_index_is_not_believed(made: MadeRlds, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RldsStore(made.root)
    (kept,) = (made.root / ".mimicvideo").iterdir()
    proof = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    for content in (b"no zip", kept.read_bytes()[:100], pickle.dumps(Evil())):
        kept.write_bytes(content)
        check_contents(RldsStore(made.root), made, JPEG_TOLERANCE)
        assert "is damaged" in caplog.text
        caplog.clear()
    with kept.open("wb") as file:
        np.savez(file, facts=np.array([Evil()], dtype=object), starts=np.zeros(0), lengths=np.zeros(0), rows=np.zeros(0))
    check_contents(RldsStore(made.root), made, JPEG_TOLERANCE)
    assert not proof.exists()


def test_the_index_lies_in_the_cache_if_the_dataset_cannot_be_written(made: MadeRlds, tmp_path: Path) -> None:
    (made.root / ".mimicvideo").write_text("a file where the folder should be")
    RldsStore(made.root)
    assert [path.suffix for path in (tmp_path / "cache" / "mimicvideo").iterdir()] == [".npz"]
    (tmp_path / "cache" / "mimicvideo").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "mimicvideo").write_text("neither here")
    check_contents(RldsStore(made.root), made, JPEG_TOLERANCE)


# -- other processes -----------------------------------------------------------------------------------------------------------


def mean_of(store: RldsStore, index: int) -> tuple[float, float]:
    entry = store.entries[index]
    frames = store.frames(entry, "observation/image_1", np.arange(entry.rows), None)
    return float(frames.mean()), float(store.numbers(entry, ["action"])["action"].sum())


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process")  # Python warns of forks with threads
def test_other_processes_read_too(tmp_path: Path, file_format: str, start: str) -> None:
    store = RldsStore(make_rlds(tmp_path / "1.0.0", file_format=file_format).root)
    here = [mean_of(store, index) for index in range(4)]
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.starmap(mean_of, [(store, index) for index in range(4)]) == here
    assert [mean_of(store, index) for index in range(4)] == here


def test_it_pickles_small(made: MadeRlds) -> None:
    store = RldsStore(made.root)
    mean_of(store, 0)
    assert len(pickle.dumps(store)) < 10_000
    check_contents(pickle.loads(pickle.dumps(store)), made, JPEG_TOLERANCE)


# -- faults of datasets --------------------------------------------------------------------------------------------------------


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_datasets_that_cannot_be_opened(made: MadeRlds, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train"):
        RldsStore(made.root, "trian")
    with pytest.raises(DatasetError, match="no split 'val'; it has train"):
        RldsStore(made.root, "val")
    with pytest.raises(DatasetError, match="there is no features.json"):
        RldsStore(tmp_path / "nothing")
    make_rlds(made.root.parent / "2.0.0", [3], 1)
    with pytest.raises(DatasetError, match=r"several versions: give one of .*1\.0\.0, .*2\.0\.0"):
        RldsStore(made.root.parent)
    info = made.root / "dataset_info.json"
    saved = info.read_text()
    change(info, fileFormat="riegeli")
    with pytest.raises(DatasetError, match="format 'riegeli': tfrecord and array_record are read"):
        RldsStore(made.root)
    split = json.loads(saved)["splits"][0]
    change(info, fileFormat="tfrecord", splits=[{**split, "shardLengths": ["1", "2"]}])
    with pytest.raises(DatasetError, match="holds 2 episodes, dataset_info.json says 1: mend shardLengths"):
        RldsStore(made.root)
    change(info, splits=[{**split, "filepathTemplate": "../{DATASET}"}])
    with pytest.raises(DatasetError, match="should lie beside it"):
        RldsStore(made.root)
    info.write_text("{")
    with pytest.raises(DatasetError, match=r"dataset_info\.json cannot be read"):
        RldsStore(made.root)
    info.unlink()
    with pytest.raises(DatasetError, match=r"dataset_info\.json is missing: download the whole folder"):
        RldsStore(made.root)
    info.write_text(saved)
    for path in made.root.glob("*tfrecord*"):
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 2 files of split 'train', such as bridge_dataset-train.tfrecord-00000-of-00002"):
        RldsStore(made.root)
    (made.root / "features.json").write_text('{"type": "tensorflow_datasets.core.features.FeaturesDict", "content": {}}')
    with pytest.raises(DatasetError, match="is no feature as tensorflow-datasets writes it today"):
        RldsStore(made.root)


def test_features_that_are_no_columns_are_left_out_and_classes_are_never_imported(
    made: MadeRlds, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Trap: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = made.root / "features.json"
    features = json.loads(path.read_text())
    step = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    step["points"] = {"pythonClassName": "x.Sequence", "sequence": {"feature": step["reward"]}}
    step["odd"] = {"pythonClassName": "trap.Trap", "pythonObject": {}}
    step["depth"] = {"pythonClassName": "x.Image", "image": {"shape": {"dimensions": ["8", "8", "1"]}, "dtype": "uint16"}}
    path.write_text(json.dumps(features))
    with caplog.at_level("INFO"):
        store = RldsStore(made.root)
    assert not {"points", "odd", "depth"} & {*store.keys, *store.text_keys, *store.cameras}
    for text in ("steps/points (its length varies)", "steps/odd (a Trap is not read)", "steps/depth (pictures of shape (8, 8, 1)"):
        assert text in caplog.text
    check_contents(store, made, JPEG_TOLERANCE)
    assert not (tmp_path / "executed").exists()


# -- faults of episodes --------------------------------------------------------------------------------------------------------


def faults(root: Path, camera: str = "image_0", **options: Any) -> dict[int, str]:
    return open_episodes(root, [camera], spec=SPEC, max_bad_fraction=0.9, **options).skipped


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def test_a_changed_byte_is_found_by_the_crc(made: MadeRlds) -> None:
    store = RldsStore(made.root)
    place = int(store._shards[0].starts[1])
    start, end = picture_spans(store._record(store.entries[1]), store._columns["observation/image_3"])[2]
    flip(made.shard(0), place + end - 40)
    assert faults(made.root) == {}  # nobody looked there
    (found,) = faults(made.root, verify="full").items()
    assert found == (1, "bridge_dataset-train.tfrecord-00000-of-00002 record 1 is damaged: its content does not fit its CRC")
    assert end - start > 40
    with pytest.raises(DatasetError, match=r"1 of 4 episodes .* allow to skip them with max_bad_fraction=0\.25"):
        open_episodes(made.root, ["image_0"], spec=SPEC, verify="full")


def test_a_record_that_is_no_example(made: MadeRlds) -> None:
    flip(made.shard(0), int(RldsStore(made.root)._shards[0].starts[1]))
    (found,) = faults(made.root).items()
    assert found[0] == 1 and "00000-of-00002 record 1: unknown tag" in found[1]


@pytest.mark.parametrize("position", [0, 9])
def test_a_damaged_length_loses_the_rest_of_the_file_and_says_so(made: MadeRlds, position: int) -> None:
    flip(made.shard(1), int(RldsStore(made.root)._shards[1].starts[1]) - 12 + position)
    (found,) = faults(made.root).items()
    assert found[0] == 3 and "00001-of-00002 record 1: it is damaged at byte" in found[1]


@pytest.mark.parametrize("rest", [5, 2000, 0])
def test_a_truncated_file(made: MadeRlds, rest: int) -> None:
    store, path = RldsStore(made.root), made.shard(1)
    second = int(store._shards[1].starts[1]) - 12
    path.write_bytes(path.read_bytes()[: second + rest])
    (found,) = faults(made.root).items()
    assert found[0] == 3 and ("it is truncated" if rest else "it ends after 1 of 2 records") in found[1]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_missing_file(tmp_path: Path, file_format: str) -> None:
    made = make_rlds(tmp_path / "1.0.0", file_format=file_format)
    made.shard(0).unlink()
    found = faults(made.root)
    assert sorted(found) == [0, 1]
    assert found[1] == f"bridge_dataset-train.{file_format}-00000-of-00002 record 1: there is no such file"


def test_a_damaged_array_record_file(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", file_format="array_record")
    made.shard(0).write_bytes(b"nothing of the kind" * 9)
    assert all("it ends after 0 of 2 records" in text for text in faults(made.root).values()) and len(faults(made.root)) == 2
    flip(made.shard(1), 70)  # in the header of the first record
    found = faults(made.root)
    assert sorted(found) == [0, 1, 2] and "record 0: it cannot be read: " in found[2]


def test_files_that_vanish_or_change_under_way(made: MadeRlds) -> None:
    episodes = open_episodes(made.root, ["image_0"], spec=SPEC, ram_cache_gb=0)
    first, second = made.shard(0), made.shard(1)
    first.unlink()
    with pytest.raises(DatasetError, match=r"episode 0 .*cannot be decoded: .*record 0: it cannot be read: .*No such file"):
        episodes.frames(episodes.episodes[0], [0])
    second.write_bytes(second.read_bytes()[:5000])
    with pytest.raises(DatasetError, match="it changed since it was indexed: open the dataset anew"):
        episodes.frames(episodes.episodes[2], [0])


def test_pictures_that_are_broken_or_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import rlds_episodes

    genuine, sent = rlds_episodes.encoded, []

    def encoded(picture: np.ndarray, kind: str = "jpeg") -> bytes:
        sent.append(1)
        content = genuine(picture if len(sent) != 4 * 7 + 1 else picture[:16], kind)  # row 0, image_0 of episode 1
        return content[: len(content) // 3] if len(sent) == 4 * 12 + 4 * 3 + 1 else content  # row 3, image_0 of episode 2

    monkeypatch.setattr(rlds_episodes, "encoded", encoded)
    made = make_rlds(tmp_path / "1.0.0")
    small = "the picture of row 0 is 16 x 48 pixels, not 32 x 48"
    assert {index: text.split(": ", 1)[1] for index, text in faults(made.root).items()} == {1: small}
    full = faults(made.root, verify="full")
    assert sorted(full) == [1, 2] and "the picture of row 3 is no readable JPEG or PNG (" in full[2]
    store = RldsStore(made.root)
    with pytest.raises(VideoError, match="the picture of row 3 is no readable JPEG or PNG"):
        store.frames(store.entries[2], "observation/image_0", np.array([1, 3]), None)
    with pytest.raises(VideoError, match="there are 9 pictures, none for row 9"):
        store.frames(store.entries[2], "observation/image_0", np.array([9]), None)


def test_views_that_are_absent_are_reported(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", absent={1: ["image_2"], 3: ["image_2", "image_1"]})
    assert faults(made.root, "image_0") == {}
    found = faults(made.root, "image_2")
    assert sorted(found) == [1, 3] and "has no view observation/image_2: all its pictures are black" in found[1]


def test_empty_episodes(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", [4, 0, 3], 1)
    assert faults(made.root) == {1: "it has 0 rows, fewer than 2"}


def test_a_feature_that_the_record_lacks(made: MadeRlds) -> None:
    store = RldsStore(made.root)
    store._columns["observation/height"] = Column("steps/observation/height", "number", (), "float32")
    with pytest.raises(DatasetError, match="record 0: it has no 'steps/observation/height'"):
        store.numbers(store.entries[0], ["observation/height"])
    store._columns["action"] = Column("steps/action", "number", (6,), "float32")
    with pytest.raises(DatasetError, match="record 0: it cannot be parsed"):
        store.numbers(store.entries[0], ["action"])


def test_a_packed_row_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    import zlib

    store = RldsStore(make_rlds(tmp_path / "1.0.0", encoding="zlib").root)
    store._columns["observation/state"] = Column("steps/observation/state", "number", (6,), "float32", "zlib")
    with pytest.raises(DatasetError, match="row 0 of 'steps/observation/state' is not of 24 bytes"):
        store.numbers(store.entries[0], ["observation/state"])
    assert len(zlib.compress(b"\0" * 10**8)) < 10**5  # why it is not unpacked to its end


# -- details -------------------------------------------------------------------------------------------------------------------


def test_the_masked_crc_is_tensorboards() -> None:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs

    from mimicvideo.data.rlds.tfrecord import masked_crc32c

    for content in (b"", b"123456789", bytes(range(256)) * 5):
        assert masked_crc32c(content) == theirs(content)


def test_the_size_of_pictures_is_looked_up_where_it_is_not_said(made: MadeRlds) -> None:
    path = made.root / "features.json"
    text = path.read_text()
    assert text.count('"32"') == text.count('"48"') == len(CAMERAS)
    path.write_text(text.replace('"32"', '"-1"').replace('"48"', '"-1"'))
    store = RldsStore(made.root)
    assert store.cameras == {f"observation/{camera}": (32, 48) for camera in CAMERAS}
    check_contents(store, made, JPEG_TOLERANCE)
