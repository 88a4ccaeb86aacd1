"""`mimicvideo cache`: writes the VAE's latents and the text embeddings of an experiment before it trains, in several processes."""

import os
import subprocess
import sys
from argparse import ArgumentParser

import torch
from rich.progress import track

from mimicvideo.cli import MimicVideoCLI
from mimicvideo.messages import ConfigError

CHILD = "MIMICVIDEO_CACHE_PROCESS"  # the number of a process that another one has started
ONE_DEVICE = ("--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_nodes=1", "--trainer.logger=false")


class CachingCLI(MimicVideoCLI):
    """Builds an experiment as `fit` does and fills its caches instead of training."""

    def _run_subcommand(self, subcommand: str) -> None:
        data, model = self.datamodule, self.model
        backbone, folder = getattr(model, "backbone", None), getattr(model, "latent_cache", None)
        if not hasattr(data, "attach_latents") or backbone is None:
            raise ConfigError("cache: this experiment has no video model whose latents could be kept")
        if folder is None:
            raise ConfigError("cache: model.init_args.latent_cache is null: give the folder, here and to fit: --model.latent_cache=FOLDER")
        device = self.trainer.strategy.root_device
        backbone.to(device)
        data.setup("fit")
        with torch.no_grad():
            if int(os.environ.get(CHILD, 0)) == 0:
                self._embed_prompts()
            data.attach_latents(lambda video: backbone.encode_video(video.to(device)), backbone.vae_hash, folder)
        for name, reason in data.skipped.items():
            print(f"skipped episode {name}: {reason}")
        print(f"latents of {sum(len(reader.episodes) for reader in data.readers.values())} episodes are in {folder}")

    def _embed_prompts(self) -> None:
        """Every instruction of the data goes through the text encoder, which keeps what it says."""
        if getattr(getattr(self.model.backbone, "prompts", None), "cache", None) is None:
            print("text embeddings are not kept: model.init_args.backbone.init_args.prompt_cache is null")
            return
        for prompt in track(self.datamodule.prompts(), "encoding instructions"):
            self.model.backbone.encode_prompt([prompt])


def cache(argv: list[str]) -> None:
    """Fills the caches of the experiment that `argv` describes, as for `fit`, with `--processes=N` in so many processes.

    Each process takes the next GPU, where there are GPUs. What is there already stays; what is damaged is written anew.

    Raises:
        ConfigError: If the experiment keeps no latents.
        RuntimeError: If a process fails.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=1)
    given, flags = parser.parse_known_args(argv)
    if given.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {given.processes}")
    if given.processes == 1 or CHILD in os.environ:
        CachingCLI(args=["fit", *flags, *ONE_DEVICE])
        return
    gpus, threads = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // given.processes)
    running = []
    for number in range(given.processes):
        environment = {**os.environ, CHILD: str(number)}
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = _visible(gpus)[number % gpus]
        running.append(subprocess.Popen([sys.executable, "-m", "mimicvideo", "cache", *flags], env=environment))
    failed = [number for number, process in enumerate(running) if process.wait()]
    if failed:
        raise RuntimeError(f"{len(failed)} of {given.processes} processes failed, see above. What they have written stays: start again")


def _visible(gpus: int) -> list[str]:
    """Names of the GPUs that this process may use."""
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or [str(number) for number in range(gpus)]
