"""Episodes that pass opening and fail later cost their windows, are told once and counted; batches stay reproducible."""

import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.loading import died
from mimicvideo.data.modules import ClipData
from mimicvideo.data.quarantine import write_quarantine
from tests.synthetic_episodes import Made, by_lerobot, by_writer, what_is_shown

LENGTHS = [6] * 20


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return by_writer(tmp_path / "d", LENGTHS)


def make(made: Made, kind: str = "demonstrations", **options: Any) -> ClipData:
    common: dict[str, Any] = {"root": str(made.root), "observed": 1, "future": 4, "batch_size": 10, "validation_fraction": 0.1, **options}
    return ClipData(**common) if kind == "clips" else DemonstrationData(3, 2, 4, **common)


def video(made: Made, episode: int) -> Path:
    return next(made.root.glob(f"videos/*/chunk-000/file-{episode:03d}.mp4"))


def corrupt(made: Made, episode: int) -> None:
    """The container stays sound, the pictures do not."""
    path = video(made, episode)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 2000] = bytes(min(2000, len(data) - start))
    path.write_bytes(data)


def training_episodes(data: ClipData) -> list[int]:
    data.setup()
    return data._training.numbers.tolist()


def batches(data: ClipData, count: int) -> list[Any]:
    return list(islice(iter(data.train_dataloader()), count))


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
@pytest.mark.parametrize("workers", [0, 2])
def test_others_take_the_place_of_what_vanishes(made: Made, kind: str, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data = make(made, kind, num_workers=workers, max_bad_fraction=0.1)
    gone = training_episodes(data)[3]
    whole = batches(make(made, kind), 20)
    video(made, gone).unlink()
    seen = batches(data, 20)
    replaced = 0
    for before, after in zip(whole, seen, strict=True):
        assert set(after) == set(before) and torch.equal(before["position"], after["position"])
        pictures = after["video"][:, 0] if kind == "clips" else after["observation"]["video"][:, -1]
        for k, (was, now) in enumerate(zip(before["episode"].tolist(), after["episode"].tolist(), strict=True)):
            replaced += was == gone
            assert now != gone and (was == gone or now == was)
            assert what_is_shown(pictures[k].numpy())[0] == now, "names and pictures are those of the replacement"
    assert replaced
    assert list(data.skipped) == [f"data/{gone}"] and "there is no such file" in data.skipped[f"data/{gone}"]
    told = [record.getMessage() for record in caplog.records if "skipping episode" in record.getMessage()]
    assert len(told) == 1 and f"skipping episode {gone} of data (1 of 20): pictures of camera corner2 cannot be decoded" in told[0]
    data.teardown("fit")
    assert f"1 episodes could not be read while training, others took their place:\n  data/{gone}: pictures" in caplog.text


def test_replacements_do_not_depend_on_workers(made: Made) -> None:
    several = [make(made, num_workers=workers, max_bad_fraction=0.2) for workers in (0, 1, 3)]
    gone = training_episodes(several[0])[:3]
    for data in several:
        data.setup()
    for episode in gone:
        corrupt(made, episode)
    first, *others = [batches(data, 12) for data in several]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one["episode"], two["episode"]) and torch.equal(one["row"], two["row"])
            assert torch.equal(one["future"], two["future"])
    assert {data.skipped.keys() == {f"data/{episode}" for episode in gone} for data in several} == {True}


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_allowed_stop_with_the_list(made: Made, workers: int) -> None:
    data = make(made, num_workers=workers, max_bad_fraction=0.1)
    gone = sorted(training_episodes(data)[2:5])
    for episode in gone:
        corrupt(made, episode)
    with pytest.raises(DatasetError, match="3 of 20 episodes of .* cannot be used: .*max_bad_fraction=0.15") as raised:
        batches(data, 40)
    assert all(f"\n  episode {episode}: pictures of camera corner2 cannot be decoded" in str(raised.value) for episode in gone)


def test_by_default_the_first_stops(made: Made) -> None:
    data = make(made)
    corrupt(made, training_episodes(data)[0])
    with pytest.raises(DatasetError, match="1 of 20 episodes"):
        batches(data, 20)


