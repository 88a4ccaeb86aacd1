"""The checkpoint of the last step, which no interval need hit, and from which a longer training goes on exactly."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer

from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint
from tests.synthetic_episodes import by_writer
from tests.unit.data.test_resume import STEPS, check_same, fit


def test_last_ckpt_is_the_last_step_and_training_goes_on_from_it(tmp_path: Path) -> None:
    root = str(by_writer(tmp_path / "data", lengths=(5, 3, 4, 3)).root)
    whole = fit(root, "demonstrations", 0)
    saving = SafeCheckpoint(tmp_path / "run", every_n_train_steps=2, save_last=True)
    fit(root, "demonstrations", 0, steps=5, callbacks=[saving])
    last = tmp_path / "run" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5 < STEPS
    check_same(whole, fit(root, "demonstrations", 0, ckpt=last), 5)


def test_a_step_that_was_saved_already_is_not_saved_again(tmp_path: Path) -> None:
    root = str(by_writer(tmp_path / "data", lengths=(5, 3, 4, 3)).root)
    saving = SafeCheckpoint(tmp_path / "run", every_n_train_steps=2, save_last=True)
    times, save = [], saving._save_checkpoint

    def counted(trainer: Trainer, path: str) -> None:
        times.append(trainer.global_step)
        save(trainer, path)

    saving._save_checkpoint = counted
    fit(root, "demonstrations", 0, steps=4, callbacks=[saving])
    assert times == [2, 2, 4, 4]  # each as a file of its own and as last.ckpt
