"""An untrained video model of any size in ordinary diffusers and transformers folders: where pretraining from scratch starts."""

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from torch import nn

from mimicvideo.video import pretrained

# Every character that an English sentence is likely to have gets a piece of its own, so that none is unknown.
_CHARACTERS = "".join(map(chr, range(0x21, 0x7F))) + "“”‘’–—…°é"
_SPACE = "▁"


def new_trio(
    out: str,
    heads: int = 4,
    head_dim: int = 64,
    layers: int = 8,
    adaln_lora_dim: int = 32,
    mlp_ratio: float = 4.0,
    text_embed_dim: int = 128,
    text_layers: int = 2,
    vae: str | None = None,
    vae_base_dim: int = 16,
    vae_decoder_base_dim: int | None = None,
    vae_dim_mult: Sequence[int] = (1, 2, 4, 4),
    vae_res_blocks: int = 1,
    z_dim: int = 16,
    sentences: Sequence[str] = (),
    vocabulary: int = 1024,
    seed: int = 0,
) -> Path:
    """Writes transformer, VAE, T5 encoder and tokenizer with random weights, and a manifest.

    Args:
        out: The folder to create.
        heads: Attention heads of the transformer; its width is heads * head_dim.
        head_dim: At least 12, below which the rotary embedding is undefined.
        layers: Transformer blocks.
        adaln_lora_dim: Bottleneck of the AdaLN modulation.
        mlp_ratio: Width of a block's MLP over the transformer's width.
        text_embed_dim: Width of T5 and of the text that the transformer reads.
        text_layers: T5 blocks.
        vae: Folder of a trained VAE to take instead of a random one.
        vae_base_dim: Channels of the VAE at full resolution.
        vae_decoder_base_dim: The same of its decoder, which a policy never runs; None is `vae_base_dim`.
        vae_dim_mult: Their multiples at resolutions 1, 1/2, 1/4 and 1/8.
        vae_res_blocks: Residual blocks per resolution.
        z_dim: Latent channels.
        sentences: Instructions from which the tokenizer takes its words and word parts.
        vocabulary: At most so many pieces.
        seed: Of all weights.

    Raises:
        ValueError: If a size is impossible.
    """
    if head_dim < 12:
        raise ValueError(f"head_dim must be at least 12, got {head_dim}: the rotary embedding of three axes needs it")
    folder = Path(out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CosmosTransformer3DModel(
            in_channels=z_dim + 1,
            out_channels=z_dim,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            num_layers=layers,
            mlp_ratio=mlp_ratio,
            text_embed_dim=text_embed_dim,
            adaln_lora_dim=adaln_lora_dim,
            rope_scale=(1.0, 3.0, 3.0),
            extra_pos_embed_type=None,
        )
        initialise(transformer)
        transformer.save_pretrained(folder / "transformer")
        if vae is not None:
            shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
        else:
            new_vae(vae_base_dim, vae_dim_mult, vae_res_blocks, z_dim, vae_decoder_base_dim).save_pretrained(folder / "vae")
        _new_text(folder, text_embed_dim, text_layers, pieces(sentences, vocabulary))
    pretrained.write_manifest(folder)
    return folder


def new_vae(base_dim: int, dim_mult: Sequence[int], res_blocks: int, z_dim: int, decoder_base_dim: int | None = None) -> AutoencoderKLWan:
    """A random Wan VAE whose latent statistics are those of the standard normal, to be measured after training."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        dim_mult=list(dim_mult),
        num_res_blocks=res_blocks,
        z_dim=z_dim,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
    )


@torch.no_grad()
def initialise(transformer: CosmosTransformer3DModel) -> None:
    """Xavier matrices, and zeros where a block or the network starts as the identity (the usual start of AdaLN transformers)."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for name, module in transformer.named_modules():
        if name.endswith(".linear_2") or name == "proj_out":  # modulation, shared modulation, velocity
            nn.init.zeros_(module.weight)


def _new_text(folder: Path, width: int, layers: int, vocabulary: list[tuple[str, float]]) -> None:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    tokenizer.save_pretrained(folder / "tokenizer")
    heads = max(width // 32, 1)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=width, d_kv=width // heads, d_ff=4 * width, num_layers=layers, num_heads=heads, dropout_rate=0.0
    )
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")


def pieces(sentences: Sequence[str], vocabulary: int) -> list[tuple[str, float]]:
    """Unigram pieces with log scores: special tokens, every character, and the most useful words and word parts.

    A piece's score is the log of its share of all occurrences; single characters lie below all others, so that a
    segmentation prefers longer known pieces and falls back to letters for the rest.
    """
    words = Counter(_SPACE + word for sentence in sentences for word in re.findall(r"\S+", sentence))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for stop in range(start + 2, min(len(word), start + 12) + 1):
                counts[word[start:stop]] += count
    ranked = sorted((piece for piece, count in counts.items() if count > 1), key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
    characters = [_SPACE, *dict.fromkeys(_CHARACTERS + "".join(sorted({c for word in words for c in word[1:]})))]
    chosen = list(dict.fromkeys([*sorted(words, key=lambda word: (-words[word], word)), *ranked]))
    chosen = [piece for piece in chosen if len(piece) > 1][: max(vocabulary - 3 - len(characters), 0)]
    total = sum(counts[piece] for piece in chosen) or 1
    scored = [(piece, log(counts[piece] / total)) for piece in chosen]
    floor = min((score for _, score in scored), default=0.0)
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored, *((character, floor - 2.0) for character in characters)]


def main(out: str, sentences_file: str | None = None, **sizes) -> None:
    """Writes an untrained video model.

    Args:
        out: The folder to create.
        sentences_file: Text file with one instruction per line, for the tokenizer.
        sizes: As `new_trio` takes them.
    """
    sentences = Path(sentences_file).read_text().splitlines() if sentences_file else ()
    print(new_trio(out, sentences=sentences, **sizes))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
