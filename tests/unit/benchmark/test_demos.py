"""The verb `demos`: what is recorded of an episode, determinism, dropped and failed episodes, places that are refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mimicvideo.benchmark import demos as module
from mimicvideo.benchmark.demonstration import episode_seed
from mimicvideo.benchmark.demos import demos
from mimicvideo.benchmark.metaworld import MetaWorldEnv
from mimicvideo.data.video_encoding import VideoCodec
from tests.counting_env import CountingEnv, recipe


def test_a_failed_episode_is_tried_again_with_the_next_seed(tmp_path):
    env = CountingEnv([1000, 1000, 20, 20])
    slots = [module._fill(env, recipe(tmp_path, max_attempts=5), "reach-v3", index) for index in range(2)]
    assert [slot.attempts for slot in slots] == [3, 1]
    assert env.resets == [episode_seed(0, "reach-v3", *which) for which in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert module._counts(slots, ["reach-v3"]) == {"reach-v3": {"episodes": 2, "failed": 0, "dropped": 2, "given_up": 0}}


def test_an_episode_is_given_up_after_so_many_attempts(tmp_path):
    env = CountingEnv([1000, 1000, 1000, 20])
    slots = [module._fill(env, recipe(tmp_path, max_attempts=3), "reach-v3", index) for index in range(2)]
    assert module._counts(slots, ["reach-v3"]) == {"reach-v3": {"episodes": 1, "failed": 0, "dropped": 3, "given_up": 1}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "pusch"}, "push-v3"),
        ({"cameras": ["cornr"]}, "cornr"),
        ({"stride": 0}, "stride.*0"),
        ({"episodes_per_task": 0}, "episodes_per_task.*0"),
        ({"action_noise": -0.1}, "action_noise.*-0.1"),
        ({"action_noise": float("nan")}, "action_noise.*nan"),
        ({"noise_smoothness": 1.0}, "noise_smoothness.*1.0"),
        ({"noise_probability": 1.5}, "noise_probability.*1.5"),
        ({"max_steps": 501}, "max_steps.*500.*501"),
        ({"seed": -1}, "seed.*-1"),
        ({"resolution": (128, 0)}, "resolution.*0"),
        ({"num_workers": 0}, "num_workers.*0"),
        ({"codec": VideoCodec(pixel_format="yuv420p"), "resolution": (33, 32)}, "yuv420p.*33"),
        ({"codec": VideoCodec(name="h266")}, "h266.*libx264"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        demos(str(tmp_path / "set"), **arguments)
    assert not list(tmp_path.iterdir())


def _rows(root: Path) -> dict[str, list]:
    return pq.read_table(root / "data/chunk-000/file-000.parquet").to_pydict()


def _about(root: Path) -> dict:
    return json.loads((root / "meta/mimicvideo.json").read_text())


SMALL = {"tasks": ["reach", "window-close"], "episodes_per_task": 2, "resolution": (32, 48), "cameras": ["corner2", "topview"], "stride": 5}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A small dataset, made by one worker."""
    return demos(str(tmp_path_factory.mktemp("demos") / "set"), **SMALL, num_workers=1)


@pytest.mark.simulator
def test_the_dataset_does_not_depend_on_the_number_of_workers(dataset, tmp_path):
    again = demos(str(tmp_path / "set"), **SMALL, num_workers=3)
    assert _about(dataset)["files"] == _about(again)["files"]  # hashes of every file, videos included
    assert len(_about(dataset)["files"]) == 5 + 2 * 4
    other = demos(str(tmp_path / "other"), **{**SMALL, "tasks": ["reach"]}, seed=1, num_workers=1)
    assert _rows(other)["action"] != _rows(dataset)["action"][: len(_rows(other)["action"])]


@pytest.mark.simulator
def test_an_episode_does_not_depend_on_the_others(dataset, tmp_path):
    alone = _rows(demos(str(tmp_path / "set"), **{**SMALL, "tasks": ["window-close"], "episodes_per_task": 1}, num_workers=1))
    rows = _rows(dataset)
    first = rows["episode_index"].index(2)
    assert rows["action"][first : first + len(alone["action"])] == alone["action"]


@pytest.mark.simulator
def test_recorded_actions_lead_through_the_recorded_states(dataset):
    """Replays an episode from its seed."""
    episodes = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    rows = _rows(dataset)
    env = MetaWorldEnv(["corner2"], 32, 48)
    for episode in episodes[1:3]:
        env.reset(episode["task_name"], episode["seed"])
        solved, steps = None, 0
        for row in range(episode["dataset_from_index"], episode["dataset_to_index"]):
            assert np.array_equal(env.proprio(), np.array(rows["observation.state"][row], np.float32))
            for action in np.array(rows["action"][row], np.float32).reshape(5, 4):
                steps += 1
                if env.step(action) and solved is None:
                    solved = steps
        assert solved == episode["success_step"]
    env.close()


@pytest.mark.simulator
def test_failed_episodes_can_be_kept(tmp_path):
    root = demos(
        str(tmp_path / "set"), tasks="reach", episodes_per_task=1, resolution=(16, 16), max_steps=4, keep_failed=True, num_workers=1
    )
    assert _about(root)["counts"] == {"reach-v3": {"episodes": 1, "failed": 1, "dropped": 0, "given_up": 0}}
    assert _rows(root)["next.success"] == [False]


@pytest.mark.simulator
def test_a_task_without_success_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match=r"reach-v3.*2 per episode.*max_steps"):
        demos(str(tmp_path / "set"), tasks="reach", episodes_per_task=1, resolution=(16, 16), max_steps=4, max_attempts=2, num_workers=1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite, message in ((False, "overwrite"), (True, "not a dataset")):
        with pytest.raises(FileExistsError, match=message):
            demos(str(tmp_path), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
