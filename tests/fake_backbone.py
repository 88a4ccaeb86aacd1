"""FakeBackbone: a tiny, deterministic VideoBackbone without any download, and batches and data that go with it."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from mimicvideo.video.backbone import VideoBackbone, VideoCondition

Z_CHANNELS = 4


class FakeBackbone(VideoBackbone):
    """Latents are causal means of pixels; block k's hidden states mix its input with tau, prompt and a fixed random map.

    Every token also sees the mean of all tokens, as it would through self-attention.

    Args:
        hidden_dim: Width of the hidden states.
        num_blocks: Blocks.
        seed: Of the fixed random weights; another seed is another base model.
        adapter: A number that is added to all hidden states, standing in for what stage 1 trained.
    """

    def __init__(self, hidden_dim: int = 12, num_blocks: int = 3, seed: int = 0, adapter: float | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden_dim, self.num_blocks, self.seed = hidden_dim, num_blocks, seed
        self.embed = torch.nn.Linear(Z_CHANNELS * 4, hidden_dim, bias=False)
        self.maps = torch.nn.Parameter(torch.randn(num_blocks, hidden_dim, hidden_dim, generator=generator) / hidden_dim**0.5)
        self.shift = torch.nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(self.embed.weight.shape, generator=generator) / 4)
        self.weights_hash = hashlib.sha256(f"fake {seed} {hidden_dim} {num_blocks}".encode()).hexdigest()
        self.vae_hash = hashlib.sha256(b"fake vae").hexdigest()
        self.passes = 0  # calls of hidden_states and velocity
        self.encoded = 0  # clips through encode_video
        self.fused = False
        if adapter is not None:
            self.load_adapter_state({"tensors": {"shift": torch.tensor(adapter)}})

    def encode_video(self, video: Tensor) -> Tensor:
        if (video.shape[1] - 1) % 4:
            raise ValueError(f"{video.shape[1]} frames are not 1 + 4n")
        self.encoded += video.shape[0]
        pixels = torch.nn.functional.avg_pool2d((video.float() / 127.5 - 1).movedim(-1, 2).flatten(0, 1), 8)
        pixels = pixels.unflatten(0, video.shape[:2])  # batch frames 3 z_height z_width
        pixels = torch.cat([pixels, pixels.mean(2, keepdim=True)], dim=2)
        groups = [pixels[:, :1], *(pixels[:, start : start + 4] for start in range(1, pixels.shape[1], 4))]
        return torch.stack([group.mean(1) for group in groups], dim=2)

    def decode_video(self, latents: Tensor) -> Tensor:
        raise AssertionError("no policy decodes video")

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        rows = [hashlib.sha256(prompt.encode()).digest()[: self.hidden_dim] for prompt in prompts]
        return torch.tensor([[[byte / 128 - 1 for byte in row]] for row in rows], device=self.maps.device)

    def no_prompt(self) -> Tensor:
        return torch.zeros(1, self.hidden_dim)

    def velocity(self, noisy: Tensor, tau: Tensor, condition: VideoCondition) -> Tensor:
        self.passes += 1
        return noisy - condition.observed.mean(2, keepdim=True) * (1 - tau)[:, None, None, None, None]

    def hidden_states(self, noisy: Tensor, tau: Tensor, condition: VideoCondition, blocks: Sequence[int]) -> dict[int, Tensor]:
        self.passes += 1
        for block in blocks:
            if not 0 <= block < self.num_blocks:
                raise ValueError(f"block {block} outside [0, {self.num_blocks - 1}]")
        x = noisy.clone()
        x[:, :, : condition.observed.shape[2]] = condition.observed.to(x)
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * (h // 2) * (w // 2), c * 4)
        x = self.embed(x) + condition.prompt.to(x)[:, :1] + tau.to(x)[:, None, None] + self.shift
        states = {}
        for block in range(max(blocks) + 1):
            x = x + torch.tanh((x + x.mean(1, keepdim=True)) @ self.maps[block])
            states[block] = x
        return {block: states[block] for block in blocks}

    def adapter_state(self) -> dict[str, Any]:
        return {"tensors": {"shift": self.shift.detach().clone()}}

    def load_adapter_state(self, state: dict[str, Any]) -> None:
        if self.fused and not torch.equal(state["tensors"]["shift"], self.shift):
            raise ValueError("another adapter is fused into this backbone")
        with torch.no_grad():
            self.shift.copy_(state["tensors"]["shift"])

    def save_trained(self, run_dir: Path) -> Path:
        raise AssertionError("a policy keeps the adapter in its own checkpoint")

    def fuse_adapter(self) -> None:
        self.fused = True


def contract(observed: int = 1, future: int = 8, horizon: int = 6, size: int = 32) -> dict[str, Any]:
    """A contract of a robot with two actions and three states, seen by one square camera."""
    return {
        "robot": "fake-arm",
        "control_hz": 10.0,
        "cameras": [{"name": "front", "height": size, "width": size, "view": {}}],
        "observed": observed,
        "future": future,
        "frame_interval_steps": 2,
        "proprio": ["x", "y", "z"],
        "actions": ["dx", "dy"],
        "horizon": horizon,
    }


def demonstrations(batch: int, seed: int = 0, observed: int = 1, future: int = 8, horizon: int = 6, size: int = 32) -> dict[str, Any]:
    """A stage-2 batch of random video and actions that follow from the mean brightness of the future."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(40, 216, (batch, 1, 1, 1, 1), generator=generator)
    noise = torch.randint(-40, 40, (batch, observed + future, size, size, 3), generator=generator)
    video = (level + noise).clamp(0, 255).to(torch.uint8)
    target = level.reshape(batch, 1, 1) / 64 - 2
    steps = torch.linspace(0.5, 1.5, horizon)[None, :, None]
    actions = target * steps * torch.tensor([1.0, -3.0]) + 0.1 * torch.randn(batch, horizon, 2, generator=generator)
    return {
        "observation": {
            "video": video[:, :observed],
            "proprio": torch.randn(batch, 1, 3, generator=generator),
            "prompt": [f"task {index % 2}" for index in range(batch)],
        },
        "future": video[:, observed:],
        "actions": actions.float(),
        "episode": torch.arange(batch),
        "row": torch.arange(batch) * 3,
    }


