"""Saving and loading what stage 1 trained: bit for bit, PEFT-compatible, and refused whenever it does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file

from mimicvideo.functions import run_function
from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.adapter import read_adapter, write_adapter


@pytest.fixture
def lora(build, perturb):
    """A trained backbone."""
    backbone = build(Lora(rank=4, alpha=8))
    perturb(backbone)
    return backbone


@pytest.fixture
def folder(lora, tmp_path: Path) -> Path:
    lora.save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def velocity(backbone, inputs) -> torch.Tensor:
    with torch.no_grad():
        return backbone.velocity(*inputs(backbone).all())


def weights_of(backbone) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


def test_saved_adapter_continues_bit_for_bit(build, inputs, lora, folder: Path) -> None:
    again = build(Lora(rank=4, alpha=8), adapter=str(folder))
    assert torch.equal(velocity(again, inputs), velocity(lora, inputs))
    assert any(parameter.requires_grad for parameter in again.parameters())
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "full_weights.safetensors",
        "manifest.json",
    }


def test_frozen_backbone_fuses_the_adapter(build, inputs, lora, folder: Path) -> None:
    fused = build(Frozen(), adapter=str(folder))
    torch.testing.assert_close(velocity(fused, inputs), velocity(lora, inputs), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad or "lora" in name for name, parameter in fused.named_parameters())
    assert fused.weights_hash == lora.weights_hash


def test_state_travels_through_a_checkpoint_file_and_a_fused_backbone(build, inputs, lora, folder: Path, tmp_path: Path) -> None:
    fused = build(Frozen(), adapter=str(folder))
    torch.save(fused.adapter_state(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    again = build(Frozen())
    again.load_adapter_state(state)
    assert torch.equal(velocity(again, inputs), velocity(fused, inputs))
    again.load_adapter_state(state)  # the same one once more changes nothing
    assert torch.equal(velocity(again, inputs), velocity(fused, inputs))
    state["tensors"] = {name: tensor + 1 for name, tensor in state["tensors"].items()}
    with pytest.raises(ValueError, match="another adapter is fused"):
        again.load_adapter_state(state)


def test_frozen_backbone_takes_an_adapter_after_a_policy_fused_nothing(build, inputs, lora, folder: Path) -> None:
    backbone = build(Frozen())
    backbone.fuse_adapter()
    backbone.load_adapter_state(read_adapter(folder))
    torch.testing.assert_close(velocity(backbone, inputs), velocity(lora, inputs), rtol=1e-4, atol=1e-5)


def test_adapter_survives_freezing_and_fusing(build, lora) -> None:
    before = lora.adapter_state()
    lora.requires_grad_(False)  # as a policy does
    lora.fuse_adapter()
    after = lora.adapter_state()
    assert before["config"] == after["config"]
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in before["tensors"].items())


def test_peft_reads_the_folder(trio: Path, inputs, lora, folder: Path) -> None:
    wrapped = PeftModel.from_pretrained(CosmosTransformer3DModel.from_pretrained(trio / "transformer"), folder)
    theirs = {name: tensor for name, tensor in wrapped.state_dict().items() if "lora_" in name}
    ours = {name: tensor for name, tensor in lora.transformer.state_dict().items() if "lora_" in name}
    assert {name.removeprefix("base_model.model.") for name in theirs} == ours.keys()
    assert all(torch.equal(tensor, ours[name.removeprefix("base_model.model.")]) for name, tensor in theirs.items())
    assert wrapped.peft_config["default"].lora_alpha == 8


def stock_velocity(transformer, backbone, inputs) -> torch.Tensor:
    """The output of a transformer that no code of ours has touched, on what our backbone gives to its own."""
    with torch.no_grad():
        return transformer(**backbone._inputs(*inputs(backbone).all())).sample


def stock_base(trio: Path, folder: Path) -> CosmosTransformer3DModel:
    """Stock diffusers with what was trained in full, a plain state dict under diffusers' names."""
    transformer = CosmosTransformer3DModel.from_pretrained(trio / "transformer")
    if (folder / "full_weights.safetensors").is_file():
        whole = {name.removeprefix("transformer."): value for name, value in load_file(folder / "full_weights.safetensors").items()}
        assert not transformer.load_state_dict(whole, strict=False).unexpected_keys
    return transformer


