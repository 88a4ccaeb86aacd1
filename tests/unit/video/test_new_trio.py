"""Untrained models from scratch: sizes, start, and a tokenizer that knows every letter."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mimicvideo.video.adaptation import Frozen
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.new_trio import new_trio, pieces
from tests.tiny_trio import SENTENCES

SIZES = {"heads": 2, "head_dim": 16, "layers": 2, "adaln_lora_dim": 4, "text_embed_dim": 32, "text_layers": 1, "vae_base_dim": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return new_trio(str(tmp_path_factory.mktemp("trio")), **SIZES, vae_dim_mult=(1, 1, 1, 1), sentences=SENTENCES, vocabulary=300)


def test_model_has_the_sizes_asked_for_and_starts_as_the_zero_velocity(made: Path, inputs) -> None:
    backbone = CosmosPredict(str(made), Frozen(), prompt_tokens=8)
    assert (backbone.hidden_dim, backbone.num_blocks) == (32, 2)
    assert backbone.vae.config.latents_std == [1.0] * 16
    with torch.no_grad():
        assert backbone.velocity(*inputs(backbone).all()).abs().max() == 0


def test_same_seed_same_weights(made: Path, tmp_path: Path) -> None:
    again = new_trio(str(tmp_path / "again"), **SIZES, vae_dim_mult=(1, 1, 1, 1), sentences=SENTENCES, vocabulary=300)
    other = new_trio(str(tmp_path / "other"), **SIZES, vae_dim_mult=(1, 1, 1, 1), sentences=SENTENCES, vocabulary=300, seed=1)
    assert (again / "manifest.json").read_text() == (made / "manifest.json").read_text()
    assert (other / "manifest.json").read_text() != (made / "manifest.json").read_text()


def test_trained_vae_is_taken_over(made: Path, tmp_path: Path) -> None:
    other = new_trio(str(tmp_path / "other"), **SIZES, vae=str(made / "vae"), seed=5)
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (other / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize(
    "sentence", [*SENTENCES, "Rotate the 3rd (blue) knob, quickly!", "zyxwv QUIZ jackpot: 100% & 'more'", "“Curly” quotes – and dashes…"]
)
def test_any_english_sentence_round_trips_without_unknown_pieces(made: Path, sentence: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "tokenizer")
    ids = tokenizer(sentence).input_ids
    assert tokenizer.unk_token_id not in ids
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == sentence


def test_known_words_are_single_pieces(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "tokenizer")
    assert tokenizer.tokenize("open the drawer") == ["▁open", "▁the", "▁drawer"]
    assert "drawer" in tokenizer.tokenize("undrawer")  # a known part is used inside an unknown word


def test_vocabulary_is_bounded_and_special_tokens_come_first() -> None:
    vocabulary = pieces(SENTENCES, 150)
    assert len(vocabulary) <= 150
    assert [piece for piece, _ in vocabulary[:3]] == ["<pad>", "</s>", "<unk>"]
    assert len({piece for piece, _ in vocabulary}) == len(vocabulary)


def test_impossible_head_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_dim must be at least 12, got 8"):
        new_trio(str(tmp_path), head_dim=8)
