"""What observations and actions must be: checks of a policy's contract against its sizes, its data and what it is shown."""

import json
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from mimicvideo.types import Observation


def check_contract(contract: dict[str, Any], action_dim: int, proprio_dim: int, horizon: int) -> None:
    """Raises ValueError if a contract lacks a part or its sizes are not those of the model."""
    if missing := [key for key in ("horizon", "actions", "proprio", "observed", "future", "cameras") if key not in contract]:
        raise ValueError(f"the contract lacks {', '.join(missing)}: it is not as the data gave it; train or export the policy again")
    pairs = {
        "horizon": (horizon, contract["horizon"], "control steps"),
        "action_dim": (action_dim, len(contract["actions"]), f"actions {contract['actions']}"),
        "proprio_dim": (proprio_dim, len(contract["proprio"]), f"proprio {contract['proprio']}"),
    }
    for name, (model, data, what) in pairs.items():
        if model != data:
            raise ValueError(f"the model's {name} is {model}, the data has {data} ({what}): set model.init_args.{name} to {data}")
    observed, future = contract["observed"], contract["future"]
    if observed < 1 or (observed - 1) % 4 or future < 4 or future % 4:
        raise ValueError(
            f"observed must be 1 + 4m and future a multiple of 4 (the VAE joins 4 frames), got observed={observed}, future={future}"
        )


def check_same_contract(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises ValueError naming every key in which the data's contract differs from the checkpoint's."""
    differing = [key for key in sorted(saved.keys() | given.keys()) if _canonical(saved.get(key)) != _canonical(given.get(key))]
    if differing:
        lines = "; ".join(f"{key}: checkpoint {saved.get(key)!r}, data {given.get(key)!r}" for key in differing)
        raise ValueError(f"the data does not fit what the policy was trained on: {lines}. Use the data it was trained on, or train anew.")


def check_observation(observation: Observation, contract: dict[str, Any]) -> UInt8[Tensor, "batch observed height width 3"]:
    """An observation's video. Raises ValueError if it, proprio or prompts are not what the contract says, or a state is not finite."""
    if missing := [key for key in ("video", "proprio", "prompt") if key not in observation]:
        raise ValueError(f"the observation lacks {missing[0]!r}")
    if isinstance(observation["prompt"], str):
        raise ValueError(f"observation['prompt'] must be a list, a sentence for each sample: [{observation['prompt']!r}]")
    cameras = contract["cameras"]
    batch = len(observation["prompt"])
    frame = (cameras[0]["height"], sum(camera["width"] for camera in cameras), 3)
    expected = {"video": (batch, contract["observed"], *frame), "proprio": (batch, 1, len(contract["proprio"]))}
    for key, shape in expected.items():
        if not isinstance(observation[key], Tensor):
            raise ValueError(f"observation[{key!r}] must be a tensor, got {type(observation[key]).__name__}: torch.from_numpy makes one")
        if tuple(observation[key].shape) != shape:
            names = ", ".join(camera["name"] for camera in cameras)
            raise ValueError(
                f"observation[{key!r}] has shape {tuple(observation[key].shape)}, expected {shape} for {batch} prompts"
                + (f" (batch, observed frames, height, width, 3; cameras {names} side by side)" if key == "video" else "")
            )
    if not observation["proprio"].isfinite().all():
        raise ValueError(f"observation['proprio'] holds numbers that are not finite: {observation['proprio'].tolist()}")
    video = observation.get("video")
    assert video is not None
    return video


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