@pytest.mark.parametrize("adaln", [True, False])
def test_stock_peft_computes_the_same_from_the_folder(build, inputs, perturb, trio: Path, tmp_path: Path, adaln: bool) -> None:
    backbone = build(Lora(rank=4, alpha=16, adaln=adaln))
    before = velocity(backbone, inputs)
    perturb(backbone)
    backbone.save_adapter(tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(stock_base(trio, tmp_path / "adapter"), tmp_path / "adapter")
    assert torch.equal(stock_velocity(wrapped, backbone, inputs), velocity(backbone, inputs))
    assert not torch.allclose(velocity(backbone, inputs), before, atol=1e-3)


@pytest.mark.parametrize("adaln", [True, False])
def test_stock_diffusers_computes_the_same_from_the_folder(build, inputs, perturb, trio: Path, tmp_path: Path, adaln: bool) -> None:
    backbone = build(Lora(rank=4, alpha=16, adaln=adaln))
    perturb(backbone)
    backbone.save_adapter(tmp_path / "adapter")
    stock = stock_base(trio, tmp_path / "adapter")
    stock.load_lora_adapter(tmp_path / "adapter", weight_name="adapter_model.safetensors", prefix="base_model.model")
    assert torch.equal(stock_velocity(stock, backbone, inputs), velocity(backbone, inputs))


def test_stock_diffusers_computes_the_same_from_the_fused_folder(build, inputs, lora, folder: Path, tmp_path: Path) -> None:
    fused = build(Frozen(), adapter=str(folder))
    fused.save_pretrained(tmp_path / "fused")
    stock = CosmosTransformer3DModel.from_pretrained(tmp_path / "fused" / "transformer")
    assert torch.equal(stock_velocity(stock, fused, inputs), velocity(fused, inputs))
    state = fused.transformer.state_dict()
    assert stock.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in stock.state_dict().items())


