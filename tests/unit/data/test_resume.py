"""A training that was interrupted and resumed sees exactly the batches, and reaches exactly the weights, of one that was not."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn

from mimicvideo.data.demonstration_data import DemonstrationData
from mimicvideo.data.modules import ClipData
from tests.synthetic_episodes import by_writer, change_rows

STEPS = 9


class Recorder(LightningModule):
    """Learns something from its batches and writes down which they were."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.fail_at, self.batches, self.validated, self.losses = fail_at, [], [], []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise RuntimeError("power cut")
        self.batches.append(batch["position"].tolist())
        rows = batch["row"].float()[:, None] / 20
        loss = (self.layer(rows) - batch["episode"][:, None]).square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch["row"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(by_writer(tmp_path_factory.mktemp("data") / "d", lengths=(5, 3, 4, 3)).root)


def make_data(root: str, kind: str, workers: int, batch_size: int = 4) -> ClipData:
    common: dict[str, Any] = {"root": root, "observed": 1, "future": 4, "validation_windows": 6, "num_workers": workers}
    common["batch_size"] = batch_size
    return ClipData(**common) if kind == "clips" else DemonstrationData(3, 2, 4, **common)


def fit(
    root: str,
    kind: str,
    workers: int,
    steps: int = STEPS,
    ckpt: Path | None = None,
    fail_at: int | None = None,
    batch_size: int = 4,
    **options: Any,
) -> Recorder:
    module = Recorder(fail_at)
    saves = any(isinstance(callback, Checkpoint) for callback in options.get("callbacks", ()))
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": saves, **options}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, num_sanity_val_steps=0, **quiet, **options)
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(module, make_data(root, kind, workers, batch_size), ckpt_path=ckpt, weights_only=True)
    return module


def check_same(whole: Recorder, resumed: Recorder, done: int) -> None:
    """`done` batches were behind when the checkpoint was written."""
    assert resumed.batches == whole.batches[done:] and resumed.batches
    assert resumed.losses == whole.losses[done:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_from_checkpoints_of_any_step(root: str, tmp_path: Path, kind: str, workers: int, accumulate: int) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fit(root, kind, workers, accumulate_grad_batches=accumulate, callbacks=[saving])
    positions = [position for batch in whole.batches for position in batch]
    assert positions == list(range(4 * STEPS * accumulate)), "the stream is not disturbed by validation or prefetching"
    for step in (3,) if workers else (1, 2, 5, 8):
        resumed = fit(root, kind, workers, ckpt=tmp_path / f"step={step}.ckpt", accumulate_grad_batches=accumulate)
        check_same(whole, resumed, step * accumulate)
    assert whole.validated and all(rows in whole.validated[:2] for rows in resumed.validated), "validation is the same every time"


class SaveAfterValidation(Callback):
    """Leaves a checkpoint wherever validation runs, named by the batches that were seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{len(pl_module.batches)}.ckpt")


@pytest.mark.parametrize("accumulate", [2, 3])
def test_from_checkpoints_between_the_batches_of_a_step(root: str, tmp_path: Path, accumulate: int) -> None:
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 1, "steps": 4}
    whole = fit(root, "demonstrations", 0, callbacks=[SaveAfterValidation(tmp_path)], **options)
    for seen in range(1, 4 * accumulate):
        resumed = fit(root, "demonstrations", 0, ckpt=tmp_path / f"{seen}.ckpt", **options)
        check_same(whole, resumed, seen // accumulate * accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fail_at", [4, 5])
def test_from_a_checkpoint_that_an_error_left(root: str, tmp_path: Path, accumulate: int, fail_at: int) -> None:
    whole = fit(root, "demonstrations", 0, accumulate_grad_batches=accumulate)
    saving = OnExceptionCheckpoint(tmp_path)
    fit(root, "demonstrations", 0, accumulate_grad_batches=accumulate, callbacks=[saving], fail_at=fail_at)
    resumed = fit(root, "demonstrations", 0, ckpt=Path(saving.ckpt_path), accumulate_grad_batches=accumulate)
    check_same(whole, resumed, fail_at // accumulate * accumulate)


def test_epochs_of_a_limited_length_go_on_in_the_stream(root: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    options = {"limit_train_batches": 3, "val_check_interval": 3, "check_val_every_n_epoch": 1}
    whole = fit(root, "demonstrations", 2, callbacks=[saving], **options)
    assert [position for batch in whole.batches for position in batch] == list(range(4 * STEPS))
    for step in (4, 6):
        check_same(whole, fit(root, "demonstrations", 0, ckpt=tmp_path / f"step={step}.ckpt", **options), step)


def test_other_batches_than_before_are_warned_of(root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    fit(root, "clips", 0, steps=2, callbacks=[saving])
    data = make_data(root, "clips", 0)
    fit(root, "clips", 0, steps=3, ckpt=tmp_path / "step=1.ckpt")
    assert "resuming with other batches" not in caplog.text
    data = ClipData(root=root, observed=1, future=4, batch_size=2, seed=7)
    trainer = Trainer(max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Recorder(), data, ckpt_path=tmp_path / "step=1.ckpt", weights_only=True)
    assert "resuming with other batches than before: seed was 0, now 7" in caplog.text
    assert "resuming with 2 samples per batch over all ranks, before 4: their order goes on" in caplog.text


@pytest.mark.parametrize("what", ["numbers, sentences or descriptions", "files with pictures"])
def test_a_dataset_that_has_changed_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    made = by_writer(tmp_path / "d", lengths=(5, 3, 4, 3))
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    fit(str(made.root), "clips", 0, steps=2, callbacks=[saving])
    if what == "files with pictures":
        video = sorted(made.root.rglob("*.mp4"))[1]
        video.write_bytes(video.read_bytes() + b"\0\0\0\x08free")  # a box that players skip
    else:
        change_rows(made.root, lambda columns: columns["action"].reverse())
    fit(str(made.root), "clips", 0, steps=3, ckpt=tmp_path / "step=2.ckpt")
    told = [record.getMessage() for record in caplog.records if "resuming with other batches" in record.getMessage()]
    assert told == [f"resuming with other batches than before: {what} of the datasets have changed since the training stopped"]


def fit_ranks(monkeypatch: pytest.MonkeyPatch, root: str, kind: str, ranks: int, batch_size: int, **options: Any) -> list[list[int]]:
    """The positions that each of several ranks sees, one after another in this process; they all save the same checkpoints."""
    seen = []
    for rank in range(ranks):
        monkeypatch.setattr(ClipData, "_rank", lambda self, rank=rank: (rank, ranks))
        seen.append([position for batch in fit(root, kind, batch_size=batch_size, **options).batches for position in batch])
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("kind", ["clips", "demonstrations"])
@pytest.mark.parametrize(
    ("before", "after"),  # ranks, batch size, workers, accumulated batches
    [
        ((1, 4, 0, 1), (1, 4, 2, 1)),
        ((2, 4, 2, 1), (1, 8, 0, 1)),
        ((1, 8, 0, 1), (4, 2, 1, 1)),
        ((2, 4, 0, 1), (1, 4, 0, 2)),
        ((1, 4, 0, 2), (2, 4, 0, 1)),
        ((3, 2, 1, 1), (2, 5, 0, 1)),
        ((1, 4, 0, 2), (3, 1, 2, 3)),
    ],
)
def test_none_is_lost_or_repeated_with_other_workers_ranks_and_batches(
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    before: tuple[int, int, int, int],
    after: tuple[int, int, int, int],
) -> None:
    (ranks, size, workers, accumulate), ledger = before, []
    saving = [ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)]
    options: dict[str, Any] = {"workers": workers, "accumulate_grad_batches": accumulate, "steps": 3, "callbacks": saving}
    ledger += fit_ranks(monkeypatch, root, kind, ranks, size, **options)
    ranks, size, workers, accumulate = after
    options = {"workers": workers, "accumulate_grad_batches": accumulate, "steps": 6, "ckpt": tmp_path / "step=3.ckpt"}
    ledger += fit_ranks(monkeypatch, root, kind, ranks, size, **options)
    positions = [position for part in ledger for position in part]
    assert sorted(positions) == list(range(len(positions)))
    assert len(positions) == 3 * (before[0] * before[1] * before[3] + after[0] * after[1] * after[3])


def test_a_second_interruption_goes_on_as_well(root: str, tmp_path: Path) -> None:
    positions, ckpt = [], None
    for number, size in enumerate((4, 3, 5)):
        saving = [ModelCheckpoint(tmp_path / str(number), "{step}", save_top_k=-1, every_n_train_steps=1)]
        module = fit(root, "demonstrations", 0, steps=2 * number + 2, ckpt=ckpt, batch_size=size, callbacks=saving)
        positions += [position for batch in module.batches for position in batch]
        ckpt = tmp_path / str(number) / f"step={2 * number + 2}.ckpt"
    assert positions == list(range(2 * (4 + 3 + 5)))
