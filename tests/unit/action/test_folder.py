"""Policy folders: the same actions and the same bytes again, wherever a checkpoint is taken; every damage refused by file."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mimicvideo.action import load
from mimicvideo.action.folder import read_policy, verify_policy, write_policy_folder
from mimicvideo.action.load import export_policy, load_policy
from mimicvideo.action.state import IncompatibleCheckpointError
from mimicvideo.checkpoint import DamagedCheckpointError
from mimicvideo.folders import write_manifest
from mimicvideo.functions import run_function
from mimicvideo.hashes import file_sha256
from mimicvideo.planning import load_contract
from mimicvideo.video.adaptation import Lora
from mimicvideo.video.cosmos_predict import CosmosPredict
from tests.fake_backbone import FakeData, contract, demonstrations
from tests.tiny_trio import tiny_trio
from tests.unit.action.test_load import act, configured, train_and_save

FILES = {"config.json", "decoder.safetensors", "normalizer.safetensors", "adapter.safetensors", "README.md", "manifest.json"}


@pytest.fixture(autouse=True)
def trust_the_fake(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mimicvideo"])  # LightningCLI warns of others
    monkeypatch.setattr(load, "TRUSTED", ("mimicvideo.", "tests.fake_backbone."))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    train_and_save(tmp_path / "policy.ckpt", ema_decay=0.9, latent_cache=str(tmp_path / "cache"))
    return tmp_path / "policy.ckpt"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return export_policy(str(saved), str(tmp_path / "policy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder: Path, change) -> None:
    """Changes config.json and records the new hash, as someone would who made another folder on purpose."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)


