"""The quickstart's two stages train from every format; nothing but `root` and `spec` differs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mimicvideo.cli import MimicVideoCLI
from mimicvideo.compose import CONF
from mimicvideo.data.spec import DatasetSpec
from tests.every_format import FORMATS, LENGTHS
from tests.tiny_trio import tiny_trio

FAST = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--model.ema_decay=null",
    "--data.batch_size=2",
    "--data.validation_fraction=0.34",
    "--data.validation_windows=2",
    "--model.backbone.adapter=null",
    "--model.backbone.prompt_tokens=16",
    "--model.latent_cache=null",
]


def described(spec: DatasetSpec | None, path: Path) -> list[str]:
    """What a user writes: a description of few lines."""
    if spec is None:
        return []
    given = {name: getattr(spec, name) for name in DatasetSpec.__dataclass_fields__}
    path.write_text(yaml.safe_dump({name: value for name, value in given.items() if value != getattr(DatasetSpec(), name)}))
    return [f"--data.spec={path}"]


def train(experiment: str, tmp_path: Path, *argv: str) -> Any:
    config = f"--config={CONF}/experiment/{experiment}.yaml"
    place = [f"--run_dir={tmp_path / experiment}", f"--model.backbone.pretrained={tiny_trio()}"]
    return MimicVideoCLI(args=["fit", config, *place, *FAST, *argv])


@pytest.mark.parametrize("name", ["lerobot_v3.0", "lerobot_v2.1", "zarr_v2", "hdf5", "rlds", "videos"])
def test_the_quickstart_trains(tmp_path: Path, name: str) -> None:
    spec = FORMATS[name][0](tmp_path / "data")
    data = [f"--data.root={tmp_path / 'data'}", *described(spec, tmp_path / "mine.yaml")]
    video = train("quickstart_video", tmp_path, *data, "--trainer.callbacks=null")
    assert video.trainer.global_step == 2 and torch.isfinite(video.trainer.callback_metrics["train/loss"])
    if name == "videos":
        return
    action = train(
        "quickstart_action", tmp_path, *data, "--data.action_dim=3", "--data.proprio_dim=2", "--data.hold_dims=[2]", "--model.block=2"
    )
    assert action.trainer.global_step == 2 and torch.isfinite(action.trainer.callback_metrics["train/loss"])
    assert len(action.datamodule._training) + len(action.datamodule._validating) == len(LENGTHS)
