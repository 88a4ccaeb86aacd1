"""Tiny vision-language models of random weights, as folders that transformers takes."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(special: list[str], **roles: Any) -> PreTrainedTokenizerFast:
    """Words word0 ... word89, and special ones, which the random models below are kept from writing."""
    words = {word: number for number, word in enumerate([*special, "<unk>", *(f"word{number}" for number in range(90))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **roles)


def make_vlm(folder: Path, seed: int = 1) -> Path:
    """Writes a Qwen2.5-VL of a few thousand random weights: the architecture of Cosmos-Reason. Its video part needs torchvision."""
    fast = make_tokenizer(SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    number: dict[str, Any] = {name: fast.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {"vocab_size": len(fast), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    text |= {"bos_token_id": number["<|im_start|>"], "eos_token_id": number["<|im_end|>"], "pad_token_id": number["<|endoftext|>"]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14}
    vision |= {"spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1]}
    marks: dict[str, Any] = {f"{name}_token_id": number[f"<|{name}_pad|>"] for name in ("image", "video")}
    marks |= {f"vision_{end}_token_id": number[f"<|vision_{end}|>"] for end in ("start", "end")}
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("v_proj.weight", "o_proj.weight", "attn.qkv.weight", "attn.proj.weight")):
                weight.mul_(3)  # what is attended to outweighs the last token: answers depend on the pictures
    model.generation_config.suppress_tokens = list(range(len(SPECIAL) + 1))  # it never falls silent
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14}
    processor |= {"merge_size": 2, "temporal_patch_size": 2, "min_pixels": 28 * 28, "max_pixels": 56 * 56}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    videos = {**processor, "video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    return folder


def make_llava(folder: Path) -> Path:
    """Writes a Llava, whose processor needs nothing that is not installed."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    fast = make_tokenizer(special, eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"})
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **layers}
    text = {"model_type": "llama", "vocab_size": len(fast), "num_key_value_heads": 1, **layers}
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": 3, "vision_feature_layer": -1}
    model = LlavaForConditionalGeneration(LlavaConfig(**parts))
    model.generation_config.suppress_tokens = list(range(len(special) + 1))
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image> ").replace("<|im_start|>", "<s> ")
    options: dict[str, Any] = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(pictures, fast, chat_template=template.replace("<|im_end|>", "</s>"), **options).save_pretrained(folder)
    return folder