def statistics(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """What DemonstrationData.statistics gives, over these batches."""
    actions = torch.cat([batch["actions"] for batch in batches])
    proprio = torch.cat([batch["observation"]["proprio"] for batch in batches])
    return {
        name: {"per_step": describe(values), "pooled": describe(values.flatten(0, 1))}
        for name, values in {"actions": actions, "proprio": proprio}.items()
    }


def describe(values: Tensor) -> dict[str, Tensor]:
    """Statistics over the first axis."""
    values = values.double()
    mean = values.mean(0)
    named = {"p2": 0.02, "p98": 0.98, "q01": 0.01, "q99": 0.99}
    found = {name: values.quantile(level, dim=0) for name, level in named.items()}
    clipped = values.clamp(mean + 1.5 * (found["p2"] - mean), mean + 1.5 * (found["p98"] - mean))
    found |= {"mean": mean, "std": values.std(0, correction=0), "min": values.amin(0), "max": values.amax(0)}
    return found | {"clipped_mean": clipped.mean(0), "clipped_std": clipped.std(0, correction=0)}


class FakeData(LightningDataModule):
    """An endless stream of batches, each a function of its position, and two batches for validation."""

    def __init__(self, batch: int = 8, seed: int = 0, same: bool = False, horizon: int = 6) -> None:
        super().__init__()
        self.batch, self.seed, self.same, self.horizon = batch, seed, same, horizon
        self.latents: Callable[[Tensor], Tensor] | None = None
        self.latent_key: str | None = None

    def contract(self) -> dict[str, Any]:
        return contract(horizon=self.horizon)

    def statistics(self) -> dict[str, Any]:
        return statistics([demonstrations(64, seed=1000 + index, horizon=self.horizon) for index in range(2)])

    def attach_latents(self, encode: Callable[[Tensor], Tensor], key: str, cache_dir: str) -> None:
        self.latents, self.latent_key = encode, key

    def at(self, position: int) -> dict[str, Any]:
        batch = demonstrations(self.batch, seed=self.seed + (0 if self.same else position), horizon=self.horizon)
        if self.latents is not None:
            observation = batch["observation"]
            batch["latents"] = self.latents(torch.cat([observation.pop("video"), batch.pop("future")], dim=1)).bfloat16()
        return batch

    def train_dataloader(self) -> "Stream":
        return Stream(self)

    def val_dataloader(self) -> "Stream":
        return Stream(self, range(500, 502))

    test_dataloader = predict_dataloader = val_dataloader


class Stream:
    """Batches at the given positions; without any, from where the trainer stands, so that a resumed run continues."""

    def __init__(self, data: FakeData, positions: Iterable[int] | None = None) -> None:
        self.data, self.positions = data, positions

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, positions = self.data.trainer, self.positions
        return map(self.data.at, itertools.count(trainer.global_step if trainer else 0) if positions is None else positions)
