"""Whether a device and what is installed have the kernels that an execution asks for; to be known before weights are read."""

import torch

from mimicvideo.execution import Execution
from mimicvideo.video import flash4, fp8, fp8_attention


def check_kernels(execution: Execution, device: torch.device) -> None:
    """Raises RuntimeError with the remedy if the execution cannot run on the device. FlashAttention-4 is asked for on GPUs alone."""
    if execution.attention == "flash4" and device.type == "cuda":
        flash4.check(device)
    if execution.attention == "fp8":
        fp8_attention.check(device)
    if execution.fp8 is not None:
        fp8.check_hardware(device)
