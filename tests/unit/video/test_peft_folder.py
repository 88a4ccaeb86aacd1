"""LoRA that stock PEFT trained elsewhere computes here what it computes there, and is refused whenever a part of it would be lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from diffusers.loaders.lora_pipeline import CosmosLoraLoaderMixin
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from mimicvideo.video.adaptation import ADALN_MODULES, PAPER_TARGETS, Frozen, Lora
from mimicvideo.video.adapter import read_adapter

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32; the fused product is summed in another order


def stock(trio: Path, **settings):
    """A stock model with LoRA away from its start."""
    torch.manual_seed(0)
    base = CosmosTransformer3DModel.from_pretrained(trio / "transformer")
    model = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "ff.net.2"], **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def folder(trio: Path, tmp_path: Path) -> Path:
    stock(trio).save_pretrained(str(tmp_path / "peft"))
    return tmp_path / "peft"


def velocity(backbone, inputs) -> torch.Tensor:
    with torch.no_grad():
        return backbone.velocity(*inputs(backbone).all())


def stock_velocity(model, backbone, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**backbone._inputs(*inputs(backbone).all())).sample


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def edit_tensors(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


SETTINGS = {
    "names": {},
    "the paper's": {"target_modules": list(PAPER_TARGETS), "modules_to_save": list(ADALN_MODULES)},
    "pattern": {"target_modules": r"transformer_blocks\.[02]\.attn1\.to_[kv]"},
    "every layer": {"target_modules": "all-linear"},
    "exceptions": {"target_modules": ["to_q", "to_k"], "exclude_modules": ["attn2.to_q"]},
    "layer numbers": {"target_modules": ["to_q"], "layers_to_transform": [1], "layers_pattern": "transformer_blocks"},
    "a target that is not there": {"target_modules": ["to_q", "add_k_proj"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_velocity_is_stock_pefts(build, inputs, trio: Path, tmp_path: Path, capsys, settings) -> None:
    model = stock(trio, **settings)
    model.save_pretrained(str(tmp_path / "peft"))
    plain = build(Frozen())
    fused = build(Frozen(), adapter=str(tmp_path / "peft"))
    assert "does not say which base weights" in capsys.readouterr().out
    expected = stock_velocity(model, plain, inputs)
    torch.testing.assert_close(velocity(fused, inputs), expected, **TOLERANCE)
    assert not torch.allclose(velocity(plain, inputs), expected, atol=1e-3)
    fused.save_adapter(tmp_path / "ours")
    again = build(Frozen(), adapter=str(tmp_path / "ours"))
    assert torch.equal(velocity(again, inputs), velocity(fused, inputs))
    assert read_adapter(tmp_path / "ours")["config"]["base_weights_hash"] == plain.weights_hash


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.transformer."])
def test_diffusers_prefix_is_taken_off(build, inputs, trio: Path, folder: Path, prefix: str) -> None:
    edit_tensors(folder, lambda tensors: {key.replace("base_model.model.", prefix): tensor for key, tensor in tensors.items()})
    edit_config(folder, target_modules=["to_q", "transformer.ff.net.2"])
    fused = build(Frozen(), adapter=str(folder))
    torch.testing.assert_close(velocity(fused, inputs), stock_velocity(stock(trio), fused, inputs), **TOLERANCE)


@pytest.mark.parametrize("targets", [["ff.net.2", "to_q"], ["attn1.to_q", "attn2.to_q", "net.2"]], ids=["same", "other names"])
def test_training_goes_on(build, inputs, trio: Path, folder: Path, targets: list[str]) -> None:
    backbone = build(Lora(rank=4, alpha=8, targets=targets, adaln=False), adapter=str(folder))
    assert torch.equal(velocity(backbone, inputs), stock_velocity(stock(trio), backbone, inputs))
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(load_file(folder / "adapter_model.safetensors"))


def test_training_goes_on_with_saved_adaln(build, inputs, trio: Path, tmp_path: Path) -> None:
    model = stock(trio, **SETTINGS["the paper's"])
    model.save_pretrained(str(tmp_path / "peft"))
    backbone = build(Lora(rank=4, alpha=8), adapter=str(tmp_path / "peft"))
    assert torch.equal(velocity(backbone, inputs), stock_velocity(model, backbone, inputs))


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        (Lora(rank=8, alpha=8, targets=["to_q", "ff.net.2"], adaln=False), "rank 4 saved, 8 here"),
        (Lora(rank=4, alpha=4, targets=["to_q", "ff.net.2"], adaln=False), "alpha 8 saved, 4 here"),
        (Lora(rank=4, alpha=8, targets=["to_q"], adaln=False), "targets .* saved"),
        (Lora(rank=4, alpha=8, targets=["to_q", "ff.net.2"]), "26 missing: transformer.*adaln"),
    ],
    ids=["rank", "alpha", "targets", "AdaLN"],
)
def test_another_adaptation_is_refused(build, folder: Path, adaptation, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(adaptation, adapter=str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("adaptation", [Frozen(), Lora(rank=4, alpha=8, targets=["to_q", "ff.net.2"], adaln=False)], ids=["frozen", "lora"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": "absent"}, "adapter_config.json lacks lora_alpha"),
        ({"lora_alpha": None}, "adapter_config.json lacks lora_alpha"),
        ({"r": "absent"}, "adapter_config.json lacks r "),
        ({"target_modules": None}, "adapter_config.json lacks target_modules"),
        ({"r": "four"}, "adapter_config.json: r is 'four', expected a whole number of at least 1"),
        ({"lora_alpha": "eight"}, "adapter_config.json: lora_alpha is 'eight', expected a finite number"),
        ({"lora_alpha": float("nan")}, "adapter_config.json: lora_alpha is nan, expected a finite number"),
        ({"target_modules": 5}, "adapter_config.json: target_modules is 5, expected names of layers"),
        ({"target_modules": [5]}, "adapter_config.json: target_modules is .5., expected names of layers"),
        ({"target_modules": "(("}, "adapter_config.json: target_modules='..' name no layer"),
        ({"r": 8}, "adapter_model.safetensors does not fit.*of another shape.*r=8"),
        ({"target_modules": ["to_q"]}, "adapter_model.safetensors does not fit.*8 unexpected: .*ff.net.2"),
        ({"target_modules": ["to_q", "ff.net.2", "to_k"]}, "adapter_model.safetensors does not fit.*missing.*to_k.lora_A"),
        ({"target_modules": ["q_proj"]}, "adapter_config.json: target_modules=.'q_proj'. name no layer"),
        ({"modules_to_save": ["norm_out.linear_1"]}, "1 missing: transformer.norm_out.linear_1.weight"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA' cannot be read"),
        ({"use_rslora": True}, "use_rslora=True changes.*merge_and_unload"),
        ({"use_dora": True}, "use_dora=True changes"),
        ({"rank_pattern": {"to_q": 8}}, "rank_pattern=.* changes"),
        ({"alpha_pattern": {"to_q": 8}}, "alpha_pattern=.* changes"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes"),
        ({"bias": "all"}, "bias='all' changes"),
        ({"of_the_future": 1}, "of_the_future=1 changes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build, folder: Path, adaptation, changes, message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        build(adaptation, adapter=str(folder))
    assert str(caught.value).startswith(f"{folder}/adapter_")


@pytest.mark.parametrize("adaptation", [Frozen(), Lora(rank=4, alpha=8, targets=["to_q", "ff.net.2"], adaln=False)], ids=["frozen", "lora"])
def test_tensors_that_do_not_fit_are_refused(build, folder: Path, adaptation) -> None:
    whole = load_file(folder / "adapter_model.safetensors")
    first = next(iter(whole))
    for tensors, message in (
        ({key: tensor for key, tensor in whole.items() if key != first}, f"1 missing: {first}"),
        (whole | {"base_model.model.blocks.0.lora_A.weight": torch.zeros(4, 4)}, "1 unexpected: base_model.model.blocks.0.lora_A.weight"),
        (whole | {"base_model.model.norm_out.linear_1.weight": torch.zeros(4)}, "1 unexpected: base_model.model.norm_out"),
        (whole | {first: torch.zeros(3, 3)}, f"1 of another shape: {first}"),
        (whole | {first.replace("base_model.model.", "transformer."): whole[first].clone()}, "two tensors for"),
    ):
        edit_tensors(folder, lambda _, tensors=tensors: tensors)
        with pytest.raises(ValueError, match=message):
            build(adaptation, adapter=str(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{folder}/adapter_model.safetensors is truncated"):
        build(adaptation, adapter=str(folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=f"{folder}/adapter_model.safetensors is missing .adapter_model.bin is there, which is not"):
        build(adaptation, adapter=str(folder))


def test_a_config_that_is_none_is_refused(build, folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match="adapter_config.json holds a list, expected entries by name"):
        build(adapter=str(folder))


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "full_weights.safetensors"]])
def test_our_own_folder_is_not_read_as_pefts(build, perturb, tmp_path: Path, lost: list[str]) -> None:
    """Its AdaLN layers would be lost without a word."""
    backbone = build(Lora(rank=4, alpha=8))
    perturb(backbone)
    backbone.save_adapter(tmp_path / "adapter")
    for name in lost:
        (tmp_path / "adapter" / name).unlink()
    with pytest.raises(FileNotFoundError, match="manifest.json is missing"):
        build(Frozen(), adapter=str(tmp_path / "adapter"))


def test_what_diffusers_saves_of_a_pipeline_or_a_transformer_is_read(build, inputs, trio: Path, tmp_path: Path) -> None:
    """The file of `save_lora_weights` and `save_lora_adapter`, whose header holds the settings."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "ff.net.2"]}
    transformer = CosmosTransformer3DModel.from_pretrained(trio / "transformer")
    transformer.add_adapter(LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    transformer.save_lora_adapter(tmp_path / "transformer")
    layers, metadata = get_peft_model_state_dict(transformer), transformer.peft_config["default"].to_dict()
    pipeline: Any = CosmosLoraLoaderMixin
    pipeline.save_lora_weights(tmp_path / "pipeline", layers, transformer_lora_adapter_metadata=metadata)
    pipeline.save_lora_weights(tmp_path / "silent", layers)  # alpha is in no file
    for name in ("transformer", "pipeline"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["pytorch_lora_weights.safetensors"]
        backbone = build(adapter=str(tmp_path / name))
        torch.testing.assert_close(velocity(backbone, inputs), stock_velocity(transformer, backbone, inputs), **TOLERANCE)
    with pytest.raises(ValueError, match="silent/pytorch_lora_weights.safetensors lacks lora_alpha.*lora_adapter_metadata"):
        build(adapter=str(tmp_path / "silent"))
    path = tmp_path / "pipeline" / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="pipeline/pytorch_lora_weights.safetensors is truncated"):
        build(adapter=str(tmp_path / "pipeline"))
