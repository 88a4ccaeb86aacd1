"""Training that goes wrong stops, says where, and leaves the last good checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from mimicvideo.callbacks.nan_guard import NanGuard
from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint


class Rows(Dataset):
    """Sixteen samples; the one of episode 5 is not a number."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((2,), float("nan") if index == 10 else 1.0), "episode": index // 2, "row": index % 2}


class Model(LightningModule):
    """Its loss is the mean of the samples, or its weights become infinite while the loss is not, after `bad_step` steps."""

    def __init__(self, bad_step: int | None = None) -> None:
        super().__init__()
        self.weight, self.bad_step = torch.nn.Parameter(torch.ones(2)), bad_step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return (self.weight * (batch["x"].nan_to_num(1.0) if self.bad_step is not None else batch["x"])).mean()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.bad_step:
            self.weight.register_hook(lambda gradient: gradient * float("inf"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, module: LightningModule, guard: NanGuard) -> Trainer:
    checkpoint = SafeCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_last=True, filename="{step}")
    trainer = Trainer(
        max_epochs=1, callbacks=[checkpoint, guard], logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module, DataLoader(Rows(), batch_size=4))
    return trainer


def test_a_loss_that_is_no_number_stops_and_names_step_and_samples(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"nan at step 3, batch of episodes 4, 4, 5, 5; rows 0, 1, 0, 1\. The last good .*last\.ckpt"
    ):
        fit(tmp_path, Model(), NanGuard())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and saved["state_dict"]["weight"].isfinite().all()
    assert not (tmp_path / "step=3.ckpt").exists()


def test_losses_not_yet_looked_at_are_looked_at_before_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = NanGuard(every=100)
    monkeypatch.setattr(guard, "on_train_batch_end", lambda trainer, module, outputs, batch, index: guard._pending.append(
        (trainer.global_step, outputs["loss"].detach(), {name: batch[name] for name in ("episode", "row")})
    ))  # fmt: skip
    with pytest.raises(FloatingPointError, match="loss is nan at step 3, batch of episodes 4, 4, 5, 5"):
        fit(tmp_path, Model(), guard)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"not finite after step 2 though the losses were \(weight\).*last good checkpoint"):
        fit(tmp_path, Model(bad_step=2), NanGuard())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1 and saved["state_dict"]["weight"].isfinite().all()


def test_a_good_run_is_left_alone(tmp_path: Path) -> None:
    assert fit(tmp_path, Model(bad_step=100), NanGuard(every=3)).global_step == 4


def test_every_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        NanGuard(every=0)
