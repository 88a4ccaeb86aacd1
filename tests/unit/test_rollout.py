"""The closed loop on a fake benchmark: what is rendered and planned when, what is counted, what goes wrong and how it is told."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mimicvideo import planning
from mimicvideo.benchmark.demonstration import episode_seed
from mimicvideo.evaluation import Evaluation
from mimicvideo.media import read_mp4
from mimicvideo.rollout import Jobs, evaluation_seed, rollout
from mimicvideo.rollout_workers import Finished, Job, Observed, Player, Protocol, is_observed
from tests.fakes_rollout import CONTRACT, PointBenchmark, PointEnv, PointPolicy, point_checkpoint


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> PointPolicy:
    """What `load_policy` returns."""
    fake = PointPolicy()
    monkeypatch.setattr(planning, "load_policy", lambda path, device, pretrained: fake)
    return fake


def run(tmp_path: Path, **arguments: Any) -> Evaluation:
    given = {"benchmark": PointBenchmark(), "episodes": 3, "execute": 4, "num_workers": 2, "videos": 0, "device": "cpu"}
    return rollout(point_checkpoint(tmp_path), **{**given, "run_dir": str(tmp_path / "run"), **arguments})


def protocol(tmp_path: Path, **changes: Any) -> Protocol:
    given = {"execute": 4, "observed": 5, "interval": 3, "future": 0, "max_steps": 60, "film_every": 4, "fps": 5.0, "timeout": 60.0}
    return Protocol(contract=CONTRACT, videos=tmp_path, **{**given, **changes})


def play_alone(protocol: Protocol, speed: float, film: bool = False) -> tuple[PointEnv, list[Observed], Finished]:
    """One episode of task `left`, straight towards the goal at a constant speed."""
    player = Player(PointBenchmark(), protocol)
    replies: list[Any] = [player.start(Job(PointBenchmark().tasks()[0], 0, 5, film))]
    env: Any = player.env
    way = env.goal - env.position
    while isinstance(replies[-1], Observed):
        replies.append(player.act(np.tile(speed * way / np.abs(way).max(), (protocol.execute, 1))))
    return env, replies[:-1], replies[-1]


# ---- what an episode sees and does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("execute", "interval", "observed"), list(itertools.product((1, 4, 8, 24), (1, 3, 6), (1, 5, 9))))
def test_a_frame_is_observed_if_and_only_if_a_plan_looks_at_it(execute: int, interval: int, observed: int) -> None:
    plans = range(0, 600, execute)
    looked_at = {plan - back * interval for plan in plans for back in range(observed)}
    assert [step for step in range(300) if is_observed(step, execute, interval, observed)] == sorted(looked_at & set(range(300)))


def test_observed_frames_are_those_of_the_right_steps_and_no_other_is_rendered(tmp_path: Path) -> None:
    env, observations, end = play_alone(protocol(tmp_path), speed=0)
    times = [observation.frames[:, 0, -1, 2].tolist() for observation in observations]  # blue tells the time
    assert times == [[max(0, plan - back * 3) for back in (4, 3, 2, 1, 0)] for plan in range(0, 60, 4)]
    assert env.renders == sum(is_observed(step, 4, 3, 5) for step in range(60))
    assert end == Finished(success=False, steps=60)


def test_an_episode_ends_at_its_first_success_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    env, observations, end = play_alone(protocol(tmp_path), speed=0.75)
    assert end.success and end.steps == env.steps and end.steps % 4 != 0
    assert len(observations) == 1 + end.steps // 4


def test_an_episode_is_filmed_every_few_steps_and_at_its_end(tmp_path: Path) -> None:
    _, _, end = play_alone(protocol(tmp_path), 1, film=True)
    assert end.video == "left_000_success.mp4"
    film = read_mp4(tmp_path / end.video)
    assert len(film) == -(-end.steps // 4) + 1
    assert film.shape[1:] == (32, 32, 3)


# ---- the whole loop -------------------------------------------------------------------------------------------------------------


def test_a_good_policy_succeeds_and_everything_is_written(tmp_path: Path, policy: PointPolicy) -> None:
    evaluation = run(tmp_path, videos=1)
    assert evaluation.overall.successes == evaluation.overall.episodes == 9
    assert list(evaluation.tasks) == ["left", "right", "up"]
    folder = tmp_path / "run"
    results = json.loads((folder / "results.json").read_text())
    assert results["success_rate"] == results["overall"]["success_rate"] == 1.0
    assert 0.6 < results["overall"]["low"] < 0.75 and results["overall"]["high"] == 1.0
    assert results["episodes"][0]["seed"] == evaluation_seed(0, "left", 0)
    assert results["latency"]["observations"] == sum(len(seen["prompt"]) for seen in policy.seen)
    assert 0 < results["latency"]["batch_ms"]["p50"] <= results["latency"]["batch_ms"]["p99"]
    assert len(results["record"]["sha256"]["checkpoint"]) == 64 and "torch" in results["record"]["versions"]
    assert json.loads((folder / "metrics.json").read_text())["success_rate"] == 1.0
    assert len((folder / "episodes.jsonl").read_text().splitlines()) == 9
    assert sorted(path.name for path in (folder / "videos").iterdir()) == [
        "grid.mp4", "left_000_success.mp4", "right_000_success.mp4", "up_000_success.mp4"
    ]  # fmt: skip
    assert read_mp4(folder / "videos/grid.mp4").shape[1:] == (32, 96, 3)
    again = yaml.safe_load((folder / "rollout.yaml").read_text())
    assert again["execute"] == 4 and again["benchmark"]["init_args"]["tasks"] == ["left", "right", "up"]
    assert Evaluation.read(folder) == evaluation


def test_episodes_do_not_depend_on_how_many_run_at_once(tmp_path: Path, policy: PointPolicy) -> None:
    alone = run(tmp_path, num_workers=1, envs_per_worker=1, run_dir=str(tmp_path / "alone"))
    many = run(tmp_path, num_workers=2, envs_per_worker=3, run_dir=str(tmp_path / "many"))
    other = run(tmp_path, num_workers=2, seed=1, run_dir=str(tmp_path / "other"))
    assert alone.episodes == many.episodes
    assert {episode.seed for episode in alone.episodes}.isdisjoint(episode.seed for episode in other.episodes)


def test_observations_reach_the_policy_as_its_contract_says(tmp_path: Path, policy: PointPolicy) -> None:
    run(tmp_path, episodes=1, num_workers=1, envs_per_worker=3)
    for seen in policy.seen:
        batch = len(seen["prompt"])
        assert seen["video"].shape == (batch, 5, 32, 32, 3) and seen["video"].dtype == torch.uint8
        assert seen["proprio"].shape == (batch, 1, 2) and seen["proprio"].dtype == torch.float32
    assert {prompt for seen in policy.seen for prompt in seen["prompt"]} == {"go left", "go right", "go up"}


def test_context_controls_take_the_goal_away(tmp_path: Path, policy: PointPolicy) -> None:
    zero = run(tmp_path, control="zero_context", run_dir=str(tmp_path / "zero"))
    assert zero.overall.successes == 0 and zero.control == "zero_context"
    policy.context_control = "none"
    policy.seen.clear()
    shuffled = run(tmp_path, control="shuffle_context", run_dir=str(tmp_path / "shuffled"))
    assert shuffled.overall.successes == 0
    for seen in policy.seen:  # nobody sees its own picture: the last one shows the point where another's proprio says
        centres = torch.stack([planning_centre(video[-1]) for video in seen["video"]])
        assert ((centres - seen["proprio"][:, 0]).abs().amax(1) > 0.02).all()


def planning_centre(picture: torch.Tensor) -> torch.Tensor:
    from tests.fakes_rollout import centre

    found = centre(picture, 1)
    assert found is not None
    return found


def test_the_oracle_future_shows_what_the_present_hides(tmp_path: Path, policy: PointPolicy) -> None:
    hidden = PointBenchmark(hidden=True)
    assert run(tmp_path, benchmark=hidden, run_dir=str(tmp_path / "blind")).overall.successes == 0
    seeing = run(tmp_path, benchmark=hidden, control="oracle_future", run_dir=str(tmp_path / "seeing"))
    assert seeing.overall.successes == 9
    assert policy.future.needs_video and policy.seen[-1]["future"].shape[1:] == (4, 32, 32, 3)


def test_the_random_policy_builds_no_model_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "load_policy", lambda *_: pytest.fail("a model was built"))
    evaluation = run(tmp_path, control="random_policy")
    assert evaluation.overall.episodes == 9 and evaluation.overall.successes <= 2
    assert evaluation.latency["calls"] == 0


# ---- seeds and order ------------------------------------------------------------------------------------------------------------


def test_evaluation_seeds_are_distinct_repeatable_and_never_those_of_demonstrations() -> None:
    seeds = [evaluation_seed(seed, task, index) for seed in (0, 1) for task in ("reach-v3", "push-v3") for index in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert evaluation_seed(0, "reach-v3", 0) == 13605317664458643357  # results of other days can be compared
    assert min(seeds) >= 2**63 > max(episode_seed(seed, "reach-v3", index, 0) for seed in range(20) for index in range(50))


def test_a_slot_keeps_its_task_and_first_slots_differ() -> None:
    jobs = Jobs(PointBenchmark().tasks(), 3, 0, videos=1)
    first = [jobs.next(None) for _ in range(3)]
    assert [job.task.name for job in first if job] == ["left", "right", "up"]
    left = first[0].task  # type: ignore[union-attr]
    second, third = jobs.next(left), jobs.next(left)
    assert [(job.task.name, job.index, job.film) for job in (second, third) if job] == [("left", 1, False), ("left", 2, False)]
    assert jobs.next(left).task.name == "right"  # type: ignore[union-attr]
    assert len(list(iter(lambda: jobs.next(left), None))) == 3


# ---- what goes wrong ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("raise", "RuntimeError: the simulation is unstable"), ("die", "exit code 7"), ("hang", "did not answer for 8 s")],
)
def test_a_broken_environment_costs_its_episode_and_not_the_run(tmp_path: Path, policy: PointPolicy, trouble: str, message: str) -> None:
    benchmark = PointBenchmark(trouble={"right": trouble})
    with pytest.raises(RuntimeError, match=rf"2 of 6 episodes ended with an error.*right.*{message}"):
        run(tmp_path, benchmark=benchmark, episodes=2, num_workers=3, envs_per_worker=1, simulator_timeout=8.0)
    evaluation = Evaluation.read(tmp_path / "run")
    assert (evaluation.tasks["right"].episodes, evaluation.tasks["right"].errors) == (0, 2)
    assert evaluation.overall.successes == evaluation.overall.episodes == 4
    assert all(message in episode.error for episode in evaluation.episodes if episode.error)


def test_a_missing_gl_library_ends_the_run_at_once_with_its_message(tmp_path: Path, policy: PointPolicy) -> None:
    with pytest.raises(RuntimeError, match="no environment could be started: RuntimeError: no GL library: apt-get install libegl1"):
        run(tmp_path, benchmark=PointBenchmark(gl=False), episodes=50)
    assert not (tmp_path / "run/results.json").exists()
    assert len((tmp_path / "run/episodes.jsonl").read_text().splitlines()) <= 5


def test_results_are_not_overwritten_unasked(tmp_path: Path, policy: PointPolicy) -> None:
    run(tmp_path, episodes=1, videos=1)
    with pytest.raises(FileExistsError, match="overwrite=true"):
        run(tmp_path, episodes=1)
    (tmp_path / "run/notes.txt").write_text("mine")
    run(tmp_path, episodes=1, overwrite=True)
    assert (tmp_path / "run/notes.txt").exists() and not list((tmp_path / "run/videos").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"execute": 7}, "execute must be at least 1 and at most 6, got 7"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"max_steps": 61}, "max_steps must be at least 1 and at most 60, got 61"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"control": "shuffle_context", "benchmark": PointBenchmark(tasks=["left"])}, "needs two of them, got 1"),
    ],
)
def test_bad_arguments_are_refused_before_any_simulation(
    tmp_path: Path, policy: PointPolicy, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **arguments)
    assert not (tmp_path / "run").exists()


def test_a_policy_of_another_robot_is_refused_before_any_simulation(tmp_path: Path, policy: PointPolicy) -> None:
    policy.contract = CONTRACT | {"robot": "widowx", "cameras": [CONTRACT["cameras"][0] | {"name": "wrist"}]}
    with pytest.raises(ValueError, match=r"(?s)robot: the policy has 'widowx', the benchmark 'point'.*no camera 'wrist'"):
        run(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, policy: PointPolicy) -> None:
    path = Path(point_checkpoint(tmp_path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        rollout(str(path), PointBenchmark(), run_dir=str(tmp_path / "run"))


def test_how_it_runs_may_be_chosen_and_is_recorded(tmp_path: Path, policy: Any) -> None:
    from mimicvideo.action.acting import Acting
    from mimicvideo.execution import Execution

    acting, execution, asked = Acting(future_latents=0), Execution(compile=None), []
    policy.act_as = policy.backbone.execute = asked.append
    run(tmp_path, episodes=1, acting=acting, execution=execution)
    assert asked == [acting, execution]
    again = yaml.safe_load((tmp_path / "run" / "rollout.yaml").read_text())
    assert again["acting"]["future_latents"] == 0 and again["execution"] == asdict(execution)
