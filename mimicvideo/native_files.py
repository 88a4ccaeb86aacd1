"""Checkpoint files of other projects on Cosmos, read as named tensors: never code, and one of the two copies a training keeps."""

import io
import pickle
import re
import zipfile
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
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickled, torch.serialization's MAGIC_NUMBER
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # those without scales of their own


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
        if _begins(file, _BEFORE_1_6):
            raise ValueError(
                f"{file} is in PyTorch's format from before 1.6, which has no checksums: torch.load it with weights_only=True, then "
                "torch.save it again, and import that"
            ) from error
        raise ValueError(f"{file} is truncated or no PyTorch checkpoint: copy or download it again") from error
    if damaged := _damaged_record(file):
        raise ValueError(f"{file} is damaged in {damaged}: its checksum differs; copy or download it again")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a state dict: names and tensors")
    return content


def _begins(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def _damaged_record(file: Path) -> str | None:
    """The first record of a PyTorch archive whose checksum differs; PyTorch itself looks at none."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            try:
                # 0 is what torch.serialization.set_crc32_options(False) leaves there.
                with archive.open(record) as stream:
                    while record.CRC and stream.read(2**24):
                        pass
            except zipfile.BadZipFile:
                return record.filename
    return None


def network_tensors(content: Mapping[str, Any], file: Path, ema: bool = False) -> dict[str, Tensor]:
    """The network's tensors under their native names without `net.`; bookkeeping, and the copy not asked for, are left out.

    Raises:
        ValueError: If the copy that is wanted is not there, two keys name the same weight, or an entry is no plain tensor of
            floating-point numbers.
    """
    copies = {prefix for prefix in ("net.", "net_ema.") if any(key.startswith(prefix) for key in content)}
    wanted = "net_ema." if ema else "net."
    if ema and "net_ema." not in copies:
        raise ValueError(f"{file} has no weight average: none of its keys starts with net_ema.; leave ema out")
    if copies == {"net_ema."} and not ema:
        raise ValueError(f"{file} has nothing but a weight average (net_ema.): set ema=true")
    other = ({"net.", "net_ema."} - {wanted}).pop()
    copy = {key: value for key, value in content.items() if not key.startswith(other)}
    if twice := [key for key in copy if f"{wanted}{key}" in copy]:
        raise ValueError(
            f"{file} has two tensors for {', '.join(twice[:20])}{', ...' * (len(twice) > 20)}, with {wanted} before the name and without: "
            "save the network's state dict alone, and import that"
        )
    named = {key.removeprefix(wanted): value for key, value in copy.items()}
    kept = {key: value for key, value in named.items() if not _BOOKKEEPING.fullmatch(key)}
    foreign = [key for key, value in kept.items() if not _is_plain(value)]
    if foreign:
        raise ValueError(
            f"{file} holds other things than weights. No plain floating-point tensors of 16 to 64 bits: {', '.join(foreign[:20])}"
            f"{', ...' * (len(foreign) > 20)}. Save the network's state dict alone, and import that"
        )
    return kept


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _DTYPES and value.layout == torch.strided and value.device.type == "cpu"


def check_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raises ValueError naming the tensors of a file that have NaN or infinity."""
    if broken := [key for key, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(
            f"{file} has {len(broken)} tensors with NaN or infinity: {', '.join(broken[:20])}{', ...' * (len(broken) > 20)}: "
            "download it again, or take an earlier checkpoint of the training"
        )
