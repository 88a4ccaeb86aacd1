"""load_policy: an ActionPolicy from its checkpoint or folder alone; no dataset, run folder or stage-1 adapter is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import nn

from mimicvideo.action.folder import TRAINING_ONLY, read_policy, write_policy_folder
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.action.state import IncompatibleCheckpointError, require_kind
from mimicvideo.folders import check_free

TRUSTED = ("mimicvideo.",)  # a checkpoint may name classes of these packages and no other


def load_policy(path: str | Path, device: str | torch.device = "cpu", pretrained: str | None = None) -> ActionPolicy:
    """Builds the policy that a checkpoint describes, with its averaged weights if it has them, ready to act.

    Base weights must have the SHA-256 recorded in the checkpoint; everything that was trained, in either stage, comes from it.
    No code of the file is run: it is read without pickle's classes, and names only classes of this package.

    Args:
        path: A checkpoint that `mimicvideo fit` wrote in stage 2, or a folder that `mimicvideo export` wrote.
        device: Where the policy is to act, say `cuda`.
        pretrained: Where the base weights lie, a folder or a hub id, if not where they lay in training.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        DamagedCheckpointError: If it is truncated or a byte of it has changed.
        IncompatibleCheckpointError: If it is of another kind or architecture, names foreign classes, or the base weights differ.
        RuntimeError: If the device is not there.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"no GPU is available for device {str(device)!r}: use device cpu")
    checkpoint = read_policy(path)
    require_kind(checkpoint)
    hyper_parameters = checkpoint.get("hyper_parameters")
    if not hyper_parameters:
        raise IncompatibleCheckpointError(f"{path} has no hyper-parameters: it was not written by `mimicvideo fit`")
    policy = build(hyper_parameters if pretrained is None else moved(hyper_parameters, pretrained))
    policy.on_load_checkpoint(checkpoint)
    nn.Module.load_state_dict(policy, checkpoint["state_dict"], strict=False)  # on_load_checkpoint has compared the names
    if policy.average is not None:
        policy.average.copy_to(policy.decoder)
        policy.average = None
    return policy.eval().to(device)


def export_policy(policy: str, out: str, pretrained: str | None = None) -> Path:
    """Writes a policy as a folder to give away, which is taken wherever its checkpoint is; see `action/folder.py` for its files.

    Args:
        policy: A stage-2 checkpoint, or such a folder. Its averaged weights, if it has them, become the weights.
        out: The folder to create.
        pretrained: Where the base weights lie, and those who use the folder will find them; where they lay in training by default.

    Returns:
        The folder.

    Raises:
        FileExistsError: If `out` holds something.
        ValueError, OSError, RuntimeError: See `load_policy`.
    """
    folder = Path(out).expanduser()
    check_free(folder)
    write_policy_folder(load_policy(policy, pretrained=pretrained), folder)
    print(f"{folder}: use it with --policy={folder}")
    return folder


def moved(hyper_parameters: Mapping[str, Any], pretrained: str) -> dict[str, Any]:
    """The same with base weights that lie elsewhere. Raises IncompatibleCheckpointError if the video model took none."""
    backbone = hyper_parameters.get("backbone")
    init_args = dict(backbone.get("init_args") or {}) if isinstance(backbone, Mapping) else {}
    if not isinstance(backbone, Mapping) or "pretrained" not in init_args:
        raise IncompatibleCheckpointError(f"pretrained={pretrained!r}: this policy's video model has no base weights; leave pretrained out")
    init_args = {**init_args, "pretrained": pretrained}
    init_args.pop("revision", None)  # of the hub that they came from
    return {**hyper_parameters, "backbone": {**backbone, "init_args": init_args}}


def build(hyper_parameters: Mapping[str, Any]) -> ActionPolicy:
    """The policy that hyper-parameters of a checkpoint describe, untrained and without its stage-1 adapter.

    Raises:
        IncompatibleCheckpointError: If they name classes outside this package, or ones that do not exist any more.
    """
    config = {key: value for key, value in hyper_parameters.items() if not key.startswith("_") and key not in TRAINING_ONLY}
    check_class_paths(config)
    if not isinstance(backbone := config.get("backbone"), Mapping):
        raise IncompatibleCheckpointError("the checkpoint's hyper-parameters name no backbone: it was not written by `mimicvideo fit`")
    init_args = {key: value for key, value in (backbone.get("init_args") or {}).items() if key != "adapter"}
    config["backbone"] = {**backbone, "init_args": init_args}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ActionPolicy, "policy", fail_untyped=False)
    try:
        parsed = parser.parse_object({"policy": config})
    except Exception as error:  # ArgumentError and its relatives
        raise IncompatibleCheckpointError(f"this version of mimicvideo cannot build the checkpoint's policy: {error}") from error
    policy = parser.instantiate_classes(parsed)["policy"]
    policy.save_hyperparameters(dict(hyper_parameters))  # so that it can be saved again
    return policy


def check_class_paths(value: Any, where: str = "model") -> None:
    """Raises IncompatibleCheckpointError if a nested configuration names a class outside `TRUSTED`."""
    if isinstance(value, Mapping):
        class_path = value.get("class_path")
        if class_path is not None and not str(class_path).startswith(TRUSTED):
            raise IncompatibleCheckpointError(f"the checkpoint names {class_path!r} as {where}; only classes of mimicvideo are built")
        for key, item in value.items():
            check_class_paths(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            check_class_paths(item, where)
