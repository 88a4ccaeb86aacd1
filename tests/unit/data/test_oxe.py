"""Grippers and the quirks of Open X-Embodiment's datasets, with numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from mimicvideo.data import oxe
from mimicvideo.data import oxe_grippers as grippers
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import DatasetSpec, load_spec
from mimicvideo.data.standards import Columns, needed
from tests.rlds_episodes import CAMERAS, make_rlds


def columns(actions: object, proprio: object = None, **others: object) -> Columns:
    actions = np.asarray(actions, np.float64)
    state = np.arange(30.0 * len(actions)).reshape(len(actions), 30) if proprio is None else np.asarray(proprio, np.float64)
    return {"actions": actions, "proprio": state, **{key: np.asarray(value) for key, value in others.items()}}


# -- grippers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("commands", "absolute"),
    [
        ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]),  # open until it closes
        ([0, -0.5, 0, 0.5], [0, 1, 1, 0]),  # it opens first, hence was closed
        ([0.1, -0.1, 0.05], [1, 1, 1]),  # nothing beyond the threshold: open throughout
        ([1, 1, 0, -1], [0, 0, 0, 1]),
        ([-1], [1]),
    ],
)
def test_relative_commands_become_absolute(commands: list[float], absolute: list[float]) -> None:
    np.testing.assert_array_equal(grippers.from_relative(np.array(commands, float)), absolute)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0.7, 0.3, 0, 0.2, 0.99], [1, 0, 0, 0, 1, 1]),  # in between: the next definite value
        ([0.5, 0.96], [1, 1]),
        ([0, 0.4, 0.6], [0, 0.6, 0.6]),  # without a next one: the last
        ([0.05, 0.95, 0.04], [0, 0, 0]),  # the thresholds themselves are in between
    ],
)
def test_values_in_between_take_the_next_definite_one(values: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(grippers.binary(np.array(values, float)), expected)


def scan_from_relative(commands: np.ndarray) -> np.ndarray:
    """The recurrence as Octo's documentation of `rel2abs_gripper_actions` puts it, step by step."""
    state = next((0.0 if command < -0.1 else 1.0 for command in commands if abs(command) > 0.1), 1.0)
    states = []
    for command in commands:
        state = 0.0 if command > 0.1 else 1.0 if command < -0.1 else state
        states.append(state)
    return np.array(states)


def scan_binary(values: np.ndarray) -> np.ndarray:
    """Likewise of `binarize_gripper_actions`, from the end to the start."""
    carry, states = values[-1], []
    for value in values[::-1]:
        carry = 1.0 if value > 0.95 else 0.0 if value < 0.05 else carry
        states.append(carry)
    return np.array(states[::-1])


def test_scans_agree_with_their_recurrences() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        length = random.integers(1, 12)
        commands = random.choice([-1.0, -0.2, 0.0, 0.05, 0.3], length)
        np.testing.assert_array_equal(grippers.from_relative(commands), scan_from_relative(commands))
        values = random.choice([0.0, 0.04, 0.05, 0.5, 0.7, 0.96, 1.0], length)
        np.testing.assert_array_equal(grippers.binary(values), scan_binary(values))


def test_inverted_grippers_are_clipped() -> None:
    np.testing.assert_allclose(grippers.inverted(np.array([-1.0, 0.0, 0.25, 1.0, 2.0])), [1, 1, 0.75, 0, 0])


# -- datasets ------------------------------------------------------------------------------------------------------------------


def test_bridge_motions_are_differences_of_reached_states() -> None:
    states = [[0, 0, 0, 0, 0, 0, 9], [1, 2, 3, 0.1, 0.2, 0.3, 9], [1, 1, 1, 0, 0, 0, 9]]
    out = oxe.bridge(columns([[7, 7, 7, 7, 7, 7, 1], [7, 7, 7, 7, 7, 7, 0.5], [7, 7, 7, 7, 7, 7, 0]], states))
    np.testing.assert_allclose(out["actions"][:2], [[1, 2, 3, 0.1, 0.2, 0.3, 1], [0, -1, -2, -0.1, -0.2, -0.3, 0]], atol=1e-12)
    assert out["keep"].tolist() == [True, True, False]
    np.testing.assert_array_equal(out["proprio"], states)


