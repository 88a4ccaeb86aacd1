"""Import of the official action decoder: the equations of the official code, its units, and every wrong file refused by key."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimicvideo.action import load
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.dit import DiTDecoder
from mimicvideo.action.load import load_policy
from mimicvideo.action.native import import_decoder, key_map
from mimicvideo.functions import run_function
from tests import native_decoder
from tests.unit.action.test_load import act, train_and_save

ACTIONS, PROPRIO = ["action/position", "action/gripper"], ["obs/state"]
SAMPLES = {
    "action/position": np.random.default_rng(0).normal(3, 2, (400, 6, 1)),
    "action/gripper": np.random.default_rng(1).normal(-1, 0.3, (400, 6, 1)),
    "obs/state": np.random.default_rng(2).normal(0.5, 4, (400, 1, 3)),
}


def describe(values: np.ndarray) -> dict[str, Any]:
    """An entry as the official code writes it (`module/normalizer.py`): statistics over the samples."""
    percentiles = np.percentile(values, np.arange(1001) / 10, axis=0)
    mean = values.mean(0)
    clipped = np.clip(values, mean + 1.5 * (percentiles[20] - mean), mean + 1.5 * (percentiles[980] - mean))
    entry = {"min": values.min(0), "max": values.max(0), "mean": mean, "std": values.std(0), "percentiles": percentiles}
    entry |= {"mean_clamped": clipped.mean(0), "std_clamped": clipped.std(0)}
    return {name: value.tolist() for name, value in entry.items()}


@pytest.fixture(autouse=True)
def trust_the_fake(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mimicvideo"])
    monkeypatch.setattr(load, "TRUSTED", ("mimicvideo.", "tests.fake_backbone."))


@pytest.fixture(scope="module")
def like(tmp_path_factory) -> str:
    """A policy on the robot, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mimicvideo"])
        path = tmp_path_factory.mktemp("like") / "policy.ckpt"
        train_and_save(path, normalization={"actions": "variance"})
    return str(path)


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({name: describe(values) for name, values in SAMPLES.items()}))
    return path


def official_file(folder: Path, edit: Any = None) -> str:
    weights: dict[str, Any] = native_decoder.state_dict()
    if edit is not None:
        edit(weights)
    content = {f"net.{name}": value for name, value in weights.items()} | {"net.t_embedding_norm._extra_state": None}
    torch.save(content, folder / "w2a.pt")
    return str(folder / "w2a.pt")


def imported(like: str, statistics: Path, tmp_path: Path, edit: Any = None, **changes: Any) -> Path:
    given = {"file": official_file(tmp_path, edit), "statistics": str(statistics), "actions": ACTIONS, "proprio": PROPRIO}
    return import_decoder(**(given | {"like": like, "out": str(tmp_path / "policy")} | changes))


def test_an_imported_decoder_computes_the_official_equations(like: str, statistics: Path, tmp_path: Path) -> None:
    policy = load_policy(imported(like, statistics, tmp_path))
    generator = torch.Generator().manual_seed(3)
    actions, proprio = torch.randn(4, 6, 2, generator=generator), torch.randn(4, 1, 3, generator=generator)
    context = 2 * torch.randn(4, 7, native_decoder.CONTEXT, generator=generator) + 1
    tau_action, tau_video = torch.tensor([0.0, 0.3, 0.9, 1.0]), torch.tensor([0.98765, 0.5, 0.2, 1.0])
    with torch.no_grad():
        ours = policy.decoder(actions, tau_action, policy.decoder.prepare_context(context), tau_video, proprio)
    theirs = native_decoder.velocity(native_decoder.state_dict(), actions, tau_action, context, tau_video, proprio)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("horizon", "parameters"), [(60, 499_036_810), (15, 498_990_730)])
def test_every_weight_of_the_official_sizes_has_its_official_names(horizon: int, parameters: int) -> None:
    with torch.device("meta"):
        decoder = DiTDecoder(DecoderShape(context_dim=2048, action_dim=10, proprio_dim=10, horizon=horizon))
    names = key_map(decoder)
    assert names.keys() == decoder.state_dict().keys()
    official = [name for parts in names.values() for name in parts]
    assert len(official) == len(set(official)) == 24 * 20 + 9 + 8 + 12  # blocks, single tensors, times, two embedders of three layers
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters  # LIBERO's and Bridge's


