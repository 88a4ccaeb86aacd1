"""Layouts: what a mapping means, episodes in learnable form and back, and every wrong declaration refused with its key."""

import numpy as np
import pytest
import yaml

from mimicvideo.data.layout import parse_layout
from mimicvideo.data.rotations import to_matrix

BRIDGE = yaml.safe_load(
    """
    position: {kind: position, dims: [0, 1, 2]}
    rotation: {kind: rotation, dims: [3, 4, 5], format: euler_xyz}
    gripper: {kind: gripper, dims: [6], open: 1, closed: 0, clip: true}
    """
)


def changed(group, **options):
    return {name: ({**given, **options} if name == group else given) for name, given in BRIDGE.items()}


def test_names_places_and_modes_follow_the_groups():
    layout = parse_layout(BRIDGE, "actions")
    assert layout.width == 7 and layout.learned_dim == 10
    assert layout.names == [
        *("position_x", "position_y", "position_z"),
        *("rotation_r11", "rotation_r12", "rotation_r13", "rotation_r21", "rotation_r22", "rotation_r23"),
        "gripper",
    ]
    assert layout.places == {"position": slice(0, 3), "rotation": slice(3, 9), "gripper": slice(9, 10)}
    assert layout.normalization() == [*["variance"] * 3, *["identity"] * 6, "variance"]
    assert layout.normalization("quantile")[9] == "quantile"


