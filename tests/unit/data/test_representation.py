"""Representations against homogeneous matrices written here, round trips, tails that stay, and anchors that are missing."""

import itertools

import numpy as np
import pytest
import yaml

from mimicvideo.data.representation import parse_representation
from mimicvideo.data.rotations import from_matrix
from mimicvideo.data.window import Window

HORIZON = 6


def description(learned, frame="body", fmt="quaternion_xyzw", **options):
    pose = {"learned": learned, "frame": frame, **options}
    return {
        "actions": {
            "position": {"kind": "position", "dims": [0, 1, 2], **pose},
            "rotation": {"kind": "rotation", "dims": [3, 4, 5, 6], "format": fmt, **pose},
            "gripper": {"kind": "gripper", "dims": [7], "open": -1, "closed": 1},
        },
        "proprio": {
            "position": {"kind": "position", "dims": [0, 1, 2]},
            "rotation": {"kind": "rotation", "dims": [3, 4, 5], "format": "axis_angle"},
            "gripper": {"kind": "gripper", "dims": [6], "open": 0.08},
        },
    }


def quaternion_matrix(q):
    """From x, y, z, w by q v q*, the product written out."""

    def times(a, b):
        ax, ay, az, aw = a
        bx, by, bz, bw = b
        return np.array(
            [aw * bx + ax * bw + ay * bz - az * by, aw * by - ax * bz + ay * bw + az * bx,
             aw * bz + ax * by - ay * bx + az * bw, aw * bw - ax * bx - ay * by - az * bz]
        )  # fmt: skip

    conjugate = q * np.array([-1, -1, -1, 1])
    return np.stack([times(times(q, np.append(axis, 0)), conjugate)[:3] for axis in np.eye(3)], axis=1)


def poses(stored):
    """Homogeneous matrices of x, y, z and a quaternion."""
    result = np.tile(np.eye(4), (len(stored), 1, 1))
    for matrix, row in zip(result, stored, strict=True):
        matrix[:3, :3], matrix[:3, 3] = quaternion_matrix(row[3:7]), row[:3]
    return result


@pytest.fixture
def episode():
    """20 steps of random poses: actions as quaternions with gripper commands, states as axis-angle with a gripper's width."""
    random = np.random.default_rng(1)
    actions = random.normal(size=(20, 8))
    actions[:, 3:7] /= np.linalg.norm(actions[:, 3:7], axis=1, keepdims=True)
    actions[:, 7] = np.sign(actions[:, 7])
    states = np.zeros((20, 7))
    states[:, :3] = actions[:, :3] + 0.1
    states[:, 3:6] = from_matrix(poses(actions)[:, :3, :3] @ poses(actions)[3, :3, :3], "axis_angle")
    states[:, 6] = 0.02
    return actions, states


def expected_chunk(targets, anchor, learned, frame):
    """Matrices of what is learned, out of those of the targets and the anchor."""
    result, before = [], anchor
    for target in targets:
        if frame == "body":
            result.append(np.linalg.inv(before) @ target)
        else:
            change = np.eye(4)
            change[:3, :3], change[:3, 3] = target[:3, :3] @ np.linalg.inv(before[:3, :3]), target[:3, 3] - before[:3, 3]
            result.append(change)
        before = target if learned == "delta" else before
    return np.array(result)


