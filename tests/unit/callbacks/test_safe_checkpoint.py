"""Checkpoints on a full disk, damaged checkpoints, and what Lightning's ModelCheckpoint does with them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint
from mimicvideo.checkpoint import (
    CheckpointNotSavedError,
    DamagedCheckpointError,
    SafeCheckpointIO,
    save_checkpoint,
    sidecar,
    verify_checkpoint,
)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Lets the system refuse to write beyond `size` bytes of a file, as it does beyond the end of a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Regression(LightningModule):
    """Big enough that its checkpoint (400 kB) is the largest file of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(100_000, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def trainer(tmp_path: Path, steps: int, **arguments: object) -> Trainer:
    checkpoint = SafeCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_last=True, filename="{step}", **arguments)  # type: ignore[arg-type]
    return Trainer(
        max_steps=steps, callbacks=[checkpoint], logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False
    )


def fit(trainer: Trainer, **arguments: object) -> Regression:
    module = Regression()
    trainer.fit(module, DataLoader(torch.ones(8, 100_000), batch_size=2), **arguments)  # type: ignore[arg-type]
    return module


def test_a_checkpoint_comes_with_its_hash_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ckpt"
    save_checkpoint({"x": torch.arange(3)}, path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.ckpt", "a.ckpt.sha256"]
    assert sidecar(path).read_text() == f"{verify_checkpoint(path)}  a.ckpt\n"
    assert SafeCheckpointIO().load_checkpoint(path)["x"].tolist() == [0, 1, 2]


def test_a_full_disk_leaves_the_previous_checkpoint_good(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint({"x": torch.ones(10)}, path)
    before = verify_checkpoint(path)
    message = r"last\.ckpt \(0\.[0-9] MB; .* MB are free there\): File too large"
    with files_at_most(100_000), pytest.raises(CheckpointNotSavedError, match=message):
        save_checkpoint({"x": torch.ones(100_000)}, path)
    assert verify_checkpoint(path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_fills_up_stops_training_and_the_last_checkpoint_resumes_it(tmp_path: Path) -> None:
    fit(trainer(tmp_path, steps=2))
    good = {path.name: verify_checkpoint(path) for path in tmp_path.glob("*.ckpt")}
    assert set(good) == {"last.ckpt", "step=2.ckpt"}
    with files_at_most(100_000), pytest.raises(CheckpointNotSavedError, match="untouched"):
        fit(trainer(tmp_path, steps=4), ckpt_path=str(tmp_path / "last.ckpt"))
    assert {path.name: verify_checkpoint(path) for path in tmp_path.glob("*.ckpt")} == good
    assert not list(tmp_path.glob(".*"))
    resumed = trainer(tmp_path, steps=4)
    fit(resumed, ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.global_step == 4


def test_removed_checkpoints_take_their_hashes_along(tmp_path: Path) -> None:
    fit(trainer(tmp_path, steps=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256", "step=3.ckpt", "step=3.ckpt.sha256"]


def test_a_link_is_verified_by_what_it_points_to(tmp_path: Path) -> None:
    save_checkpoint({"x": torch.ones(3)}, tmp_path / "step=1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    digest = verify_checkpoint(tmp_path / "last.ckpt")
    sidecar(tmp_path / "step=1.ckpt").write_text(f"{'0' * 64}  step=1.ckpt\n")
    with pytest.raises(DamagedCheckpointError, match=digest):
        verify_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("recorded", [True, False], ids=["with its hash", "file alone"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damage_is_noticed_before_a_resume(tmp_path: Path, damage: str, recorded: bool) -> None:
    fit(trainer(tmp_path, steps=1))
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    if not recorded:
        sidecar(path).unlink()
    with pytest.raises(DamagedCheckpointError, match=r"last\.ckpt is damaged.*use another checkpoint"):
        fit(trainer(tmp_path, steps=2), ckpt_path=str(path))


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        verify_checkpoint(tmp_path / "last.ckpt")
