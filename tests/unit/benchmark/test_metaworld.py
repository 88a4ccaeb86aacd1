"""Meta-World: task names, contract, reproducible episodes, exact look-ahead of the expert."""

import pickle
import re

import numpy as np
import pytest

from mimicvideo.benchmark.base import ContractError
from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.metaworld import MT10, MetaWorld, MetaWorldEnv, task_names
from mimicvideo.benchmark.rendering import import_mujoco

CONTRACT = {
    "robot": "metaworld-sawyer",
    "control_hz": 80,
    "cameras": [{"name": "corner2", "height": 32, "width": 48, "view": {}}],
    "observed": 1,
    "future": 8,
    "frame_interval_steps": 6,
    "proprio": ["hand_x", "hand_y", "hand_z", "gripper"],
    "actions": ["dx", "dy", "dz", "gripper"],
    "horizon": 24,
}


def test_sets_of_tasks():
    assert task_names("MT10") == MT10
    assert len(MT10) == 10
    assert len(task_names("MT50")) == 50
    assert len(task_names("not-MT10")) == 40
    assert not set(task_names("not-MT10")) & set(MT10)
    assert task_names(["reach", "push-v3"]) == task_names("reach, push") == ["reach-v3", "push-v3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pusch", "'pusch'.*push-v3"),
        (["reach", "draw-open"], "'draw-open'.*drawer-open-v3"),
        ("MT11", "'MT11'.*MT10"),
        ("reach-v2", "'reach-v2'.*reach-v3"),
        ("zzz", "'zzz'.*MT10, MT50, not-MT10"),
        ([], "no tasks"),
        (["reach", "reach-v3"], "twice"),
    ],
)
def test_unknown_tasks_are_refused_with_the_nearest(given, message):
    with pytest.raises(ValueError, match=message):
        MetaWorld(given)


def test_every_task_has_an_instruction_of_its_own():
    assert len(INSTRUCTIONS) == 50 == len({sentence.lower() for sentence in INSTRUCTIONS.values()})
    for sentence in INSTRUCTIONS.values():
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert 3 <= len(sentence.split()) <= 16


@pytest.mark.simulator
def test_the_tasks_are_meta_worlds():
    import_mujoco()  # before Meta-World does, without MUJOCO_GL
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert set(MT10) == set(MT10_V3)


def test_benchmark_is_plain_data():
    benchmark = pickle.loads(pickle.dumps(MetaWorld(["reach", "push"])))
    assert [task.name for task in benchmark.tasks()] == ["reach-v3", "push-v3"]
    assert benchmark.tasks()[0].instruction == INSTRUCTIONS["reach-v3"]


def test_fitting_contract_passes():
    MetaWorld("reach").check_contract(CONTRACT)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"robot": "widowx"}, ["robot.*'widowx'.*'metaworld-sawyer'"]),
        ({"control_hz": 5.0}, ["control_hz.*5.0.*80.0"]),
        ({"actions": ["dx", "dy", "dz"], "proprio": ["x"]}, ["actions: .*'dz'].*'gripper'", "proprio: .*'x'.*'hand_x'"]),
        ({"cameras": []}, ["cameras.*none"]),
        ({"cameras": [{"name": "frnt", "height": 32, "width": 32, "view": {}}]}, ["'frnt'.*corner2"]),
        ({"cameras": [{"name": "front", "height": 32, "width": 32, "view": {"distance": 1}}]}, ["'front'.*lookat"]),
        ({"cameras": [{"name": "corner2", "height": 32}]}, ["'corner2'.*width"]),
        (
            {"cameras": [{"name": name, "height": 32, "width": side, "view": {}} for name, side in (("corner", 32), ("topview", 64))]},
            ["sizes"],
        ),
    ],
)
def test_contract_that_does_not_fit_names_each_field(change, messages):
    with pytest.raises(ContractError) as caught:
        MetaWorld("reach").make_env({**CONTRACT, **change})
    text = str(caught.value)
    for message in messages:
        assert re.search(message, text), text


@pytest.fixture(scope="module")
def env():
    made = MetaWorld("MT10").make_env(CONTRACT)
    yield made
    made.close()


def _state(env: MetaWorldEnv) -> list[np.ndarray]:
    data = env._env.data
    arrays = (data.qpos, data.qvel, data.act, data.mocap_pos, data.mocap_quat, data.qacc_warmstart, data.xpos, data.ctrl, [data.time])
    return [np.array(values) for values in (*arrays, env.proprio(), env._observation, [env._env.curr_path_length])]


