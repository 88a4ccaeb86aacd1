"""ReasonPromptEncoder: instructions become Predict2.5's text, hidden states of all layers of the Cosmos-Reason1 language model."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.video import pretrained
from mimicvideo.video.prompts import PromptEncoder

# The words around every prompt with which Predict2.5 was trained (diffusers pipelines/cosmos/pipeline_cosmos2_5_predict.py).
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."


class ReasonPromptEncoder(PromptEncoder):
    """Reason1 (Qwen2.5-VL) reads the chat `SYSTEM`, prompt, padded to `prompt_tokens`, padding not masked.

    The hidden states after each of its layers, the last one after the final norm, are standardised over their width (mean 0, unbiased
    standard deviation 1, eps 1e-8) and joined: 28 x 3,584 = 100,352 numbers per token at full size.

    The transformer's first text layer reduces these to its own width. Where that layer is frozen, `reduce_with` has it applied here, so
    that one MB per prompt is cached in place of a hundred.

    Args:
        folder: Holds `text_encoder` and `tokenizer`.
        prompt_tokens: Length of the embeddings; 512 for Predict2.5. Longer prompts are cut, with a warning.
        dtype: Of the language model's weights.
        cache: Folder for embeddings; None keeps them in memory only.
    """

    def __init__(self, folder: Path, prompt_tokens: int, dtype: torch.dtype, cache: str | None = None) -> None:
        super().__init__(folder, prompt_tokens, dtype, cache)
        self._reduction: list[nn.Module] = []  # hidden from `parameters()`: it is the transformer's
        self._reduced_by: tuple[Any, ...] = ()  # the state of its weights

    def reduce_with(self, projection: nn.Module) -> None:
        """Applies the transformer's frozen projection to every embedding from now on; `prompt_dim` becomes its output's width."""
        self._reduction = [projection]
        self.prompt_dim = projection[0].out_features  # type: ignore[index]
        self._follow()

    def forward(self, prompts: list[str], device: torch.device) -> Float[Tensor, "batch prompt_tokens prompt_dim"]:
        self._follow()
        return super().forward(prompts, device)

    def _follow(self) -> None:
        """Forgets what an earlier state of the projection has reduced. On another device it is the same."""
        weights = [weight for part in self._reduction for weight in part.parameters()]
        state = tuple((id(weight), weight.is_inference() or weight._version, weight.dtype) for weight in weights)
        if state != self._reduced_by:
            self._memory.clear()
            self._recent.clear()
            self.__dict__.pop("cache_identity", None)
            self._reduced_by = state

    @cached_property
    def cache_identity(self) -> str:
        """What a cached embedding depends on beside its prompt."""
        if not self._reduction:
            return super().cache_identity
        digests = [pretrained.tensor_hash(value) for value in self._reduction[0].state_dict().values()]
        return pretrained.text_hash(super().cache_identity, *digests)

    def train_weights(self) -> None:
        """Raises ValueError: Predict2.5's recipes never train the language model, and its gradient would not fit."""
        raise ValueError("the text encoder of Predict2.5 does not train: set text_encoder: false in the adaptation")

    def no_prompt(self, device: torch.device) -> Float[Tensor, "prompt_tokens prompt_dim"]:
        """What a dropped prompt is: zeros before the projection (NVIDIA's training), hence the projection of zeros."""
        if not self._reduction:
            return super().no_prompt(device)
        projection: Any = self._reduction[0]
        with torch.no_grad():
            weight = projection[0].weight
            row = projection(torch.zeros(1, projection[0].in_features, dtype=weight.dtype, device=weight.device))
        return row.float().to(device).expand(self.prompt_tokens, -1)

    def _width(self, config: dict[str, Any]) -> int:
        text = config.get("text_config") or config  # before transformers 5 the text's sizes stood at the top
        return text["num_hidden_layers"] * text["hidden_size"]

    def _encode(self, model: nn.Module, prompts: list[str], device: torch.device) -> Tensor:
        states = model(input_ids=self._chat(prompts).to(device), output_hidden_states=True).hidden_states[1:]
        parts = [(state - state.mean(-1, keepdim=True)) / (state.std(-1, keepdim=True) + 1e-8) for state in (s.float() for s in states)]
        joined = torch.cat(parts, dim=-1)
        if self._reduction:
            projection: Any = self._reduction[0]
            weight = projection[0].weight
            joined = projection(joined.to(weight.device, weight.dtype)).float()
        return joined

    def _chat(self, prompts: list[str]) -> Tensor:
        tokenizer = self._load_tokenizer()
        chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}] for prompt in prompts]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False) for chat in chats]
        tokenizer.padding_side = "right"
        self._warn_if_cut(prompts, texts)
        return tokenizer(texts, padding="max_length", truncation=True, max_length=self.prompt_tokens, return_tensors="pt").input_ids

    def _length(self, prompt: str) -> int:
        return self.prompt_tokens  # padding is not masked, hence no zeros

    def _load(self, dtype: torch.dtype) -> nn.Module:
        from transformers import Qwen2_5_VLForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = self.folder / "text_encoder"
        pretrained.check_files(folder)
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True, use_safetensors=True
        )
        model, told = loaded  # names in the files changed with transformers' versions: it translates, and says what it missed
        if wrong := [
            f"{len(told[kind])} {kind.replace('_', ' ')}: {', '.join(sorted(map(str, told[kind]))[:3])}" for kind in told if told[kind]
        ]:
            raise ValueError(f"{folder} does not fit Reason1's architecture: {'; '.join(wrong)}. Copy or download it again")
        return model.eval()


class OptionalProjection(nn.Sequential):
    """The transformer's text projection, which lets text pass that has its output's width already. Its parameters keep their names."""

    def forward(self, text: Float[Tensor, "*batch tokens _"]) -> Float[Tensor, "*batch tokens width"]:
        linear: Any = self[0]
        return text if text.shape[-1] == linear.out_features else super().forward(text)


def prompt_encoder(folder: Path, prompt_tokens: int, dtype: torch.dtype, cache: str | None) -> PromptEncoder:
    """The encoder for what lies in `text_encoder`: T5 (Predict2) or Reason1 (Predict2.5).

    Raises:
        ValueError: If it is a model of another kind.
    """
    kind = pretrained.read_json(folder / "text_encoder" / "config.json").get("model_type")
    kinds = {"t5": PromptEncoder, "qwen2_5_vl": ReasonPromptEncoder}
    if kind not in kinds:
        raise ValueError(f"{folder / 'text_encoder'} is of type {kind!r}: Predict2 reads text with t5, Predict2.5 with qwen2_5_vl")
    return kinds[kind](folder, prompt_tokens, dtype, cache)


def reduce_once(transformer: Any, prompts: PromptEncoder) -> None:
    """Moves a frozen text projection from every step to the making of embeddings, where there is one and it does not train."""
    if not isinstance(prompts, ReasonPromptEncoder) or any(value.requires_grad for value in transformer.crossattn_proj.parameters()):
        return
    transformer.crossattn_proj = OptionalProjection(*transformer.crossattn_proj)
    prompts.reduce_with(transformer.crossattn_proj)