def test_kuka_leaves_failures_out() -> None:
    actions = [[1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 0]]
    assert oxe.kuka(columns(actions, success=[1.0, 1.0]))["keep"].tolist() == [True, True]
    out = oxe.kuka(columns(actions, success=[0.0, 0.0]))
    assert out["keep"].tolist() == [False, False]
    np.testing.assert_array_equal(out["actions"], [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0]])
    assert needed(oxe.kuka) == ("success",)


def test_taco_play() -> None:
    out = oxe.taco_play(columns([[1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1]], np.arange(30).reshape(2, 15)))
    np.testing.assert_array_equal(out["actions"], [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 1]])
    np.testing.assert_array_equal(out["proprio"], [[0, 1, 2, 3, 4, 5, 6], [15, 16, 17, 18, 19, 20, 21]])


def test_missing_motion_is_filled_with_zeros() -> None:
    np.testing.assert_array_equal(oxe.jaco_play(columns([[1, 2, 3, -1]]))["actions"], [[1, 2, 3, 0, 0, 0, 1]])
    np.testing.assert_array_equal(oxe.berkeley_cable_routing(columns([[1, 2, 3, 4, 5, 6]]))["actions"], [[1, 2, 3, 4, 5, 6, 0]])
    fanuc = oxe.berkeley_fanuc_manipulation(columns([[1, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 6, 0.25, 8]]))
    np.testing.assert_array_equal(fanuc["actions"], [[1, 2, 3, 4, 5, 6, 0.75]])
    np.testing.assert_array_equal(fanuc["proprio"], [[1, 2, 3, 4, 5, 6, 0.25]])
    stretch = oxe.cmu_stretch(columns([[1, 2, 3, 4, 5, 6, 7, 8]], [[1, 2, 3, 4]]))
    np.testing.assert_array_equal(stretch["actions"], [[1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(stretch["proprio"], [[1, 2, 3, 0, 0, 0, 4]])


def test_parts_of_long_states_and_actions() -> None:
    state, action = np.arange(30.0)[None], np.array([[1.0, 2, 3, 4, 5, 6, 1]])
    assert oxe.berkeley_autolab_ur5(columns(action, state))["proprio"].tolist() == [list(range(6, 14))]
    assert oxe.stanford_hydra(columns(action, state[:, :27]))["proprio"].tolist() == [[0, 1, 2, 7, 8, 9, 24]]
    assert oxe.joints_and_gripper(columns(action, state))["proprio"].tolist() == [list(range(8))]
    assert oxe.joints_and_gripper(columns(action, state))["actions"].tolist() == [[1, 2, 3, 4, 5, 6, 0]]
    play = oxe.nyu_franka_play(columns([[0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, -1, 9]], state[:, :13]))
    assert play["actions"].tolist() == [[1, 2, 3, 4, 5, 6, 0]] and play["proprio"].tolist() == [[7, 8, 9, 10, 11, 12]]
    kitchen = oxe.ucsd_kitchen(columns([[1, 2, 3, 4, 5, 6, 7, 8]], state[:, :21]))
    assert kitchen["actions"].tolist() == [[1, 2, 3, 4, 5, 6, 7]] and kitchen["proprio"].tolist() == [list(range(7))]


def test_bc_z_takes_the_first_of_ten_steps() -> None:
    keys = ("xyz_residual", "axis_angle_residual", "target_close")
    parts = [np.arange(30.0)[None], 100 + np.arange(30.0)[None], np.array([[1.0, *[0] * 9]])]
    given = {**columns(np.zeros((1, 70))), **{f"action/future/{key}": part for key, part in zip(keys, parts, strict=True)}}
    assert oxe.bc_z(given)["actions"].tolist() == [[0, 1, 2, 100, 101, 102, 0]]


def about(axis: int, angle: float) -> np.ndarray:
    """The quaternion (x, y, z, w) of a turn about one axis."""
    return np.array([*np.sin(angle / 2) * np.eye(3)[axis], np.cos(angle / 2)])


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton's product: the turn `b`, then `a`."""
    return np.array([*(a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])), a[3] * b[3] - a[:3] @ b[:3]])


def test_quaternions_become_euler_angles() -> None:
    angles = np.random.default_rng(0).uniform([-np.pi, -np.pi / 2, -np.pi], [np.pi, np.pi / 2, np.pi], (50, 3))
    quaternions = [product(product(about(2, yaw), about(1, pitch)), about(0, roll)) for roll, pitch, yaw in angles]
    np.testing.assert_allclose(oxe.euler_angles(3 * np.array(quaternions)), angles, atol=1e-9)
    quarter = [0, 0, np.sin(np.pi / 4), np.cos(np.pi / 4)]  # about z
    np.testing.assert_allclose(oxe.euler_angles(np.array([quarter])), [[0, 0, np.pi / 2]], atol=1e-12)
    iamlab = oxe.iamlab_cmu_pickup_insert(columns([[1, 2, 3, *quarter, 0.5]]))
    np.testing.assert_allclose(iamlab["actions"], [[1, 2, 3, 0, 0, np.pi / 2, 0.5]], atol=1e-12)
    bench = oxe.furniture_bench(columns([[1, 2, 3, *quarter, -1]], np.arange(35.0)[None]))
    np.testing.assert_allclose(bench["actions"], [[1, 2, 3, 0, 0, np.pi / 2, 1]], atol=1e-12)
    assert bench["proprio"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 34]]


