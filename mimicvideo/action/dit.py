"""DiTDecoder: the paper's flow-matching transformer, which cross-attends to one context of the video model's hidden states."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.action.attention import CrossAttention, SelfAttention
from mimicvideo.action.context import BlockContext, ContextFactory
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.layers import EPSILON, linear
from mimicvideo.action.time_embedding import Modulation
from mimicvideo.action.tokens import Head, ModulatedBlock, TokenDecoder, modulate, per_token


class Block(ModulatedBlock):
    """Cross-attention, self-attention, MLP."""

    def __init__(self, width: int, context_dim: int, heads: int, mlp_ratio: float, adaln_dim: int) -> None:
        super().__init__()
        hidden = round(mlp_ratio * width)
        self.cross_attention = CrossAttention(width, context_dim, heads)
        self.self_attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(), linear(hidden, width))
        self.cross_modulation = Modulation(width, adaln_dim, parts=3)
        self.self_modulation = Modulation(width, adaln_dim, parts=3)
        self.mlp_modulation = Modulation(width, adaln_dim, parts=3)

    def modulations(self) -> Sequence[nn.Module]:
        return self.cross_modulation, self.self_modulation, self.mlp_modulation

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, vectors: Float[Tensor, "samples 2 parts width"], history: int) -> Tensor:
        shift, scale, gate, self_shift, self_scale, self_gate, mlp_shift, mlp_scale, mlp_gate = per_token(vectors, history, x.shape[1])
        x = x + gate * self.cross_attention(modulate(x, shift, scale), keys, values)
        x = x + self_gate * self.self_attention(modulate(x, self_shift, self_scale))
        return x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))


class DiTDecoder(TokenDecoder):
    """The action decoder of the paper; with the defaults it is the official network, 499,036,810 parameters for LIBERO.

    Sources of all sizes and initial values: paper, appendix on the decoder, and official `world2action_dit.py`.

    Args:
        shape: What the backbone and the data say.
        width: Width of the tokens.
        depth: Blocks.
        heads: Attention heads; they divide the width.
        mlp_ratio: Hidden width of the MLP over the width.
        adaln_dim: Rank of each modulation.
        time_rank: Rank of the pair-time embedding. It must equal the width, since the head and the blocks consume it as it is.
        proprio_mask_probability: In training, how often a sample's proprio tokens are all replaced by a learned one.
        context: Makes the context of the hidden states; None is the paper's, the states of one block as they are.

    Raises:
        ValueError: If the heads do not divide the width, the width is odd, the rank differs from the width, a size is < 1, or the
            context does not take that many video blocks.
    """

    def __init__(
        self,
        shape: DecoderShape,
        width: int = 1024,
        depth: int = 24,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        adaln_dim: int = 128,
        time_rank: int | None = None,
        proprio_mask_probability: float = 0.2,
        context: ContextFactory | None = None,
    ) -> None:
        if time_rank is not None and time_rank != width:
            raise ValueError(f"time_rank must equal width (the modulations consume it as it is), got {time_rank} and {width}")
        super().__init__(shape, width, depth, heads, adaln_dim, proprio_mask_probability)
        self.context = (context or BlockContext)(shape)
        self.context_norm = nn.LayerNorm(shape.context_dim, eps=EPSILON)
        self.blocks = nn.ModuleList(Block(width, shape.context_dim, heads, mlp_ratio, adaln_dim) for _ in range(depth))
        self.head = Head(width, shape.action_dim, adaln_dim)

    def _project(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> list[tuple[Tensor, Tensor]]:
        """One LayerNorm of the context for all blocks, then each block's keys and values."""
        context = self.context_norm(self.context(*hidden_states).to(self.context_norm.weight.dtype))
        return [cast(Block, block).cross_attention.keys_and_values(context) for block in self.blocks]
