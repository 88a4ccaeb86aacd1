"""A policy as a folder to give away: configuration, weights, units, model card and SHA-256 hashes; no pickle, no paths of a machine.

It holds
    config.json               hyper-parameters, contract, kind, and the hash of the base weights that the policy needs
    decoder.safetensors       the decoder's weights that act: averaged, if the training kept an average
    normalizer.safetensors    units of actions and proprioception
    adapter.safetensors       what stage 1 trained (absent if it trained nothing)
    README.md                 the model card
    manifest.json             SHA-256 of these files
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimicvideo.action import state
from mimicvideo.checkpoint import DamagedCheckpointError, verify_checkpoint
from mimicvideo.folders import MANIFEST, check_free, replacing, verify_manifest, write_manifest

if TYPE_CHECKING:
    from mimicvideo.action.policy import ActionPolicy

FORMAT = 1
CONFIG = "config.json"
DECODER, NORMALIZER, ADAPTER = "decoder.safetensors", "normalizer.safetensors", "adapter.safetensors"
TRAINING_ONLY = ("optimizer", "scheduler", "latent_cache", "compile_decoder")  # hyper-parameters that acting does without


def write_policy_folder(policy: "ActionPolicy", folder: Path) -> None:
    """Writes a policy that `load_policy` gave: loading it again acts, and writes these files, bit for bit the same.

    Raises:
        FileExistsError: If `folder` holds something.
        ValueError: If the policy has a weight average beside its weights, or was built by hand, without a configuration.
    """
    check_free(folder)
    if policy.average is not None:
        raise ValueError("the policy still has its weight average beside its weights: save a checkpoint and export what load_policy gives")
    if not policy.hparams:
        raise ValueError(
            "the policy was built by hand and has no configuration to rebuild it from: export a checkpoint of `mimicvideo fit`"
        )
    policy.fuse_adapter()
    packed: dict[str, Any] = {"state_dict": policy.state_dict()}
    state.pack(policy, packed)
    saved, weights = packed[state.KEY], packed["state_dict"]
    adapter = dict(saved.pop("adapter") or {})
    tensors = adapter.pop("tensors", {})
    del saved["average"]
    config = {"format": FORMAT, state.KEY: saved, "adapter": adapter, "hyper_parameters": _portable(policy.hparams)}
    with replacing(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _save({name: value for name, value in weights.items() if name.startswith("decoder.")}, new / DECODER)
        _save({name: value for name, value in weights.items() if not name.startswith("decoder.")}, new / NORMALIZER)
        if tensors:
            _save(tensors, new / ADAPTER)
        (new / "README.md").write_text(_card(config, weights, bool(tensors)))
        write_manifest(new)


def _portable(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only training reads, and without the folder of the adapter, which the policy carries itself."""
    left_out = (*TRAINING_ONLY, "ema_decay")  # the average, if any, has become the weights
    kept = {key: value for key, value in hyper_parameters.items() if key not in left_out}
    backbone = dict(kept["backbone"])
    backbone["init_args"] = {key: value for key, value in (backbone.get("init_args") or {}).items() if key != "adapter"}
    return {**kept, "backbone": backbone}