def joined(entries: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.tensor(np.concatenate([np.array(entry[key]) for entry in entries], axis=-1)).float()


def test_units_are_those_of_the_statistics(like: str, statistics: Path, tmp_path: Path) -> None:
    policy = load_policy(imported(like, statistics, tmp_path))
    for normalizer, names in ((policy.action_normalizer, ACTIONS), (policy.proprio_normalizer, PROPRIO)):
        entries = [describe(SAMPLES[name]) for name in names]
        torch.testing.assert_close(normalizer.offset, joined(entries, "mean_clamped"))
        torch.testing.assert_close(normalizer.scale, joined(entries, "std_clamped"))
        p98, mean = joined(entries, "percentiles")[980], joined(entries, "mean")
        torch.testing.assert_close(normalizer.high, mean + 1.5 * (p98 - mean))


def test_the_rest_is_that_of_the_other_policy(like: str, statistics: Path, tmp_path: Path, capsys) -> None:
    given = [f"--actions={json.dumps(ACTIONS)}", f"--proprio={json.dumps(PROPRIO)}", f"--out={tmp_path / 'policy'}"]
    run_function(["import-decoder", f"--file={official_file(tmp_path)}", f"--statistics={statistics}", f"--like={like}", *given])
    assert f"--policy={tmp_path / 'policy'}" in capsys.readouterr().out
    policy, other = load_policy(tmp_path / "policy"), load_policy(like)
    assert policy.contract == other.contract
    assert policy.backbone.shift.item() == 0.25
    assert act(policy).isfinite().all()
    assert not torch.equal(act(policy), act(other))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("blocks.1.cross_attn.k_proj.weight"), "1 missing: blocks.1.cross_attn.k_proj.weight"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.1.")], "20 missing: blocks.1.cross_attn.q_proj.weight"),
        (lambda w: w.update({"source_prior.net.weight": torch.zeros(2)}), "1 unknown: source_prior.net.weight"),
        (lambda w: w.update({"pos_embedding": torch.zeros(1, 16, 16)}), r"pos_embedding \(1, 16, 16\), here \(1, 7, 16\)"),
        (lambda w: w.update({"blocks.0.self_attn.v_proj.weight": torch.zeros(4, 5)}), r"v_proj.weight \(4, 5\), here \(16, 16\)"),
        (lambda w: w.update({"ctx_norm.bias": "zero"}), "No plain floating-point tensors of 16 to 64 bits: ctx_norm.bias"),
    ],
)
def test_other_decoders_are_refused_by_key(edit, message: str, like: str, statistics: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        imported(like, statistics, tmp_path, edit)
    assert not (tmp_path / "policy").exists()


def without(entries: dict[str, Any], key: str) -> None:
    del entries["obs/state"][key]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update({"obs/state": describe(np.ones((9, 1, 4)))}), "gives proprio of 1 steps and 4 dimensions, .* 1 and 3 .x, y, z"),
        (lambda e: e.update({"obs/state": describe(np.ones((9, 2, 3)))}), "gives proprio of 2 steps and 3 dimensions.* of another robot"),
        (lambda e: e.update({"action/gripper": describe(np.ones((9, 15, 1)))}), "action/gripper has shape .15, 1., expected"),
        (lambda e: e.pop("action/gripper"), "has no entry action/gripper; it has action/position, obs/state"),
        (lambda e: without(e, "mean_clamped"), "the entry obs/state lacks mean_clamped"),
        (lambda e: e["obs/state"].update(percentiles=[[[0.0] * 3]] * 101), "obs/state has 101 percentiles"),
        (lambda e: e["obs/state"].update(mean=[["x"] * 3]), "obs/state.mean is no table of numbers"),
        (lambda e: e["obs/state"].update(mean=[[0.0, 1.0], [0.0]]), "obs/state.mean is no table of numbers"),
        (lambda e: e["obs/state"].update(mean_clamped=[[float("nan")] * 3]), "obs/state.mean_clamped has NaN or infinity"),
        (lambda e: e["obs/state"].update(std_clamped=[[-1.0] * 3]), "obs/state.std_clamped is negative"),
        (lambda e: e["obs/state"]["percentiles"].reverse(), "obs/state: min, percentiles, max do not rise"),
        (lambda e: e["obs/state"].update(max=e["obs/state"]["min"]), "obs/state: min, percentiles, max do not rise"),
        (lambda e: e["obs/state"].update(mean=[[1e3] * 3]), "obs/state: min, mean, max do not rise"),
        (lambda e: e["obs/state"].update(mean=[[0.5] * 2]), "obs/state: min, mean, max have several shapes"),
        (lambda e: e.update(robot="panda"), "is no statistics file"),
    ],
)
def test_statistics_of_another_robot_are_refused(change, message: str, like: str, statistics: Path, tmp_path: Path) -> None:
    entries = json.loads(statistics.read_text())
    change(entries)
    statistics.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        imported(like, statistics, tmp_path)
    assert not (tmp_path / "policy").exists()


def test_missing_and_damaged_files_are_named(like: str, statistics: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint absent.pt"):
        imported(like, statistics, tmp_path, file="absent.pt")
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        imported(like, statistics, tmp_path, out=str(tmp_path))
    with pytest.raises(ValueError, match="must each name at least one entry of .*it has action/gripper"):
        imported(like, statistics, tmp_path, actions=[])
    with pytest.raises(ValueError, match="is named twice in action/gripper, action/gripper"):
        imported(like, statistics, tmp_path, actions=["action/gripper", "action/gripper"])
    statistics.write_text("{")
    with pytest.raises(ValueError, match="statistics.json is truncated or no JSON"):
        imported(like, statistics, tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no statistics file"):
        imported(like, tmp_path / "absent.json", tmp_path)
