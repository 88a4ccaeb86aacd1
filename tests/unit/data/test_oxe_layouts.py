"""Every description of Open X-Embodiment opens a TFRecord split with the features that its dataset has, and gives what the columns say.

Features are those of tensorflow-datasets' catalogue and of the builders of bridge_dataset, droid and fmb, as far as they are read.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimicvideo.data.lerobot_files import write_json
from mimicvideo.data.open import open_episodes
from mimicvideo.data.spec import load_spec
from tests.rlds_episodes import write_tfrecord

ROWS = 6
WORLD = {"action/world_vector": 3, "action/rotation_delta": 3}
CLOSEDNESS = {**WORLD, "action/gripper_closedness_action": 1}
SCALAR_CLOSEDNESS = {**WORLD, "action/gripper_closedness_action": 0}
BRIDGE = {"observation/state": 7, "action": 7}
NATURAL, PLAIN = "observation/natural_language_instruction", "language_instruction"
CONVERTED = "_converted_externally_to_rlds"
# By dataset: widths of numbers (0 for a plain number), cameras, where the instruction is; and how many numbers a state has in the end.
LAYOUTS: dict[str, tuple[dict[str, int], list[str], str | None, int]] = {
    "bridge_dataset": (BRIDGE, ["image_0", "image_1", "image_2", "image_3"], PLAIN, 7),
    "bridge_orig": (BRIDGE, ["image_0", "image_1", "image_2", "image_3"], PLAIN, 7),
    "fractal20220817_data": (
        {**CLOSEDNESS, "observation/base_pose_tool_reached": 7, "observation/gripper_closed": 1},
        ["image"],
        NATURAL,
        8,
    ),
    "kuka": (
        {**CLOSEDNESS, "observation/clip_function_input/base_pose_tool_reached": 7, "observation/gripper_closed": 1},
        ["image"],
        NATURAL,
        8,
    ),
    "taco_play": ({"action/rel_actions_world": 7, "observation/robot_obs": 15}, ["rgb_static", "rgb_gripper"], NATURAL, 7),
    "jaco_play": (
        {"action/world_vector": 3, "action/gripper_closedness_action": 1, "observation/end_effector_cartesian_pos": 7},
        ["image", "image_wrist"],
        NATURAL,
        7,
    ),
    "berkeley_cable_routing": ({**WORLD, "observation/robot_state": 7}, ["image", "top_image", "wrist45_image"], NATURAL, 7),
    "roboturk": (CLOSEDNESS, ["front_rgb"], NATURAL, 0),
    "nyu_door_opening_surprising_effectiveness": (CLOSEDNESS, ["image"], NATURAL, 0),
    "viola": (
        {**SCALAR_CLOSEDNESS, "observation/joint_states": 7, "observation/gripper_states": 1},
        ["agentview_rgb", "eye_in_hand_rgb"],
        NATURAL,
        8,
    ),
    "berkeley_autolab_ur5": ({**SCALAR_CLOSEDNESS, "observation/robot_state": 15}, ["image", "hand_image"], NATURAL, 8),
    "toto": ({**WORLD, "action/open_gripper": 0, "observation/state": 7}, ["image"], NATURAL, 7),
    "language_table": ({"action": 2, "observation/effector_translation": 2, "observation/instruction": 512}, ["rgb"], None, 2),
    f"stanford_hydra_dataset{CONVERTED}": ({"action": 7, "observation/state": 27}, ["image", "wrist_image"], PLAIN, 7),
    f"austin_buds_dataset{CONVERTED}": ({"action": 7, "observation/state": 24}, ["image", "wrist_image"], PLAIN, 8),
    f"austin_sailor_dataset{CONVERTED}": ({"action": 7, "observation/state": 8}, ["image", "wrist_image"], PLAIN, 8),
    f"austin_sirius_dataset{CONVERTED}": ({"action": 7, "observation/state": 8}, ["image", "wrist_image"], PLAIN, 8),
    f"nyu_franka_play_dataset{CONVERTED}": ({"action": 15, "observation/state": 13}, ["image", "image_additional_view"], PLAIN, 6),
    f"furniture_bench_dataset{CONVERTED}": ({"action": 8, "observation/state": 35}, ["image", "wrist_image"], PLAIN, 8),
    f"ucsd_kitchen_dataset{CONVERTED}": ({"action": 8, "observation/state": 21}, ["image"], PLAIN, 7),
    "bc_z": (
        {
            "observation/present/xyz": 3,
            "observation/present/axis_angle": 3,
            "observation/present/sensed_close": 1,
            "action/future/xyz_residual": 30,
            "action/future/axis_angle_residual": 30,
            "action/future/target_close": 10,
        },
        ["image"],
        NATURAL,
        7,
    ),
    f"dlr_edan_shared_control{CONVERTED}": ({"action": 7, "observation/state": 7}, ["image"], PLAIN, 7),
    f"iamlab_cmu_pickup_insert{CONVERTED}": ({"action": 8, "observation/state": 20}, ["image", "wrist_image"], PLAIN, 8),
    "utaustin_mutex": ({"action": 7, "observation/state": 24}, ["image", "wrist_image"], PLAIN, 8),
    "berkeley_fanuc_manipulation": ({"action": 6, "observation/state": 13}, ["image", "wrist_image"], PLAIN, 7),
    "cmu_stretch": ({"action": 8, "observation/state": 4}, ["image"], PLAIN, 7),
    "fmb_dataset": (
        {"action": 7, "observation/eef_pose": 7, "observation/state_gripper_pose": 0},
        ["image_side_1", "image_side_2", "image_wrist_1", "image_wrist_2"],
        PLAIN,
        8,
    ),
    "dobbe": ({"action": 7, "observation/state": 7}, ["wrist_image"], PLAIN, 7),
    "droid": (
        {
            "action": 7,
            "action_dict/cartesian_velocity": 6,
            "action_dict/gripper_position": 1,
            "observation/cartesian_position": 6,
            "observation/gripper_position": 1,
        },
        ["exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"],
        PLAIN,
        7,
    ),
}
# Grippers that are between 0 and 1 in the dataset and stay as they are.
AS_STORED = [
    "dobbe",
    "fmb_dataset",
    "cmu_stretch",
    *(f"{name}{CONVERTED}" for name in ("ucsd_kitchen_dataset", "iamlab_cmu_pickup_insert")),
]
LEFT_OUT = {"bridge_dataset": 1, "bridge_orig": 2}  # rows


def put(tree: dict[str, Any], path: str, leaf: Any) -> None:
    """Features nest, but names such as `present/xyz` are names with a slash."""
    first, _, rest = path.partition("/")
    if first in ("observation", "action", "action_dict") and rest:
        tree.setdefault(first, {})[rest] = leaf
    else:
        tree[path] = leaf


def write(root: Path, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One episode of ten or so pictures as tfds would have it; its numbers and the pictures of its first camera."""
    import tensorflow_datasets as tfds

    numbers, cameras, instruction, _ = LAYOUTS[name]
    random, step, steps = np.random.default_rng(0), {}, [{} for _ in range(ROWS)]
    values: dict[str, np.ndarray] = {}
    for key, width in numbers.items():
        kind = np.bool_ if key.endswith("open_gripper") else np.int64 if key.endswith("target_close") else np.float32
        kind = np.int32 if key.endswith("observation/instruction") else kind
        encoding = "zlib" if key.endswith("clip_function_input/base_pose_tool_reached") else "none"
        put(step, key, tfds.features.Tensor(shape=(width,) if width else (), dtype=kind, encoding=encoding))
        values[key] = random.uniform(-0.9, 0.9, (ROWS, width) if width else ROWS)
        if kind == np.int32:
            values[key] = np.tile(np.array([*map(ord, "push it"), *[0] * (width - 7)]), (ROWS, 1))
        values[key] = (values[key] > 0 if kind in (np.bool_, np.int64) else values[key]).astype(kind)
        for row in range(ROWS):
            put(steps[row], key, values[key][row])
    films = random.integers(0, 255, (len(cameras), ROWS, 8, 12, 3), np.uint8)
    for camera, film in zip(cameras, films, strict=True):
        put(step, f"observation/{camera}", tfds.features.Image(shape=(8, 12, 3), encoding_format="png"))
        for row in range(ROWS):
            buffer = io.BytesIO()
            Image.fromarray(film[row]).save(buffer, "png")
            put(steps[row], f"observation/{camera}", io.BytesIO(buffer.getvalue()))
    for key in [] if instruction is None else [instruction, *(["language_instruction_2", "language_instruction_3"] * (name == "droid"))]:
        put(step, key, tfds.features.Text())
        for row in range(ROWS):
            put(steps[row], key, "push it")
    features: dict[str, Any] = {"steps": tfds.features.Dataset(step)}
    episode: dict[str, Any] = {"steps": steps}
    if name == "kuka":
        features["success"], episode["success"] = tfds.features.Scalar(np.bool_), True
    if name == "droid":
        features["episode_metadata"], episode["episode_metadata"] = {"file_path": tfds.features.Text()}, {"file_path": "/a/success/b"}
    described = tfds.features.FeaturesDict(features)
    root.mkdir()
    described.save_config(str(root))
    write_tfrecord(root / f"{name}-train.tfrecord-00000-of-00001", [described.serialize_example(episode)])
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "filepathTemplate": template, "shardLengths": ["1"], "numBytes": "1"}
    write_json(root / "dataset_info.json", {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]})
    return values, films[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_descriptions_open_their_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values, film = write(tmp_path / "1.0.0", name)
    spec, width = load_spec(name), LAYOUTS[name][3]
    assert spec.cameras is not None and set(spec.cameras.values()) == {f"observation/{camera}" for camera in LAYOUTS[name][1]}
    reader = open_episodes(tmp_path, list(spec.cameras)[:1], spec=name, verify="full")
    (episode,) = reader.episodes
    assert (episode.length, episode.instructions, reader.skipped) == (ROWS - LEFT_OUT.get(name, 0), ("push it",), {})
    actions, proprio = reader.actions(episode), reader.proprio(episode)
    assert actions.shape == (episode.length, 7) and proprio.shape == (episode.length, width)
    assert len(reader.action_names) == 7 and len(reader.proprio_names) == width and reader.control_hz == spec.hz
    if "action/world_vector" in values:
        np.testing.assert_allclose(actions[:, :3], values["action/world_vector"], rtol=1e-6)
    assert actions[:, 6].max() <= 1 and (actions[:, 6].min() >= 0 or name in AS_STORED)
    first = film[LEFT_OUT.get(name, 0) - ("bridge" in name)]
    swapped = next(iter(spec.cameras)) in (spec.swap_colours or ())
    np.testing.assert_array_equal(reader.frames(episode, [0])[0], first[..., ::-1] if swapped else first)


def test_every_description_of_oxe_is_covered() -> None:
    from mimicvideo.data.spec import SPECS

    assert set(LAYOUTS) == {path.stem for path in SPECS.glob("*.yaml") if load_spec(path.stem).format == "rlds"}
