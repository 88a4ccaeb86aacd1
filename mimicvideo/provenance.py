"""What a result was made with: command, versions, hardware and hashes, so that it can be repeated or doubted."""

import hashlib
import inspect
import json
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("mimicvideo", "torch", "lightning", "diffusers", "transformers", "peft", "numpy", "metaworld", "mujoco", "av"),
    *("flash-attn-4", "nvidia-cudnn-frontend"),
)


def command_line() -> str:
    """The command as it was typed, as far as the process knows."""
    program = Path(sys.argv[0]).name
    return shlex.join(["mimicvideo" if program in ("mimicvideo", "__main__.py") else program, *sys.argv[1:]])


def package_versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a figure."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores and, if one is used, the GPU."""
    import torch

    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": processor(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def processor() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def config_of(instance: object, **known: Any) -> dict[str, Any]:
    """`class_path` and `init_args` of an object that keeps its arguments as attributes of the same names.

    Args:
        instance: Of any class.
        known: Arguments that it keeps otherwise; those that its class does not take are left out.
    """
    cls = type(instance)
    given = vars(instance) | known
    init_args = {name: _literal(given[name]) for name in inspect.signature(cls).parameters if name in given}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", **({"init_args": init_args} if init_args else {})}


def json_sha256(value: Any) -> str:
    """SHA-256 of a value's canonical JSON; what JSON does not know enters as its text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _literal(value: Any) -> Any:
    """Numbers, texts, lists and dicts as they are, anything else by class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _literal(item) for key, item in value.items()}
    return config_of(value)
