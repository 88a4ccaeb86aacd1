"""A video model with what stage 1 trained merged into it, as a folder of its own that stock diffusers loads."""

from pathlib import Path
from typing import Literal

import torch

from mimicvideo.folders import check_free
from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.cosmos_predict import CosmosPredict


def fuse_adapter(
    adapter: str, pretrained: str, out: str, revision: str | None = None, dtype: Literal["float32", "bfloat16"] = "bfloat16"
) -> Path:
    """Writes the video model that `pretrained` takes, needs no adapter, and gives what the adapted one gives.

    Args:
        adapter: Folder that stage 1 wrote, `<run_dir>/adapter`, or PEFT's.
        pretrained: What it was trained on: "cosmos-tiny", a folder or a hub id.
        out: The folder to create.
        revision: Of a hub id.
        dtype: Of the transformer's weights: that in which stage 2 and rollouts would fuse them.

    Returns:
        The folder.

    Raises:
        FileExistsError: If `out` holds something.
        FileNotFoundError: If adapter or model is missing, or the hub cannot be reached.
        ValueError: If a file is damaged or they do not belong together.
    """
    folder = Path(out).expanduser()
    check_free(folder)
    if not Path(adapter).expanduser().is_dir():
        raise FileNotFoundError(f"adapter={adapter!r}: there is no such folder; give the one that stage 1 wrote, <run_dir>/adapter")
    backbone = CosmosPredict(pretrained, Frozen(), adapter=adapter, revision=revision, dtype=dtype)
    backbone.save_pretrained(folder, getattr(torch, dtype))
    print(f"{folder}: use it with backbone.init_args.pretrained={folder} and no adapter")
    return folder
