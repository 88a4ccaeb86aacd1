"""RLDS, zarr, HDF5 and folders of videos: sound datasets raise no alarm, and faults of recordings and of files are found and named."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from mimicvideo.audit.dataset import Audited, Plan, audit_dataset
from mimicvideo.data.sources import Source
from mimicvideo.data.window import Window
from tests.audit_formats import DAMAGES, hdf5_index, recordings, spec_of, write_format
from tests.faults import BAD, CAMERAS, FAULTS, Corpus, make_corpus

KINDS = ("rlds", "zarr", "hdf5", "videos")
# Numbers of all formats go the same way from the reader on: one format has many, the others one of each kind.
NUMBERS = (
    "constant_action_dim",
    "swapped_rotations",
    "degrees_in_states",
    "actions_one_row_late",
    "inverted_gripper",
    "actions_of_another",
)
SOME = ("inverted_dim", "saturated_dims", "duplicate", "german_instruction", "repeated_frames", "idle_tail", "swapped_cameras")
PICTURES = ("black_frames", "frozen_video", "repeated_frames", "mirrored", "swapped_channels", "exposure_jump", "idle_head", "idle_tail")
SAID = ("empty_instruction", "placeholder_instruction", "chinese_instruction", "duplicate", "short_episode", "one_row")
RECORDED = [*(("rlds", name) for name in (*NUMBERS, *SOME)), *((kind, name) for kind in ("zarr", "hdf5") for name in SOME)]
RECORDED += [("videos", name) for name in (*PICTURES, *SAID)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def sound(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound dataset of each format."""
    roots = {kind: tmp_path_factory.mktemp("sound") / kind for kind in KINDS}
    for kind, root in roots.items():
        write_format(kind, root, corpus, corpus.recordings)
    return roots


def audited(root: Path, cameras: Sequence[str], folder: Path) -> Audited:
    reader = Source(str(root), spec=str(spec_of(root))).open(list(cameras), max_bad_fraction=1.0, ram_cache_gb=0.0)
    return audit_dataset("data", reader, set(), Plan(Window(1, 8), "full", "en", 0, folder), lambda frames, new: None)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_data_has_no_finding(kind: str, sound: dict[str, Path], tmp_path: Path) -> None:
    found = audited(sound[kind], CAMERAS if kind != "videos" else ("front",), tmp_path)
    assert [(finding.kind, finding.episode, finding.text) for finding in found.findings] == []
    assert len(found.content["relations"]) == (6 if kind != "videos" else 0)


@pytest.mark.parametrize(("kind", "name"), RECORDED)
def test_a_fault_of_a_recording_is_found(kind: str, name: str, corpus: Corpus, tmp_path: Path) -> None:
    fault = FAULTS[name]
    changed = {BAD: fault.change(corpus.recordings[BAD], corpus)} if fault.change else {}
    made = recordings(corpus, changed, [fault.again(corpus)] if fault.again else [])
    bad = len(made) - 1 if fault.again else BAD
    write_format(kind, tmp_path / "data", corpus, made)
    found = audited(tmp_path / "data", fault.cameras if kind != "videos" else ("front",), tmp_path)
    where = hdf5_index(made, bad) if kind == "hdf5" else bad
    assert {(finding.kind, finding.episode) for finding in found.findings} == {(fault.kind, where)}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, damages in DAMAGES.items() for name in damages])
def test_damage_of_files_is_found(kind: str, name: str, sound: dict[str, Path], tmp_path: Path) -> None:
    damage, expected, episodes = DAMAGES[kind][name]
    root = tmp_path / "data"
    shutil.copytree(sound[kind], root)
    shutil.copy(spec_of(sound[kind]), spec_of(root))
    damage(root)
    found = audited(root, ("front",), tmp_path)
    assert [(finding.kind, finding.episode) for finding in found.findings] == [(expected, episode) for episode in episodes]


def test_a_copy_of_a_video_under_another_encoding_is_almost_the_same(corpus: Corpus, tmp_path: Path) -> None:
    again = FAULTS["duplicate_encoded_again"].again
    assert again is not None
    write_format("videos", tmp_path / "data", corpus, [*corpus.recordings, again(corpus)])
    found = [(finding.kind, finding.episode, finding.text) for finding in audited(tmp_path / "data", ("front",), tmp_path).findings]
    assert found == [("near_duplicate", len(corpus.recordings), "its pictures are almost those of episode 3")]


def test_files_beside_videos_are_no_captions_without_video(sound: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(sound["videos"], root)
    shutil.copy(spec_of(sound["videos"]), spec_of(root))
    (root / "README.txt").write_text("About these 12 clips.")
    (root / "statistics_1.json").write_text("{}")
    assert list(audited(root, ("front",), tmp_path).findings) == []


# -- few episodes --------------------------------------------------------------------------------------------------------------

OF_ANY_TASKS = ("swapped_rotations", "inverted_dim", "degrees_in_states", "actions_one_row_late", "inverted_gripper", "mirrored")
OF_ONE_TASK = ("constant_action_dim", "saturated_dims", "gripper_from_minus_one", "short_episode")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_sound_episodes_raise_no_alarm(count: int, corpus: Corpus, tmp_path: Path) -> None:
    write_format("rlds", tmp_path / "data", corpus, corpus.recordings[:count])
    assert list(audited(tmp_path / "data", CAMERAS, tmp_path).findings) == []


@pytest.mark.parametrize(
    ("name", "places"),
    [*((name, (0, 1, 2)) for name in (*OF_ANY_TASKS, "black_frames", "idle_tail")), *((name, (0, 3, 6, 9)) for name in OF_ONE_TASK)],
)
def test_one_of_few_episodes_stands_out(name: str, places: tuple[int, ...], corpus: Corpus, tmp_path: Path) -> None:
    fault, made = FAULTS[name], [corpus.recordings[place] for place in places]
    assert fault.change is not None
    made[1] = fault.change(made[1], corpus)
    write_format("rlds", tmp_path / "data", corpus, made)
    assert (fault.kind, 1) in {(finding.kind, finding.episode) for finding in audited(tmp_path / "data", fault.cameras, tmp_path).findings}


def test_black_pictures_need_no_comparison(corpus: Corpus, tmp_path: Path) -> None:
    change = FAULTS["black_frames"].change
    assert change is not None
    write_format("rlds", tmp_path / "data", corpus, [change(corpus.recordings[0], corpus)])
    assert [(finding.kind, finding.episode) for finding in audited(tmp_path / "data", ("front",), tmp_path).findings] == [
        ("black_frames", 0)
    ]
