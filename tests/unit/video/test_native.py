"""Import of native Cosmos-Predict2 files: the same function as NVIDIA's equations, and every wrong file refused by key."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from safetensors.torch import save_file

from mimicvideo.functions import run_function
from mimicvideo.video import native
from mimicvideo.video.native import import_native
from tests import native_cosmos


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(native_cosmos.CONFIG))
    return str(path)


def native_file(folder: Path, content: Any = None, name: str = "model.pt") -> str:
    """As NVIDIA writes it: a prefix, counters, constants of RoPE and Transformer Engine's scratch beside the weights."""
    if content is None:
        content = {f"net.{key}": value for key, value in native_cosmos.state_dict().items()}
        content |= {"net.accum_iteration": torch.tensor(7), "net.pos_embedder.seq": torch.arange(240.0)}
        content |= {"net.blocks.0.self_attn.q_norm._extra_state": io.BytesIO(b"scratch"), "net.t_embedding_norm._extra_state": None}
    torch.save(content, folder / name)
    return str(folder / name)


def imported(file: str, trio: Path, tmp_path: Path, config: str | None, **options: Any) -> Path:
    return import_native(file, str(tmp_path / "model"), str(trio), config, **options)


def test_an_imported_network_computes_nvidias_equations(build, inputs, trio: Path, tmp_path: Path, config: str) -> None:
    folder = imported(native_file(tmp_path), trio, tmp_path, config)
    backbone = build(pretrained=str(folder))
    given = inputs(backbone, z_observed=1)
    noisy, tau, condition = given.all()
    with torch.no_grad():
        ours = backbone.velocity(noisy, tau, condition)
    frames = torch.cat([condition.observed, noisy[:, :, 1:]], dim=2)
    mask = torch.zeros(2, 1, *noisy.shape[2:])
    mask[:, :, 0] = 1
    times = torch.stack([torch.full_like(tau, 1e-4 / (1 + 1e-4)), tau, tau], dim=1)
    theirs = native_cosmos.velocity(native_cosmos.state_dict(), frames, mask, times, condition.prompt)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


def test_stock_diffusers_loads_the_same_bits(trio: Path, tmp_path: Path, config: str) -> None:
    weights = native_cosmos.state_dict(dtype=torch.bfloat16)
    folder = imported(native_file(tmp_path, weights), trio, tmp_path, config)  # without the prefix, as some files are
    stock = CosmosTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    names = native.key_map(native_cosmos.LAYERS)
    assert names.keys() == weights.keys()
    state = stock.state_dict()
    assert state.keys() == set(names.values())
    assert all(torch.equal(state[name], weights[key]) for key, name in names.items())
    recorded = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert {name.split("/")[0] for name in recorded} == {"transformer", "vae", "text_encoder", "tokenizer"}


def test_the_verb_takes_safetensors_too(trio: Path, tmp_path: Path, config: str, capsys) -> None:
    save_file(native_cosmos.state_dict(), tmp_path / "model.safetensors")
    out = tmp_path / "out"
    run_function(["import", f"--file={tmp_path / 'model.safetensors'}", f"--out={out}", f"--companions={trio}", f"--network={config}"])
    assert (out / "transformer/diffusion_pytorch_model.safetensors").is_file()
    assert f"pretrained={out}" in capsys.readouterr().out


def test_the_weight_average_is_taken_if_asked_for(trio: Path, tmp_path: Path, config: str) -> None:
    weights = native_cosmos.state_dict()
    both = {f"net.{key}": value for key, value in weights.items()} | {f"net_ema.{key}": value + 1 for key, value in weights.items()}
    for ema, added in ((False, 0), (True, 1)):
        folder = import_native(native_file(tmp_path, both), str(tmp_path / f"model-{ema}"), str(trio), config, ema)
        (file,) = (folder / "transformer").glob("*.safetensors")
        assert torch.equal(native.weights.read_safetensors(file)["proj_out.weight"], weights["final_layer.linear.weight"] + added)


def test_nvidias_own_sizes_are_recognised_by_shape() -> None:
    for name, layers, width, parameters in (("2B", 28, 2048, 1_956_413_440), ("14B", 36, 5120, 14_265_285_632)):
        variant = native.VARIANTS[f"Cosmos-Predict2-{name}-Video2World"]
        with torch.device("meta"):
            network = CosmosTransformer3DModel(**variant)
            first = torch.empty(width, 72)
        assert native.choose_variant({"x_embedder.proj.1.weight": first}, Path("x.pt")) is variant
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters  # NVIDIA's own networks
        assert set(native.key_map(layers).values()) == network.state_dict().keys()


