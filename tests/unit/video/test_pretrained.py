"""Names, files and hashes of pretrained weights; partial, foreign and damaged ones are refused by name."""

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from safetensors.torch import load_file, save_file

from mimicvideo.hashes import known_sha256
from mimicvideo.video import pretrained
from mimicvideo.video.adaptation import Lora
from mimicvideo.video.cosmos_predict import CosmosPredict

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def refused(folder: Path, build, *parts: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build(pretrained=str(folder))
    for part in parts:
        assert part in str(caught.value)


def test_names_of_folders(trio: Path, tmp_path: Path) -> None:
    assert pretrained.resolve(str(trio)) == trio
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        pretrained.resolve(str(tmp_path / "absent"))
    (tmp_path / "half" / "vae").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="lacks transformer, text_encoder, tokenizer"):
        pretrained.resolve(str(tmp_path / "half"))


def test_absent_packaged_model_is_reported(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(pretrained.PACKAGED, "cosmos-tiny", tmp_path / "assets")
    with pytest.raises(FileNotFoundError, match="'cosmos-tiny': this installation lacks .*assets"):
        pretrained.resolve("cosmos-tiny")


def refuses(*args):
    raise ConnectionRefusedError("no network")


def never_answers(*args):
    time.sleep(10)


@pytest.mark.parametrize("ask", [pretrained.resolve, pretrained.check_source])
@pytest.mark.parametrize(("connect", "reason"), [(refuses, "no network"), (never_answers, "no answer within 5 s")])
def test_unreachable_hub_says_at_once_what_to_put_where(monkeypatch, tmp_path: Path, ask, connect, reason: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        ask("nvidia/Cosmos-Predict2.5-2B", "diffusers/base/post-trained")
    assert time.monotonic() - start < 8
    message = str(caught.value)
    assert reason in message and "transformer, vae, text_encoder, tokenizer" in message
    assert "FOLDER/transformer/   config.json, diffusion_pytorch_model.safetensors" in message
    assert "hf download nvidia/Cosmos-Predict2.5-2B --revision diffusers/base/post-trained --include" in message


def test_an_earlier_download_is_taken_without_the_hub(monkeypatch, trio: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuses)
    cache = tmp_path / "models--nvidia--Cosmos"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(trio, cache / "snapshots" / ("0" * 40))
    pretrained.check_source("nvidia/Cosmos")
    assert pretrained.resolve("nvidia/Cosmos") == cache / "snapshots" / ("0" * 40)
    shutil.rmtree(cache / "snapshots" / ("0" * 40) / "transformer")  # as an import downloads its companions alone
    assert pretrained.resolve("nvidia/Cosmos", components=("vae", "tokenizer")) == cache / "snapshots" / ("0" * 40)
    for ask in (pretrained.check_source, pretrained.resolve):
        with pytest.raises(FileNotFoundError, match=r"the hub did not give that model(?s:.)*put the model's diffusers-format folders"):
            ask("nvidia/Cosmos")


def test_a_source_is_checked_without_a_download(monkeypatch, trio: Path, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: asked.append((name, options["revision"])))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: pytest.fail("downloads"))
    for source in ("nvidia/Cosmos", str(trio), "cosmos-tiny"):
        pretrained.check_source(source, "main")
    assert asked == [("nvidia/Cosmos", "main")]
    for source in ("models/absent", str(tmp_path / "absent")):  # neither of which can be a hub id
        with pytest.raises(FileNotFoundError, match=f"there is no folder /.*absent.*{pretrained.COMPONENTS[0]}"):
            pretrained.check_source(source)
    assert len(asked) == 1


def test_hub_ids_are_downloaded_with_their_revision(monkeypatch, trio: Path) -> None:
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update(name=name, **options) or str(trio))
    assert pretrained.resolve("nvidia/Cosmos", "main") == trio
    assert asked["name"] == "nvidia/Cosmos"
    assert asked["revision"] == "main"
    assert "vae/*" in asked["allow_patterns"]


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_missing_weights_are_refused(build, own_trio: Path, component: str) -> None:
    (own_trio / component / "diffusion_pytorch_model.safetensors").unlink()
    refused(own_trio, build, str(own_trio / component), "holds no weights")


def test_missing_config_is_refused(build, own_trio: Path) -> None:
    (own_trio / "transformer" / "config.json").unlink()
    refused(own_trio, build, "config.json is missing")


