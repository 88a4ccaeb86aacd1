"""Prompt embeddings: T5's own numbers, zeros beyond each prompt, and caches that are never stale or damaged."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

from mimicvideo.video.adaptation import Full
from mimicvideo.video.prompts import PromptEncoder

CPU = torch.device("cpu")
PROMPTS = ["open the drawer", "press the button now", ""]


@pytest.fixture
def encoder(trio: Path, tmp_path: Path) -> PromptEncoder:
    return PromptEncoder(trio, 16, torch.float32, str(tmp_path / "cache"))


def count_loads(encoder: PromptEncoder, monkeypatch) -> list[int]:
    loads = []
    load = encoder._load
    monkeypatch.setattr(encoder, "_load", lambda dtype: (loads.append(1), load(dtype))[1])
    return loads


def test_embeddings_are_the_padded_pipelines(trio: Path, encoder: PromptEncoder) -> None:
    """diffusers pads to full length, masks the padding inside T5, and zeroes its output."""
    tokens = AutoTokenizer.from_pretrained(trio / "tokenizer")(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden = T5EncoderModel.from_pretrained(trio / "text_encoder")(**tokens).last_hidden_state
    expected = hidden * tokens.attention_mask[..., None]
    found = encoder(PROMPTS, CPU)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32
    assert (found.abs().sum(-1) > 0).sum(1).tolist() == tokens.attention_mask.sum(1).tolist()


def test_a_prompts_embedding_does_not_depend_on_its_batch(trio: Path, encoder: PromptEncoder) -> None:
    alone = torch.cat([PromptEncoder(trio, 16, torch.float32)([prompt], CPU) for prompt in PROMPTS])
    assert torch.equal(encoder(PROMPTS, CPU), alone)


def test_cached_prompts_need_no_t5(trio: Path, encoder: PromptEncoder, monkeypatch) -> None:
    first = encoder(PROMPTS, CPU)
    again = PromptEncoder(trio, 16, torch.float32, str(encoder.cache))
    loads = count_loads(again, monkeypatch)
    assert torch.equal(again(PROMPTS[::-1], CPU), first.flip(0))
    assert loads == []
    assert len(list(encoder.cache.glob("*.safetensors"))) == len(PROMPTS)
    assert not list(encoder.cache.glob(".*"))


def test_damaged_cache_files_are_recomputed(trio: Path, encoder: PromptEncoder, monkeypatch) -> None:
    expected = encoder(PROMPTS, CPU)
    files = sorted(encoder.cache.glob("*.safetensors"))
    data = bytearray(files[0].read_bytes())
    data[-3] ^= 1
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    files[2].write_bytes(b"")
    again = PromptEncoder(trio, 16, torch.float32, str(encoder.cache))
    loads = count_loads(again, monkeypatch)
    assert torch.equal(again(PROMPTS, CPU), expected)
    assert loads == [1]
    final = PromptEncoder(trio, 16, torch.float32, str(encoder.cache))
    loads = count_loads(final, monkeypatch)
    assert torch.equal(final(PROMPTS, CPU), expected)
    assert loads == []


def test_a_failed_write_is_told_and_leaves_no_file(encoder: PromptEncoder, monkeypatch) -> None:
    def full(self: Path, data: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not write text embeddings to .* \(No space left on device\): free .* another prompt_cache"):
        encoder(PROMPTS, CPU)
    assert not list(encoder.cache.iterdir())


def test_another_encoder_length_or_dtype_is_another_entry(build, trio: Path, own_trio: Path, encoder: PromptEncoder) -> None:
    encoder(["open the drawer"], CPU)
    count = len(list(encoder.cache.glob("*")))
    for other in (
        PromptEncoder(trio, 17, torch.float32, str(encoder.cache)),
        PromptEncoder(trio, 16, torch.bfloat16, str(encoder.cache)),
    ):
        other(["open the drawer"], CPU)
        count += 1
        assert len(list(encoder.cache.glob("*"))) == count
    model = T5EncoderModel.from_pretrained(trio / "text_encoder")
    with torch.no_grad():
        model.shared.weight.add_(1)
    model.save_pretrained(own_trio / "text_encoder")
    (own_trio / "manifest.json").unlink()
    changed = PromptEncoder(own_trio, 16, torch.float32, str(encoder.cache))
    assert not torch.allclose(changed(["open the drawer"], CPU), encoder(["open the drawer"], CPU))


def test_long_prompts_are_cut_with_a_warning(trio: Path) -> None:
    encoder = PromptEncoder(trio, 3, torch.float32)
    with pytest.warns(UserWarning, match="cut from .* to 3 tokens"):
        assert encoder(["open the drawer and press the button"], CPU).shape == (1, 3, 32)
    with pytest.raises(ValueError, match="prompt_tokens"):
        PromptEncoder(trio, 0, torch.float32)


def test_frozen_t5_is_no_parameter_and_a_trained_one_is(build) -> None:
    frozen = build()
    frozen.encode_prompt(["open the drawer"])
    assert not any("prompts" in name for name, _ in frozen.named_parameters())
    trained = build(Full(text_encoder=True), prompt_cache=None)
    embedding = trained.encode_prompt(PROMPTS)
    torch.testing.assert_close(embedding, frozen.encode_prompt(PROMPTS), rtol=1e-4, atol=1e-5)
    embedding.square().sum().backward()
    assert trained.prompts.model.shared.weight.grad.abs().sum() > 0
    with torch.no_grad():
        trained.prompts.model.shared.weight.add_(0.5)
    assert not torch.allclose(trained.encode_prompt(PROMPTS), embedding)  # no cache stands between