def test_language_table_decodes_padded_code_points() -> None:
    codes = np.zeros((3, 12))
    for row, text in enumerate(["push blue", "push blue", "wait "]):
        codes[row, : len(text)] = [ord(letter) for letter in text]
    out = oxe.language_table(columns([[1, 2]] * 3, **{"observation/instruction": codes}))
    assert out["instructions"].tolist() == ["push blue", "wait"]
    assert out["actions"][0].tolist() == [1, 2, 0, 0, 0, 0, 1]
    assert oxe.language_table(columns([[1, 2]], **{"observation/instruction": np.zeros((1, 4))}))["instructions"].tolist() == []


def test_droid_keeps_what_moves_and_succeeded() -> None:
    actions = [[0.1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, -0.1, 0]]
    path = "episode_metadata/file_path"
    out = oxe.droid(columns(actions, **{path: ["/x/success/1.h5"]}))
    assert out["keep"].tolist() == [True, False, True] and out["actions"][:, 6].tolist() == [0, 1, 1]
    assert not oxe.droid(columns(actions, **{path: ["/x/failure/1.h5"]}))["keep"].any()
    assert not oxe.droid(columns(actions, **{path: np.array([], np.str_)}))["keep"].any()


def test_arguments_are_not_changed() -> None:
    for function in (oxe.bridge, oxe.relative_gripper, oxe.inverted_gripper, oxe.stanford_hydra, oxe.taco_play):
        given = columns(np.random.default_rng(0).normal(size=(4, 7)))
        before = {key: values.copy() for key, values in given.items()}
        function(given)
        for key, values in before.items():
            np.testing.assert_array_equal(given[key], values)


# -- through a dataset on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_bridge_as_its_descriptions_read_it(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", [6, 5])
    for name, first in (("bridge_dataset", 0), ("bridge_orig", 1)):
        episodes = open_episodes(made.root, ["primary"], spec=name)
        assert (episodes.robot, episodes.control_hz, episodes.action_names[-1]) == ("WidowX", 5, "gripper")
        episode, states = episodes.episodes[0], made.states[0]
        assert episode.length == 5 - first
        np.testing.assert_array_equal(episodes.proprio(episode), states[first:-1])
        np.testing.assert_allclose(episodes.actions(episode)[:, :6], np.diff(states, axis=0)[first:, :6], rtol=1e-6)
        frames = episodes.frames(episode, [0])  # rows and pictures stay together
        assert np.abs(frames[0].astype(int) - made.pictures[0]["image_0"][first]).max() <= 12


