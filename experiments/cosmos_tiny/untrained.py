"""Writes the untrained trio that the recipe starts from; its tokenizer knows the instructions of the 40 pretraining tasks only."""

from typing import Any

from jsonargparse import auto_cli

from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.metaworld import task_names
from mimicvideo.video.new_trio import new_trio

# Width 256, 8 blocks: 5 blocks of a 9-frame clip are about 2 GFLOP, which two CPU cores do fifty times a second.
SIZES: dict[str, Any] = {
    "heads": 4,
    "head_dim": 64,
    "layers": 8,
    "adaln_lora_dim": 32,
    "text_embed_dim": 128,
    "text_layers": 2,
    "vocabulary": 1024,
}


def untrained(out: str, vae: str, seed: int = 0) -> None:
    """Writes the trio.

    Args:
        out: Folder to create.
        vae: Folder of the trained VAE.
        seed: Of the weights.
    """
    new_trio(out, **SIZES, vae=vae, sentences=[INSTRUCTIONS[task] for task in task_names("not-MT10")], seed=seed)


if __name__ == "__main__":
    auto_cli(untrained, as_positional=False)
