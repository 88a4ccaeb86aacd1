"""Import of the official mimic-video action decoder with its normaliser statistics, every key accounted for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.folder import write_policy_folder
from mimicvideo.action.load import load_policy
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.folders import check_free
from mimicvideo.native_files import check_finite, network_tensors, read_tensors
from mimicvideo.normalize import Normalizer

# Official names (mimic-video, `models/world2action_dit.py`) by ours. Several official tensors are stacked along the first axis;
# an entry ends in `.weight` or `.bias` unless it is a parameter of its own.
_OUTSIDE_BLOCKS = {
    "context_norm.weight": ["ctx_norm.weight"],
    "context_norm.bias": ["ctx_norm.bias"],
    "proprio_mask_token": ["obs_mask_token"],
    "positions": ["pos_embedding"],
    "time.norm.weight": ["t_embedding_norm.weight"],
    "time.shared.weight": ["t_embedder.pair.A.weight"],
    "head.to_velocity.weight": ["final_layer.linear.weight"],
    "head.modulation.down.weight": ["final_layer.adaln_modulation.1.weight"],
    "head.modulation.up.weight": ["final_layer.adaln_modulation.2.weight"],
}
_TIMES = {"action": "proj_x", "video": "proj_c", "action_factor": "B", "video_factor": "C"}
_IN_A_BLOCK = {
    "cross_attention.to_q": ["cross_attn.q_proj"],
    "cross_attention.to_kv": ["cross_attn.k_proj", "cross_attn.v_proj"],
    "self_attention.to_qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    **{
        f"{kind}_attention.{ours}": [f"{kind}_attn.{official}"]
        for kind in ("cross", "self")
        for ours, official in {"query_norm": "q_norm", "key_norm": "k_norm", "to_out": "output_proj"}.items()
    },
    "mlp.0": ["mlp.layer1"],
    "mlp.2": ["mlp.layer2"],
    **{
        f"{ours}_modulation.{half}": [f"adaln_modulation_{official}.{index}"]
        for ours, official in {"cross": "cross_attn", "self": "self_attn", "mlp": "mlp"}.items()
        for half, index in {"down": 1, "up": 2}.items()
    },
}
# Statistics are over 1,001 percentiles, 0 to 100 in steps of 0.1: official `module/normalizer.py`.
_PERCENTILES, _P2, _P98 = 1001, 20, 980


def import_decoder(file: str, statistics: str, actions: list[str], proprio: list[str], like: str, out: str) -> Path:
    """Writes a policy folder whose decoder and units are those of an official mimic-video checkpoint.

    All else, what robot it is and which video model is read, at which block, comes from `like`: the official files do not say it.

    Args:
        file: The official `w2a_...pt`, or the same tensors as `.safetensors`.
        statistics: The JSON file of normaliser statistics that belongs to it.
        actions: Entries of that file which the official code concatenates into `action/lowdim_concat`, in order.
        proprio: Likewise for `obs/lowdim_concat`.
        like: A policy checkpoint or folder with a decoder of the same sizes, on the same robot and data layout.
        out: The folder to create.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If a file is missing.
        FileExistsError: If `out` holds something.
        ValueError: If a file is damaged, keys or shapes are not those of `like`, or the statistics are another robot's.
    """
    source, numbers, folder = Path(file).expanduser(), Path(statistics).expanduser(), Path(out).expanduser()
    check_free(folder)
    entries = read_statistics(numbers)
    fields = {"actions": concatenated(entries, actions, numbers), "proprio": concatenated(entries, proprio, numbers)}
    official = network_tensors(read_tensors(source), source)
    policy = load_policy(like)
    if not isinstance(policy.decoder, DiTDecoder):
        raise ValueError(f"{like} has a {type(policy.decoder).__name__}; the official decoder is a DiTDecoder: choose another policy")
    weights = convert(official, policy.decoder, source)
    check_finite(official, source)
    fit(policy, fields, numbers)
    policy.decoder.load_state_dict(weights)
    write_policy_folder(policy, folder)
    print(f"{folder}: {len(official)} tensors of {source.name}; use it with --policy={folder}")
    return folder


def key_map(decoder: DiTDecoder) -> dict[str, list[str]]:
    """The official tensors that make up each of ours."""
    names = dict(_OUTSIDE_BLOCKS)
    for kind in ("weight", "bias"):
        names |= {f"time.{ours}.{kind}": [f"t_embedder.pair.{official}.{kind}"] for ours, official in _TIMES.items()}
        for ours, official, embedder in (
            ("embed_proprio", "obs_embedder", decoder.embed_proprio),
            ("embed_action", "action_embedder", decoder.embed_action),
        ):
            for layer in range(len(embedder.layers)):  # a GELU stands between two of them, and counts
                names[f"{ours}.layers.{layer}.{kind}"] = [f"{official}.layers.{2 * layer}.{kind}"]
    for block in range(len(decoder.blocks)):
        for ours, official in _IN_A_BLOCK.items():
            names[f"blocks.{block}.{ours}.weight"] = [f"blocks.{block}.{name}.weight" for name in official]
    return names


def convert(official: Mapping[str, Tensor], decoder: DiTDecoder, file: Path) -> dict[str, Tensor]:
    """The decoder's state dict from official tensors. Raises ValueError naming keys that are missing, unknown or of another shape."""
    names, own = key_map(decoder), decoder.state_dict()
    expected = {}
    for ours, parts in names.items():
        rows, *rest = own[ours].shape
        leading = {"positions": (1,), "proprio_mask_token": (1, 1)}.get(ours, ())  # axes of the batch and of the tokens
        expected |= dict.fromkeys(parts, (*leading, rows // len(parts), *rest))
    problems = {
        "missing": [name for name in expected if name not in official],
        "unknown": [name for name in official if name not in expected],
        "of another shape": [
            f"{name} {tuple(official[name].shape)}, here {shape}"
            for name, shape in expected.items()
            if name in official and tuple(official[name].shape) != shape
        ],
    }
    if any(problems.values()):
        texts = [f"{len(keys)} {kind}: {', '.join(keys[:12])}{', ...' * (len(keys) > 12)}" for kind, keys in problems.items() if keys]
        raise ValueError(
            f"{file} does not fit the decoder of `like`. Tensors {'; '.join(texts)}. "
            "Choose a policy with the width, depth, horizon and sizes of that checkpoint, or download it again"
        )
    return {ours: torch.cat([official[name] for name in parts]).reshape(own[ours].shape).to(own[ours]) for ours, parts in names.items()}


def read_statistics(file: Path) -> dict[str, Any]:
    """The entries of an official statistics file by name. Raises FileNotFoundError or ValueError if it is none."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no statistics file {file}: it lies beside the official checkpoint")
    try:
        entries = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is truncated or no JSON ({error}): copy or download it again") from error
    if not isinstance(entries, dict) or not all(isinstance(value, dict) for value in entries.values()):
        raise ValueError(f"{file} is no statistics file: expected numbers by entry and statistic")
    return entries


def concatenated(entries: Mapping[str, Any], names: Sequence[str], file: Path) -> dict[str, Tensor]:
    """Statistics of several entries side by side, (steps, dims) each, under the names that `Normalizer.fit` takes.

    Raises:
        ValueError: If no entry is named or one twice, if one or a statistic of it is missing, not finite or out of order, or if their
            steps differ.
    """
    if not names:
        raise ValueError(f"actions and proprio must each name at least one entry of {file}; it has {', '.join(sorted(entries))}")
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"{file} has no entry {', '.join(missing)}; it has {', '.join(sorted(entries))}")
    if len(set(names)) < len(names):
        raise ValueError(f"an entry of {file} is named twice in {', '.join(names)}: name each once, in the official order")
    taken = {"mean": "mean", "min": "min", "max": "max", "clipped_mean": "mean_clamped", "clipped_std": "std_clamped"}
    columns: dict[str, list[Tensor]] = {}
    for name in names:
        entry = entries[name]
        if lacking := [key for key in (*taken.values(), "percentiles") if key not in entry]:
            raise ValueError(f"{file}: the entry {name} lacks {', '.join(lacking)}: is it mimic-video's own statistics file?")
        values = {ours: _numbers(entry, theirs, f"{file}: {name}") for ours, theirs in taken.items()}
        percentiles = _numbers(entry, "percentiles", f"{file}: {name}")
        if bool((values["clipped_std"] < 0).any()):
            raise ValueError(f"{file}: {name}.{taken['clipped_std']} is negative somewhere: copy or download it again")
        if len(percentiles) != _PERCENTILES:
            raise ValueError(f"{file}: the entry {name} has {len(percentiles)} percentiles, mimic-video's files have {_PERCENTILES}")
        _check_order(values, percentiles, f"{file}: {name}")
        values |= {"p2": percentiles[_P2], "p98": percentiles[_P98]}
        for ours, value in values.items():
            if value.ndim != 2 or len(value) != len(columns.get(ours, [value])[0]):
                raise ValueError(
                    f"{file}: {name} has shape {tuple(value.shape)}, expected (steps, dimensions) with the steps of {names[0]}"
                )
            columns.setdefault(ours, []).append(value)
    return {ours: torch.cat(values, dim=1) for ours, values in columns.items()}


def _check_order(values: Mapping[str, Tensor], percentiles: Tensor, where: str) -> None:
    """Raises ValueError where statistics cannot be those of one set of numbers, apart from the rounding of float32."""
    ordered = {
        "min, percentiles, max": (values["min"], *percentiles, values["max"]),
        "min, mean, max": [values[k] for k in ("min", "mean", "max")],
    }
    for names, rows in ordered.items():
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{where}: {names} have several shapes: copy or download it again")
        rising = torch.stack(tuple(rows))
        if bool((rising.diff(dim=0) < -1e-5 * (1 + rising.abs().amax(0))).any()):
            raise ValueError(f"{where}: {names} do not rise: copy or download it again")


def _numbers(entry: Mapping[str, Any], statistic: str, where: str) -> Tensor:
    try:
        values = torch.tensor(entry[statistic], dtype=torch.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}.{statistic} is no table of numbers ({error}): copy or download it again") from error
    if not bool(values.isfinite().all()):
        raise ValueError(f"{where}.{statistic} has NaN or infinity: copy or download it again")
    return values


def fit(policy: ActionPolicy, fields: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    """Hands statistics to both normalisers. Raises ValueError, before either has changed, if their sizes are another robot's."""
    normalizers: dict[str, Normalizer] = {"actions": policy.action_normalizer, "proprio": policy.proprio_normalizer}
    for name, normalizer in normalizers.items():
        given, own = tuple(fields[name]["mean"].shape), tuple(normalizer.offset.shape)
        if not normalizer.per_step:
            raise ValueError(
                "`like` pools its statistics over the steps, mimic-video's are per step: set normalization.per_step=true there"
            )
        if given != own:
            raise ValueError(
                f"{file} gives {name} of {given[0]} steps and {given[1]} dimensions, the robot of `like` has {own[0]} and {own[1]} "
                f"({', '.join(policy.contract[name])}): is it the statistics file of another robot?"
            )
    for name, normalizer in normalizers.items():
        normalizer.fit(fields[name])
