"""Context: what a cross-attending decoder sees of the video model: one block, a learned mix of several, or a few pooled tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.action.attention import CrossAttention
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.layers import EPSILON, linear, truncated_normal_


class Context(nn.Module, ABC):
    """Makes one sequence of context tokens from the hidden states of the video blocks that are read. It trains with the decoder."""

    @abstractmethod
    def forward(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> Float[Tensor, "batch context_tokens context_dim"]:
        """The context tokens. `hidden_states`: one tensor per block, in the order of the policy's `block`."""


ContextFactory = Callable[[DecoderShape], Context]


class BlockContext(Context):
    """The hidden states of one block as they are: the paper's. It has no weights.

    Raises:
        ValueError: If several blocks are given.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        if shape.blocks != 1:
            raise ValueError(
                f"BlockContext reads one video block, got {shape.blocks}: give one (block: 4), or choose what takes several "
                f"(context mix or pooled, or a joint decoder)"
            )

    def forward(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> Float[Tensor, "batch context_tokens context_dim"]:
        (hidden,) = hidden_states
        return hidden


class MixContext(Context):
    """sum_k softmax(w)_k LN_k(h_k) over the blocks, token by token; w starts at zero, so that the mix starts uniform.

    Each block has a LayerNorm of its own, since the residual stream grows with depth and the deepest would drown the others.

    Raises:
        ValueError: If only one block is given: there is nothing to mix.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        if shape.blocks < 2:
            raise ValueError(f"MixContext mixes several video blocks, got {shape.blocks}: give a list (block: [2, 4, 6]), or context block")
        self.norms = block_norms(shape)
        self.logits = nn.Parameter(torch.zeros(shape.blocks))

    def forward(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> Float[Tensor, "batch context_tokens context_dim"]:
        # A running sum: all normed blocks at once would be several times the hidden states, at 19,200 tokens of the paper.
        mixed = torch.zeros((), device=self.logits.device)
        for weight, norm, hidden in zip(self.logits.softmax(0), self.norms, hidden_states, strict=True):
            mixed = mixed + weight * norm(hidden.to(self.logits.dtype))
        return mixed


class PooledContext(Context):
    """`tokens` learned queries that read the video's tokens, so that every decoder block attends to few tokens instead of all.

    A resampler as in Perceiver (Jaegle et al. 2021, arXiv:2103.03206), with c = LN(h) and layers
    x <- x + attention(LN(x) to c), x <- x + MLP(LN(x)), where x starts as the queries. Several blocks' tokens lie side by side in c.

    Args:
        shape: What the backbone and the data say.
        tokens: Context tokens to make.
        heads: Attention heads; they divide the backbone's width.
        depth: Layers.
        mlp_ratio: Hidden width of the MLP over the backbone's width.

    Raises:
        ValueError: If a size is < 1 or the heads do not divide the backbone's width.
    """

    def __init__(self, shape: DecoderShape, tokens: int = 32, heads: int = 4, depth: int = 1, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        for name, value in {"tokens": tokens, "heads": heads, "depth": depth}.items():
            if value < 1:
                raise ValueError(f"context.{name} must be at least 1, got {value}")
        if shape.context_dim % heads:
            raise ValueError(f"context.heads must divide the backbone's width, got heads={heads} for a width of {shape.context_dim}")
        self.norms = block_norms(shape)
        self.queries = nn.Parameter(truncated_normal_(torch.empty(tokens, shape.context_dim), shape.context_dim))
        self.layers = nn.ModuleList(ResamplerLayer(shape.context_dim, heads, mlp_ratio) for _ in range(depth))

    def forward(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> Float[Tensor, "batch context_tokens context_dim"]:
        dtype = self.queries.dtype
        video = torch.cat([norm(hidden.to(dtype)) for norm, hidden in zip(self.norms, hidden_states, strict=True)], dim=1)
        x = self.queries.expand(video.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, video)
        return x


class ResamplerLayer(nn.Module):
    """x <- x + attention(LN(x) to the video), x <- x + MLP(LN(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(mlp_ratio * width))
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attention = CrossAttention(width, width, heads)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(), linear(hidden, width))

    def forward(
        self, x: Float[Tensor, "batch queries width"], video: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        x = x + self.attention(self.attention_norm(x), *self.attention.keys_and_values(video))
        return x + self.mlp(self.mlp_norm(x))


def block_norms(shape: DecoderShape) -> nn.ModuleList:
    """A LayerNorm for each video block that is read."""
    return nn.ModuleList(nn.LayerNorm(shape.context_dim, eps=EPSILON) for _ in range(shape.blocks))


def check_blocks(block: int | Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """The blocks that `block` names, in its order.

    Raises:
        ValueError: If it names none, one that does not exist, or one twice.
    """
    blocks = (block,) if isinstance(block, int) else tuple(block or ())  # null passes for any type
    if not blocks:
        raise ValueError("block is empty: name one video block (block: 4) or several (block: [2, 4, 6])")
    for one in blocks:
        if not 0 <= one < num_blocks:
            raise ValueError(f"block must lie in [0, {num_blocks - 1}] for this backbone (0-based), got {one}")
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"block names a video block twice, got {list(blocks)}: give each once")
    return blocks
