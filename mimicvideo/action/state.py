"""What a policy's checkpoint holds: the decoder, its units and average, the stage-1 adapter, and the hash of the rest."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mimicvideo.action.contract import check_contract, check_same_contract

if TYPE_CHECKING:
    from mimicvideo.action.policy import ActionPolicy

KIND = "ActionPolicy"
KEY = "mimicvideo"  # where a checkpoint of ours keeps what Lightning does not know


class IncompatibleCheckpointError(ValueError):
    """A sound checkpoint, but not of this model."""


def pack(policy: "ActionPolicy", checkpoint: dict[str, Any]) -> None:
    """Leaves out the base weights, which are on disk or on the hub already, and adds what the policy is rebuilt from."""
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("backbone.")}
    checkpoint[KEY] = {
        "kind": KIND,
        "decoder": type(policy.decoder).__name__,
        "contract": policy.contract,
        "adapter": policy.adapter,
        "base_sha256": policy.backbone.weights_hash,
        "average": policy.average.state_dict() if policy.average is not None else None,
    }


def unpack(policy: "ActionPolicy", checkpoint: Mapping[str, Any]) -> None:
    """Compares a checkpoint with the policy and takes over its adapter, contract and average; Lightning then loads the tensors.

    Raises:
        IncompatibleCheckpointError: If it is of another kind or architecture, or was trained on other base weights.
        ValueError: If its adapter is not the one that the policy was built with, or its contract is not that of the data.
    """
    saved = require_kind(checkpoint)
    backbone_sha = policy.backbone.weights_hash
    if saved["base_sha256"] != backbone_sha:
        raise IncompatibleCheckpointError(
            f"the checkpoint was trained on base weights with SHA-256 {saved['base_sha256'][:16]}…, those at hand "
            f"({getattr(policy.backbone, 'folder', type(policy.backbone).__name__)}) have {backbone_sha[:16]}…: say with "
            "pretrained=... where the ones it was trained on lie, or, to train on, with backbone.init_args.pretrained (and revision)"
        )
    policy.backbone.load_adapter_state(saved["adapter"])  # refuses one that differs from what is fused already
    policy.fuse_adapter()
    if saved["decoder"] != type(policy.decoder).__name__:
        raise IncompatibleCheckpointError(f"the checkpoint's decoder is {saved['decoder']}, this one is {type(policy.decoder).__name__}")
    expected = {name: value for name, value in policy.state_dict().items() if not name.startswith("backbone.")}
    compare_tensors(checkpoint["state_dict"], expected)
    check_contract(saved["contract"], policy.action_dim, policy.proprio_dim, policy.horizon)
    if policy.contract:
        check_same_contract(saved["contract"], policy.contract)
    policy.contract = saved["contract"]
    if policy.average is not None:
        if saved["average"] is None:
            raise IncompatibleCheckpointError("the checkpoint has no weight average: set ema_decay to null, or train from the start")
        policy.average.load_state_dict(saved["average"])


PARTS = ("decoder", "contract", "adapter", "base_sha256", "average")  # of what `pack` writes, those that acting needs


def require_kind(checkpoint: Mapping[str, Any], parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """The part that `pack` wrote. Raises IncompatibleCheckpointError if this is no policy's checkpoint, or lacks one of `parts`."""
    saved: Any = checkpoint.get(KEY)
    kind = saved.get("kind") if isinstance(saved, dict) else None
    if kind != KIND:
        kind = kind or checkpoint.get("hyper_parameters", {}).get("_class_path", "something else").rpartition(".")[2]
        raise IncompatibleCheckpointError(
            f"this is a checkpoint of {kind}, not of {KIND}: give a stage-2 one (a stage-1 run is used by backbone.init_args.adapter)"
        )
    if missing := [key for key in parts if key not in saved]:
        raise IncompatibleCheckpointError(
            f"the checkpoint lacks {', '.join(missing)} below {KEY!r}: it is not as it was saved; save it again"
        )
    return saved


def compare_tensors(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises IncompatibleCheckpointError listing tensors that are missing, unexpected or of another shape."""
    problems = {
        "missing": sorted(expected.keys() - saved.keys()),
        "unexpected": sorted(saved.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(saved[name].shape)}, here {tuple(value.shape)}"
            for name, value in expected.items()
            if name in saved and saved[name].shape != value.shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise IncompatibleCheckpointError(f"the checkpoint is of another architecture. Tensors {text}")


def fit_normalizers(policy: "ActionPolicy", statistics: Mapping[str, Any]) -> None:
    """Hands the data's statistics to both normalisers. `statistics`: see `data.statistics`."""
    for name, normalizer in {"actions": policy.action_normalizer, "proprio": policy.proprio_normalizer}.items():
        normalizer.fit(statistics[name]["per_step" if normalizer.per_step else "pooled"])


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
