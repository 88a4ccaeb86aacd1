"""Parameter counts against NVIDIA's networks and the paper's, without memory for any weight."""

import pytest
from diffusers import CosmosTransformer3DModel

from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.sizes import ARCHITECTURES, backbone_size, transformer_config


@pytest.mark.parametrize(
    ("name", "blocks", "width", "parameters"),
    [
        ("models/predict2-2b-480p-10fps", 28, 2048, 1_956_413_440),
        ("nvidia/Cosmos-Predict2-2B-Video2World", 28, 2048, 1_956_413_440),
        ("nvidia/Cosmos-Predict2-14B-Video2World", 36, 5120, 14_265_285_632),
        ("nvidia/Cosmos-Predict2.5-2B", 28, 2048, 2_059_174_912),
        ("nvidia/Cosmos-Predict2.5-14B", 36, 5120, 14_368_047_104),
    ],
)
def test_published_models_have_their_published_sizes(name: str, blocks: int, width: int, parameters: int) -> None:
    size = backbone_size(name, Frozen())
    assert (size.blocks, size.width, size.parameters, size.trained) == (blocks, width, parameters, {})


def test_rotary_scales_are_the_published_ones() -> None:
    assert {name: config["rope_scale"] for name, config in ARCHITECTURES.items() if "2-14B" in name or "5-14B" in name} == {
        "Cosmos-Predict2-14B-Video2World": (20 / 24, 2, 2),
        "Cosmos-Predict2.5-14B": (1, 3, 3),
    }


@pytest.mark.parametrize("name", ["nvidia/Cosmos-Predict2-2B-Video2World", "nvidia/Cosmos-Predict2.5-2B"])
def test_the_papers_adaptation_trains_the_papers_counts(name: str) -> None:
    """Those of Predict2.5 are the same: its text projection is frozen."""
    assert backbone_size(name, Lora()).trained == {"LoRA": 370_690_048, "AdaLN": 177_733_632}


@pytest.mark.parametrize(("rank", "count"), [(8, 35_979_264), (16, 71_958_528), (32, 143_917_056)])
def test_narrow_lora_on_14b_has_the_published_counts(rank: int, count: int) -> None:
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    assert backbone_size("nvidia/Cosmos-Predict2-14B-Video2World", Lora(rank, targets=targets, adaln=False)).trained == {"LoRA": count}


@pytest.mark.parametrize("adaptation", [Lora(rank=2), Lora(rank=2, adaln=False), Full(), Full(text_encoder=True), Frozen()])
def test_counts_are_those_of_the_model_when_it_is_built(trio, adaptation) -> None:
    size, built = backbone_size(str(trio), adaptation), CosmosPredict(str(trio), adaptation, prompt_tokens=8)
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    assert sum(size.trained.values()) == trained
    assert size.parameters == sum(p.numel() for p in CosmosPredict(str(trio), Frozen(), prompt_tokens=8).transformer.parameters())
    assert (size.blocks, size.width) == (built.num_blocks, built.hidden_dim)
    assert ("text encoder" in size.trained) == (isinstance(adaptation, Full) and adaptation.text_encoder)


def test_a_folder_comes_before_its_name(trio, tmp_path) -> None:
    folder = tmp_path / "predict2-2b-480p-10fps"
    folder.symlink_to(trio)
    assert transformer_config(str(folder)) == CosmosTransformer3DModel.load_config(trio / "transformer")
    with pytest.raises(FileNotFoundError, match="no folder .*elsewhere.*choose one of predict2-2b-480p-10fps"):
        backbone_size(str(tmp_path / "elsewhere"), Frozen())
