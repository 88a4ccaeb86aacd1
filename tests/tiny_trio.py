"""A random video model of a few kB, built once per test session."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from mimicvideo.video.new_trio import new_trio

SENTENCES = ("open the drawer", "close the drawer", "push the red puck to the goal", "press the button")


@cache
def tiny_trio() -> str:
    """Its folder: 4 blocks of width 32, a VAE with 16 latent channels, T5 of width 32."""
    folder = Path(mkdtemp(prefix="tiny-trio-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(build(folder))


def build(folder: Path, **sizes: int) -> Path:
    """Builds one with other sizes, if given; weights are those of a random start that is no identity."""
    import torch
    from diffusers import CosmosTransformer3DModel

    from mimicvideo.video.pretrained import write_manifest

    defaults = {"heads": 2, "head_dim": 16, "layers": 4, "adaln_lora_dim": 4, "text_embed_dim": 32, "text_layers": 1}
    new_trio(str(folder), **(defaults | sizes), vae_base_dim=3, vae_dim_mult=(1, 1, 1, 1), sentences=SENTENCES, vocabulary=200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = CosmosTransformer3DModel.load_config(folder / "transformer")
        CosmosTransformer3DModel.from_config(config).save_pretrained(folder / "transformer")
    write_manifest(folder)
    return folder
