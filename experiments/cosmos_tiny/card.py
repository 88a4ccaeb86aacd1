"""Measures cosmos-tiny on videos it never saw and writes what its model card shows: curves, numbers and sample videos."""

import csv
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jsonargparse import auto_cli

from mimicvideo.data.lerobot import LeRobotEpisodes
from mimicvideo.data.window import Window
from mimicvideo.media import write_mp4
from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict

matplotlib.use("Agg")
from matplotlib import pyplot as plt

WINDOW = Window(observed=1, future=8, frame_interval=3)
VIEWS = ["workspace", "front"]


def card(results: str, out: str, videos: dict[str, str], clips: int = 24, samples: int = 4) -> None:
    """Writes `curves.png`, `measured.json` and `sample_<set>_<i>.mp4` (real above, generated below).

    Args:
        results: Folder with `vae_metrics.csv` and `transformer_metrics.csv`, from training.
        out: Folder to write to.
        videos: Datasets by name, of seeds that were not trained on.
        clips: Clips of each that are measured, from different episodes.
        samples: Clips of each that are generated and shown.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    curves(Path(results), folder / "curves.png")
    model = CosmosPredict("cosmos-tiny", Frozen(), prompt_tokens=32).eval()
    measured = {}
    for name, root in videos.items():
        frames, prompts = take(LeRobotEpisodes(root, VIEWS), clips)
        latents = model.encode_video(frames)
        rebuilt = model.decode_video(latents)
        error = (rebuilt.float() - frames.float()).square().flatten(1).mean(1)
        measured[name] = {"clips": clips, "psnr_db": float((10 * torch.log10(255**2 / error)).mean())}
        part = slice(0, samples)
        condition = VideoCondition(model.encode_prompt(prompts[part]), latents[part, :, :1])
        noise = torch.randn(latents[part].shape, generator=torch.Generator().manual_seed(0))
        generated = model.decode_video(model.denoise(noise, torch.linspace(1, 0, 21), condition))
        for index in range(samples):
            both = np.concatenate([frames[index].numpy(), generated[index].numpy()], axis=1)
            write_mp4(folder / f"sample_{name}_{index}.mp4", both, 13)
    (folder / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")


def take(reader: LeRobotEpisodes, count: int) -> tuple[torch.Tensor, list[str]]:
    """Clips from the middle of evenly spaced episodes: UInt8[count 9 height width 3] and their instructions."""
    chosen = [reader.episodes[i] for i in np.linspace(0, len(reader.episodes) - 1, count).astype(int)]
    rows = [WINDOW.frame_rows(episode.length // 3, episode.length) for episode in chosen]
    frames = [torch.from_numpy(reader.frames(episode, row).copy()) for episode, row in zip(chosen, rows, strict=True)]
    return torch.stack(frames), [episode.instruction for episode in chosen]


def curves(results: Path, path: Path) -> None:
    """Reconstruction PSNR of the VAE and velocity error of the transformer against training steps."""
    vae = [row for row in csv.DictReader((results / "vae_metrics.csv").open()) if row["val/psnr"]]
    video = [row for row in csv.DictReader((results / "transformer_metrics.csv").open()) if row["val/loss"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    left.plot([int(row["step"]) for row in vae], [float(row["val/psnr"]) for row in vae], marker="o")
    left.set(xlabel="step", ylabel="validation PSNR (dB)", title="VAE")
    for key in (key for key in video[0] if key.startswith("val/velocity")):
        label = "tau " + key.rpartition("_")[2]
        right.plot([int(row["step"]) for row in video], [float(row[key]) for row in video], marker=".", label=label)
    right.set(xlabel="step", ylabel="validation velocity error", title="transformer", yscale="log")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    auto_cli(card, as_positional=False)
