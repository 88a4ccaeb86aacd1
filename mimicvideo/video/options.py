"""What the numbers and words given to a video model and to stage 1 may be; asked by constructors, and before any weights are read."""

import math
from collections.abc import Mapping
from typing import Any

from mimicvideo.video.adaptation import Adaptation, Frozen, Lora
from mimicvideo.video.checkpointing import Checkpointing, check_checkpointing

NOTHING_TRAINS = "nothing trains: choose an adaptation other than Frozen, say --config conf/adaptation/lora_adaln.yaml"


def check_backbone_options(
    dtype: str,
    initial: str,
    prompt_tokens: int,
    conditional_sigma: float | None,
    gradient_checkpointing: Checkpointing,
    compile: bool,
    execution: Any,
) -> None:
    """Raises ValueError for arguments of `CosmosPredict`, whose names these are, that no model takes."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    if initial not in ("pretrained", "random"):
        raise ValueError(f"initial must be pretrained or random, got {initial!r}")
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens must be at least 1, got {prompt_tokens}")
    if conditional_sigma is not None and not (conditional_sigma >= 0 and math.isfinite(conditional_sigma)):
        raise ValueError(
            f"conditional_sigma must be a finite number of at least 0 (official: 1e-4), or null for the other frames' level, "
            f"got {conditional_sigma}"
        )
    if compile and execution is not None:
        raise ValueError("compile is for diffusers' own forward pass: set compile to false and use execution.compile")
    check_checkpointing(gradient_checkpointing)


def check_execution(adaptation: Adaptation, execution: Mapping[str, Any]) -> None:
    """Raises ValueError for options of `Execution` with which the adaptation cannot train."""
    if execution.get("merge_lora"):
        if not isinstance(adaptation, Lora | Frozen):
            raise ValueError(f"execution.merge_lora is for a LoRA, the adaptation is {type(adaptation).__name__}: set it to false")
        if isinstance(adaptation, Lora) and adaptation.dropout:
            raise ValueError(
                f"execution.merge_lora has no place for LoRA's dropout, which is {adaptation.dropout}: set that to 0, or merge_lora false"
            )
    if execution.get("fp8_training") and not isinstance(adaptation, Lora | Frozen):
        raise ValueError(
            f"execution.fp8_training multiplies by frozen weights in FP8, but with {type(adaptation).__name__} all weights train: "
            "set it to false"
        )


def check_finetune_options(observed: dict[int, float] | None, prompt_dropout: float, loss_scale: float, seed: int) -> None:
    """Raises ValueError for arguments of `VideoFinetune`, whose names these are, that are out of range."""
    if observed is not None and (
        not observed or min(observed) < 1 or min(observed.values()) < 0 or not abs(sum(observed.values()) - 1) <= 1e-6
    ):
        raise ValueError(f"observed must give numbers of latent frames >= 1 probabilities that sum to 1, got {observed}")
    if not 0 <= prompt_dropout <= 1:
        raise ValueError(f"prompt_dropout must lie in [0, 1], got {prompt_dropout}")
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"loss_scale must be a positive number, got {loss_scale}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def check_observed(observed: dict[int, float], z_frames: int) -> None:
    """Raises ValueError if clips of so many latent frames are too short to keep the largest of `observed` clean."""
    most = max(count for count, probability in observed.items() if probability > 0)
    if z_frames <= most:
        raise ValueError(
            f"observed={observed} keeps up to {most} latent frames clean, but clips have only {z_frames}: "
            f"at least one must be left to predict. Lengthen the clips or lower observed"
        )
