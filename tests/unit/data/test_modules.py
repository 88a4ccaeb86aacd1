"""What arrives in a batch is what lies in the dataset; both stages agree on episodes, windows and latents."""

import json
import pickle
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.modules import ClipData, Source
from mimicvideo.data.window import Window
from tests.every_format import hdf5, zarr_v2
from tests.synthetic_episodes import ACTION_NAMES, DATA_FILE, STATE_NAMES, VIEW, Made, by_lerobot, by_writer, change_rows, what_is_shown

LENGTHS, TASKS = (12, 9, 20, 6, 15, 11), ["a", "a", "a", "b", "b", "b"]
STRIDE, HORIZON = 2, 5
HZ = 80.0  # control steps per second
GEOMETRY: dict[str, Any] = {"observed": 5, "future": 4, "frame_interval": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return by_writer(tmp_path_factory.mktemp("data") / "d", LENGTHS, TASKS, STRIDE, cameras=("corner2", "wrist"))


def clips(made: Made, **options: Any) -> ClipData:
    return ClipData(str(made.root), **{"cameras": ["corner2"], "batch_size": 8, "validation_fraction": 0.34, **GEOMETRY, **options})


def demonstrations(made: Made, **options: Any) -> DemonstrationData:
    defaults = {"root": str(made.root), "cameras": ["corner2"], "batch_size": 8, "validation_fraction": 0.34, **GEOMETRY}
    return DemonstrationData(**{"action_dim": 3, "proprio_dim": 2, "horizon": HORIZON, **defaults, **options})


def batches(data: ClipData, count: int) -> list[Any]:
    return list(islice(iter(data.train_dataloader()), count))


def shown(video: Tensor) -> list[tuple[int, int]]:
    return [what_is_shown(frame.numpy())[:2] for frame in video]


def test_clips_show_what_they_say(made: Made) -> None:
    window = Window(**GEOMETRY)
    for batch in batches(clips(made), 4):
        assert set(batch) == {"video", "prompt", "frame_mask", "frame_hz", "dataset", "episode", "row", "position"}
        assert batch["dataset"] == ["data"] * 8 and batch["frame_hz"].tolist() == [HZ / STRIDE / GEOMETRY["frame_interval"]] * 8
        for mask, episode, row in zip(batch["frame_mask"].tolist(), batch["episode"].tolist(), batch["row"].tolist(), strict=True):
            wanted = row + GEOMETRY["frame_interval"] * np.arange(-4, 5)
            assert mask == [0 <= place < LENGTHS[episode] for place in wanted]
        assert batch["video"].dtype == torch.uint8 and batch["video"].shape == (8, 9, 16, 16, 3)
        for video, prompt, episode, row in zip(
            batch["video"], batch["prompt"], batch["episode"].tolist(), batch["row"].tolist(), strict=True
        ):
            assert prompt == f"Do {TASKS[episode]}."
            assert shown(video) == [(episode, expected) for expected in window.frame_rows(row, LENGTHS[episode])]


@pytest.mark.parametrize("workers", [0, 2])
def test_demonstrations_show_what_they_say(made: Made, workers: int) -> None:
    data = demonstrations(made, num_workers=workers, history=2, tail="zero_delta", hold_dims=[2])
    window = Window(**GEOMETRY, horizon=HORIZON, stride=STRIDE)
    seen = batches(data, 6)
    assert [position for batch in seen for position in batch["position"].tolist()] == list(range(48))
    padded = 0
    for batch in seen:
        masks, rates = {"frame_mask", "action_mask", "proprio_mask"}, {"frame_hz", "control_hz"}
        assert set(batch) == {"observation", "future", "actions", "dataset", "episode", "row", "position"} | masks | rates
        assert batch["control_hz"].tolist() == [HZ] * 8 and batch["dataset"] == ["data"] * 8
        observation = batch["observation"]
        assert observation["video"].shape == (8, 5, 16, 16, 3) and batch["future"].shape == (8, 4, 16, 16, 3)
        assert batch["actions"].dtype == observation["proprio"].dtype == torch.float32
        assert batch["episode"].dtype == batch["row"].dtype == batch["position"].dtype == torch.int64
        for k, (episode, row) in enumerate(zip(batch["episode"].tolist(), batch["row"].tolist(), strict=True)):
            rows = LENGTHS[episode]
            expected = [(episode, frame) for frame in window.frame_rows(row, rows)]
            assert shown(observation["video"][k]) + shown(batch["future"][k]) == expected
            assert expected[4] == (episode, row), "the last observed frame is the one at which the actions start"
            np.testing.assert_array_equal(observation["proprio"][k], made.states[episode][[max(row - 1, 0), row]])
            chunk = made.actions[episode][row * STRIDE :][:HORIZON]
            np.testing.assert_array_equal(batch["actions"][k][: len(chunk)], chunk)
            assert batch["action_mask"][k].tolist() == [True] * len(chunk) + [False] * (HORIZON - len(chunk))
            assert batch["proprio_mask"][k].tolist() == [row > 0, True]
            for beyond in batch["actions"][k][len(chunk) :]:
                assert beyond.tolist() == [0, 0, chunk[-1][2]]
                padded += 1
    assert padded


def test_both_stages_hold_out_the_same_episodes_of_each_task(made: Made) -> None:
    stage1, stage2 = clips(made), demonstrations(made)
    drawn = [{index for batch in batches(data, 60) for index in batch["episode"].tolist()} for data in (stage1, stage2)]
    held_out = [{index for batch in data.val_dataloader() for index in batch["episode"].tolist()} for data in (stage1, stage2)]
    assert drawn[0] == drawn[1] and held_out[0] == held_out[1] and drawn[0] | held_out[0] == set(range(6)) and not drawn[0] & held_out[0]
    assert Counter(TASKS[index] for index in held_out[0]) == {"a": 1, "b": 1}
    assert {index for batch in clips(made, split_seed=5).val_dataloader() for index in batch["episode"].tolist()} != held_out[0]
    assert {index for batch in clips(made, seed=5).val_dataloader() for index in batch["episode"].tolist()} == held_out[0]


def test_a_bad_episode_does_not_move_the_split(tmp_path: Path, made: Made) -> None:
    by_writer(tmp_path / "d", LENGTHS, TASKS, STRIDE)
    before = clips(made)
    before.setup()
    bad = before._training[0].episode
    change_rows(tmp_path / "d", lambda columns: columns["action"][sum(LENGTHS[: bad.index])].__setitem__(0, float("nan")))
    with pytest.raises(DatasetError, match=f"episode {bad.index}: action is NaN"):
        clips(Made(tmp_path / "d", [], [], [], [])).setup()
    after = clips(Made(tmp_path / "d", [], [], [], []), max_bad_fraction=0.2)
    after.setup()
    assert list(after.skipped) == [f"data/{bad.index}"]
    assert [member.number for member in after._validating] == [member.number for member in before._validating]
    assert [member.number for member in after._training] == [member.number for member in before._training][1:]


def test_validation_is_always_the_same(made: Made) -> None:
    data = demonstrations(made, validation_windows=12)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    assert [len(batch["row"]) for batch in first] == [8, 4]
    for one, two in zip(first, second, strict=True):
        assert one["row"].tolist() == two["row"].tolist() and torch.equal(one["future"], two["future"])
    assert first[0]["position"].tolist() == list(range(8))
    assert [TASKS[index] for index in first[0]["episode"].tolist()[:2]] == ["a", "b"]
    assert demonstrations(made, validation_fraction=0.0).val_dataloader() == []


def test_the_contract(made: Made) -> None:
    expected = {
        "robot": "test-arm",
        "control_hz": 80.0,
        "cameras": [
            {"name": "wrist", "height": 8, "width": 12, "view": VIEW},
            {"name": "corner2", "height": 8, "width": 12, "view": VIEW},
        ],
        "observed": 5,
        "future": 4,
        "frame_interval_steps": 4,
        "proprio": STATE_NAMES,
        "actions": ACTION_NAMES,
    }
    options: dict[str, Any] = {"cameras": ["wrist", "corner2"], "height": 8, "width": 12}
    assert clips(made, **options).contract() == expected
    contract = demonstrations(made, **options).contract()
    assert contract == {**expected, "horizon": HORIZON} == json.loads(json.dumps(contract))
    assert batches(demonstrations(made, **options), 1)[0]["future"].shape == (8, 4, 8, 24, 3)


def test_statistics_are_those_of_the_training_windows(tmp_path: Path, made: Made) -> None:
    data = demonstrations(made, cache_dir=str(tmp_path))
    data.setup()
    windows = sum(member.episode.length for member in data._training)
    seen: dict[tuple[int, int], Any] = {}
    for batch in batches(data, -(-windows // 8)):
        seen |= {
            (episode, row): chunk
            for episode, row, chunk in zip(batch["episode"].tolist(), batch["row"].tolist(), batch["actions"].numpy(), strict=True)
        }
    assert len(seen) == windows == data.statistics()["windows"], "one epoch shows every window"
    chunks = np.stack(list(seen.values())).astype(np.float64)
    np.testing.assert_allclose(data.statistics()["actions"]["per_step"]["mean"], chunks.mean(0), rtol=1e-9)
    demonstrations(made, cache_dir=str(tmp_path)).statistics()
    assert len(list(tmp_path.iterdir())) == 1
    demonstrations(made, cache_dir=str(tmp_path), split_seed=5).statistics()
    assert len(list(tmp_path.iterdir())) == 2, "other training episodes, other statistics"


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_repeated_frames_can_be_switched_off(made: Made, first: bool, last: bool, every: int, tmp_path: Path) -> None:
    """GEOMETRY needs 8 rows before an anchor and 8 after it: 17 for a window without repetitions."""
    options: dict[str, Any] = {"repeat_first": first, "repeat_last": last, "anchor_interval": every, "validation_fraction": 0.0}
    for data, past_end in ((clips(made, **options, exhaustive=True), 8), (demonstrations(made, **options, cache_dir=str(tmp_path)), 0)):
        data.setup()
        wanted = {
            (episode, row)
            for episode, length in enumerate(LENGTHS)
            for row in range(0, length + past_end, every)
            if (first or row >= 8) and (last or row + 8 < length)
        }
        assert {int(key.split("/")[1]) for key in data.skipped} == set(range(6)) - {episode for episode, _ in wanted}
        seen = batches(data, -(-len(wanted) // 8))
        pairs = [pair for batch in seen for pair in pairs_of(batch)]
        assert set(pairs[: len(wanted)]) == wanted and len(set(pairs)) == len(wanted), "an epoch has each once"
        masks = torch.cat([batch["frame_mask"] for batch in seen])
        assert bool(masks[:, 0].all()) >= (not first) and bool(masks[:, -1].all()) >= (not last)
        if isinstance(data, DemonstrationData) and every == 1:
            chunks = {pair: chunk for batch in seen for pair, chunk in zip(pairs_of(batch), batch["actions"].numpy(), strict=True)}
            found = data.statistics()
            assert found["windows"] == len(wanted)
            mean = np.mean([chunks[pair] for pair in wanted], axis=0, dtype=np.float64)
            np.testing.assert_allclose(found["actions"]["per_step"]["mean"], mean, rtol=1e-9)


def pairs_of(batch: Any) -> list[tuple[int, int]]:
    return list(zip(batch["episode"].tolist(), batch["row"].tolist(), strict=True))


def test_no_episode_is_long_enough_for_a_window_without_repetitions(made: Made) -> None:
    with pytest.raises(DatasetError, match="no usable episode of .* is left after repeat_first and repeat_last"):
        clips(made, future=16, repeat_first=False, repeat_last=False).setup()


def test_sizes_that_are_not_the_datasets(made: Made) -> None:
    with pytest.raises(DatasetError, match="data.init_args.action_dim is 7, .* has 3 \\(dx, dy, gripper\\): set it to 3"):
        demonstrations(made, action_dim=7).setup()
    with pytest.raises(DatasetError, match="data.init_args.proprio_dim is 1, .* has 2 \\(x, y\\): set it to 2"):
        demonstrations(made, proprio_dim=1).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": 4}, "observed must be 1 \\+ 4m .* got 4: the nearest are 1 and 5"),
        ({"future": 10}, "with observed = 5, the nearest values of future are 8 and 12"),
        ({"frame_interval": 0}, "frame_interval must be"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"height": 8}, "both height and width"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
        ({"history": 0}, "history must be at least 1, got 0"),
        ({"hold_dims": [3]}, "hold_dims must lie in \\[0, 2\\], got \\[3\\]"),
        ({"sources": {"x": "y"}}, "either root, .* or sources"),
        ({"root": None, "sources": {"x": Source("y", 2.0), "z": Source("y")}, "exhaustive": True}, "exhaustive: every window comes once"),
        ({"weight_by": "dataset", "exhaustive": True}, "exhaustive: every window comes once"),
        ({"weight_by": "size"}, "weight_by must be one of dataset, episodes, frames, temperature, got 'size'"),
        ({"weight_by": "temperature", "temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": 2.0}, "temperature 2.0 has no effect"),
        ({"root": None, "sources": {"x": Source("y", -1.0)}}, "sources.x.weight must not be negative, got -1.0"),
        ({"root": None, "sources": {"x": Source("y", 0.0)}}, "the weights of all sources are zero"),
        ({"prefetch_factor": 0}, "prefetch_factor must be at least 1, got 0"),
        ({"num_workers": -1}, "must not be negative"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie in \\[0, 1\\), got 1.0"),
        ({"root": None, "sources": {}}, "either root, .* or sources"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(made: Made, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demonstrations(made, **options)


def test_full_windows_can_be_required(made: Made) -> None:
    assert Window(**GEOMETRY).span == 17
    with pytest.raises(DatasetError, match="5 of 6 episodes .*\n  episode 0: it has 12 rows, fewer than 17"):
        clips(made, require_full_windows=True).setup()
    data = clips(made, require_full_windows=True, max_bad_fraction=0.9, validation_fraction=0.0)
    assert {index for batch in batches(data, 3) for index in batch["episode"].tolist()} == {2}


def test_full_windows_are_counted_at_the_rate_of_the_windows(made: Made) -> None:
    """Of 40 rows a second every fourth: 20 rows are 5."""
    geometry: dict[str, Any] = {"frame_hz": 10, "observed": 1, "future": 4, "frame_interval": 1, "validation_fraction": 0.0}
    with pytest.raises(DatasetError, match="5 of 6 episodes .*\n  episode 0: it has 3 rows, fewer than 5"):
        clips(made, require_full_windows=True, **geometry).setup()
    data = clips(made, require_full_windows=True, max_bad_fraction=0.9, **geometry)
    assert {index for batch in batches(data, 3) for index in batch["episode"].tolist()} == {2}
    assert data.skipped["data/0"] == "require_full_windows: it has 3 rows, fewer than 5"


def test_a_dataset_smaller_than_a_batch(tmp_path: Path) -> None:
    made = by_writer(tmp_path / "d", lengths=(2,))
    data = demonstrations(made, batch_size=7, validation_fraction=0.0)
    rows = [row for batch in batches(data, 2) for row in batch["row"].tolist()]
    assert Counter(rows) == {0: 7, 1: 7}
    assert len(batches(clips(made, batch_size=7), 1)[0]["row"]) == 7


def test_tasks_in_balance(made: Made) -> None:
    options: dict[str, Any] = {"validation_fraction": 0.0, "batch_size": 50, "task_balanced": True}
    skewed = Made(made.root, [], [], [], [])
    for data in (clips(skewed, **options), demonstrations(skewed, **options)):
        counts = Counter(TASKS[index] for batch in batches(data, 20) for index in batch["episode"].tolist())
        assert abs(counts["a"] - 500) < 80, "episodes of 41 and 32 rows"
    assert counts["a"] == 500


# ---- several datasets -----------------------------------------------------------------------------------------------------------------


def test_several_sources_with_weights(tmp_path: Path) -> None:
    first, second = by_writer(tmp_path / "one", (12, 9), ["a", "a"]), by_writer(tmp_path / "two", (12, 9), ["b", "b"])
    sources = {"one": str(first.root), "two": Source(str(second.root), weight=3.0)}
    data = ClipData(sources=sources, batch_size=100, validation_fraction=0.0, **GEOMETRY)
    drawn = [
        (number, prompt, what_is_shown(video[0].numpy())[0])
        for batch in batches(data, 10)
        for number, prompt, video in zip(batch["episode"].tolist(), batch["prompt"], batch["video"], strict=True)
    ]
    assert {(number, prompt, episode) for number, prompt, episode in drawn} == {
        (0, "Do a.", 0),
        (1, "Do a.", 1),
        (2, "Do b.", 0),
        (3, "Do b.", 1),
    }
    assert abs(sum(number >= 2 for number, *_ in drawn) - 750) < 60
    both = DemonstrationData(3, 2, HORIZON, sources={"one": str(first.root), "two": str(second.root)}, validation_fraction=0.0, **GEOMETRY)
    assert both.statistics()["windows"] == 42
    for batch in batches(both, 2):
        for number, chunk in zip(batch["episode"].tolist(), batch["actions"], strict=True):
            assert chunk[0, 0] // 1000 == number % 2


def test_sources_must_go_together(tmp_path: Path) -> None:
    small, large = by_writer(tmp_path / "s"), by_writer(tmp_path / "l", height=32, width=32)
    with pytest.raises(DatasetError, match="sources differ in pictures: s \\(16, 16\\); l \\(32, 32\\)"):
        ClipData(sources={"s": str(small.root), "l": str(large.root)}, **GEOMETRY).setup()
    ClipData(sources={"s": str(small.root), "l": str(large.root)}, height=16, width=16, **GEOMETRY).setup()
    slow = by_lerobot(tmp_path / "slow")
    with pytest.raises(DatasetError, match="sources differ in frames per second: s 80.0; slow 10.0"):
        ClipData(sources={"s": str(small.root), "slow": str(slow.root)}, **GEOMETRY).setup()
    other = by_lerobot(tmp_path / "other", fps=80)
    ClipData(sources={"s": str(small.root), "other": str(other.root)}, **GEOMETRY).setup()
    with pytest.raises(DatasetError, match="sources differ in robot: s test-arm; other so101"):
        DemonstrationData(3, 2, HORIZON, sources={"s": str(small.root), "other": str(other.root)}, **GEOMETRY).setup()


# ---- latents --------------------------------------------------------------------------------------------------------------------------


def encode(video: Tensor) -> Tensor:
    return video[:, ::4].float().mean((2, 3)).permute(0, 2, 1)[..., None, None].expand(-1, -1, -1, 2, 2)


def test_latents_take_the_place_of_pixels(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    stage1, stage2 = clips(made), demonstrations(made)
    pixels = [batches(stage1, 3), batches(stage2, 3), list(stage2.val_dataloader())]
    stage1.attach_latents(encode, "vae", str(tmp_path))
    stage2.attach_latents(lambda video: pytest.fail("stage 1 has encoded these windows"), "vae", str(tmp_path))
    assert next(iter(stage2.predict_dataloader()))["observation"]["video"].shape == (8, 5, 16, 16, 3), "acting needs pixels"
    monkeypatch.setattr(LeRobotEpisodes, "frames", lambda *_: pytest.fail("pixels were decoded"))
    latents = [batches(stage1, 3), batches(stage2, 3), list(stage2.val_dataloader())]
    for before, after in zip(chain(*pixels), chain(*latents), strict=True):
        video = before["video"] if "video" in before else torch.cat([before["observation"]["video"], before["future"]], 1)
        assert after["latents"].dtype == torch.bfloat16 and torch.equal(after["latents"], encode(video).bfloat16())
        assert "video" not in after and "future" not in after and "video" not in after.get("observation", {})
        for key in ("prompt", "episode", "row", "position", "actions"):
            if key in before:
                assert torch.equal(before[key], after[key]) if isinstance(before[key], Tensor) else before[key] == after[key]


def test_latents_from_workers(tmp_path: Path, made: Made) -> None:
    data, workers = demonstrations(made), demonstrations(made, num_workers=2)
    for one in (data, workers):
        one.attach_latents(encode, "vae", str(tmp_path))
    for one, two in zip(batches(data, 4), batches(workers, 4), strict=True):
        assert torch.equal(one["latents"], two["latents"])


def test_latents_in_workers_that_are_no_forks(tmp_path: Path, made: Made) -> None:
    """What such a worker has went through pickle: nothing may depend on where objects lie."""
    data = demonstrations(made, sources={"one": Source(str(made.root)), "two": Source(str(made.root))}, root=None)
    data.attach_latents(encode, "vae", str(tmp_path))
    loader: Any = data.train_dataloader()
    elsewhere, items = pickle.loads(pickle.dumps(loader.dataset)), next(iter(loader.sampler))
    assert torch.equal(elsewhere[items]["latents"], loader.dataset[items]["latents"])


# ---- Lightning ------------------------------------------------------------------------------------------------------------------------


class Rows(LightningModule):
    def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
        return batch["row"].tolist()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/rows", batch["row"].float().mean(), batch_size=len(batch["row"]))


def test_predicting_and_testing(made: Made) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    data = demonstrations(made, validation_windows=12)
    rows = [row for batch in data.val_dataloader() for row in batch["row"].tolist()]
    predicted = trainer.predict(Rows(), data)
    assert predicted is not None and [row for batch in predicted for row in batch] == rows
    (metrics,) = trainer.test(Rows(), data, verbose=False)
    assert metrics["test/rows"] == pytest.approx(np.mean(rows))


def test_a_video_only_dataset_serves_stage_1(tmp_path: Path) -> None:
    made = by_lerobot(tmp_path / "d")
    change_rows(made.root, lambda columns: (columns.pop("action"), columns.pop("observation.state")))
    path = made.root / "meta/info.json"
    info = json.loads(path.read_text())
    del info["features"]["action"], info["features"]["observation.state"]
    path.write_text(json.dumps(info))
    assert batches(ClipData(str(made.root), **GEOMETRY), 1)[0]["video"].shape[0] == 32
    with pytest.raises(DatasetError, match="has videos only, no numbers to take action_dim from: it serves stage 1"):
        DemonstrationData(3, 2, HORIZON, root=str(made.root), **GEOMETRY).setup()
    assert (made.root / DATA_FILE).is_file()


@pytest.mark.parametrize("form", [zarr_v2, hdf5])
def test_numbers_that_nothing_describes_are_named_with_the_way_to_describe_them(form: Any, tmp_path: Path) -> None:
    form(tmp_path / "d")
    what = r"proprio_dim|action_dim"
    with pytest.raises(
        DatasetError, match=rf"nothing says which numbers of .*d to take ({what}) from; it has .*: describe it with data.spec"
    ):
        DemonstrationData(3, 2, HORIZON, root=str(tmp_path / "d"), **GEOMETRY).setup()


# ---- fewer windows --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [clips, demonstrations])
def test_every_so_manieth_window(tmp_path: Path, made: Made, make: Any) -> None:
    data = make(made, anchor_interval=4, num_workers=0)
    data.attach_latents(encode, "vae", str(tmp_path / "sparse"))
    seen = [batches(data, 12), list(data.val_dataloader())]
    assert {row % 4 for batch in chain(*seen) for row in batch["row"].tolist()} == {0}
    expected = {(episode, row) for episode, rows in enumerate(LENGTHS) for row in range(0, rows + 8 * (make is clips), 4)}
    drawn = {place for batch in chain(*seen) for place in zip(batch["episode"].tolist(), batch["row"].tolist(), strict=True)}
    assert drawn <= expected and (make is clips or drawn == expected)
    make(made).attach_latents(encode, "vae", str(tmp_path / "dense"))
    size = {name: sum(path.stat().st_size for path in (tmp_path / name).glob("*/*.bf16")) for name in ("sparse", "dense")}
    assert size["sparse"] < size["dense"] / 3

    def never(video: Tensor) -> Tensor:
        pytest.fail("these windows have been encoded")

    for interval, folder in ((4, "sparse"), (8, "sparse"), (4, "dense")):
        again = make(made, anchor_interval=interval)
        again.attach_latents(never, "vae", str(tmp_path / folder))
        for batch in batches(again, 3):
            video = [again._training.readers["data"].frames(*place(again, episode, row)) for episode, row in names(batch)]
            assert torch.equal(batch["latents"], encode(torch.from_numpy(np.stack(video))).bfloat16())
    for interval in (1, 6):
        with pytest.raises(
            DatasetError, match=f"has latents of every 4th anchor of .*, training asks for every {interval}: set anchor_inter"
        ):
            make(made, anchor_interval=interval).attach_latents(encode, "vae", str(tmp_path / "sparse"))


def names(batch: Any) -> list[tuple[int, int]]:
    return list(zip(batch["episode"].tolist(), batch["row"].tolist(), strict=True))


def place(data: ClipData, episode: int, row: int) -> tuple[Any, np.ndarray]:
    listed = data._training.readers["data"].listed[episode]
    return listed, data.window.frame_rows(row, listed.length)