def only_odd(columns: Columns) -> Columns:
    """Keeps episodes whose first action is positive, and says so."""
    return {**columns, "keep": np.full(len(columns["actions"]), columns["actions"][0, 0] > 0), "instructions": np.array(["one", "two"])}


def none(columns: Columns) -> Columns:
    return {**columns, "keep": np.zeros(len(columns["actions"]), bool)}


def too_wide(columns: Columns) -> Columns:
    return {**columns, "actions": columns["actions"][:, [99]]}


@pytest.mark.usefixtures("own_cache")
def test_what_a_function_leaves_out_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_rlds(tmp_path / "1.0.0", [4, 5, 6, 7])
    positive = [index for index, actions in enumerate(made.actions) if actions[0, 0] > 0]
    assert 0 < len(positive) < 4
    cameras = {camera: f"observation/{camera}" for camera in CAMERAS}

    def spec(function: str) -> DatasetSpec:
        return DatasetSpec(hz=5, cameras=cameras, standardise=f"{__name__}:{function}")

    episodes = open_episodes(made.root, ["image_0"], spec=spec("only_odd"))
    assert [episode.index for episode in episodes.episodes] == positive and episodes.skipped == {}
    assert episodes.episodes[0].instructions == ("one", "two")
    assert f"leaves out {4 - len(positive)} of 4 episodes" in caplog.text
    with pytest.raises(DatasetError, match="leaves out every episode"):
        open_episodes(made.root, ["image_0"], spec=spec("none"))
    with pytest.raises(DatasetError, match="does not fit its columns: index 99 is out of bounds"):
        open_episodes(made.root, ["image_0"], spec=spec("too_wide"))
    with pytest.raises(DatasetError, match="needs the key 'success', which .* does not have"):
        open_episodes(made.root, ["image_0"], spec=DatasetSpec(hz=5, cameras=cameras, standardise="mimicvideo.data.oxe:kuka"))


@pytest.mark.usefixtures("own_cache")
def test_sentences_of_the_dataset_reach_a_function(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", [4, 5])  # their paths hold `success`
    spec = DatasetSpec(hz=15, cameras={"primary": "observation/image_0"}, standardise="mimicvideo.data.oxe:droid")
    assert [episode.length for episode in open_episodes(made.root, spec=spec).episodes] == [4, 5]


@pytest.mark.usefixtures("own_cache")
def test_swapped_colours(tmp_path: Path) -> None:
    made = make_rlds(tmp_path / "1.0.0", [4], 1, picture="png")
    cameras = {camera: f"observation/{camera}" for camera in CAMERAS}
    spec = DatasetSpec(hz=5, cameras=cameras, swap_colours=["image_1"])
    plain, swapped = (open_episodes(made.root, [camera], spec=spec) for camera in ("image_0", "image_1"))
    np.testing.assert_array_equal(plain.frames(plain.episodes[0], [2])[0], made.pictures[0]["image_0"][2])
    np.testing.assert_array_equal(swapped.frames(swapped.episodes[0], [2])[0], made.pictures[0]["image_1"][2][..., ::-1])
    with pytest.raises(DatasetError, match="swap_colours of .* names no camera: 'wrist'; there are image_0"):
        open_episodes(made.root, ["image_0"], spec=DatasetSpec(hz=5, cameras=cameras, swap_colours=["wrist"]))


def test_descriptions_have_the_quirks_of_their_datasets() -> None:
    assert load_spec("kuka").proprio_names == ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]
    assert load_spec("berkeley_autolab_ur5").swap_colours == ["wrist"]
    assert load_spec("droid").instruction == ["language_instruction", "language_instruction_2", "language_instruction_3"]
