"""VisionLanguageModel: pictures and a request become a text, with any image-text-to-text model of transformers."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from numpy import ndarray

from mimicvideo import hub

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_TAGS = re.compile(r"</?answer>")


class Answer(NamedTuple):
    """What a model wrote, without its thoughts; empty if it said nothing, or was still thinking when its tokens were used up."""

    text: str
    cut: bool  # whether its tokens were used up


class VisionLanguageModel:
    """A frozen model with its processor, from safetensors and without code of the model's own.

    Args:
        model: A folder, or a hub id such as nvidia/Cosmos-Reason1-7B.
        revision: Branch, tag or commit of a hub id.
        device: Where it runs; None is the GPU if there is one.
        dtype: Of its weights; None is bfloat16 on a GPU, else float32.

    Raises:
        FileNotFoundError: If there is no such folder, or the hub did not give it.
        ValueError: If it is no such model, needs code of its own, or has no chat template.
    """

    def __init__(self, model: str, revision: str | None = None, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        from transformers import AutoModelForImageTextToText
        from transformers.utils.logging import disable_progress_bar

        folder = _resolve(model, revision)
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        disable_progress_bar()
        try:
            self.processor = _processor(folder, options)
            weights = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
            network: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=weights, use_safetensors=True, **options)
        except OSError as error:
            raise FileNotFoundError(
                f"model={model!r} lacks files ({_first_line(error)}): it needs config, safetensors weights, tokenizer and image processor"
            ) from error
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"model={model!r} is no image-text-to-text model that transformers knows itself ({_first_line(error)})"
            ) from error
        self.network = network.to(self.device).eval().requires_grad_(False)
        tokenizer = self.processor.tokenizer
        if not (getattr(self.processor, "chat_template", None) or tokenizer.chat_template):
            raise ValueError(f"model={model!r} has no chat template: choose a model that was trained to follow requests")
        tokenizer.padding_side = "left"  # what is generated follows each request at once
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @torch.no_grad()
    def answer(
        self, pictures: Sequence[UInt8[ndarray, "frames height width 3"]], requests: Sequence[str], max_new_tokens: int
    ) -> list[Answer]:
        """An answer to each request about its pictures, by greedy decoding: the same input always gives the same text."""
        from PIL import Image

        images = [[Image.fromarray(frame) for frame in frames] for frames in pictures]
        texts = []
        for request, shown in zip(requests, images, strict=True):
            content: list[dict[str, str]] = [*({"type": "image"} for _ in shown), {"type": "text", "text": request}]
            chat = [{"role": "user", "content": content}]
            texts.append(self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt").to(self.device)
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self.network.dtype)
        written = self.network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        ends = {self.processor.tokenizer.pad_token_id, *_as_list(self.network.generation_config.eos_token_id)}
        answers = []
        for tokens, text in zip(written.tolist(), self.processor.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            answers.append(_answer(text, cut=len(tokens) == max_new_tokens and tokens[-1] not in ends))
        return answers


def _answer(text: str, cut: bool) -> Answer:
    text = _THOUGHTS.sub("", text)
    if "<think>" in text:  # never closed
        return Answer("", cut)
    text = " ".join(_TAGS.sub("", text.split("</think>")[-1]).split())
    if cut and (end := max(text.rfind(mark) for mark in ".!?")) > 0:
        text = text[: end + 1]  # whole sentences
    return Answer(text, cut)


def _resolve(model: str, revision: str | None) -> Path:
    """The folder that `model` names; a hub id is downloaded, without files that could hold code."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(f"model={model!r}: there is no folder {folder}; give one, or a hub id such as nvidia/Cosmos-Reason1-7B")
    try:
        return hub.download(model, revision, _FILES)
    except Exception as error:  # the hub client raises errors of many kinds: no network, gated, unknown, offline
        raise FileNotFoundError(
            f"model={model!r}: no such folder here, and the hub did not give it ({type(error).__name__}: {_first_line(error)}). Either "
            "connect (for gated models accept the licence and set HF_TOKEN), or copy the model's folder to this machine and give its path"
        ) from error


def _processor(source: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(source, **options)
    except ImportError:  # parts for video need torchvision, which this package does without: pictures are all that is shown
        return _processor_of_pictures(source, options)


def _processor_of_pictures(source: Path, options: dict[str, Any]) -> Any:
    """The model's own processor without its part for videos."""
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

    kind = AutoConfig.from_pretrained(source, **options).model_type
    processor: Any = processor_class_from_name(PROCESSOR_MAPPING_NAMES.get(kind) or "")
    if processor is None or "video_processor" not in inspect.signature(processor.__init__).parameters:
        raise ImportError(f"{source}: the processor of {kind} models needs a package that is not installed: pip install torchvision")

    class OfPictures(processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument_name == "video_processor" else super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    pictures = AutoImageProcessor.from_pretrained(source, **options)
    return OfPictures(image_processor=pictures, tokenizer=tokenizer, video_processor=None, chat_template=tokenizer.chat_template)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
