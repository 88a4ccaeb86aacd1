"""How well features tell where the goal is: ridge regression from one observation to places in metres, on unseen episodes.

    python3 experiments/metaworld_mt10/probe.py --out experiments/metaworld_mt10/results/probe.json [--adapter runs/.../adapter]

50 goals a task are what 50 demonstrations show; 250 tell what more demonstrations of the same would bring.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from numpy import ndarray
from torch import Tensor

from mimicvideo.benchmark.instructions import INSTRUCTIONS
from mimicvideo.benchmark.metaworld import MetaWorldEnv
from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict

TASKS = ["reach-v3", "push-v3", "pick-place-v3"]  # a free marker, a marker on the table, a free marker
VIEWS = ["workspace", "front"]
FEW, MORE, TEST = range(500, 550), range(3000, 3200), range(2000, 2060)  # seeds of episodes; none is a demonstration's or a rollout's
TAU = 0.98765  # the noise level at which the policy reads the hidden states
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def probe(out: str, adapter: str | None = None, block: int = 5, workers: int = 2) -> None:
    """Writes mean distances in cm between predicted and true place of the goal and of the hand.

    Args:
        out: JSON file.
        adapter: Folder that stage 1 wrote; without it, cosmos-tiny as it is.
        block: Whose hidden states are read, 0-based.
        workers: Simulators side by side.
    """
    model = CosmosPredict("cosmos-tiny", Frozen(), adapter=adapter, prompt_tokens=32, dtype="bfloat16").eval()
    results: dict[str, Any] = {"adapter": adapter is not None, "block": block, "tau": TAU, "cm": {}}
    for task in TASKS:
        few = collect(task, FEW, frames=6, gap=8, workers=workers)
        more = collect(task, MORE, frames=2, gap=15, workers=workers)
        test = collect(task, TEST, frames=2, gap=20, workers=workers)
        features = [read(model, frames, INSTRUCTIONS[task], block) for frames, _ in (few, more, test)]
        for name in features[0]:
            few_x, more_x, test_x = (part[name] for part in features)
            few_y, more_y, test_y = (torch.from_numpy(places) for _, places in (few, more, test))
            results["cm"][f"{task} {name}, 50 goals"] = distances(few_x, few_y, test_x, test_y)
            results["cm"][f"{task} {name}, 250 goals"] = distances(torch.cat([few_x, more_x]), torch.cat([few_y, more_y]), test_x, test_y)
            print(task, name, results["cm"][f"{task} {name}, 50 goals"], results["cm"][f"{task} {name}, 250 goals"], flush=True)
    Path(out).write_text(json.dumps(results, indent=2) + "\n")


def collect(task: str, seeds: range, frames: int, gap: int, workers: int) -> tuple[ndarray, ndarray]:
    """Pictures and places (goal, then hand; metres) along noisy experts' paths: uint8[n height width 3], float32[n 6]."""
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_episodes, [(task, list(seeds[i::workers]), frames, gap) for i in range(workers)]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _episodes(work: tuple[str, list[int], int, int]) -> tuple[ndarray, ndarray]:
    task, seeds, frames, gap = work
    env, pictures, places = MetaWorldEnv(VIEWS), [], []
    for seed in seeds:
        env.reset(task, seed)
        draws = np.random.default_rng(seed)
        for _ in range(draws.integers(0, 25)):  # somewhere else than where every episode starts
            env.step(np.append(draws.normal(0, 0.6, 3), -1.0))
        for _ in range(frames):
            pictures.append(env.frame().copy())
            places.append(np.concatenate([env._running()._target_pos, env.proprio()[:3]]).astype(np.float32))
            for _ in range(gap):
                env.step(env.expert_action() + np.append(draws.normal(0, 0.3, 3), 0.0))
    return np.stack(pictures), np.stack(places)


@torch.inference_mode()
def read(model: CosmosPredict, frames: ndarray, instruction: str, block: int) -> dict[str, Tensor]:
    """Features of each picture, one row each: its pixels at half size, its latents, and hidden states with a future of noise."""
    pictures = torch.from_numpy(frames)
    generator = torch.Generator().manual_seed(0)
    latents, hidden = [], []
    for part in pictures.split(32):
        observed = model.encode_video(part[:, None])
        latents.append(observed)
        noise = torch.randn((*observed.shape[:2], 3, *observed.shape[3:]), generator=generator)
        condition = VideoCondition(model.encode_prompt([instruction] * len(part)), observed)
        hidden.append(model.hidden_states(noise, torch.full((len(part),), TAU), condition, [block])[block].float())
    pixels = F.avg_pool2d(pictures.movedim(-1, 1).float() / 255, 2)
    return {"pixels": pixels.flatten(1), "latents": torch.cat(latents).flatten(1), "hidden states": torch.cat(hidden).flatten(1)}


def distances(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> dict[str, float]:
    """Mean error of goal and hand in cm, each with the best of RIDGES: a bound on what a linear map can read, not a fair test."""
    mean, std, middle = x.mean(0), x.std(0) + 1e-3, y.mean(0)
    x, test_x = (x - mean) / std, (test_x - mean) / std
    kernel = (x @ x.T / x.shape[1]).double()
    across = (test_x @ x.T / x.shape[1]).double()
    errors = []
    for ridge in RIDGES:
        weights = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel)), (y - middle).double())
        errors.append((across @ weights).float() + middle - test_y)
    goal, hand = (min(100 * error[:, place].norm(dim=1).mean().item() for error in errors) for place in (slice(0, 3), slice(3, 6)))
    return {"goal": round(goal, 2), "hand": round(hand, 2)}


if __name__ == "__main__":
    auto_cli(probe, as_positional=False)
