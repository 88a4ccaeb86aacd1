"""Writes a pretrained backbone with its transformer in bf16: half the size, and the precision that it trained in."""

import torch
from jsonargparse import auto_cli

from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.cosmos_predict import CosmosPredict


def export(backbone: str, out: str) -> None:
    """Copies the folder `backbone`, which stage-1 training wrote, to `out`."""
    CosmosPredict(backbone, Frozen(), prompt_tokens=32).save_pretrained(out, dtype=torch.bfloat16)


if __name__ == "__main__":
    auto_cli(export, as_positional=False)