def drop(*parts: str):
    return lambda weights: [weights.pop(key) for key in list(weights) if any(part in key for part in parts)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("blocks.1."), r"model.pt has 2 of the 3 blocks: blocks.1 are missing. It is a partial checkpoint"),
        (
            lambda w: [w.update({f"module.{key}": w.pop(key)}) for key in list(w)],
            r"has 67 keys that a Cosmos-Predict2 video model has not: module.x_embedder.proj.1.weight",
        ),
        (drop("mlp.layer1"), r"3 missing: blocks.0.mlp.layer1.weight, blocks.1.mlp.layer1.weight, blocks.2.mlp"),
        (lambda w: w.update({"crossattn_proj.0.weight": torch.zeros(2, 2)}), r"1 keys that .* has not: crossattn_proj.0.weight"),
        (lambda w: w.update({"blocks.3.mlp.layer1.weight": torch.zeros(2, 2)}), r"has not: blocks.3.mlp.layer1.weight"),
        (lambda w: w.update({"t_embedding_norm.weight": torch.ones(5)}), r"t_embedding_norm.weight \(5,\) instead of \(32,\)"),
        (lambda w: w.update({"t_embedding_norm.weight": 5}), r"No plain floating-point tensors of 16 to 64 bits: t_embedding_norm.weight"),
        (lambda w: w.update({"t_embedding_norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}), r"of 16 to 64 bits: t_embedding_norm"),
        (lambda w: w.update({"t_embedding_norm.weight": torch.ones(32).to_sparse()}), r"of 16 to 64 bits: t_embedding_norm"),
        (lambda w: w.update({"t_embedding_norm.weight": torch.ones(32, device="meta")}), r"of 16 to 64 bits: t_embedding_norm"),
        (
            lambda w: w.update({"net.t_embedding_norm.weight": torch.ones(32)}),
            r"has two tensors for t_embedding_norm.weight, with net. before",
        ),
        (lambda w: w.update({"blocks.0.mlp.layer1.lora_A.default.weight": torch.ones(2, 32)}), r"Its LoRA is not fused yet"),
        (
            lambda w: w.update({"t_embedding_norm.weight": torch.ones(32).int()}),
            r"No plain floating-point tensors of 16 to 64 bits: t_embedding_norm",
        ),
    ],
)
def test_other_networks_are_refused_by_key_and_nothing_is_written(edit, message: str, trio: Path, tmp_path: Path, config: str) -> None:
    weights = native_cosmos.state_dict()
    edit(weights)
    file = native_file(tmp_path, weights)
    with pytest.raises(ValueError, match=message):
        imported(file, trio, tmp_path, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.pt"]


def test_unknown_variants_are_refused(trio: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown variant: its x_embedder.proj.1.weight is \(32, 72\).*2B-Video2World \(2048, 72\)"):
        imported(native_file(tmp_path), trio, tmp_path, None)
    with pytest.raises(ValueError, match="lacks x_embedder.proj.1.weight. Its keys are model.weight"):
        imported(native_file(tmp_path, {"model.weight": torch.zeros(2)}), trio, tmp_path, None)


def test_a_config_of_another_architecture_is_refused(trio: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(native_cosmos.CONFIG | {"extra_pos_embed_type": "learnable"}))
    with pytest.raises(ValueError, match=r"config.json describes no Cosmos-Predict2 network, which has no learnable_pos_embed"):
        imported(native_file(tmp_path), trio, tmp_path, str(tmp_path / "config.json"))


@pytest.mark.parametrize(("ema", "prefix", "message"), [(True, "net.", "has no weight average"), (False, "net_ema.", "set ema=true")])
def test_the_copy_that_is_not_there_is_named(ema: bool, prefix: str, message: str, trio: Path, tmp_path: Path, config: str) -> None:
    file = native_file(tmp_path, {f"{prefix}{key}": value for key, value in native_cosmos.state_dict().items()})
    with pytest.raises(ValueError, match=message):
        imported(file, trio, tmp_path, config, ema=ema)


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_no_code_of_a_file_is_run(trio: Path, tmp_path: Path, config: str) -> None:
    file = native_file(tmp_path, {"net.x": Evil(tmp_path / "ran")})
    with pytest.raises(ValueError, match="not only tensors, and reading them could run code"):
        imported(file, trio, tmp_path, config)
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_refused(trio: Path, tmp_path: Path, config: str) -> None:
    file = Path(native_file(tmp_path))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.pt is truncated or no PyTorch checkpoint"):
        imported(str(file), trio, tmp_path, config)
    file.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="model.pt is truncated or no PyTorch checkpoint"):
        imported(str(file), trio, tmp_path, config)
    torch.save({"net.x": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="model.pt is in PyTorch's format from before 1.6, which has no checksums"):
        imported(str(file), trio, tmp_path, config)
    with pytest.raises(ValueError, match="holds a list, expected a state dict"):
        imported(native_file(tmp_path, [torch.zeros(2)]), trio, tmp_path, config)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        imported(str(tmp_path / "absent.pt"), trio, tmp_path, config)


def test_a_byte_that_has_changed_is_noticed(trio: Path, tmp_path: Path, config: str) -> None:
    file = Path(native_file(tmp_path))
    content = bytearray(file.read_bytes())
    where = content.index(native_cosmos.state_dict()["final_layer.linear.weight"].numpy().tobytes())
    content[where] ^= 1  # a weight's last bit
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt is damaged in model/data/\d+: its checksum differs"):
        imported(str(file), trio, tmp_path, config)
    assert not (tmp_path / "model").exists()


def test_a_file_without_checksums_is_taken(trio: Path, tmp_path: Path, config: str) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = native_file(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert (imported(file, trio, tmp_path, config) / "transformer").is_dir()


def test_one_tensor_under_two_names_becomes_two(trio: Path, tmp_path: Path, config: str) -> None:
    weights = native_cosmos.state_dict()
    weights["blocks.1.mlp.layer1.weight"] = weights["blocks.0.mlp.layer1.weight"]
    folder = imported(native_file(tmp_path, weights), trio, tmp_path, config)
    state = CosmosTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    for block in (0, 1):
        assert torch.equal(state[f"transformer_blocks.{block}.ff.net.0.proj.weight"], weights["blocks.0.mlp.layer1.weight"])


@pytest.mark.parametrize(
    ("name", "change"), [("vae", {"z_dim": 48}), ("text_encoder", {"d_model": 64}), ("text_encoder", {"d_model": None})]
)
def test_companions_of_another_model_are_refused(own_trio: Path, tmp_path: Path, config: str, name: str, change: dict[str, Any]) -> None:
    path = own_trio / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"{name}/config.json has .* the network in the file wants"):
        imported(native_file(tmp_path), own_trio, tmp_path, config)
    assert not (tmp_path / "model").exists()


def test_a_truncated_companion_is_refused(own_trio: Path, tmp_path: Path, config: str) -> None:
    (own_trio / "manifest.json").unlink()
    path = own_trio / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="text_encoder/model.safetensors is truncated or damaged"):
        imported(native_file(tmp_path), own_trio, tmp_path, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.pt", "trio"]


def test_nothing_is_downloaded_for_a_wrong_file(tmp_path: Path, config: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("gigabytes for nothing"))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        import_native(str(tmp_path / "absent.pt"), str(tmp_path / "model"), "nvidia/Cosmos", config)


def test_what_is_missing_or_in_the_way_is_named_before_the_file_is_read(trio: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "half" / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="lacks text_encoder, tokenizer"):
        import_native("absent.pt", str(tmp_path / "model"), str(tmp_path / "half"), config)
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        import_native("absent.pt", str(tmp_path), str(trio), config)


@pytest.mark.parametrize("change", [{"num_layers": "three"}, {"patch_size": 2}, {"attention_head_dim": 8}])
def test_a_config_that_builds_no_network_is_refused(change: dict[str, Any], trio: Path, tmp_path: Path, config: str) -> None:
    Path(config).write_text(json.dumps({**native_cosmos.CONFIG, **change}))
    with pytest.raises(ValueError, match="config.json is no config.json of diffusers' CosmosTransformer3DModel: "):
        imported(native_file(tmp_path), trio, tmp_path, config)
    assert not (tmp_path / "model").exists()


def test_weights_that_are_not_finite_are_refused(trio: Path, tmp_path: Path, config: str) -> None:
    weights = native_cosmos.state_dict()
    weights["blocks.1.mlp.layer1.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="model.pt has 1 tensors with NaN or infinity: blocks.1.mlp.layer1.weight"):
        imported(native_file(tmp_path, weights), trio, tmp_path, config)
    assert not (tmp_path / "model").exists()


def test_companions_of_the_hub_are_asked_for_without_its_transformer(trio: Path, tmp_path: Path, config: str, monkeypatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: asked.update(options) or str(trio))
    import_native(native_file(tmp_path), str(tmp_path / "model"), "nvidia/Cosmos", config)
    assert asked["allow_patterns"] == ["vae/*", "text_encoder/*", "tokenizer/*"]
    assert (tmp_path / "model" / "transformer").is_dir()


def test_absent_companions_are_named_as_such(trio: Path, tmp_path: Path, config: str, monkeypatch) -> None:
    def refuses(*args: Any) -> None:
        raise ConnectionRefusedError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuses)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError) as caught:
        import_native(native_file(tmp_path), str(tmp_path / "model"), "nvidia/Cosmos", config)
    message = str(caught.value)
    assert message.startswith("companions='nvidia/Cosmos'") and "set companions to its path" in message
    assert "FOLDER/vae/" in message and "FOLDER/transformer/" not in message
