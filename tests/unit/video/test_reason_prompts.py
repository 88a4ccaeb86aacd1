"""Predict2.5's text: Reason1's hidden states as diffusers' pipeline makes them, reduced once by the transformer's own projection."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mimicvideo.video.adaptation import Frozen, Full, Lora
from mimicvideo.video.backbone import VideoCondition
from mimicvideo.video.cosmos_predict import CosmosPredict
from mimicvideo.video.reason_prompts import ReasonPromptEncoder, prompt_encoder

CPU = torch.device("cpu")
PROMPTS = ["open the drawer", "press the button now", ""]
TOKENS, LAYERS, WIDTH = 24, 2, 32
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{{ message['content'] if message['content'] is string else message['content'][0]['text'] }} <|im_end|> {% endfor %}"
)


@pytest.fixture(scope="session")
def reason_trio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Predict2.5: the tests' video model with a Qwen2.5-VL of two layers and a transformer that reduces its text."""
    from tests.tiny_trio import tiny_trio

    folder = tmp_path_factory.mktemp("reason") / "trio"
    shutil.copytree(tiny_trio(), folder)
    for name in ("text_encoder", "tokenizer", "transformer"):
        shutil.rmtree(folder / name)
    (folder / "manifest.json").unlink()
    words = "<|pad|> <|unk|> <|im_start|> <|im_end|> system user You are a helpful assistant who will provide prompts to an image generator"
    words = dict.fromkeys(f"{words} . {' '.join(PROMPTS)}".split())
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<|unk|>", padding_side="left")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = {
            "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
            "vocab_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        }  # fmt: skip
        vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
        sizes: Any = CosmosTransformer3DModel.load_config(Path(tiny_trio()) / "transformer")
        sizes = {
            **sizes,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": LAYERS * WIDTH,
            "encoder_hidden_states_channels": 32,
        }
        transformer: Any = CosmosTransformer3DModel.from_config(sizes)
        transformer.save_pretrained(folder / "transformer")
    return folder


