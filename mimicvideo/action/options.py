"""What the numbers and words given to a policy may be; asked by its constructor, and before any weights are read."""

import math


def check_policy_options(num_steps: int, draws: int, loss_scale: float, context_control: str, seed: int) -> None:
    """Raises ValueError for arguments of `ActionPolicy`, whose names these are, that are out of range."""
    for name, value in {"num_steps": num_steps, "draws": draws}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"loss_scale must be a positive number, got {loss_scale}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if context_control not in ("none", "zero", "shuffle"):
        raise ValueError(f"context_control must be none, zero or shuffle, got {context_control!r}")