def test_missing_shard_is_refused(build, own_trio: Path) -> None:
    (own_trio / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"proj_out.weight": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (own_trio / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    refused(own_trio, build, "lacks diffusion_pytorch_model-00002-of-00002.safetensors")


@pytest.fixture
def shards(own_trio: Path) -> Path:
    """The index of `own_trio`'s transformer in two files or more, without a manifest."""
    (own_trio / pretrained.MANIFEST).unlink()
    model = CosmosTransformer3DModel.from_pretrained(own_trio / "transformer")
    (own_trio / WEIGHTS).unlink()
    model.save_pretrained(own_trio / "transformer", max_shard_size="100KB")
    return own_trio / "transformer" / "diffusion_pytorch_model.safetensors.index.json"


def test_weights_that_are_there_twice_are_refused(build, trio: Path, own_trio: Path, shards: Path) -> None:
    """diffusers reads the shards, transformers the single file."""
    shutil.copy(trio / WEIGHTS, own_trio / WEIGHTS)
    refused(own_trio, build, "holds weights twice, diffusion_pytorch_model.safetensors and the shards of", shards.name)


@pytest.mark.parametrize(
    "change", [lambda places: places.pop("proj_out.weight"), lambda places: places.update(extra=places["proj_out.weight"])]
)
def test_an_index_that_does_not_say_what_is_in_its_files_is_refused(build, own_trio: Path, shards: Path, change) -> None:
    index = json.loads(shards.read_text())
    change(index["weight_map"])
    shards.write_text(json.dumps(index))
    refused(own_trio, build, str(shards), "about where 1 tensors are")


def test_a_tensor_in_two_files_is_refused(build, own_trio: Path, shards: Path) -> None:
    first, *_, last = pretrained.weight_files(own_trio / "transformer")
    key = min(load_file(first))
    edit(last, lambda tensors: tensors.update({key: load_file(first)[key] + 1}))
    refused(own_trio, build, str(shards), f"about where 1 tensors are: {key}")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"proj_out.weight": 2}}'])
def test_an_index_without_places_is_refused(build, own_trio: Path, shards: Path, text: str) -> None:
    shards.write_text(text)
    refused(own_trio, build, f"{shards} lacks weight_map")


def test_weights_of_a_variant_are_named(build, own_trio: Path) -> None:
    (own_trio / WEIGHTS).rename(own_trio / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    refused(own_trio, build, "holds no weights", "it has diffusion_pytorch_model.fp16.safetensors", "without a variant")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("3", "int"), ('"nvidia/model"', "str")])
def test_a_config_that_is_none_is_refused_without_asking_the_hub(build, own_trio: Path, component: str, text: str, kind: str) -> None:
    """A text in its place is a model of the hub to diffusers."""
    (own_trio / component / "config.json").write_text(text)
    refused(own_trio, build, f"{own_trio / component / 'config.json'} holds a {kind}")


def test_a_config_that_builds_no_network_is_refused(build, own_trio: Path) -> None:
    config = json.loads((own_trio / "transformer" / "config.json").read_text())
    (own_trio / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": "28"}))
    refused(own_trio, build, "transformer/config.json is no config.json of CosmosTransformer3DModel")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda tensors: tensors.pop("proj_out.weight"), ["1 missing: proj_out.weight"]),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), ["1 unexpected: extra"]),
        (
            lambda tensors: tensors.update({"proj_out.weight": torch.zeros(3, 3)}),
            ["1 of another shape: proj_out.weight (3, 3) instead of (64, 32)"],
        ),
    ],
)
def test_partial_and_foreign_weights_are_refused(build, own_trio: Path, change, parts: list[str]) -> None:
    edit(own_trio / WEIGHTS, change)
    refused(own_trio, build, str(own_trio / "transformer"), "another architecture", *parts)


def test_checkpoint_with_an_adapter_attached_is_refused(build, own_trio: Path) -> None:
    """diffusers loads such a file with random base weights and a warning."""
    backbone = build(Lora(rank=2))
    backbone.transformer.save_pretrained(own_trio / "transformer")
    refused(own_trio, build, "missing", "base_layer", "adapter attached")


