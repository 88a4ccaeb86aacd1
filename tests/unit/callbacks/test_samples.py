"""What VideoSamples writes and when, with a module whose generated videos are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mimicvideo.callbacks.samples import VideoSamples, peak_signal_to_noise
from mimicvideo.media import read_mp4


class Clips(Dataset):
    """Six grey clips of 9 frames, 16 x 24."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"video": torch.full((9, 16, 24, 3), 40 * index, dtype=torch.uint8), "prompt": f"clip {index}", "episode": index, "row": 0}


class Generator(LightningModule):
    """Generates the given clip, brighter by 10 after the given frames."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asked: list[tuple[int, int, int | None]] = []
        self.guided: list[dict[str, float]] = []

    def sample_videos(self, batch: Any, steps: int = 10, observed: int | None = None, **guided: float) -> tuple[Tensor, Tensor]:
        self.guided.append(guided)
        self.asked.append((len(batch["video"]), steps, observed))
        generated = batch["video"].clone()
        generated[:, 1 + 4 * ((observed or 1) - 1) :] += 10
        return batch["video"], generated

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, callback: VideoSamples, module: LightningModule, steps: int = 3, **arguments: Any) -> Trainer:
    trainer = Trainer(
        max_steps=steps, val_check_interval=1, callbacks=[callback], default_root_dir=tmp_path, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **{"logger": False, **arguments},
    )  # fmt: skip
    trainer.fit(module, DataLoader(Clips(), batch_size=1), DataLoader(Clips(), batch_size=3))
    return trainer


def test_strip_videos_and_record_are_written_for_the_first_clips(tmp_path: Path) -> None:
    module = Generator()
    trainer = fit(tmp_path, VideoSamples(samples=2, steps=7, observed=2), module, steps=1, logger=TensorBoardLogger(tmp_path))
    assert module.asked == [(2, 7, 2)]  # once: not in the sanity check, and only for the first batch
    folder = tmp_path / "samples/step_000001"
    assert sorted(path.name for path in folder.iterdir()) == ["sample_0.mp4", "sample_1.mp4", "samples.json", "strip.png"]
    record = json.loads((folder / "samples.json").read_text())
    expected = 20 * np.log10(255 / 10)
    assert record["prompts"] == ["clip 0", "clip 1"] and record["psnr"] == pytest.approx([expected, expected])
    assert trainer.callback_metrics["val/sample_psnr"].item() == pytest.approx(expected)
    film = read_mp4(folder / "sample_1.mp4")
    assert film.shape == (9, 16, 48, 3)
    assert film[8, :, :20].mean() == pytest.approx(40, abs=3) and film[8, :, 28:].mean() == pytest.approx(50, abs=3)
    strip = np.asarray(Image.open(folder / "strip.png"))
    assert strip.shape[0] == 4 * (16 + 2)  # real and generated of two clips
    assert {0, 10, 40, 50} <= set(np.unique(strip))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(trainer.loggers[0].log_dir)  # type: ignore[attr-defined]
    events.Reload()
    assert events.Tags()["images"] == ["samples"]


def test_every_second_validation(tmp_path: Path) -> None:
    fit(tmp_path, VideoSamples(samples=1, every=2), Generator(), steps=5)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_000001", "step_000003", "step_000005"]


def test_a_module_that_generates_nothing_is_refused(tmp_path: Path) -> None:
    class Silent(LightningModule): ...

    with pytest.raises(TypeError, match="Silent generates no videos"):
        VideoSamples().setup(Trainer(logger=False, accelerator="cpu"), Silent(), "fit")


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        VideoSamples(steps=0)


def test_psnr() -> None:
    black = np.zeros((2, 3), np.uint8)
    assert peak_signal_to_noise(black, black) == 100
    assert peak_signal_to_noise(black, black + 255) == 0


@pytest.mark.parametrize("options", [{}, {"guidance": 7.0}, {"grid": "predict2", "solver": "ab2"}])
def test_how_to_sample_is_handed_on_where_it_is_chosen(tmp_path: Path, options: dict[str, Any]) -> None:
    module = Generator()
    fit(tmp_path, VideoSamples(samples=1, **options), module, steps=1)
    assert module.guided == [options]
    record = json.loads((tmp_path / "samples/step_000001/samples.json").read_text())
    assert record.items() >= ({"guidance": 0.0, "grid": "even", "solver": "euler"} | options).items()


@pytest.mark.parametrize(("options", "message"), [({"grid": "log"}, "unknown grid 'log'"), ({"solver": "rk4"}, "unknown solver 'rk4'")])
def test_unknown_grids_and_solvers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{message}|type"):
        VideoSamples(**options)


def test_clips_of_which_nothing_is_left_to_generate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"observed is 3, which gives 9 frames, but clips have only 9"):
        fit(tmp_path, VideoSamples(observed=3), Generator(), steps=1)