def pipelines_embedding(folder: Path) -> torch.Tensor:
    """diffusers' own, whose tokenizer pads on the right as NVIDIA's does."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", padding_side="right")
    pipeline: Any = SimpleNamespace(_execution_device=CPU, text_encoder=model, tokenizer=tokenizer)
    with torch.no_grad():
        return Cosmos2_5_PredictBasePipeline._get_prompt_embeds(pipeline, PROMPTS, max_sequence_length=TOKENS)


def test_embeddings_are_the_pipelines(reason_trio: Path) -> None:
    encoder = prompt_encoder(reason_trio, TOKENS, torch.float32, None)
    assert isinstance(encoder, ReasonPromptEncoder) and encoder.prompt_dim == LAYERS * WIDTH
    found = encoder(PROMPTS, CPU)
    torch.testing.assert_close(found, pipelines_embedding(reason_trio), rtol=1e-4, atol=1e-4)
    per_layer = found.unflatten(-1, (LAYERS, WIDTH))
    torch.testing.assert_close(per_layer.mean(-1), torch.zeros(3, TOKENS, LAYERS), atol=1e-5, rtol=0)
    torch.testing.assert_close(per_layer.std(-1), torch.ones(3, TOKENS, LAYERS), atol=1e-4, rtol=0)


def test_the_backbone_sees_the_text_that_diffusers_transformer_would_reduce_itself(reason_trio: Path) -> None:
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS, conditional_sigma=None)
    plain = CosmosTransformer3DModel.from_pretrained(reason_trio / "transformer").eval()
    raw = pipelines_embedding(reason_trio)
    assert backbone.encode_prompt(PROMPTS).shape == (3, TOKENS, 32)
    torch.testing.assert_close(backbone.encode_prompt(PROMPTS), plain.crossattn_proj(raw), rtol=1e-4, atol=1e-5)
    noisy, tau = torch.randn(3, 16, 3, 4, 4), torch.tensor([0.2, 0.5, 1.0])
    condition = VideoCondition(backbone.encode_prompt(PROMPTS), torch.randn(3, 16, 1, 4, 4))
    mask = torch.zeros(3, 1, 3, 4, 4)
    mask[:, :, 0] = 1
    with torch.no_grad():
        noisy[:, :, :1] = condition.observed
        expected = plain(noisy, tau, raw, condition_mask=mask, padding_mask=torch.zeros(1, 1, 32, 32)).sample
        torch.testing.assert_close(backbone.velocity(noisy, tau, condition), expected, rtol=1e-3, atol=1e-4)


def test_only_reduced_embeddings_are_kept_and_other_projections_do_not_share_them(reason_trio: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = CosmosPredict(str(reason_trio), Lora(rank=2, alpha=2), prompt_tokens=TOKENS, prompt_cache=cache).encode_prompt(PROMPTS)
    files = list((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 3 and all(file.stat().st_size < TOKENS * 32 * 4 + 500 for file in files)
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS, prompt_cache=cache)
    backbone.prompts._load = lambda dtype: pytest.fail("the language model was loaded")  # type: ignore[method-assign]
    assert torch.equal(backbone.encode_prompt(PROMPTS), first)
    other = tmp_path / "other"
    shutil.copytree(reason_trio, other)
    transformer: Any = CosmosTransformer3DModel.from_pretrained(other / "transformer")
    with torch.no_grad():
        transformer.crossattn_proj[0].weight += 1
    transformer.save_pretrained(other / "transformer")
    changed = CosmosPredict(str(other), Frozen(), prompt_tokens=TOKENS, prompt_cache=cache).encode_prompt(PROMPTS)
    assert not torch.allclose(changed, first) and len(list((tmp_path / "cache").glob("*.safetensors"))) == 6


def test_a_projection_that_is_loaded_later_reduces_anew(reason_trio: Path, tmp_path: Path) -> None:
    trained = CosmosPredict(str(reason_trio), Full(), prompt_tokens=TOKENS)
    with torch.no_grad():
        trained.transformer.crossattn_proj[0].weight *= -1  # type: ignore[index]
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS, prompt_cache=str(tmp_path))
    before = backbone.encode_prompt(PROMPTS)
    backbone.load_adapter_state(trained.adapter_state())
    with torch.no_grad():
        expected = trained.transformer.crossattn_proj(trained.encode_prompt(PROMPTS))
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(backbone.encode_prompt(PROMPTS), expected, rtol=1e-4, atol=1e-5)
    again = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS, prompt_cache=str(tmp_path))
    again.prompts._load = lambda dtype: pytest.fail("the language model was loaded")  # type: ignore[method-assign]
    assert torch.equal(again.encode_prompt(PROMPTS), before)  # what is on disk is each its own projection's
    again.load_adapter_state(trained.adapter_state())
    assert torch.equal(again.encode_prompt(PROMPTS), backbone.encode_prompt(PROMPTS))
    kept = again.encode_prompt(PROMPTS)
    again.to("cpu")
    assert again.encode_prompt(PROMPTS) is kept


def test_another_chat_template_is_another_entry(reason_trio: Path, tmp_path: Path) -> None:
    def embeddings(folder: Path) -> torch.Tensor:
        return CosmosPredict(str(folder), Frozen(), prompt_tokens=TOKENS, prompt_cache=str(tmp_path / "cache")).encode_prompt(PROMPTS)

    first, other = embeddings(reason_trio), tmp_path / "other"
    shutil.copytree(reason_trio, other)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(other / "tokenizer")
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", "")
    tokenizer.save_pretrained(other / "tokenizer")
    assert (other / "tokenizer" / "tokenizer.json").read_bytes() == (reason_trio / "tokenizer" / "tokenizer.json").read_bytes()
    assert not torch.allclose(embeddings(other), first, atol=1e-2)
    assert torch.equal(embeddings(reason_trio), first)


def test_a_model_may_be_built_in_inference_mode(reason_trio: Path) -> None:
    expected = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS).encode_prompt(PROMPTS)
    with torch.inference_mode():
        backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS)
        assert torch.equal(backbone.encode_prompt(PROMPTS), expected)


def test_a_dropped_prompt_is_the_projection_of_zeros(reason_trio: Path) -> None:
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS)
    projection: Any = backbone.transformer.crossattn_proj
    torch.testing.assert_close(backbone.no_prompt(), torch.nn.functional.gelu(projection[0].bias).expand(TOKENS, -1))
    trained = CosmosPredict(str(reason_trio), Full(), prompt_tokens=TOKENS)
    assert trained.no_prompt().shape == (TOKENS, LAYERS * WIDTH) and not trained.no_prompt().any()


def test_guidance_leads_away_from_the_dropped_prompt(reason_trio: Path) -> None:
    """Which training shows, and which is no zeros behind the projection."""
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS)
    with torch.no_grad():
        backbone.transformer.crossattn_proj[0].bias += 0.5  # type: ignore[index]
    prompt = backbone.encode_prompt(PROMPTS[:1])
    condition = VideoCondition(prompt, torch.zeros(1, 16, 1, 4, 4))
    noise, taus = torch.randn(1, 16, 3, 4, 4), torch.tensor([0.9, 0.5])
    sampled = backbone.denoise(noise, taus, condition, guidance=7.0)
    dropped = torch.nn.functional.gelu(backbone.transformer.crossattn_proj[0].bias).expand_as(prompt)  # type: ignore[index]
    with torch.no_grad():
        c, u = (backbone.velocity(noise, taus[:1], VideoCondition(text, condition.observed)) for text in (prompt, dropped))
    torch.testing.assert_close(sampled[:, :, 1:], (noise - 0.4 * (c + 7 * (c - u)))[:, :, 1:])


def test_a_projection_that_trains_is_not_applied_beforehand(reason_trio: Path) -> None:
    backbone = CosmosPredict(str(reason_trio), Full(), prompt_tokens=TOKENS)
    assert backbone.encode_prompt(PROMPTS).shape == (3, TOKENS, LAYERS * WIDTH)
    condition = VideoCondition(backbone.encode_prompt(PROMPTS), torch.zeros(3, 16, 1, 4, 4))
    backbone.velocity(torch.randn(3, 16, 3, 4, 4), torch.rand(3), condition).square().mean().backward()
    projection: Any = backbone.transformer.crossattn_proj
    assert projection[0].weight.grad.abs().sum() > 0


def test_state_dict_keys_stay_diffusers(reason_trio: Path) -> None:
    backbone = CosmosPredict(str(reason_trio), Frozen(), prompt_tokens=TOKENS)
    assert set(backbone.transformer.state_dict()) == set(CosmosTransformer3DModel.from_pretrained(reason_trio / "transformer").state_dict())


def test_what_does_not_fit_is_refused(reason_trio: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not train"):
        CosmosPredict(str(reason_trio), Full(text_encoder=True), prompt_tokens=TOKENS)
    broken = tmp_path / "broken"
    shutil.copytree(reason_trio, broken)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(broken / "text_encoder")
    state = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(broken / "text_encoder", state_dict=state)
    with pytest.raises(ValueError, match="missing keys.*layers.1.mlp"):
        prompt_encoder(broken, TOKENS, torch.float32, None)(PROMPTS[:1], CPU)
    config = broken / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qwen2_5_vl"', '"model_type": "bert"'))
    with pytest.raises(ValueError, match="'bert': Predict2 reads text with t5"):
        prompt_encoder(broken, TOKENS, torch.float32, None)


def test_a_long_prompt_is_cut_with_a_warning(reason_trio: Path) -> None:
    encoder = prompt_encoder(reason_trio, 16, torch.float32, None)
    with pytest.warns(UserWarning, match="prompt cut from"):
        encoder(["open the drawer " * 8], CPU)
