"""One demonstration: the scripted expert plays an episode, disturbed by noise if asked for, and it is recorded."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from mimicvideo.benchmark.base import Environment
from mimicvideo.benchmark.rendering import CameraView
from mimicvideo.data.video_encoding import EncodedVideo, VideoCodec, encode_video


@dataclass(frozen=True)
class Recipe:
    """What all episodes have in common."""

    seed: int
    views: tuple[CameraView, ...]
    height: int
    width: int
    stride: int
    action_noise: float
    noise_smoothness: float
    noise_probability: float
    start_noise_steps: int
    tail_steps: int
    max_steps: int
    max_attempts: int
    keep_failed: bool
    codec: VideoCodec
    fps: int
    folder: Path


@dataclass
class Demonstration:
    """An episode as a worker hands it over."""

    videos: dict[str, EncodedVideo]
    proprio: Float32[np.ndarray, "rows 4"]
    actions: Float32[np.ndarray, "steps 4"]
    success: Bool[np.ndarray, " rows"]
    details: dict[str, Any]


def demonstrate(env: Environment, recipe: Recipe, task: str, index: int, attempt: int) -> Demonstration | None:
    """One attempt at an episode; None if it failed and failures are not kept."""
    seed = episode_seed(recipe.seed, task, index, attempt)
    rng = np.random.default_rng([seed, 1])  # another stream than the simulator's, which is seeded with `seed`
    env.reset(task, seed)
    noisy = recipe.action_noise > 0 and rng.random() < recipe.noise_probability
    start = int(rng.integers(0, recipe.start_noise_steps + 1))
    for move in itertools.islice(_noise(rng, smoothness=0.9), start):
        if env.step(np.array([*move, -1.0], np.float32)):
            return None  # there is nothing left to demonstrate
    noise = _noise(rng, recipe.noise_smoothness)
    scale = recipe.action_noise if noisy else 0.0
    images, proprio, actions, success = [], [], [], []
    solved_at, steps = None, 0
    while steps + recipe.stride <= env.max_episode_steps - start:
        images.append(env.render())
        proprio.append(env.proprio())
        for _ in range(recipe.stride):
            actions.append(env.expert_action())
            disturbance = np.array([*(scale * next(noise)), 0.0], np.float32)
            solved = env.step(actions[-1] + disturbance)
            steps += 1
            if solved and solved_at is None and steps <= recipe.max_steps:
                solved_at = steps
        success.append(solved_at is not None)
        if steps >= (recipe.max_steps if solved_at is None else solved_at + recipe.tail_steps):
            break
    if solved_at is None and not recipe.keep_failed:
        return None
    videos = {name: _encode(recipe, f"{task}-{index}-{name}.mp4", [image[name] for image in images]) for name in images[0]}
    details = {
        "seed": seed,
        "attempt": attempt,
        "noisy": noisy,
        "start_steps": start,
        "success_step": -1 if solved_at is None else solved_at,
    }
    return Demonstration(videos, np.stack(proprio), np.stack(actions), np.array(success), details)


def episode_seed(seed: int, task: str, index: int, attempt: int) -> int:
    """A seed in [0, 2^63) of its own for each attempt at each episode; those of rollouts are 2^63 and more."""
    digest = hashlib.sha256(f"{seed}/{task}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _noise(rng: np.random.Generator, smoothness: float) -> Iterator[Float[np.ndarray, "3"]]:
    """An endless sequence of 3 normal numbers each, with variance 1 and the given correlation from one to the next."""
    state = rng.standard_normal(3)
    while True:
        yield state
        state = smoothness * state + (1 - smoothness**2) ** 0.5 * rng.standard_normal(3)


def _encode(recipe: Recipe, name: str, images: list[np.ndarray]) -> EncodedVideo:
    try:
        return encode_video(recipe.folder / name, np.stack(images), recipe.fps, recipe.codec)
    except OSError as error:  # FFmpeg's own kinds cannot be sent to another process
        raise OSError(error.errno, f"cannot write the video {name}: {error.strerror}") from None
