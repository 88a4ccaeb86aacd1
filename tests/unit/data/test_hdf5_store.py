"""Demonstrations in HDF5: what robomimic and LIBERO write, and what is refused."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.hdf5_store import Hdf5Store
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import DatasetSpec
from tests.every_format import HDF5, film, hdf5

SPEC = DatasetSpec(cameras={"front": "obs/agentview_rgb"}, hz=20)


def demonstration(path: Path, name: str = "demo_0", rows: int = 6, **attributes: Any) -> None:
    with h5py.File(path, "a") as file:
        group = file.require_group("data").create_group(name)
        group["actions"] = np.zeros((rows, 7))
        group["obs/agentview_rgb"] = np.full((rows, 8, 8, 3), len(file["data"]), np.uint8)
        file["data"].attrs.update(attributes)


@pytest.mark.parametrize(
    ("name", "attributes", "told"),
    [
        ("open_the_top_drawer_demo.hdf5", {}, "open the top drawer"),
        ("KITCHEN_SCENE10_close_the_top_drawer_demo.hdf5", {}, "close the top drawer"),
        ("LIVING_ROOM_SCENE1_pick_up_the_ketchup_demo.hdf5", {}, "pick up the ketchup"),
        ("x.hdf5", {"problem_info": json.dumps({"language_instruction": "Turn on the stove."})}, "Turn on the stove."),
        ("x.hdf5", {"problem_info": json.dumps({"language_instruction": ["t", "u", "r", "n"]})}, "turn"),
        ("put_it_away_demo.hdf5", {"problem_info": "no json"}, "put it away"),
    ],
)
def test_instructions_as_libero_finds_them(tmp_path: Path, name: str, attributes: dict[str, str], told: str) -> None:
    demonstration(tmp_path / name, **attributes)
    (episode,) = open_episodes(tmp_path / name, spec=SPEC).episodes
    assert (episode.instructions, episode.task) == ((told,), told)


def test_demonstrations_are_counted_as_people_do(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        demonstration(tmp_path / "b_demo.hdf5", f"demo_{number}", rows=number + 1)
    (tmp_path / "sub").mkdir()
    demonstration(tmp_path / "sub/a_demo.hdf5")
    reader = open_episodes(tmp_path, spec=SPEC)
    assert [episode.entry.name for episode in reader.episodes] == [
        "b_demo.hdf5:demo_1",
        "b_demo.hdf5:demo_2",
        "b_demo.hdf5:demo_10",
        "a_demo.hdf5:demo_0",
    ]
    assert [episode.length for episode in reader.episodes] == [2, 3, 11, 6]


def test_pictures_are_turned_where_the_description_says(tmp_path: Path) -> None:
    hdf5(tmp_path / "d")
    fields = {name: getattr(HDF5, name) for name in HDF5.__dataclass_fields__}
    as_stored = open_episodes(tmp_path / "d", spec=DatasetSpec(**{**fields, "rotate_180": None}))
    turned = open_episodes(tmp_path / "d", spec=HDF5)
    picture = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)
    with h5py.File(tmp_path / "d/do_it_demo.hdf5", "a") as file:
        file["data/demo_0/obs/agentview_rgb"][...] = picture
    np.testing.assert_array_equal(as_stored.frames(as_stored.episodes[0], [3]), picture[3:4])
    np.testing.assert_array_equal(turned.frames(turned.episodes[0], [3])[0], np.rot90(picture[3], 2))
    with pytest.raises(DatasetError, match="rotate_180 .* names no camera: 'wrist'; it has corner2"):
        open_episodes(tmp_path / "d", spec=DatasetSpec(**{**fields, "rotate_180": ["wrist"]}))


def test_mixed_sizes_are_refused_or_resized(tmp_path: Path) -> None:
    demonstration(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((6, 7))
        file["data/demo_0/obs/agentview_rgb"] = np.zeros((6, 4, 8, 3), np.uint8)
    with pytest.raises(DatasetError, match="episode 1: .*camera front are 4 x 8 pixels, others 8 x 8: set height and width"):
        open_episodes(tmp_path, spec=SPEC)
    reader = open_episodes(tmp_path, spec=SPEC, size=(6, 6))
    assert [reader.frames(episode, [0]).shape for episode in reader.episodes] == [(1, 6, 6, 3)] * 2


def external(file: Any) -> None:
    file["data/demo_0/obs/secret"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file: Any) -> None:
    file["data/demo_1"] = h5py.SoftLink("/data/demo_0")


def references(file: Any) -> None:
    file["data/demo_0"].create_dataset("refs", data=np.array([file["data"].ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def objects(file: Any) -> None:
    dataset = file["data/demo_0"].create_dataset("pickles", (1,), dtype=h5py.vlen_dtype(np.uint8))
    dataset[0] = np.frombuffer(b"\x80\x04.", np.uint8)


def opaque(file: Any) -> None:
    file["data/demo_0"].create_dataset("blob", data=np.array([b"\x80\x04."], dtype="V3"))


def elsewhere(file: Any) -> None:
    file["data/demo_0"].create_dataset("raw", (4,), np.uint8, external=[("/etc/passwd", 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=(1,), dtype="f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", shape=(1,))
    file["data/demo_0"].create_virtual_dataset("virtual", layout)


def whole_data(file: Any) -> None:
    del file["data"]
    file["data"] = h5py.ExternalLink("other.hdf5", "/data")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (external, "data/demo_0/obs/secret is a link to /etc/passwd:/, which is refused"),
        (soft, "data/demo_1 is a link to /data/demo_0, which is refused"),
        (references, "data/demo_0/refs holds references, which is refused"),
        (objects, "data/demo_0/pickles holds objects of any length, which is refused"),
        (opaque, "data/demo_0/blob holds records or opaque bytes"),
        (elsewhere, "data/demo_0/raw keeps its values in other files, which is refused"),
        (virtual, "data/demo_0/virtual keeps its values in other files, which is refused"),
        (whole_data, "data is a link to other.hdf5:/data, which is refused"),
    ],
)
def test_what_leads_out_of_the_file_or_is_no_number_is_refused(tmp_path: Path, add: Any, message: str) -> None:
    demonstration(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        add(file)
    with pytest.raises(DatasetError, match=message):
        Hdf5Store(tmp_path)


def test_sentences_in_a_demonstration_come_first(tmp_path: Path) -> None:
    demonstration(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["data/demo_0/instruction"] = ["Lift it.", "Raise it.", "Lift it."]
    (episode,) = open_episodes(tmp_path, spec=SPEC).episodes
    assert episode.instructions == ("Lift it.", "Raise it.")


def test_rate_and_robot_of_the_environment(tmp_path: Path) -> None:
    env = {"env_name": "Lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}
    demonstration(tmp_path / "a.hdf5", env_args=json.dumps(env))
    store = Hdf5Store(tmp_path)
    assert (store.hz, store.robot, store.defaults["actions"]) == (20.0, "Panda", ["actions"])
    demonstration(tmp_path / "b.hdf5")
    with pytest.raises(DatasetError, match="does not say how many rows a second has: give hz in its description"):
        open_episodes(tmp_path, spec=DatasetSpec())


def test_damaged_files_and_episodes(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="a.hdf5 is damaged or truncated"):
        Hdf5Store(tmp_path)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["other"] = [1]
    with pytest.raises(DatasetError, match="a.hdf5 has no group data/ with demonstrations.*; it has other"):
        Hdf5Store(tmp_path)
    with pytest.raises(DatasetError, match="there is no dataset"):
        Hdf5Store(tmp_path / "absent")
    hdf5(tmp_path / "d")
    with h5py.File(tmp_path / "d/do_it_demo.hdf5", "a") as file:
        del file["data/demo_0/obs/x"], file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((7, 3))
    with pytest.raises(DatasetError) as caught:
        open_episodes(tmp_path / "d", spec=HDF5)
    assert "episode 0: do_it_demo.hdf5:demo_0 has no data set 'obs/x'; it has actions, obs/agentview_rgb, obs/y" in str(caught.value)
    assert "episode 1: do_it_demo.hdf5:demo_1: actions has 7 rows, its pictures 20" in str(caught.value)
    (only,) = open_episodes(tmp_path / "d", spec=HDF5, max_bad_fraction=0.7).episodes
    assert only.instruction == "Do the other thing."


def test_rows_are_read_in_any_pattern(tmp_path: Path) -> None:
    hdf5(tmp_path / "d")
    store = Hdf5Store(tmp_path / "d")
    for rows in ([4], [0, 1, 2], [1, 4, 7], [0, 1, 5, 11]):
        frames = store.frames(store.entries[0], "obs/agentview_rgb", np.array(rows), None)
        np.testing.assert_array_equal(frames[:, ::-1, ::-1], film(0)[rows])
