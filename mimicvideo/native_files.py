"""Checkpoint files of other projects on Cosmos, read as named tensors: never code, and one of the two copies a training keeps."""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# What training counted, constants of the rotary embedding, and Transformer Engine's scratch: no weights. diffusers'
# `scripts/convert_cosmos_to_diffusers.py` leaves the same out.
_BOOKKEEPING = re.compile(
    r"accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)"
    r"|pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)"
    r"|(.+\.)?_extra_state"
)


def read_tensors(file: Path) -> dict[str, Any]:
    """The named values of a checkpoint: tensors and plain data, never code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, holds objects of other classes, or is no flat collection of names.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}: download it, or correct the path")
    if file.suffix == ".safetensors":
        try:
            return dict(load_file(file))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is truncated or damaged ({error}): copy or download it again") from error
    try:
        # Transformer Engine keeps its scratch as BytesIO: bytes that nothing here looks into.
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|[Cc]lass|global)\s+`?([\w.]+)", str(error))
        raise ValueError(
            f"{file} holds objects{f' of {named[1]}' if named else ''}, not only tensors, and reading them could run code: "
            "save its state dict alone, or as safetensors, and import that"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} is truncated or no PyTorch checkpoint: copy or download it again") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a state dict: names and tensors")
    return content


def network_tensors(content: Mapping[str, Any], file: Path, ema: bool = False) -> dict[str, Tensor]:
    """The network's tensors under their native names without `net.`; bookkeeping, and the copy not asked for, are left out.

    Raises:
        ValueError: If the copy that is wanted is not there, an entry is no tensor of floating-point numbers, or one is not finite.
    """
    copies = {prefix for prefix in ("net.", "net_ema.") if any(key.startswith(prefix) for key in content)}
    wanted = "net_ema." if ema else "net."
    if ema and "net_ema." not in copies:
        raise ValueError(f"{file} has no weight average: none of its keys starts with net_ema.; leave ema out")
    if copies == {"net_ema."} and not ema:
        raise ValueError(f"{file} has nothing but a weight average (net_ema.): set ema=true")
    other = ({"net.", "net_ema."} - {wanted}).pop()
    named = {key.removeprefix(wanted): value for key, value in content.items() if not key.startswith(other)}
    kept = {key: value for key, value in named.items() if not _BOOKKEEPING.fullmatch(key)}
    foreign = [key for key, value in kept.items() if not isinstance(value, Tensor) or not value.is_floating_point()]
    if foreign:
        raise ValueError(
            f"{file} holds other things than weights. No floating-point tensors: {', '.join(foreign[:20])}{', ...' * (len(foreign) > 20)}. "
            "Save the network's state dict alone, and import that"
        )
    if broken := [key for key, value in kept.items() if not bool(value.isfinite().all())]:
        raise ValueError(
            f"{file} has {len(broken)} tensors with NaN or infinity: {', '.join(broken[:20])}{', ...' * (len(broken) > 20)}: "
            "download it again, or take an earlier checkpoint of the training"
        )
    return kept