@pytest.mark.parametrize("name", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_truncated_file_is_refused(build, own_trio: Path, name: str) -> None:
    data = (own_trio / name).read_bytes()
    (own_trio / name).write_bytes(data[: len(data) * 2 // 3])
    refused(own_trio, build, name, "truncated or damaged")


@pytest.mark.parametrize("name", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors"])
def test_flipped_byte_is_refused(build, own_trio: Path, name: str) -> None:
    data = bytearray((own_trio / name).read_bytes())
    data[-10] ^= 1
    (own_trio / name).write_bytes(data)
    refused(own_trio, build, name, "SHA-256")


@pytest.mark.parametrize("text", ["{}", '{"sha256": null}'])
def test_a_manifest_without_hashes_is_refused(own_trio: Path, build, text: str) -> None:
    (own_trio / "manifest.json").write_text(text)
    refused(own_trio, build, str(own_trio / "manifest.json"), "lacks sha256")


def test_flipped_byte_of_the_text_encoder_is_refused_when_it_is_read(build, own_trio: Path) -> None:
    path = own_trio / "text_encoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        build(pretrained=str(own_trio)).encode_prompt(["open the drawer"])


@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json"])
def test_a_changed_config_is_refused(build, own_trio: Path, name: str) -> None:
    """Of the same shapes: another RoPE scale, or other statistics of the latents."""
    config = json.loads((own_trio / name).read_text())
    config |= {"rope_scale": [1.0, 1.0, 1.0]} if "rope_scale" in config else {"latents_std": [2.0] * 16}
    (own_trio / name).write_text(json.dumps(config))
    refused(own_trio, build, name, "SHA-256")


def test_a_changed_or_missing_tokenizer_is_refused_when_it_is_read(build, own_trio: Path) -> None:
    path = own_trio / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("open", "shut"))
    with pytest.raises(ValueError, match="tokenizer.json differs from the SHA-256"):
        build(pretrained=str(own_trio)).encode_prompt(["open the drawer"])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing, though"):
        build(pretrained=str(own_trio)).encode_prompt(["open the drawer"])


def test_weights_that_the_manifest_does_not_list_are_refused(build, own_trio: Path) -> None:
    manifest = json.loads((own_trio / "manifest.json").read_text())
    del manifest["sha256"][WEIGHTS]
    (own_trio / "manifest.json").write_text(json.dumps(manifest))
    refused(own_trio, build, WEIGHTS, "SHA-256")


@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json"])
def test_a_config_that_the_manifest_does_not_list_is_refused(build, own_trio: Path, name: str) -> None:
    manifest = json.loads((own_trio / "manifest.json").read_text())
    del manifest["sha256"][name]
    (own_trio / "manifest.json").write_text(json.dumps(manifest))
    refused(own_trio, build, f"{own_trio / name} is not among the files")


def test_a_file_that_was_added_to_the_tokenizer_is_refused(build, own_trio: Path) -> None:
    """It would give a word another number."""
    (own_trio / "tokenizer" / "added_tokens.json").write_text('{"drawer": 7}')
    with pytest.raises(ValueError, match=r"added_tokens.json is not among the files"):
        build(pretrained=str(own_trio)).encode_prompt(["open the drawer"])


def test_the_packaged_models_manifest_lists_all_its_files() -> None:
    for component in pretrained.COMPONENTS:
        pretrained.check_files(pretrained.PACKAGED["cosmos-tiny"] / component)


@pytest.mark.parametrize("name", ["vae/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_a_damaged_file_is_not_copied_under_a_new_hash(build, own_trio: Path, tmp_path: Path, name: str) -> None:
    backbone = build(pretrained=str(own_trio))
    path = own_trio / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"differs from the SHA-256|is truncated or damaged"):
        backbone.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_that_do_not_belong_together_are_refused(build, own_trio: Path) -> None:
    config = CosmosTransformer3DModel.load_config(own_trio / "transformer")
    (own_trio / pretrained.MANIFEST).unlink()
    CosmosTransformer3DModel.from_config({**config, "in_channels": 16}).save_pretrained(own_trio / "transformer")
    refused(own_trio, build, "text-to-image")
    CosmosTransformer3DModel.from_config({**config, "text_embed_dim": 24}).save_pretrained(own_trio / "transformer")
    refused(own_trio, build, "text of width 24", "gives 32")


def test_options_outside_their_choices_are_refused(build) -> None:
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16"):
        build(dtype="float16")
    with pytest.raises(ValueError, match="initial must be"):
        build(initial="zero")


def test_sharded_weights_load(build, trio: Path, own_trio: Path) -> None:
    (own_trio / pretrained.MANIFEST).unlink()
    model = CosmosTransformer3DModel.from_pretrained(trio / "transformer")
    (own_trio / WEIGHTS).unlink()
    model.save_pretrained(own_trio / "transformer", max_shard_size="100KB")
    assert len(pretrained.weight_files(own_trio / "transformer")) > 1
    loaded = build(pretrained=str(own_trio))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor)


def test_file_hash_notices_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = known_sha256(path)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    path.write_bytes(b"other")
    assert known_sha256(path) != first


def test_backbone_runs_without_torchvision(trio: Path) -> None:
    from diffusers.models.transformers import transformer_cosmos

    assert hasattr(transformer_cosmos, "transforms")
    resize = transformer_cosmos.transforms.functional.resize
    mode = transformer_cosmos.transforms.InterpolationMode.NEAREST
    mask = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    expected = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    assert torch.equal(resize(mask, [4, 4], interpolation=mode)[0, 0], expected)
    assert CosmosPredict(str(trio), Lora(rank=1)).num_blocks == 4
