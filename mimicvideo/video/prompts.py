"""PromptEncoder: instructions become T5 embeddings, kept in memory and on disk, so that T5 itself is seldom loaded."""

import hashlib
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mimicvideo.atomic import told, whole_file
from mimicvideo.execution import lasting
from mimicvideo.hashes import known_sha256
from mimicvideo.video import pretrained

_TOKENIZER_FILES = (".json", ".jinja", ".model", ".txt")
_KEPT = 4  # batches of embeddings that stay on their device


class PromptEncoder(nn.Module):
    """T5's last hidden states, padded with zeros to `prompt_tokens`; no attention mask goes with them (Predict2's way).

    A frozen T5 is read from disk only when a prompt is in neither cache, and encodes each prompt on its own, so that its
    embedding does not depend on what else is in the batch. A trained T5 (`train_weights`) bypasses both caches.

    Args:
        folder: Holds `text_encoder` and `tokenizer`.
        prompt_tokens: Length of the embeddings; 512 for Predict2. Longer prompts are cut, with a warning.
        dtype: Of T5's weights.
        cache: Folder for embeddings, one safetensors file per prompt, encoder and length; None keeps them in memory only.
    """

    def __init__(self, folder: Path, prompt_tokens: int, dtype: torch.dtype, cache: str | None = None) -> None:
        super().__init__()
        if prompt_tokens < 1:
            raise ValueError(f"prompt_tokens must be at least 1, got {prompt_tokens}")
        self.folder, self.prompt_tokens, self.dtype = folder, prompt_tokens, dtype
        self.prompt_dim: int = self._width(pretrained.read_json(folder / "text_encoder" / "config.json"))
        self.cache = Path(cache).expanduser() if cache else None
        self.model: nn.Module | None = None  # a registered submodule, hence moved and saved, only when it trains
        self._frozen: list[nn.Module] = []  # hidden from `parameters()`
        self._memory: dict[str, Tensor] = {}
        self._recent: dict[tuple[tuple[str, ...], torch.device], Tensor] = {}  # batches of embeddings on their device
        self._tokenizer: Any = None
        pretrained.tensor_shapes(pretrained.weight_files(folder / "text_encoder"))  # complains about truncated files now

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over T5 and its tokenizer; reads all of T5, which takes seconds at 11 B parameters."""
        parts = [pretrained.component_hash(self.folder / "text_encoder"), pretrained.tokenizer_hash(self.folder / "tokenizer")]
        return pretrained.text_hash(*parts)

    @cached_property
    def cache_identity(self) -> str:
        """What a cached embedding depends on beside its prompt."""
        # Of the tokenizer all files: its settings and chat template, no part of a model's identity, make other tokens, too.
        files = sorted(path for path in (self.folder / "tokenizer").iterdir() if path.suffix in _TOKENIZER_FILES)
        tokenizer = pretrained.text_hash(*(f"{path.name} {known_sha256(path)}" for path in files))
        return f"{self.weights_hash}\0{tokenizer}\0{self.dtype}\0{self.prompt_tokens}"

    def no_prompt(self, device: torch.device) -> Float[Tensor, "prompt_tokens prompt_dim"]:
        """What a dropped prompt is in training: zeros."""
        return torch.zeros(self.prompt_tokens, self.prompt_dim, device=device)

    def train_weights(self) -> None:
        """Loads T5 in fp32 and opens its weights to training."""
        self.model = self._load(torch.float32).train().requires_grad_(True)

    def forward(self, prompts: list[str], device: torch.device) -> Float[Tensor, "batch prompt_tokens prompt_dim"]:
        """Embeddings in fp32 on `device`. A frozen T5 gives the same tensor for the same prompts again: do not write to it."""
        if self.model is not None:
            return self._encode(self.model, prompts, device)
        key = tuple(prompts), device
        if key not in self._recent:
            with lasting():
                self._recent[key] = self._rows(prompts, device).to(device)
        while len(self._recent) > _KEPT:
            self._recent.pop(next(iter(self._recent)))
        return self._recent[key]

    def _rows(self, prompts: list[str], device: torch.device) -> Tensor:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._memory:
                self._memory[prompt] = self._stored(prompt, device)
        for model in self._frozen:  # 9 GiB that a training step on a GPU may need
            model.to("cpu")
        rows = torch.zeros(len(prompts), self.prompt_tokens, self.prompt_dim)
        for row, prompt in zip(rows, prompts, strict=True):
            row[: len(self._memory[prompt])] = self._memory[prompt]
        return rows

    def _encode(self, model: nn.Module, prompts: list[str], device: torch.device) -> Tensor:
        tokens = self._tokenize(prompts).to(device)
        hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.float()
        hidden = hidden * tokens.attention_mask[..., None]
        return nn.functional.pad(hidden, (0, 0, 0, self.prompt_tokens - hidden.shape[1]))

    def _width(self, config: dict[str, Any]) -> int:
        return config["d_model"]

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            pretrained.check_files(self.folder / "tokenizer")
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        return self._tokenizer

    def _tokenize(self, prompts: list[str]) -> Any:
        tokenizer = self._load_tokenizer()
        self._warn_if_cut(prompts, prompts)
        return tokenizer(prompts, padding="longest", truncation=True, max_length=self.prompt_tokens, return_tensors="pt")

    def _warn_if_cut(self, prompts: list[str], texts: list[str]) -> None:
        """`texts`: what is tokenized of each prompt."""
        for prompt, text in zip(prompts, texts, strict=True):
            if (length := len(self._load_tokenizer()(text).input_ids)) > self.prompt_tokens:
                warnings.warn(f"prompt cut from {length} to {self.prompt_tokens} tokens (prompt_tokens): {prompt!r}", stacklevel=3)

    def _length(self, prompt: str) -> int:
        """Tokens of an embedding that are not padding."""
        return self._tokenize([prompt]).input_ids.shape[1]

    def _load(self, dtype: torch.dtype) -> nn.Module:
        from transformers import T5EncoderModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return pretrained.load_module(T5EncoderModel, self.folder / "text_encoder", dtype)

    def _stored(self, prompt: str, device: torch.device) -> Tensor:
        """The embedding without its padding, from disk or else computed and written there."""
        if self.cache is None:
            return self._compute(prompt, device)
        key = hashlib.sha256(f"{prompt}\0{self.cache_identity}".encode()).hexdigest()
        path = self.cache / f"{key}.safetensors"
        embedding = _read_checked(path)
        if embedding is None:
            embedding = self._compute(prompt, device)
            _write_checked(path, embedding)
        return embedding

    @torch.no_grad()
    def _compute(self, prompt: str, device: torch.device) -> Tensor:
        if not self._frozen:
            self._frozen.append(self._load(self.dtype).requires_grad_(False))
        model = self._frozen[0].to(device)
        with torch.autocast(device.type, enabled=False):  # the cached value must not depend on who asked first
            return self._encode(model, [prompt], device)[0, : self._length(prompt)].cpu()


def _read_checked(path: Path) -> Tensor | None:
    """A cached embedding, or None if there is none or its bytes do not match their checksum."""
    try:
        with safe_open(path, "pt") as file:
            embedding, metadata = file.get_tensor("embedding"), file.metadata() or {}
    except (FileNotFoundError, SafetensorError, OSError):
        return None
    return embedding if metadata.get("sha256") == pretrained.tensor_hash(embedding) else None


def _write_checked(path: Path, embedding: Tensor) -> None:
    data = save({"embedding": embedding.contiguous()}, {"sha256": pretrained.tensor_hash(embedding)})
    remedy = "choose another prompt_cache. Embeddings that are there already stay good."
    with told("could not write text embeddings to", path.parent, remedy), whole_file(path) as temporary:
        temporary.write_bytes(data)
