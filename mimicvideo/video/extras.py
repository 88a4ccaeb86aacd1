"""Kernels of attention that are installed apart, each with an extra of the name that `execution.attention` has for them."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

MAJORS = (9, 10)  # of the compute capabilities that they are made for: Hopper, Blackwell
REMEDY = "or set execution.attention to torch"


def installed(attention: str, module: str) -> Any:
    """The module behind `attention`. Raises RuntimeError with the remedy if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"execution.attention={attention}: {error}; pip install 'mimicvideo[{attention}]' {REMEDY}") from error


def passes(check: Callable[[torch.device], None], device: torch.device) -> bool:
    """Whether a check of hardware or packages, which raises RuntimeError, lets a device pass."""
    try:
        check(device)
    except RuntimeError:
        return False
    return True
