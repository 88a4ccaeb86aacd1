"""`mimicvideo cache` leaves what `fit` then finds: latents of every window and embeddings of every instruction."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mimicvideo.cache import CHILD, CachingCLI, cache
from mimicvideo.compose import CONF, compose_argv
from mimicvideo.messages import ConfigError
from tests.synthetic_episodes import by_writer


def arguments(root: Path, tmp_path: Path, *more: str) -> list[str]:
    return compose_argv(
        [
            "fit",
            f"--config={CONF / 'experiment' / 'quickstart_video.yaml'}",
            f"--data.root={root}",
            f"--model.latent_cache={tmp_path / 'latents'}",
            f"--model.backbone.prompt_cache={tmp_path / 'prompts'}",
            "--trainer.callbacks=null",
            *more,
        ]
    )[1:]


def test_what_it_writes_is_what_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = by_writer(tmp_path / "d", (9, 9, 12), ["push", "reach", "push"], height=64, width=64)
    given = arguments(made.root, tmp_path, "--data.anchor_interval=4")
    cache([*given, "--processes=1"])
    assert "latents of 3 episodes are in" in capsys.readouterr().out
    assert len(list(tmp_path.glob("prompts/*"))) == 2
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("latents/*/*")}
    assert len(files) == 4 and {path.suffix for path in tmp_path.glob("latents/*/*")} == {".json", ".bf16"}

    class Reading(CachingCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            def never(video: Any) -> Any:
                pytest.fail("these windows have been encoded")

            self.datamodule.attach_latents(never, self.model.backbone.vae_hash, self.model.latent_cache)
            batch = next(iter(self.datamodule.train_dataloader()))
            reader = self.datamodule.readers["data"]
            episode = reader.listed[int(batch["episode"][0])]
            rows = self.datamodule.window.frame_rows(int(batch["row"][0]), episode.length)
            with torch.no_grad():
                expected = self.model.backbone.encode_video(torch.from_numpy(reader.frames(episode, rows))[None])[0].bfloat16()
            torch.testing.assert_close(batch["latents"][0], expected, rtol=0.02, atol=0.02)  # other batches, other rounding

    Reading(args=["fit", *given])
    monkeypatch.setenv(CHILD, "1")
    cache([*given, "--processes=2"])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("latents/*/*")} == files, "nothing is written twice"


def test_an_experiment_without_a_cache_is_refused(tmp_path: Path) -> None:
    made = by_writer(tmp_path / "d", (9, 9), height=64, width=64)
    with pytest.raises(ConfigError, match="latent_cache is null: give the folder"):
        cache(arguments(made.root, tmp_path, "--model.latent_cache=null"))
    with pytest.raises(ConfigError, match="--processes must be at least 1, got 0"):
        cache(["--processes=0"])


def test_a_model_without_video_is_refused(tmp_path: Path) -> None:
    trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    parts = {
        "backbone": {"class_path": "tests.toys.ToyBackbone"},
        "decoder": {"class_path": "tests.toys.Mlp", "init_args": {"width": 3}},
        "noise": {"class_path": "mimicvideo.noise.Fixed", "init_args": {"tau": 0.3}},
    }
    model = {"class_path": "tests.toys.ToyPolicy", "init_args": parts}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.dump({"trainer": trainer, "model": model, "data": {"class_path": "tests.toys.ToyData"}}))
    with pytest.raises(ConfigError, match="cache: this experiment has no video model"):
        cache([f"--config={path}"])