def _same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.simulator
@pytest.mark.parametrize("task", ["push", "door-open-v3"])
def test_seed_decides_the_episode_whatever_was_before(env, task):
    env.reset(task, 5)
    state, frame = _state(env), env.frame()
    for _ in range(40):
        env.step(np.array([1, -1, -1, 1], np.float32))
    env.reset(task, 6)
    assert not np.array_equal(env.frame(), frame)
    env.reset("drawer-close", 5)
    env.reset(task, 5)
    assert _same(_state(env), state)
    assert np.array_equal(env.frame(), frame)


@pytest.mark.simulator
@pytest.mark.parametrize("task", MT10)
def test_resets_forget_everything(env, task):
    env.reset(task, 5)
    state = _state(env)
    while not env.step(env.expert_action()) and env._env.curr_path_length < 150:
        pass
    env.reset(task, 5)
    assert _same(_state(env), state)


@pytest.mark.simulator
def test_pictures_have_the_contracts_size(env):
    env.reset("reach", 0)
    images = env.render()
    assert list(images) == ["corner2"]
    assert images["corner2"].shape == (32, 48, 3)
    assert images["corner2"].dtype == np.uint8
    assert images["corner2"].std() > 20  # a scene, not a blank


@pytest.mark.simulator
@pytest.mark.parametrize("task", ["reach", "drawer-open", "button-press-topdown", "window-close"])
def test_the_expert_succeeds(env, task):
    env.reset(task, 11)
    assert any(env.step(env.expert_action()) for _ in range(200))


@pytest.mark.simulator
@pytest.mark.parametrize("task", ["pick-place", "peg-insert-side"])
def test_looking_ahead_changes_nothing(env, task):
    def play(look: bool) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
        env.reset(task, 3)
        for _ in range(25):
            env.step(env.expert_action())
        futures = [env.expert_future(3, 4) for _ in range(2)] if look else []
        for _ in range(30):
            env.step(env.expert_action())
        return _state(env), env.frame(), futures

    plain, looked = play(False), play(True)
    assert _same(plain[0], looked[0])
    assert np.array_equal(plain[1], looked[1])
    assert np.array_equal(*looked[2]), "two looks at the same future differ"


@pytest.mark.simulator
def test_looking_ahead_shows_what_then_happens(env):
    env.reset("push", 3)
    future = env.expert_future(3, 5)
    for frame in future:
        for _ in range(5):
            env.step(env.expert_action())
        assert np.array_equal(env.frame(), frame)


@pytest.mark.simulator
def test_looking_ahead_before_anything_was_rendered(env):
    env.close()
    env.reset("push", 4)
    future = env.expert_future(1, 2)
    first = env.frame()
    env.reset("push", 4)
    assert np.array_equal(env.frame(), first)
    assert not np.array_equal(future[0], first)


@pytest.mark.simulator
def test_an_episode_has_500_steps(env):
    env.reset("reach", 0)
    for _ in range(env.max_episode_steps - 1):
        env.step(np.zeros(4, np.float32))
    assert env.expert_future(1, 3).shape == (1, 32, 48, 3)  # past the end
    env.step(np.zeros(4, np.float32))
    with pytest.raises(RuntimeError, match=r"500.*reset"):
        env.step(np.zeros(4, np.float32))
    env.reset("reach", 0)
    env.step(np.zeros(4, np.float32))


@pytest.mark.simulator
@pytest.mark.parametrize("action", [[0, 0, np.nan, 0], [0, 0, 0], [np.inf, 0, 0, 0]])
def test_actions_that_are_none_are_refused(env, action):
    env.reset("reach", 0)
    with pytest.raises((ValueError, TypeError), match=r"4 finite numbers|'4'"):  # TypeError if annotations are checked
        env.step(np.array(action, np.float32))


@pytest.mark.simulator
def test_large_actions_are_clipped(env):
    ends = []
    for size in (1.0, 7.0):
        env.reset("reach", 0)
        for _ in range(5):
            env.step(np.array([size, 0, -size, size], np.float32))
        ends.append(env.proprio())
    assert np.array_equal(*ends)


@pytest.mark.simulator
def test_two_simulators_in_one_process_do_not_disturb_each_other(env):
    env.reset("push", 1)
    alone = env.frame()
    other = MetaWorldEnv(["topview"], 40, 40)
    other.reset("door-open", 2)
    pictures = []
    for _ in range(2):
        pictures += [other.frame(), env.frame()]
    other.close()
    assert np.array_equal(pictures[1], alone)
    assert np.array_equal(pictures[3], alone)
    assert np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(env.frame(), alone)


def test_before_reset_there_is_nothing():
    with pytest.raises(RuntimeError, match="reset"):
        MetaWorldEnv(["corner2"]).proprio()


def test_cameras_need_different_names():
    with pytest.raises(ValueError, match=r"different names.*corner2"):
        MetaWorldEnv(["corner2", "corner2"])


@pytest.mark.simulator
def test_negative_seed_is_refused(env):
    with pytest.raises(ValueError, match="-1"):
        env.reset("reach", -1)
