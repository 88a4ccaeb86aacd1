"""Training in every format with episodes that break before or during it: it finishes within the limit, lists them, and stops beyond it."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.modules import ClipData
from tests.audit_formats import DAMAGES, spec_of, write_format
from tests.faults import Corpus, make_corpus

KINDS = ("rlds", "zarr", "hdf5", "videos")
# What goes away, and the episodes that it takes along.
VANISHING = {
    "rlds": ("toy-train.tfrecord-00001-of-00003", {4, 5, 6, 7}),
    "zarr": ("episode_5", {5}),
    "hdf5": ("0_lift_demo.hdf5", {0, 1, 2, 3}),
    "videos": ("clip_5.mp4", {5}),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def data(root: Path, **options: Any) -> ClipData:
    common = {"cameras": ["front"], "observed": 1, "future": 4, "batch_size": 8, "validation_fraction": 0.0, "ram_cache_gb": 0.0}
    return ClipData(str(root), spec=str(spec_of(root)), **{**common, **options})


class Learner(LightningModule):
    """Takes something away before its fourth step, and takes note of what it sees."""

    def __init__(self, gone: Path | None = None) -> None:
        super().__init__()
        self.layer, self.gone, self.seen, self.dark = nn.Linear(1, 1), gone, set(), 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.gone and batch_idx == 3:
            shutil.rmtree(self.gone) if self.gone.is_dir() else self.gone.unlink()
        if batch_idx > 4:  # what a worker had loaded before
            self.seen |= set(batch["episode"].tolist())
        self.dark += int((batch["video"].float().mean((2, 3, 4)) < 5).any())
        return self.layer(batch["row"].float()[:, None]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(module: Learner, clips: ClipData, folder: Path) -> Learner:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=24, enable_checkpointing=False, limit_val_batches=0, **quiet)
    trainer.fit(module, clips)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_vanish_cost_their_episodes_only(kind: str, corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    write_format(kind, tmp_path / "data", corpus, corpus.recordings)
    name, lost = VANISHING[kind]
    clips = data(tmp_path / "data", max_bad_fraction=0.34)
    found = fit(Learner(tmp_path / "data" / name), clips, tmp_path)
    assert not found.seen & lost and found.dark == 0
    assert set(clips.skipped) == {f"data/{index}" for index in lost}
    assert f"{len(lost)} episodes could not be read while training" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_the_limit_stop_with_the_list(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    write_format(kind, tmp_path / "data", corpus, corpus.recordings)
    name, lost = VANISHING[kind]
    with pytest.raises(DatasetError, match=r"of 12 episodes of .* cannot be used: .*max_bad_fraction") as caught:
        fit(Learner(tmp_path / "data" / name), data(tmp_path / "data"), tmp_path)
    assert any(f"\n  episode {index}: pictures of camera front cannot be decoded" in str(caught.value) for index in lost)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("rlds", "changed_bytes"), ("zarr", "metadata"), ("hdf5", "truncated_file"), ("videos", "truncated"), ("videos", "rate")],
)
def test_one_damaged_episode_or_file_does_not_stop_training(kind: str, name: str, corpus: Corpus, tmp_path: Path) -> None:
    damage, _, episodes = DAMAGES[kind][name]
    write_format(kind, tmp_path / "data", corpus, corpus.recordings)
    damage(tmp_path / "data")
    with pytest.raises(DatasetError, match="1 of .* episodes of .* cannot be used"):
        data(tmp_path / "data", verify="full").setup()
    clips = data(tmp_path / "data", verify="full", max_bad_fraction=0.12)
    fit(Learner(), clips, tmp_path)
    assert list(clips.skipped) == [f"data/{index}" for index in episodes]