def read_policy(path: str | Path) -> dict[str, Any]:
    """The content of a policy's checkpoint, from the file that `mimicvideo fit` wrote or the folder that `mimicvideo export` wrote.

    Raises:
        FileNotFoundError: If it, or a file of the folder, is missing.
        DamagedCheckpointError: If a file is truncated or has changed.
        IncompatibleCheckpointError: If the folder is no policy's, or of a later format.
    """
    path = Path(path)
    verify_policy(path)
    if not path.is_dir():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # optimizer states stay on disk
    if not (path / CONFIG).is_file():
        raise state.IncompatibleCheckpointError(f"{path} is no policy folder: it has no {CONFIG}; give what `mimicvideo export` wrote")
    try:
        config = dict(json.loads((path / CONFIG).read_text()))
    except (ValueError, TypeError) as error:
        raise state.IncompatibleCheckpointError(f"{path / CONFIG} is not that of a policy folder ({error}): export it again") from error
    missing = [key for key in ("hyper_parameters", state.KEY, "adapter") if not isinstance(config.get(key), dict)]
    if config.get("format") != FORMAT or missing:
        raise state.IncompatibleCheckpointError(
            f"{path / CONFIG} is not that of a policy folder of format {FORMAT}: it has format {config.get('format')!r}"
            + (f" and lacks {', '.join(missing)}" if missing else "")
        )
    adapter = {**config["adapter"], "tensors": _load(path / ADAPTER) if (path / ADAPTER).is_file() else {}}
    return {
        "hyper_parameters": config["hyper_parameters"],
        "state_dict": _load(path / DECODER) | _load(path / NORMALIZER),
        state.KEY: {**config[state.KEY], "adapter": adapter, "average": None},
    }


def verify_policy(path: str | Path) -> str:
    """The SHA-256 of a policy that is as it was written: of the checkpoint file, or of the folder's manifest.

    Raises:
        FileNotFoundError: If there is no such file or folder, or one of its files is missing.
        DamagedCheckpointError: If a file is truncated or has changed.
    """
    path = Path(path)
    if not path.is_dir():
        return verify_checkpoint(path)
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{path} is a folder without {MANIFEST}, and so no policy: give the folder that `mimicvideo export` wrote, "
            "or a checkpoint file such as <run_dir>/checkpoints/last.ckpt"
        )
    return verify_manifest(path)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpointError(f"{path} is missing or no safetensors file ({error}): copy the whole folder again") from error


_PLAIN = """\
from mimicvideo.action.load import load_policy

policy = load_policy("THIS_FOLDER")
actions = policy.predict_actions(observation)  # observation and actions in the units of the data; see policy.contract
"""
_LEARNED = """\
import torch

from mimicvideo.action.load import load_policy
from mimicvideo.data.representation import parse_representation

policy = load_policy("THIS_FOLDER")
representation = parse_representation(policy.contract["representation"])  # between the robot's numbers and those that are learned
proprio = representation.proprio.learn({"proprio": state})  # state: (1, n), as "environment" above names its numbers
actions = policy.predict_actions({"video": video, "proprio": torch.from_numpy(proprio[:, None]), "prompt": [instruction]})
commands = representation.commands(actions.cpu().numpy(), proprio)  # (1, horizon, m), likewise
"""


def _card(config: Mapping[str, Any], weights: Mapping[str, Tensor], adapted: bool) -> str:
    saved, given = config[state.KEY], config["hyper_parameters"]
    contract, backbone = saved["contract"], given["backbone"]
    base = backbone["init_args"].get("pretrained", backbone["class_path"])
    count = sum(value.numel() for name, value in weights.items() if name.startswith("decoder."))
    facts = {
        "Decoder": f"{saved['decoder']}, {count:,} parameters, reads block {given['block']} (0-based)",
        "Base weights": f"`{base}`, SHA-256 `{saved['base_sha256']}`; not included",
        "Stage 1": "adapter included" if adapted else "none",
        **{str(key).replace("_", " ").capitalize(): f"`{json.dumps(value)}`" for key, value in contract.items()},
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    usage = _LEARNED if contract.get("representation") else _PLAIN
    return f"""---
library_name: mimicvideo
tags: [robotics, video-to-action]
---
# Video-to-action policy

An action decoder that reads the hidden states of a frozen video model. It acts on the robot, cameras and rates below and no others.

| | |
|---|---|
{rows}

```bash
mimicvideo rollout --config conf/rollout.yaml --policy THIS_FOLDER
```

```python
{usage}```

The base weights have a licence of their own. `manifest.json` lists the SHA-256 of every file; loading compares them.
"""