def test_the_verb_writes_the_fused_folder(build, inputs, lora, folder: Path, trio: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "fused"
    flags = [f"--adapter={folder}", f"--pretrained={trio}", f"--out={out}"]
    run_function(["fuse", *flags, "--dtype=float32"])
    assert f"pretrained={out}" in capsys.readouterr().out
    whole = build(Frozen(), pretrained=str(out))
    assert torch.equal(velocity(whole, inputs), velocity(build(Frozen(), adapter=str(folder)), inputs))
    with pytest.raises(FileExistsError, match="not empty"):
        run_function(["fuse", *flags])
    with pytest.raises(FileNotFoundError, match=r"adapter='\S*absent'.*<run_dir>/adapter"):
        run_function(["fuse", f"--adapter={tmp_path / 'absent'}", *flags[1:2], f"--out={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


def test_the_verb_keeps_bf16_as_stage_2_fuses_it(build, folder: Path, trio: Path, tmp_path: Path) -> None:
    run_function(["fuse", f"--adapter={folder}", f"--pretrained={trio}", f"--out={tmp_path / 'fused'}"])
    ours = build(Frozen(), adapter=str(folder), dtype="bfloat16").transformer.state_dict()
    saved = load_file(tmp_path / "fused" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == ours.keys() and all(torch.equal(value, ours[name]) for name, value in saved.items())


@pytest.mark.parametrize("adaptation", [Lora(rank=4, alpha=8), Frozen()])
def test_lora_without_alpha_is_refused(build, folder: Path, adaptation) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["lora"]["lora_alpha"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"adapter {folder} does not say its LoRA's lora_alpha"):
        build(adaptation, adapter=str(folder))


def test_random_transformer_travels_with_its_adapter(build, inputs, perturb, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build(Lora(rank=2, alpha=2), initial="random")
    perturb(source)
    source.save_adapter(tmp_path / "adapter")
    torch.manual_seed(1)
    for adaptation in (Frozen(), Lora(rank=2, alpha=2)):
        again = build(adaptation, initial="random", adapter=str(tmp_path / "adapter"))
        torch.testing.assert_close(velocity(again, inputs), velocity(source, inputs), rtol=1e-4, atol=1e-5)
    plain = build(Frozen(), initial="random")
    copy = build(Frozen(), initial="random")
    assert not torch.equal(velocity(copy, inputs), velocity(plain, inputs))
    copy.load_adapter_state(plain.adapter_state())
    assert torch.equal(velocity(copy, inputs), velocity(plain, inputs))


def test_whole_model_is_saved_as_a_trio(build, inputs, lora, tmp_path: Path) -> None:
    lora.save_pretrained(tmp_path / "fused")
    again = build(pretrained=str(tmp_path / "fused"))
    torch.testing.assert_close(velocity(again, inputs), velocity(lora, inputs), rtol=1e-4, atol=1e-5)
    assert again.weights_hash != lora.weights_hash
    assert again.vae_hash == lora.vae_hash
    assert any("lora_" in name for name, _ in lora.named_parameters())  # the one that trains is as it was

    lora.save_pretrained(tmp_path / "half", torch.bfloat16)
    assert (tmp_path / "half/transformer/diffusion_pytorch_model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "fused/transformer/diffusion_pytorch_model.safetensors"
    ).stat().st_size
    assert velocity(build(pretrained=str(tmp_path / "half")), inputs).isfinite().all()


def test_full_adaptation_writes_a_trio_with_its_text_encoder(build, inputs, perturb, tmp_path: Path) -> None:
    backbone = build(Full(text_encoder=True))
    perturb(backbone)
    assert backbone.save_trained(tmp_path) == tmp_path / "backbone"
    again = build(pretrained=str(tmp_path / "backbone"))
    torch.testing.assert_close(again.encode_prompt(["open"]), backbone.encode_prompt(["open"]).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(velocity(again, inputs), velocity(backbone, inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(again.encode_prompt(["open"]), build().encode_prompt(["open"]))
    frozen = build(Frozen())
    frozen.load_adapter_state(backbone.adapter_state())
    torch.testing.assert_close(velocity(frozen, inputs), velocity(backbone, inputs), rtol=1e-4, atol=1e-5)


def test_lora_is_saved_as_an_adapter(lora, tmp_path: Path) -> None:
    assert lora.save_trained(tmp_path) == tmp_path / "adapter"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        (Lora(rank=8, alpha=8), "rank 4 saved, 8 here"),
        (Lora(rank=4, alpha=4), "alpha 8 saved, 4 here"),
        (Lora(rank=4, alpha=8, targets=["to_q"]), "targets .* saved, .'to_q'. here"),
        (Lora(rank=4, alpha=8, adaln=False), "26 unexpected: transformer.norm_out.linear_1.weight"),
        (Full(), "has LoRA layers, the model has none"),
    ],
)
def test_other_adaptations_are_refused_and_nothing_is_half_loaded(build, folder: Path, adaptation, message: str) -> None:
    backbone = build(adaptation)
    before = weights_of(backbone)
    with pytest.raises(ValueError, match=message):
        backbone.load_adapter_state(read_adapter(folder))
    assert all(torch.equal(parameter, before[name]) for name, parameter in backbone.named_parameters())


@pytest.mark.parametrize("adaptation", [Lora(rank=4, alpha=8), Frozen()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)), "1 missing: base_model.model"),
        (
            lambda tensors: tensors.update({"base_model.model.blocks.lora_A.weight": torch.zeros(4, 4)}),
            "1 unexpected: base_model.model.blocks",
        ),
        (lambda tensors: tensors.update({"transformer.absent": torch.zeros(4)}), "1 unexpected: transformer.absent"),
        (
            lambda tensors: tensors.update({"transformer.norm_out.linear_1.weight": torch.zeros(4)}),
            "1 of another shape: transformer.norm_out",
        ),
    ],
)
def test_adapters_with_wrong_tensors_are_refused_and_nothing_is_half_loaded(build, folder: Path, adaptation, change, message: str) -> None:
    state = read_adapter(folder)
    change(state["tensors"])
    backbone = build(adaptation)
    before = weights_of(backbone)
    with pytest.raises(ValueError, match=message):
        backbone.load_adapter_state(state)
    assert weights_of(backbone).keys() == before.keys()
    assert all(torch.equal(parameter, before[name]) for name, parameter in backbone.named_parameters())


def test_other_base_weights_are_refused(build, own_trio: Path, folder: Path) -> None:
    CosmosTransformer3DModel.from_config(CosmosTransformer3DModel.load_config(own_trio / "transformer")).save_pretrained(
        own_trio / "transformer"
    )
    (own_trio / "manifest.json").unlink()
    with pytest.raises(ValueError, match=f"{folder} was trained on other base weights"):
        build(Frozen(), pretrained=str(own_trio), adapter=str(folder))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "full_weights.safetensors"])
def test_damaged_and_missing_files_are_refused_by_name(build, folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-5])
    with pytest.raises(ValueError, match=f"{name} is truncated or damaged"):
        build(Frozen(), adapter=str(folder))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (folder / name).write_bytes(flipped)
    with pytest.raises(ValueError, match=f"{name} is truncated or damaged"):
        build(Frozen(), adapter=str(folder))
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        build(Frozen(), adapter=str(folder))


