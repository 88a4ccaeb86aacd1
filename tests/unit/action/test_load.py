"""load_policy: the same actions as the policy that was saved, from the checkpoint alone, and every refusal."""

import copy
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from mimicvideo.action import load
from mimicvideo.action.load import export_policy, load_policy
from mimicvideo.action.policy import ActionPolicy
from mimicvideo.action.state import IncompatibleCheckpointError
from mimicvideo.checkpoint import DamagedCheckpointError, save_checkpoint, sidecar
from tests.fake_backbone import FakeBackbone, FakeData, demonstrations
from tests.tiny_trio import tiny_trio

CONFIG: dict[str, Any] = {
    "class_path": "mimicvideo.action.policy.ActionPolicy",
    "init_args": {
        "backbone": {"class_path": "tests.fake_backbone.FakeBackbone", "init_args": {"adapter": 0.25}},
        "decoder": {"class_path": "mimicvideo.action.dit.DiTDecoder", "init_args": {"width": 16, "depth": 2, "heads": 2, "adaln_dim": 4}},
        "future": {"class_path": "mimicvideo.action.future.NoiseFuture", "init_args": {"tau": 0.9}},
        "action_dim": 2,
        "proprio_dim": 3,
        "horizon": 6,
        "video_noise": {"class_path": "mimicvideo.noise.LogNormalSigma"},
        "action_noise": {"class_path": "mimicvideo.noise.Uniform"},
        "block": 1,
        "num_steps": 4,
        "normalization": {"actions": ["variance", "min_max"]},
        "validation_taus": [0.5],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
    },
}


def quiet(steps: int, root: Path) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return Trainer(**dict.fromkeys(off, False), max_steps=steps, accelerator="cpu", default_root_dir=root, limit_val_batches=0)


def configured(**changes: Any) -> ActionPolicy:
    """Built as `mimicvideo fit` builds it: the configuration becomes the checkpoint's hyper-parameters."""
    model = copy.deepcopy(CONFIG)
    model["init_args"] |= changes
    trainer = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False) | {"accelerator": "cpu"}
    args = {"model": model, "trainer": trainer, "seed_everything": 0}
    options = {"run": False, "save_config_callback": None, "auto_configure_optimizers": False}
    return LightningCLI(ActionPolicy, subclass_mode_model=True, args=args, **options).model


def train_and_save(path: Path, **changes: Any) -> ActionPolicy:
    policy = configured(**changes)
    trainer = quiet(3, path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(policy, datamodule=FakeData(batch=4))
        trainer.save_checkpoint(path)
    save_checkpoint(torch.load(path, weights_only=True), path)  # with its hash beside it, as SafeCheckpoint does
    return policy.eval()


def act(policy: ActionPolicy) -> Tensor:
    return policy.predict_actions(demonstrations(3)["observation"], generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def trust_the_fake(monkeypatch):
    monkeypatch.setattr("sys.argv", ["mimicvideo"])  # LightningCLI warns of others
    monkeypatch.setattr(load, "TRUSTED", ("mimicvideo.", "tests.fake_backbone."))


@pytest.fixture
def saved(tmp_path) -> tuple[Path, ActionPolicy]:
    path = tmp_path / "policy.ckpt"
    return path, train_and_save(path)


def change(path: Path, edit: Any) -> None:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    save_checkpoint(checkpoint, path)


# ---- the same policy ----------------------------------------------------------------------------------------------------------


def test_a_loaded_policy_acts_exactly_as_the_saved_one(saved):
    path, policy = saved
    loaded = load_policy(path)
    assert torch.equal(act(loaded), act(policy))
    assert loaded.contract == policy.contract
    assert not loaded.training
    assert not any(module.training for module in loaded.modules())
    assert loaded.future.tau == 0.9
    assert loaded.num_steps == 4


def test_base_weights_may_lie_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(tiny_trio(), tmp_path / "base")
    init_args = {
        "pretrained": str(tmp_path / "base"),
        "revision": "main",
        "adaptation": {"class_path": "mimicvideo.video.adaptation.Frozen"},
        "prompt_tokens": 8,
    }
    path = tmp_path / "policy.ckpt"
    policy = train_and_save(path, backbone={"class_path": "mimicvideo.video.cosmos_predict.CosmosPredict", "init_args": init_args})
    wanted = act(policy)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="base"):
        load_policy(path)
    moved = load_policy(path, pretrained=str(tmp_path / "moved"))
    assert torch.equal(act(moved), wanted)
    folder = export_policy(str(path), str(tmp_path / "folder"), str(tmp_path / "moved"))
    assert torch.equal(act(load_policy(folder)), wanted), "the folder names the new place"


def test_a_policy_without_base_weights_refuses_a_place_for_them(saved) -> None:
    with pytest.raises(IncompatibleCheckpointError, match="pretrained='there'.*no base weights"):
        load_policy(saved[0], pretrained="there")


def test_averaged_weights_are_the_ones_that_act(tmp_path):
    policy = train_and_save(tmp_path / "policy.ckpt", ema_decay=0.9)
    loaded = act(load_policy(tmp_path / "policy.ckpt"))
    assert not torch.equal(loaded, act(policy))
    with policy.averaged_weights():
        assert torch.equal(loaded, act(policy))


def test_the_adapter_comes_from_the_checkpoint_and_its_folder_is_not_asked_for(saved, monkeypatch):
    path, policy = saved
    built = []
    original = FakeBackbone.__init__

    def spy(self: FakeBackbone, *args: Any, **kwargs: Any) -> None:
        built.append(kwargs)
        original(self, *args, **kwargs)

    monkeypatch.setattr(FakeBackbone, "__init__", spy)
    loaded = load_policy(path)
    assert built[0].get("adapter") is None
    assert loaded.backbone.shift.item() == policy.backbone.shift.item() == 0.25
    assert loaded.backbone.fused


def test_only_what_was_trained_is_stored(saved):
    path, policy = saved
    checkpoint = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"decoder", "action_normalizer", "proprio_normalizer"}
    assert torch.equal(checkpoint["mimicvideo"]["adapter"]["tensors"]["shift"], torch.tensor(0.25))
    assert checkpoint["mimicvideo"]["base_sha256"] == policy.backbone.weights_hash