def test_a_folder_acts_exactly_as_its_checkpoint(saved: Path, folder: Path) -> None:
    policy, again = load_policy(saved), load_policy(folder)
    assert torch.equal(act(again), act(policy))
    assert again.contract == policy.contract == load_contract(folder) == load_contract(saved)
    assert again.backbone.shift.item() == 0.25  # stage 1
    for one, other in ((again.action_normalizer, policy.action_normalizer), (again.proprio_normalizer, policy.proprio_normalizer)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_folder_is_written_again_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    again = export_policy(str(folder), str(tmp_path / "again"))
    assert contents(again) == contents(folder)
    assert contents(folder).keys() == FILES
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_hash_of_a_folder_covers_all_its_files(saved: Path, folder: Path) -> None:
    recorded = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert recorded == {name: file_sha256(folder / name) for name in FILES - {"manifest.json"}}
    assert verify_policy(folder) == file_sha256(folder / "manifest.json")
    assert verify_policy(saved) == file_sha256(saved)


def test_averaged_weights_are_the_ones_in_the_folder(saved: Path, folder: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    weights = load_file(folder / "decoder.safetensors")
    assert weights.keys() == {name for name in checkpoint["state_dict"] if name.startswith("decoder.")}
    assert not torch.equal(weights["decoder.positions"], checkpoint["state_dict"]["decoder.positions"])
    assert torch.equal(weights["decoder.positions"], load_policy(saved).decoder.positions.detach())


def test_the_card_says_what_is_needed_and_no_file_names_a_folder_of_this_machine(folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text()
    policy = load_policy(folder)
    assert policy.backbone.weights_hash in card
    assert f"{sum(parameter.numel() for parameter in policy.decoder.parameters()):,} parameters" in card
    for key in ("robot", "control_hz"):
        assert json.dumps(policy.contract[key]) in card
    assert not any(str(tmp_path).encode() in content for content in contents(folder).values())


def example(text: str, **given: Any) -> dict[str, Any]:
    """What the Python of a page leaves behind."""
    exec(text.split("```python\n")[1].split("```")[0], given)
    return given


def test_the_readme_acts(folder: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    assert example(page.replace("my-policy", str(folder)))["actions"].shape == (1, 6, 2)


def test_a_card_says_how_to_act_where_other_numbers_were_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"proprio": {"a": {"kind": "other", "dims": [2, 1, 0]}}, "actions": {"a": {"kind": "other", "dims": [1, 0]}}}
    monkeypatch.setattr(FakeData, "contract", lambda self: contract() | {"representation": groups})
    train_and_save(tmp_path / "policy.ckpt")
    card = (export_policy(str(tmp_path / "policy.ckpt"), str(tmp_path / "policy")) / "README.md").read_text()
    shown = {"state": np.arange(3.0)[None], "video": demonstrations(1)["observation"]["video"], "instruction": "open the drawer"}
    done = example(card.replace("THIS_FOLDER", str(tmp_path / "policy")), **shown)
    assert done["proprio"].tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(done["commands"], done["actions"].numpy()[..., [1, 0]])


def test_a_folder_carries_the_lora_of_a_video_model(tmp_path: Path) -> None:
    lora = CosmosPredict(tiny_trio(), Lora(rank=2, alpha=8), prompt_tokens=8)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape) * parameter.requires_grad)
    lora.save_adapter(tmp_path / "adapter")
    frozen = {"class_path": "mimicvideo.video.adaptation.Frozen"}
    given = {"pretrained": tiny_trio(), "adaptation": frozen, "adapter": str(tmp_path / "adapter"), "prompt_tokens": 8}
    backbone = {"class_path": "mimicvideo.video.cosmos_predict.CosmosPredict", "init_args": given}
    train_and_save(tmp_path / "policy.ckpt", backbone=backbone)
    folder = export_policy(str(tmp_path / "policy.ckpt"), str(tmp_path / "policy"))
    policy, again = load_policy(tmp_path / "policy.ckpt"), load_policy(folder)
    assert torch.equal(act(again), act(policy))
    assert policy.adapter is not None and again.adapter is not None
    assert again.adapter["config"] == policy.adapter["config"] == lora.adapter_state()["config"]
    assert contents(export_policy(str(folder), str(tmp_path / "again"))) == contents(folder)
    assert str(tmp_path / "adapter") not in (folder / "config.json").read_text()


def test_the_verb_writes_a_folder(saved: Path, tmp_path: Path, capsys) -> None:
    run_function(["export", f"--policy={saved}", f"--out={tmp_path / 'out'}"])
    assert contents(tmp_path / "out").keys() == FILES
    assert f"--policy={tmp_path / 'out'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_changed_and_missing_files_are_refused_by_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=f"{name} is damaged or was changed: its SHA-256 is"):
        load_policy(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing, though manifest.json lists it"):
        load_policy(folder)


def test_a_damaged_manifest_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DamagedCheckpointError, match="manifest.json is damaged"):
        load_policy(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="is a folder without manifest.json, and so no policy"):
        load_policy(folder)
    (tmp_path / "model").mkdir()
    write_manifest(tmp_path / "model")
    with pytest.raises(IncompatibleCheckpointError, match="is no policy folder: it has no config.json"):
        load_policy(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(format=2), "not that of a policy folder of format 1: it has format 2"),
        (lambda config: config.pop("hyper_parameters"), "lacks hyper_parameters"),
        (lambda config: config["mimicvideo"].update(base_sha256="0" * 64), "trained on base weights with SHA-256 0000000000000000"),
        (lambda config: config["mimicvideo"].update(kind="VideoFinetune"), "checkpoint of VideoFinetune, not of ActionPolicy"),
        (lambda config: config["hyper_parameters"]["decoder"].update(class_path="os.system"), "names 'os.system' as model.decoder"),
        (lambda config: config["hyper_parameters"]["decoder"]["init_args"].update(depth=1), "unexpected: decoder.blocks.1"),
    ],
)
def test_folders_of_other_models_are_refused(folder: Path, change, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(IncompatibleCheckpointError, match=re.escape(message)):
        load_policy(folder)


def test_a_file_without_its_tensors_is_refused(folder: Path) -> None:
    (folder / "decoder.safetensors").unlink()
    write_manifest(folder)
    with pytest.raises(DamagedCheckpointError, match=r"decoder.safetensors is missing or no safetensors file"):
        read_policy(folder)


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        export_policy("absent.ckpt", str(tmp_path))
    with pytest.raises(ValueError, match="still has its weight average"):
        write_policy_folder(configured(ema_decay=0.5), tmp_path / "out")
    by_hand = copy.copy(load_policy(saved))
    by_hand._hparams = {}
    with pytest.raises(ValueError, match="was built by hand"):
        write_policy_folder(by_hand, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_a_file_that_the_manifest_does_not_list_is_not_read(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpointError, match=f"manifest.json does not list {name}"):
        load_policy(folder)


def test_what_a_hub_adds_to_a_folder_is_no_damage(saved: Path, folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "state.json").write_text("{}")
    assert torch.equal(act(load_policy(folder)), act(load_policy(saved)))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    write_manifest(folder)
    with pytest.raises(IncompatibleCheckpointError, match="config.json is not that of a policy folder"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(adapter=None), "config.json is not that .* lacks adapter"),
        (lambda config: config["mimicvideo"].pop("base_sha256"), "the checkpoint lacks base_sha256"),
        (lambda config: config["mimicvideo"].pop("contract"), "the checkpoint lacks contract"),
        (lambda config: config["mimicvideo"]["contract"].pop("horizon"), "the contract lacks horizon"),
        (lambda config: config["hyper_parameters"].pop("backbone"), "name no backbone"),
    ],
)
def test_a_config_without_a_part_is_refused_by_key(folder: Path, change, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_policy(folder)