def test_what_opening_skipped_counts_as_well(made: Made) -> None:
    first, second, *_ = training_episodes(make(made))
    corrupt(made, first)
    data = make(made, verify="full", max_bad_fraction=0.05)
    data.setup()
    assert list(data.skipped) == [f"data/{first}"]
    corrupt(made, second)
    with pytest.raises(DatasetError, match="2 of 20 episodes"):
        batches(data, 20)


class Learner(LightningModule):
    def __init__(self, spoil: Any = None) -> None:
        super().__init__()
        self.layer, self.seen, self.spoil = nn.Linear(1, 1), [], spoil

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.spoil and self.global_step == 4:
            self.spoil()
        self.seen.append(list(zip(batch["position"].tolist(), batch["episode"].tolist(), batch["row"].tolist(), strict=True)))
        return self.layer(batch["row"].float()[:, None]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(data: ClipData, module: Learner, steps: int, ckpt: Path | None = None, callbacks: Any = ()) -> Learner:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), limit_val_batches=0, **quiet)
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.parametrize("workers", [0, 2])
def test_training_finishes_with_episodes_that_break_on_the_way(
    made: Made, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = make(made, num_workers=workers, max_bad_fraction=0.1, ram_cache_gb=0.0)
    gone = training_episodes(data)[:2]
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(data, Learner(lambda: [corrupt(made, episode) for episode in gone]), 30, callbacks=[saving])
    assert [position for batch in whole.seen for position, *_ in batch] == list(range(300))
    assert set(data.skipped) == {f"data/{episode}" for episode in gone}
    later = make(made, num_workers=2 - workers, max_bad_fraction=0.1, ram_cache_gb=0.0)
    resumed = fit(later, Learner(), 30, ckpt=tmp_path / "step=20.ckpt")
    assert resumed.seen == whole.seen[20:], "the same replacements"
    assert set(later.skipped) == set(data.skipped)
    assert "resuming with other batches" not in caplog.text


def test_too_many_before_and_after_an_interruption_together(made: Made, tmp_path: Path) -> None:
    data = make(made, max_bad_fraction=0.1, ram_cache_gb=0.0)
    first, second, third, *_ = training_episodes(data)
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    fit(data, Learner(lambda: [corrupt(made, episode) for episode in (first, second)]), 25, callbacks=[saving])
    later = make(made, max_bad_fraction=0.1, ram_cache_gb=0.0)
    later.setup()  # its look at the files finds the first two
    corrupt(made, third)
    with pytest.raises(DatasetError, match="3 of 20 episodes"):
        fit(later, Learner(), 60, ckpt=tmp_path / "step=25.ckpt")


def test_latents_that_vanish(made: Made, tmp_path: Path) -> None:
    def encode(clips: Tensor) -> Tensor:
        return clips[:, ::4].float().mean((2, 3)).permute(0, 2, 1)[..., None, None]

    data = make(made, max_bad_fraction=0.1)
    unreadable, gone = training_episodes(data)[:2]
    corrupt(made, unreadable)
    data.attach_latents(encode, "vae", str(tmp_path / "cache"))
    assert list(data.skipped) == [f"data/{unreadable}"], "encoding goes on"
    reader = data.readers["data"]
    next(tmp_path.glob(f"cache/*/{reader.picture_key(reader.listed[gone])}.bf16")).unlink()
    seen = {episode for batch in batches(data, 20) for episode in batch["episode"].tolist()}
    assert not {unreadable, gone} & seen and len(seen) == 16
    assert (
        set(data.skipped) == {f"data/{unreadable}", f"data/{gone}"} and "starting again encodes them anew" in data.skipped[f"data/{gone}"]
    )


def test_a_dead_worker(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    main = os.getpid()

    data = make(made, num_workers=1)
    data.setup()
    frames = data._training.readers["data"].frames

    def kill(*arguments: Any) -> Any:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return frames(*arguments)

    monkeypatch.setattr(data._training.readers["data"], "frames", kill)
    with pytest.raises(RuntimeError, match="a data worker has died: .*Likely causes: the machine ran out of memory .*num_workers"):
        batches(data, 2)
    assert died(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), 2) and died(RuntimeError("CUDA error"), 2) is None


def test_nothing_readable_at_all(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(made, max_bad_fraction=1.0)
    for episode in training_episodes(data):
        video(made, episode).unlink()
    with pytest.raises(DatasetError, match="32 windows in a row cannot be read\nFound while training:\n  data/.*there is no such file"):
        batches(data, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_breaks_at_once(made: Made, workers: int) -> None:
    data = make(made, num_workers=workers, max_bad_fraction=0.1)
    gone = training_episodes(data)
    for episode in gone:
        video(made, episode).unlink()
    with pytest.raises(DatasetError, match="of 20 episodes of .* cannot be used: .*max_bad_fraction") as raised:
        batches(data, 1)
    listed = [episode for episode in gone if f"\n  episode {episode}: pictures of camera corner2" in str(raised.value)]
    assert len(listed) > 10, "not the first one alone"


def quarantined(made: Made, path: Path, episodes: list[int]) -> str:
    fingerprint = LeRobotEpisodes(made.root).tables_fingerprint
    reasons = dict.fromkeys(episodes, "it looks odd")
    write_quarantine(path, {"data": {"root": made.root, "fingerprint": fingerprint, "episodes": reasons}})
    return str(path)


def test_a_quarantine_counts_towards_no_limit(made: Made, tmp_path: Path) -> None:
    first, second, third, *_ = training_episodes(make(made))
    quarantine = quarantined(made, tmp_path / "q.json", [first, second])
    data = make(made, max_bad_fraction=0.05, quarantine=quarantine)
    data.setup()
    (share,) = data.mixture()
    assert (share.skipped, share.quarantined, share.episodes) == (0, 2, 16)
    corrupt(made, third)
    seen = {episode for batch in batches(data, 20) for episode in batch["episode"].tolist()}
    assert len(seen) == 15 and not {first, second, third} & seen
    assert set(data.skipped) == {f"data/{episode}" for episode in (first, second, third)}


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
def test_what_is_left_out_later_is_replaced_in_its_place(made: Made, tmp_path: Path, kind: str) -> None:
    """A quarantine and a caption policy that an interrupted training did not have."""
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    data = make(made, kind, exhaustive=True)
    whole = fit(data, Learner(), 20, callbacks=[saving])
    left_out = training_episodes(data)[4:7]
    later = make(made, kind, exhaustive=True, quarantine=quarantined(made, tmp_path / "q.json", left_out))
    resumed = fit(later, Learner(), 20, ckpt=tmp_path / "step=10.ckpt")
    replaced = 0
    for before, after in zip(whole.seen[10:], resumed.seen, strict=True):
        for (position, was, row), (same, now, new_row) in zip(before, after, strict=True):
            assert position == same and now not in left_out
            assert was in left_out or (now, new_row) == (was, row)
            replaced += was in left_out
    assert replaced
    assert set(later.skipped) == {f"data/{episode}" for episode in left_out} and not later._ledger.found


def test_unlabelled_episodes_stay_out_after_an_interruption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = by_lerobot(tmp_path / "d", [6] * 10, ["Do it."] * 6 + [""] * 4).root
    options: dict[str, Any] = {"root": str(root), "observed": 1, "future": 4, "batch_size": 5, "captions": {"empty": "drop"}}
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(ClipData(**options), Learner(), 12, callbacks=[saving])
    resumed = fit(ClipData(**options), Learner(), 12, ckpt=tmp_path / "step=5.ckpt")
    assert resumed.seen == whole.seen[5:] and "resuming with other batches" not in caplog.text
    kept = fit(ClipData(**{**options, "captions": {"empty": "keep"}}), Learner(), 12, ckpt=tmp_path / "step=5.ckpt")
    assert (
        kept.seen == whole.seen[5:]
        and "4 episodes of data could not be used when this training began and stay out, such as 6" in caplog.text
    )
    everything = fit(ClipData(**{**options, "captions": None}), Learner(), 12, callbacks=[ModelCheckpoint(tmp_path / "all", "{step}")])
    later = fit(ClipData(**options), Learner(), 20, ckpt=tmp_path / "all/step=12.ckpt")
    assert any(episode > 5 for batch in everything.seen for _, episode, _ in batch)
    assert not any(episode > 5 for batch in later.seen for _, episode, _ in batch), "they are replaced"