def test_a_loaded_policy_can_be_saved_and_loaded_again(saved, tmp_path):
    path, _ = saved
    loaded, trainer = load_policy(path), quiet(1, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.validate(loaded, dataloaders=[], verbose=False)
        trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(act(load_policy(tmp_path / "again.ckpt")), act(loaded))


def test_without_a_sidecar_the_file_still_loads(saved):
    path, policy = saved
    sidecar(path).unlink()
    assert torch.equal(act(load_policy(path)), act(policy))


# ---- damage -------------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_policy(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_a_truncated_file_is_refused(saved, with_sidecar):
    path, _ = saved
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    if not with_sidecar:
        sidecar(path).unlink()
    with pytest.raises(DamagedCheckpointError, match="policy"):
        load_policy(path)


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_a_flipped_byte_in_a_weight_is_refused(saved, with_sidecar):
    path, policy = saved
    content = bytearray(path.read_bytes())
    content[content.find(policy.decoder.positions.detach().numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    if not with_sidecar:
        sidecar(path).unlink()
    with pytest.raises(DamagedCheckpointError, match="policy"):
        load_policy(path)


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "notes.ckpt").write_text("not a checkpoint")
    with pytest.raises(DamagedCheckpointError, match="notes"):
        load_policy(tmp_path / "notes.ckpt")


# ---- other things than this policy --------------------------------------------------------------------------------------------


def test_a_stage_1_checkpoint_is_told_apart(saved):
    path, _ = saved

    def to_stage_1(checkpoint: dict[str, Any]) -> None:
        del checkpoint["mimicvideo"]
        checkpoint["hyper_parameters"]["_class_path"] = "mimicvideo.video.finetune.VideoFinetune"

    change(path, to_stage_1)
    with pytest.raises(IncompatibleCheckpointError, match="checkpoint of VideoFinetune, not of ActionPolicy"):
        load_policy(path)


def test_other_base_weights_are_refused(saved):
    path, _ = saved
    change(path, lambda checkpoint: checkpoint["mimicvideo"].update(base_sha256="0" * 64))
    with pytest.raises(IncompatibleCheckpointError, match="trained on base weights with SHA-256 0000000000000000"):
        load_policy(path)


def test_missing_unexpected_and_reshaped_tensors_are_listed(saved):
    path, _ = saved

    def edit(checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        weights["decoder.extra"] = weights.pop("decoder.positions")
        weights["decoder.proprio_mask_token"] = torch.zeros(3)

    change(path, edit)
    message = "1 missing: decoder.positions; 1 unexpected: decoder.extra; 1 of another shape: decoder.proprio_mask_token (3,), here (16,)"
    with pytest.raises(IncompatibleCheckpointError, match=re.escape(message)):
        load_policy(path)


@pytest.mark.parametrize(
    ("part", "class_path"),
    [("decoder", "os.system"), ("future", "subprocess.Popen"), ("backbone", "mimicvideo_evil.Backbone")],
)
def test_foreign_classes_are_never_built(saved, part, class_path):
    path, _ = saved
    change(path, lambda checkpoint: checkpoint["hyper_parameters"][part].update(class_path=class_path))
    with pytest.raises(IncompatibleCheckpointError, match=f"names '{class_path}' as model.{part}"):
        load_policy(path)


def test_options_that_no_longer_exist_are_named(saved):
    path, _ = saved
    change(path, lambda checkpoint: checkpoint["hyper_parameters"].update(blocks=3))
    with pytest.raises(IncompatibleCheckpointError, match=r"cannot build the checkpoint's policy.*blocks"):
        load_policy(path)


def test_a_missing_gpu_is_named(saved):
    path, _ = saved
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="no GPU is available for device 'cuda'"):
        load_policy(path, device="cuda")


# ---- resuming -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": CONFIG["init_args"]["decoder"] | {"init_args": {"width": 16, "depth": 1, "heads": 2, "adaln_dim": 4}}}, "unexpected"),
        ({"backbone": CONFIG["init_args"]["backbone"] | {"init_args": {"adapter": 0.5}}}, "another adapter"),
        ({"backbone": CONFIG["init_args"]["backbone"] | {"init_args": {"adapter": 0.25, "seed": 1}}}, "base weights"),
        ({"ema_decay": 0.9}, "no weight average"),
    ],
)
def test_resuming_with_another_model_is_refused(saved, tmp_path, changes, message):
    path, _ = saved
    trainer, policy = quiet(5, tmp_path), configured(**changes)
    with pytest.raises(ValueError, match=message):
        trainer.fit(policy, datamodule=FakeData(batch=4), ckpt_path=path)


def test_resuming_on_data_with_another_contract_is_refused(saved, tmp_path, monkeypatch):
    path, policy = saved
    monkeypatch.setattr(FakeData, "contract", lambda self: policy.contract | {"frame_interval_steps": 3})
    trainer, other = quiet(5, tmp_path), configured()
    with pytest.raises(ValueError, match="frame_interval_steps: checkpoint 2, data 3"):
        trainer.fit(other, datamodule=FakeData(batch=4), ckpt_path=path)