def test_an_episode_in_learnable_form_and_back():
    layout = parse_layout(BRIDGE, "actions")
    stored = np.array([[0.1, 0.2, 0.3, 0.0, 0.0, np.pi / 2, 1.1], [0.4, 0.5, 0.6, np.pi / 2, 0.0, 0.0, 0.25]])
    learned = layout.learn({"actions": stored})
    np.testing.assert_allclose(learned[0], [0.1, 0.2, 0.3, 0, -1, 0, 1, 0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(learned[1], [0.4, 0.5, 0.6, 1, 0, 0, 0, 0, -1, 0.25], atol=1e-15)
    stored[0, 6] = 1.0  # clipped
    np.testing.assert_allclose(layout.store(learned), stored, atol=1e-14)


def test_dims_may_stand_anywhere_and_unused_ones_get_their_value():
    groups = {
        "turn": {"kind": "rotation", "dims": [0, 1, 2, 4, 5, 6, 8, 9, 10], "format": "matrix"},
        "place": {"kind": "position", "dims": [3, 7, 11]},
        "bottom": {"kind": "unused", "dims": [12, 13, 14, 15], "value": [0, 0, 0, 1]},
    }
    layout = parse_layout(groups, "proprio")
    pose = np.array([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]]).reshape(1, 16)
    learned = layout.learn({"proprio": pose})
    np.testing.assert_allclose(learned, [[0, -1, 0, 1, 0, 0, 5, 6, 7]], atol=1e-15)
    np.testing.assert_allclose(layout.store(learned), pose, atol=1e-15)


def test_bridges_two_conventions_of_the_tools_axes():
    """SIMPLER's and OpenVLA's code: full_state's Euler angles are those of eef_transform times [[0, 0, -1], [0, 1, 0], [1, 0, 0]]."""
    layout = parse_layout(changed("rotation", right_factor=[0, 0, 1, 0, 1, 0, -1, 0, 0]), "proprio")
    eef = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    factor = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    full = eef @ factor  # [[0, -1, 0], [0, 0, -1], [1, 0, 0]]: Rz Ry Rx with pitch -90 degrees
    roll, pitch = np.arctan2(1.0, 0.0), -np.pi / 2  # locked: yaw 0
    stored = np.array([[0, 0, 0, roll, pitch, 0, 0.5]])
    np.testing.assert_allclose(to_matrix(stored[0, 3:6], "euler_xyz"), full, atol=1e-15)
    learned = layout.learn({"proprio": stored})
    np.testing.assert_allclose(learned[0, 3:9], eef[:2].reshape(6), atol=1e-15)
    np.testing.assert_allclose(layout.store(learned), stored, atol=1e-14)


def test_actions_out_of_states_a_step_later():
    groups = {
        "position": {"kind": "position", "source": "proprio", "dims": [0, 1, 2], "shift": 1},
        "gripper": {"kind": "gripper", "dims": [1], "shift": 1},
        "rest": {"kind": "unused", "dims": [0]},
    }
    layout = parse_layout(groups, "actions", 2)
    states = np.arange(12.0).reshape(4, 3)
    actions = np.stack([np.full(4, 9.0), [0.0, 1.0, 0.0, 1.0]], axis=1)
    learned = layout.learn({"actions": actions, "proprio": states})
    np.testing.assert_array_equal(learned, [[3, 4, 5, 1], [6, 7, 8, 0], [9, 10, 11, 1], [9, 10, 11, 1]])
    np.testing.assert_array_equal(layout.store(learned), learned)  # the groups side by side: actions have no place for a position
    with pytest.raises(ValueError, match="groups come from proprio, which this episode does not have"):
        layout.learn({"actions": actions})
    with pytest.raises(ValueError, match=r"different lengths \(proprio 3, actions 4\)"):
        layout.learn({"actions": actions, "proprio": states[:3]})
    with pytest.raises(ValueError, match="dims reach 2, proprio has 2 numbers"):
        layout.learn({"actions": actions, "proprio": states[:, :2]})


def test_several_bodies_and_joints():
    arm = [{"kind": "joint", "dims": list(range(start, start + 6)), "body": side} for side, start in (("left", 0), ("right", 7))]
    groups = {
        "left": arm[0],
        "left_hand": {"kind": "gripper", "dims": [6]},
        "right": arm[1],
        "right_hand": {"kind": "gripper", "dims": [13]},
    }
    layout = parse_layout(groups, "actions", 14)
    assert layout.learned_dim == 14 and layout.names[:2] == ["left_0", "left_1"] and layout.names[13] == "right_hand"
    stored = np.random.default_rng(0).random((5, 14))
    np.testing.assert_allclose(layout.store(layout.learn({"actions": stored})), stored, atol=1e-15)


def test_wrong_rotations_of_an_episode_are_told_with_their_group():
    groups = {"hand": {"kind": "rotation", "dims": [0, 1, 2, 3], "format": "quaternion_xyzw"}}
    with pytest.raises(ValueError, match=r"proprio.hand \(quaternion_xyzw\): rotation \[1\] = \[2.* is no unit quaternion"):
        parse_layout(groups, "proprio").learn({"proprio": np.array([[0.0, 0, 0, 1], [2, 0, 0, 0]])})
    with pytest.raises(ValueError, match="declared with 4 dimensions, an episode has 5"):
        parse_layout(groups, "proprio").learn({"proprio": np.ones((3, 5))})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "actions must map group names"),
        ({"a": 3}, "actions.a must be a mapping"),
        ({"a": {"dims": [0]}}, "actions.a.kind must be one of position, rotation, .* got None"),
        ({"a": {"kind": "positon", "dims": [0]}}, "got 'positon': did you mean 'position'"),
        (
            {"a": {"kind": "joint", "dims": [0], "lerned": "delta"}},
            "actions.a.lerned is not accepted for kind joint: did you mean 'learned'",
        ),
        ({"a": {"kind": "gripper", "dims": [0], "learned": "delta"}}, "actions.a.learned is not accepted for kind gripper"),
        ({"a": {"kind": "joint"}}, "actions.a.dims must list places"),
        ({"a": {"kind": "joint", "dims": [0, 0]}}, "each once, .* got \\[0, 0\\]"),
        ({"a": {"kind": "joint", "dims": [-1]}}, "from 0 on"),
        ({"a": {"kind": "joint", "dims": "0:3"}}, "from 0 on"),
        ({"a": {"kind": "joint", "dims": [0, 1.5]}}, "from 0 on"),
        (changed("gripper", dims=[5, 6]), "dimension 5 is in both rotation and gripper"),
        (changed("gripper", dims=[7]), "actions has 7 dimensions \\(0 ... 6\\); gripper names \\[7\\]"),
        ({key: BRIDGE[key] for key in ("position", "rotation")}, "dimensions \\[6\\] of 7 are in no group: .* kind: unused"),
        (changed("rotation", format="quaternion_wxyz"), "actions.rotation: quaternion_wxyz has 4 numbers, dims name 3"),
        (changed("rotation", format="rpy"), "actions.rotation.format must be one of .* got 'rpy'"),
        ({**BRIDGE, "rotation": {"kind": "rotation", "dims": [3, 4, 5]}}, "actions.rotation.format is missing"),
        (changed("position", dims=[0, 1, 2, 7]), "a position has at most 3 numbers, dims name 4"),
        (changed("position", learned="relative"), "position and rotation are one pose, but learned is 'relative' and 'absolute'"),
        (changed("rotation", frame="world"), "one pose, but frame is 'body' and 'world'"),
        (changed("position", stored="delta"), "stored deltas can only be learned as deltas, not absolute"),
        (changed("position", shift=-1), "actions.position.shift must be a whole number"),
        (changed("position", shift=0.2), "actions.position.shift must be a whole number"),
        (changed("gripper", open=0), "actions.gripper: open and closed must be two different finite numbers"),
        (changed("gripper", open="up"), "actions.gripper.open must be a number, got 'up'"),
        (changed("gripper", thresholds=[0.5]), "thresholds must be two openings"),
        (changed("rotation", right_factor=[[1, 0], [0, 1]]), "right_factor must be a 3 x 3 rotation"),
        (changed("rotation", right_factor=[1, 0, 0, 0, 1, 0, 0, 0, -1]), "right_factor must be .* is a reflection"),
        ({**BRIDGE, "second": {"kind": "position", "dims": [7, 8, 9]}}, "position and second are both the position of one body"),
        ({"a": {"kind": "position", "dims": [0, 1], "frame": "body"}}, "without a rotation a position has no axes of its own body"),
        ({"a": {"kind": "unused", "dims": [0]}}, "unused groups only"),
        ({"a": {"kind": "unused", "dims": [0], "value": [1, 2]}, "b": {"kind": "joint", "dims": [1]}}, "one for each of 1 dims"),
    ],
)
def test_wrong_declarations_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        parse_layout(groups, "actions", 7 if "position" in groups and "second" not in groups else None)


@pytest.mark.parametrize("options", [{"learned": "relative"}, {"stored": "delta", "learned": "delta"}, {"shift": 1}, {"source": "actions"}])
def test_states_are_absolute(options):
    with pytest.raises(ValueError, match="states are absolute and come from proprio"):
        parse_layout({"a": {"kind": "joint", "dims": [0], **options}}, "proprio")


@pytest.mark.parametrize("options", [{"thresholds": [0.1, 0.9]}, {"thresholds": [0.1, 0.9], "incremental": True}])
def test_a_states_gripper_needs_no_look_ahead(options):
    with pytest.raises(ValueError, match="need a whole episode"):
        parse_layout({"a": {"kind": "gripper", "dims": [0], **options}}, "proprio")