@pytest.mark.parametrize(("learned", "frame"), list(itertools.product(["relative", "delta"], ["body", "world"])))
def test_poses_against_homogeneous_matrices(episode, learned, frame):
    actions, states = episode
    representation = parse_representation(description(learned, frame), 8, 7)
    vectors = representation.learn(actions, states)
    chunk = representation.chunk(vectors["actions"][4 : 4 + HORIZON], vectors["proprio"][4])
    anchor = np.eye(4)
    anchor[:3, 3] = states[4, :3]
    anchor[:3, :3] = poses(actions)[4, :3, :3] @ poses(actions)[3, :3, :3]
    expected = expected_chunk(poses(actions[4 : 4 + HORIZON]), anchor, learned, frame)
    np.testing.assert_allclose(chunk[:, :3], expected[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(chunk[:, 3:6], expected[:, 0, :3], atol=1e-12)  # the first row
    np.testing.assert_allclose(chunk[:, 6:9], expected[:, 1, :3], atol=1e-12)  # the second
    np.testing.assert_array_equal(chunk[:, 9], (1 - actions[4 : 4 + HORIZON, 7]) / 2)


@pytest.mark.parametrize(("learned", "frame"), list(itertools.product(["absolute", "relative", "delta"], ["body", "world"])))
def test_chunks_become_the_commands_they_were_made_of(episode, learned, frame):
    actions, states = episode
    representation = parse_representation(description(learned, frame), 8, 7)
    vectors = representation.learn(actions, states)
    windows = np.stack([vectors["actions"][row : row + HORIZON] for row in range(12)]).reshape(3, 4, HORIZON, 10)
    anchors = vectors["proprio"][:12].reshape(3, 4, 10)
    chunks = representation.chunk(windows, anchors)
    assert chunks.dtype == np.float64
    np.testing.assert_allclose(chunks[1, 2], representation.chunk(windows[1, 2], anchors[1, 2]), atol=1e-15)
    np.testing.assert_allclose(representation.absolute(chunks, anchors), windows, atol=1e-10)
    commands = representation.commands(chunks, anchors)[2, 3]
    np.testing.assert_allclose(commands[:, [0, 1, 2, 7]], actions[11 : 11 + HORIZON][:, [0, 1, 2, 7]], atol=1e-10)
    np.testing.assert_allclose(poses(commands), poses(actions[11 : 11 + HORIZON]), atol=1e-10)


def test_relative_actions_do_not_depend_on_where_the_robot_stands(episode):
    actions, states = episode
    representation = parse_representation(description("relative"), 8, 7)
    vectors = representation.learn(actions, states)
    chunk = representation.chunk(vectors["actions"][:HORIZON], vectors["proprio"][0])
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    moved = {}
    for name, vector in (("actions", vectors["actions"].copy()), ("proprio", vectors["proprio"].copy())):
        vector[:, :3] = vector[:, :3] @ quarter.T + [5, -2, 1]
        matrices = np.stack([vector[:, 3:6], vector[:, 6:9], np.cross(vector[:, 3:6], vector[:, 6:9])], axis=1)
        vector[:, 3:9] = (quarter @ matrices)[:, :2].reshape(-1, 6)
        moved[name] = vector
    np.testing.assert_allclose(representation.chunk(moved["actions"][:HORIZON], moved["proprio"][0]), chunk, atol=1e-12)


def test_a_predicted_rotation_need_not_be_orthonormal(episode):
    actions, states = episode
    representation = parse_representation(description("relative"), 8, 7)
    vectors = representation.learn(actions, states)
    chunk = representation.chunk(vectors["actions"][:HORIZON], vectors["proprio"][0])
    rough = chunk.copy()
    rough[:, 3:6] *= 1.3
    rough[:, 6:9] += 0.2 * rough[:, 3:6]
    np.testing.assert_allclose(
        representation.absolute(rough, vectors["proprio"][0]), representation.absolute(chunk, vectors["proprio"][0]), atol=1e-12
    )


def test_joints_and_plain_positions_are_differences():
    groups = {"kind": "joint", "dims": [0, 1]}
    place = {"kind": "position", "dims": [2, 3, 4]}
    for learned in ("relative", "delta"):
        representation = parse_representation(
            {
                "actions": {"arm": {**groups, "learned": learned}, "hand": {**place, "learned": learned}},
                "proprio": {"arm": groups, "hand": place},
            }
        )
        values = np.random.default_rng(0).normal(size=(7, 5))
        chunk = representation.chunk(values[1:], values[0])
        expected = values[1:] - values[0] if learned == "relative" else np.diff(values, axis=0)
        np.testing.assert_allclose(chunk, expected, atol=1e-15)
        np.testing.assert_allclose(representation.absolute(chunk, values[0]), values[1:], atol=1e-14)


def test_stored_deltas_change_their_format_alone():
    """LIBERO: the controller's own steps, as axis-angle, learned as 6-D; nothing is measured from the state."""
    given = description("delta", "world", stored="delta")
    given["actions"]["rotation"] |= {"format": "axis_angle", "dims": [3, 4, 5]}
    given["actions"]["gripper"]["dims"] = [6]
    representation = parse_representation(given, 7, 7)
    actions = np.array([[0.1, 0, 0, 0, 0, np.pi / 2, -1], [0, 0.2, 0, 0, 0, 0, 1]])
    states = np.ones((2, 7))
    vectors = representation.learn(actions, states)
    chunk = representation.chunk(vectors["actions"], vectors["proprio"][0])
    np.testing.assert_allclose(chunk, [[0.1, 0, 0, 0, -1, 0, 1, 0, 0, 1], [0, 0.2, 0, 1, 0, 0, 0, 1, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(representation.commands(chunk, vectors["proprio"][0]), actions, atol=1e-15)


# ---- tails --------------------------------------------------------------------------------------------------------------------


def tail_of(episode, learned, tail, stored="absolute"):
    """The chunk that starts 2 steps before the episode's end, and its targets."""
    actions, states = episode
    representation = parse_representation(description(learned, stored=stored), 8, 7)
    vectors = representation.learn(actions, states)
    steps, beyond = Window(observed=1, future=4, horizon=HORIZON).action_steps(18, 20)
    anchor = vectors["proprio"][18]
    chunk = representation.windows(vectors["actions"][steps], beyond, anchor, tail)
    return chunk, representation, representation.absolute(chunk, anchor), vectors["actions"]


@pytest.mark.parametrize("tail", ["repeat", "zero_delta"])
@pytest.mark.parametrize("learned", ["absolute", "relative"])
def test_tails_of_targets_hold_the_last_pose(episode, learned, tail):
    chunk, _, absolute, actions = tail_of(episode, learned, tail)
    np.testing.assert_allclose(absolute, actions[[18, 19, 19, 19, 19, 19]], atol=1e-12)
    np.testing.assert_array_equal(chunk[2:], np.tile(chunk[1], (4, 1)))


def test_a_zero_delta_stays_where_the_robot_is(episode):
    chunk, representation, absolute, actions = tail_of(episode, "delta", "zero_delta")
    np.testing.assert_allclose(absolute, actions[[18, 19, 19, 19, 19, 19]], atol=1e-12)
    np.testing.assert_array_equal(chunk[2:, :9], np.tile([0, 0, 0, 1, 0, 0, 0, 1, 0], (4, 1)))
    np.testing.assert_array_equal(chunk[2:, 9], np.full(4, chunk[1, 9]))  # the gripper's command is held
    np.testing.assert_array_equal(representation.neutral, [0, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    assert representation.hold_dims == (9,)


@pytest.mark.parametrize("stored", ["absolute", "delta"])
def test_a_repeated_delta_goes_on(episode, stored):
    chunk, *_ = tail_of(episode, "delta", "repeat", stored)
    np.testing.assert_array_equal(chunk[2:], np.tile(chunk[1], (4, 1)))
    assert np.abs(chunk[1, :3]).max() > 0.1


@pytest.mark.parametrize("tail", ["repeat", "zero_delta"])
@pytest.mark.parametrize("learned", ["absolute", "relative", "delta"])
def test_many_windows_at_once_are_each_alone(episode, learned, tail):
    representation = parse_representation(description(learned), 8, 7)
    vectors = representation.learn(*episode)
    steps, beyond = map(np.stack, zip(*(Window(1, 4, horizon=HORIZON).action_steps(row, 20) for row in range(20)), strict=True))
    together = representation.windows(vectors["actions"][steps], beyond, vectors["proprio"], tail)
    for row in range(20):
        alone = representation.windows(vectors["actions"][steps[row]], beyond[row], vectors["proprio"][row], tail)
        np.testing.assert_allclose(together[row], alone, atol=1e-14)


def test_hold_dims_follow_what_is_learned(episode):
    assert parse_representation(description("relative")).hold_dims == tuple(range(10))
    assert parse_representation(description("absolute")).hold_dims == tuple(range(10))
    inside, *_ = tail_of(episode, "relative", "zero_delta")
    assert not np.allclose(inside[-1, :3], 0), "a relative pose of zero would return to the anchor"


def test_normalization_leaves_rotations_alone():
    modes = [*["variance"] * 3, *["identity"] * 6, "variance"]
    assert parse_representation(description("relative")).normalization() == {"actions": modes, "proprio": modes, "per_step": True}


PAPER = yaml.safe_load(
    """
    bridge:
      actions:
        position: {kind: position, source: proprio, dims: [0, 1, 2], shift: 1, learned: relative}
        rotation: {kind: rotation, source: proprio, dims: [3, 4, 5], shift: 1, learned: relative, format: euler_xyz,
          right_factor: [0, 0, 1, 0, 1, 0, -1, 0, 0]}
        gripper: {kind: gripper, dims: [6], shift: 1, open: 1, closed: 0, clip: true}
        motion: {kind: unused, dims: [0, 1, 2, 3, 4, 5]}
      proprio:
        position: {kind: position, dims: [0, 1, 2]}
        rotation: {kind: rotation, dims: [3, 4, 5], format: euler_xyz, right_factor: [0, 0, 1, 0, 1, 0, -1, 0, 0]}
        gripper: {kind: gripper, dims: [6], open: 1, closed: 0, clip: true}
    libero:
      actions:
        position: {kind: position, dims: [0, 1, 2], stored: delta, learned: delta}
        rotation: {kind: rotation, dims: [3, 4, 5], format: axis_angle, stored: delta, learned: delta}
        gripper: {kind: gripper, dims: [6], open: -1, closed: 1, learned_open: -1, learned_closed: 1}
      proprio:
        position: {kind: position, dims: [0, 1, 2]}
        rotation: {kind: rotation, dims: [3, 4, 5], format: axis_angle}
        gripper: {kind: gripper, dims: [6], open: 0.04, closed: 0.0}
        second_finger: {kind: unused, dims: [7]}
    """
)


@pytest.mark.parametrize("name", ["bridge", "libero"])
def test_the_papers_robots_have_ten_numbers_of_which_six_are_not_normalised(name):
    representation = parse_representation(PAPER[name], 7, 7 if name == "bridge" else 8)
    modes = [*["variance"] * 3, *["identity"] * 6, "variance"]
    assert representation.normalization() == {"actions": modes, "proprio": modes, "per_step": True}


def test_the_papers_bridge_actions_are_the_poses_to_come():
    """T_now^-1 T_(now + 1 + k), by matrices alone, from Open X-Embodiment's states and gripper commands."""
    random = np.random.default_rng(5)
    states, actions = random.uniform(-1, 1, (9, 7)), random.uniform(0, 1, (9, 7))
    representation = parse_representation(PAPER["bridge"], 7, 7)
    vectors = representation.learn(actions, states)
    steps, beyond = Window(1, 4, horizon=4).action_steps(5, 9)
    chunk = representation.windows(vectors["actions"][steps], beyond, vectors["proprio"][5], "repeat")
    transforms = np.tile(np.eye(4), (9, 1, 1))
    for transform, (x, y, z, roll, pitch, yaw, _) in zip(transforms, states, strict=True):
        turns = []
        for angle, (i, j) in ((yaw, (0, 1)), (pitch, (2, 0)), (roll, (1, 2))):
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            turns.append(turn)
        # eef_transform = full_state times the inverse of [[0, 0, -1], [0, 1, 0], [1, 0, 0]]
        transform[:3, :3] = turns[0] @ turns[1] @ turns[2] @ np.linalg.inv([[0, 0, -1], [0, 1, 0], [1, 0, 0]])
        transform[:3, 3] = x, y, z
    expected = np.linalg.inv(transforms[5]) @ transforms[[6, 7, 8, 8]]
    np.testing.assert_allclose(chunk[:, :3], expected[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(chunk[:, 3:9], expected[:, :2, :3].reshape(4, 6), atol=1e-12)
    np.testing.assert_array_equal(chunk[:, 9], actions[[6, 7, 8, 8], 6])


# ---- what is refused ----------------------------------------------------------------------------------------------------------


def test_missing_anchors_are_refused():
    given = description("relative")
    del given["proprio"]["rotation"]
    given["proprio"]["rest"] = {"kind": "unused", "dims": [3, 4, 5]}
    with pytest.raises(ValueError, match="actions.rotation is learned as relative, but proprio has no rotation group to start from"):
        parse_representation(given)
    joints = {"actions": {"arm": {"kind": "joint", "dims": [0, 1], "learned": "delta", "body": "left"}}}
    with pytest.raises(ValueError, match="no joint group of body 'left'"):
        parse_representation({**joints, "proprio": {"arm": {"kind": "joint", "dims": [0, 1]}}})
    with pytest.raises(ValueError, match=r"actions.arm has 2 numbers, its anchor proprio.arm 3"):
        parse_representation({**joints, "proprio": {"arm": {"kind": "joint", "dims": [0, 1, 2], "body": "left"}}})


def test_other_descriptions_are_refused():
    with pytest.raises(ValueError, match=r"keys actions and proprio, .* got \['actions'\]"):
        parse_representation({"actions": {}})
    with pytest.raises(ValueError, match=r"dimensions \[8\] of 9 are in no group"):
        parse_representation(description("relative"), 9, 7)
