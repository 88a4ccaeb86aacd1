"""JointDecoder: a mixture of transformers, whose layers attend to video blocks and to the actions in one softmax."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.action.attention import JointAttention
from mimicvideo.action.context import block_norms
from mimicvideo.action.decoder import DecoderShape
from mimicvideo.action.layers import linear
from mimicvideo.action.time_embedding import Modulation
from mimicvideo.action.tokens import Head, ModulatedBlock, TokenDecoder, modulate, per_token


class JointBlock(ModulatedBlock):
    """Joint attention, MLP."""

    def __init__(self, width: int, context_dim: int, heads: int, mlp_ratio: float, adaln_dim: int) -> None:
        super().__init__()
        hidden = round(mlp_ratio * width)
        self.attention = JointAttention(width, context_dim, heads)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(), linear(hidden, width))
        self.attention_modulation = Modulation(width, adaln_dim, parts=3)
        self.mlp_modulation = Modulation(width, adaln_dim, parts=3)

    def modulations(self) -> Sequence[nn.Module]:
        return self.attention_modulation, self.mlp_modulation

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, vectors: Float[Tensor, "samples 2 parts width"], history: int) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = per_token(vectors, history, x.shape[1])
        x = x + gate * self.attention(modulate(x, shift, scale), keys, values)
        return x + mlp_gate * self.mlp(modulate(x, mlp_shift, mlp_scale))


class JointDecoder(TokenDecoder):
    """Layer i of n attends jointly over [hidden states of the i-th video block, proprio and action tokens].

    As in pi0 (Black et al. 2024, arXiv:2410.24164), video and actions have weights of their own and meet in the attention alone,
    and the video never looks at the actions, so that its part is computed once per chunk. Unlike pi0, the video model stays as it
    is: its tokens enter each layer as LN(h) times key and value maps that are trained here, one LayerNorm per video block.
    Given b video blocks, the first n/b layers read the first of them, the next n/b the second, and so on in the order given.
    Tokens, times, head and initial values are those of `DiTDecoder`.

    Args:
        shape: What the backbone and the data say.
        width: Width of the tokens.
        depth: Layers, a multiple of the number of video blocks.
        heads: Attention heads; they divide the width.
        mlp_ratio: Hidden width of the MLP over the width.
        adaln_dim: Rank of each modulation.
        proprio_mask_probability: In training, how often a sample's proprio tokens are all replaced by a learned one.

    Raises:
        ValueError: If the depth is no multiple of the number of video blocks, the heads do not divide the width, the width is odd,
            or a size is < 1.
    """

    def __init__(
        self,
        shape: DecoderShape,
        width: int = 1024,
        depth: int = 24,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        adaln_dim: int = 128,
        proprio_mask_probability: float = 0.2,
    ) -> None:
        if depth % shape.blocks:
            raise ValueError(
                f"depth must be a multiple of the number of video blocks, so that each serves as many layers, got depth={depth} for "
                f"{shape.blocks} blocks: change depth, or the list in block"
            )
        super().__init__(shape, width, depth, heads, adaln_dim, proprio_mask_probability)
        self.context_norms = block_norms(shape)
        self.blocks = nn.ModuleList(JointBlock(width, shape.context_dim, heads, mlp_ratio, adaln_dim) for _ in range(depth))
        self.head = Head(width, shape.action_dim, adaln_dim)

    def _project(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, from the video block that it reads."""
        norms = [cast(nn.LayerNorm, norm) for norm in self.context_norms]
        contexts = [norm(hidden.to(norm.weight.dtype)) for norm, hidden in zip(norms, hidden_states, strict=True)]
        layers_each = len(self.blocks) // len(contexts)
        layers = [cast(JointBlock, block) for block in self.blocks]
        return [layer.attention.keys_and_values(contexts[i // layers_each]) for i, layer in enumerate(layers)]