def test_folders_that_are_no_adapters_are_refused(build, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build(Frozen(), adapter=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="manifest.json is missing"):
        build(Frozen(), adapter=str(tmp_path / "empty"))
    (tmp_path / "empty" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        build(Frozen(), adapter=str(tmp_path / "empty"))
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps({"sha256": {}}))
    with pytest.raises(ValueError, match="no adapter manifest"):
        build(Frozen(), adapter=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "none"}, "no adapter manifest of format 1: sha256"),
        ({"lora": "all"}, "no adapter manifest of format 1: lora"),
        ({"format": 2}, "no adapter manifest of format 1: format"),
        (
            {"lora": {"r": "four", "lora_alpha": 8, "target_modules": ["to_q"], "lora_dropout": 0.0}},
            "says r='four', adapter_config.json beside it 4",
        ),
        (
            {"lora": {"r": 4, "lora_alpha": "x", "target_modules": ["to_q"], "lora_dropout": 0.0}},
            "says lora_alpha='x', adapter_config.json beside it 8",
        ),
    ],
)
def test_a_manifest_with_other_values_is_refused(build, folder: Path, change: dict, message: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match=message):
        build(Frozen(), adapter=str(folder))


@pytest.mark.parametrize("adaptation", [Lora(rank=4, alpha=8), Frozen()])
@pytest.mark.parametrize("name", ["adapter_config.json", "full_weights.safetensors", "other.safetensors"])
def test_files_that_the_manifest_does_not_list_are_refused(build, folder: Path, adaptation, name: str) -> None:
    """Without `full_weights.safetensors` a frozen backbone would lose its AdaLN layers without a word."""
    if name.startswith("other"):
        shutil.copy(folder / "full_weights.safetensors", folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"].pop(name, None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"manifest.json does not list {name}"):
        build(adaptation, adapter=str(folder))


@pytest.mark.parametrize(("key", "value"), [("r", 2), ("lora_alpha", 16), ("target_modules", ["to_q"])])
def test_a_manifest_that_contradicts_the_config_is_refused(build, folder: Path, key: str, value: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["lora"][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"manifest.json says {key}=.*one was changed"):
        build(Frozen(), adapter=str(folder))


@pytest.mark.parametrize("adaptation", [Lora(rank=4, alpha=8), Frozen()])
@pytest.mark.parametrize("bad", [lambda tensor: tensor * float("nan"), lambda tensor: tensor.int()])
def test_tensors_that_are_no_finite_numbers_are_refused(build, folder: Path, adaptation, bad) -> None:
    state = read_adapter(folder)
    key = next(iter(state["tensors"]))
    state["tensors"][key] = bad(state["tensors"][key])
    backbone = build(adaptation)
    before = weights_of(backbone)
    with pytest.raises(ValueError, match=f"has 1 tensors with NaN, infinity or no floating-point numbers: {key}"):
        backbone.load_adapter_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(backbone).items())


@pytest.mark.parametrize(("key", "value"), [("r", "four"), ("r", 0), ("lora_alpha", "x"), ("lora_alpha", float("inf"))])
def test_settings_of_a_checkpoint_that_are_no_numbers_are_refused(build, lora, key: str, value: Any) -> None:
    state = lora.adapter_state()
    state["config"]["lora"][key] = value
    with pytest.raises(ValueError, match=f"{key} is .*, expected a"):
        build().load_adapter_state(state)


def test_a_failed_write_leaves_the_old_adapter(lora, folder: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mimicvideo.video.adapter.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_adapter(lora.adapter_state(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    monkeypatch.undo()
    write_adapter(lora.adapter_state(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
