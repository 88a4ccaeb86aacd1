"""One demonstration: which steps and rows are recorded, what noise does, which episodes fail."""

import numpy as np

from mimicvideo.benchmark.demonstration import demonstrate, episode_seed
from tests.counting_env import ACTION, CountingEnv, recipe


def test_a_row_is_a_frame_and_the_actions_until_the_next(tmp_path):
    made = demonstrate(CountingEnv(10), recipe(tmp_path), "reach-v3", 0, 0)
    assert made.proprio[:, 0].tolist() == [0, 4, 8]  # solved in the third row, which is recorded to its end
    assert made.actions.tolist() == [ACTION.tolist()] * 12
    assert made.success.tolist() == [False, False, True]
    assert made.videos["top"].frames == 3
    assert made.details["success_step"] == 10


def test_tail_is_recorded_after_success(tmp_path):
    made = demonstrate(CountingEnv(10), recipe(tmp_path, tail_steps=7), "reach-v3", 0, 0)
    assert len(made.proprio) == 5  # 10 + 7 steps need 5 rows of 4
    assert made.success.tolist() == [False, False, True, True, True]


def test_noise_is_executed_but_not_recorded(tmp_path):
    env = CountingEnv(400)
    made = demonstrate(env, recipe(tmp_path, action_noise=0.3), "reach-v3", 0, 0)
    disturbance = np.stack(env.executed) - made.actions
    assert made.actions.tolist() == [ACTION.tolist()] * 400
    assert np.all(disturbance[:, 3] == 0), "the gripper has no noise"
    assert np.abs(disturbance[:, :3].std(0) - 0.3).max() < 0.05
    assert np.abs(disturbance[:, :3].mean(0)).max() < 0.06
    assert abs(np.corrcoef(disturbance[:-1, 0], disturbance[1:, 0])[0, 1]) < 0.15
    assert made.details["noisy"]


def test_smooth_noise_is_correlated_and_as_strong(tmp_path):
    env = CountingEnv(500)
    made = demonstrate(env, recipe(tmp_path, action_noise=0.3, noise_smoothness=0.8), "reach-v3", 0, 0)
    disturbance = (np.stack(env.executed) - made.actions)[:, :3]
    assert 0.7 < np.mean([np.corrcoef(disturbance[:-1, axis], disturbance[1:, axis])[0, 1] for axis in range(3)]) < 0.9
    assert 0.2 < disturbance.std() < 0.4


def test_some_episodes_have_noise(tmp_path):
    kinds = [demonstrate(CountingEnv(8), recipe(tmp_path, action_noise=1.0, noise_probability=0.5), "t", i, 0) for i in range(40)]
    assert 10 < sum(made.details["noisy"] for made in kinds) < 30


def test_start_steps_come_before_the_recording(tmp_path):
    starts = set()
    for index in range(30):
        env = CountingEnv(1000)
        made = demonstrate(env, recipe(tmp_path, start_noise_steps=6, keep_failed=True, max_steps=8), "t", index, 0)
        start = made.details["start_steps"]
        starts.add(start)
        assert made.proprio[0, 0] == start
        assert len(env.executed) == start + 8
        assert all(action[3] == -1 for action in env.executed[:start])
    assert starts == set(range(7))


def test_no_episode_is_longer_than_meta_world_allows(tmp_path):
    env = CountingEnv(1000)
    made = demonstrate(env, recipe(tmp_path, start_noise_steps=250, keep_failed=True, stride=7), "t", 0, 0)
    assert 493 < len(env.executed) <= 500
    assert len(made.actions) == 7 * len(made.proprio)


def test_success_after_max_steps_does_not_count(tmp_path):
    assert demonstrate(CountingEnv(9), recipe(tmp_path, max_steps=8), "t", 0, 0) is None


def test_seeds_differ_and_are_far_from_those_of_rollouts():
    seeds = {episode_seed(*which) for which in [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]}
    assert len(seeds) == 5
    assert min(seeds) > 2**40
    assert max(seeds) < 2**63
    assert episode_seed(0, "reach-v3", 0, 0) == 5320050992370327252  # datasets made earlier can be made again
