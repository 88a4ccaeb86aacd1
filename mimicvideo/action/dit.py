"""DiTDecoder: the paper's flow-matching transformer, which cross-attends to the hidden states of one video block."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimicvideo.action.decoder import ActionDecoder, DecoderShape, PreparedContext
from mimicvideo.action.layers import EPSILON, RMSNorm, TokenEmbedder, linear, truncated_normal_
from mimicvideo.action.time_embedding import Modulation, PairTimeEmbedding
from mimicvideo.flow import expand_like

PROPRIO_TAU = 1e-3  # the flow time of proprio tokens, which are never noised: official `world2action_dit.py`


class SelfAttention(nn.Module):
    """Attention among the tokens, RMSNorm on queries and keys per head, no biases, no mask, no rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = linear(width, 3 * width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.to_out = linear(width, width)

    def forward(self, x: Float[Tensor, "samples length width"]) -> Float[Tensor, "samples length width"]:
        q, k, v = rearrange(self.to_qkv(x), "s l (three h d) -> three s h l d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)
        return self.to_out(rearrange(x, "s h l d -> s l (h d)"))


class CrossAttention(nn.Module):
    """Attention to the context, as `SelfAttention` otherwise. Keys and values are computed apart, once per chunk."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = linear(width, width)
        self.to_kv = linear(context_dim, 2 * width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.to_out = linear(width, width)

    def keys_and_values(
        self, context: Float[Tensor, "batch tokens context_dim"]
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """What the context offers, in the order of `scaled_dot_product_attention`."""
        k, v = rearrange(self.to_kv(context), "b t (two h d) -> two b h t d", two=2, h=self.heads)
        return self.key_norm(k), v

    def forward(
        self,
        x: Float[Tensor, "samples length width"],
        keys: Float[Tensor, "batch heads tokens head_dim"],
        values: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "samples length width"]:
        # The draws of one context become extra queries, so that its keys and values are read once and never copied.
        draws = x.shape[0] // keys.shape[0]
        q = rearrange(self.to_q(x), "(b draws) l (h d) -> b h (draws l) d", draws=draws, h=self.heads)
        x = F.scaled_dot_product_attention(self.query_norm(q), keys, values)
        return self.to_out(rearrange(x, "b h (draws l) d -> (b draws) l (h d)", draws=draws))


class Block(nn.Module):
    """Cross-attention, self-attention, MLP; each x <- x + gate * sublayer(LN(x) * (1 + scale) + shift)."""

    def __init__(self, width: int, context_dim: int, heads: int, mlp_ratio: float, adaln_dim: int) -> None:
        super().__init__()
        hidden = round(mlp_ratio * width)
        self.cross_attention = CrossAttention(width, context_dim, heads)
        self.self_attention = SelfAttention(width, heads)
        self.mlp = nn.Sequential(linear(width, hidden), nn.GELU(), linear(hidden, width))
        self.cross_modulation = Modulation(width, adaln_dim, parts=3)
        self.self_modulation = Modulation(width, adaln_dim, parts=3)
        self.mlp_modulation = Modulation(width, adaln_dim, parts=3)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, shared: Tensor, embedding: Tensor, history: int) -> Tensor:
        length = x.shape[1]
        shift, scale, gate = per_token(self.cross_modulation(shared, embedding), history, length)
        x = x + gate * self.cross_attention(modulate(x, shift, scale), keys, values)
        shift, scale, gate = per_token(self.self_modulation(shared, embedding), history, length)
        x = x + gate * self.self_attention(modulate(x, shift, scale))
        shift, scale, gate = per_token(self.mlp_modulation(shared, embedding), history, length)
        return x + gate * self.mlp(modulate(x, shift, scale))


class Head(nn.Module):
    """Linear(LN(x) * (1 + scale) + shift), without bias; shift and scale use the first two thirds of the shared term."""

    def __init__(self, width: int, action_dim: int, adaln_dim: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, adaln_dim, parts=2)
        self.to_velocity = linear(width, action_dim)

    def forward(self, x: Tensor, shared: Tensor, embedding: Tensor, history: int) -> Tensor:
        shift, scale = per_token(self.modulation(shared, embedding), history, x.shape[1])
        return self.to_velocity(modulate(x, shift, scale))


class DiTDecoder(ActionDecoder):
    """The action decoder of the paper; with the defaults it is the official network, 499,036,810 parameters for LIBERO.

    Tokens are [proprio, actions]. Actions enter with unit variance, x / sqrt((1 - tau)^2 + tau^2). Sources of all sizes and
    initial values: paper, appendix on the decoder, and official `world2action_dit.py`.

    Args:
        shape: What the backbone and the data say.
        width: Width of the tokens.
        depth: Blocks.
        heads: Attention heads; they divide the width.
        mlp_ratio: Hidden width of the MLP over the width.
        adaln_dim: Rank of each modulation.
        time_rank: Rank of the pair-time embedding. It must equal the width, since the head and the blocks consume it as it is.
        proprio_mask_probability: In training, how often a sample's proprio tokens are all replaced by a learned one.

    Raises:
        ValueError: If the heads do not divide the width, the width is odd, the rank differs from the width, or a size is < 1.
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
    ) -> None:
        super().__init__()
        for name, value in {"width": width, "depth": depth, "heads": heads, "adaln_dim": adaln_dim}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if width % heads or width % 2:
            raise ValueError(f"width must be even and divisible by heads, got width={width}, heads={heads}")
        if time_rank is not None and time_rank != width:
            raise ValueError(f"time_rank must equal width (the modulations consume it as it is), got {time_rank} and {width}")
        if not 0 <= proprio_mask_probability <= 1:
            raise ValueError(f"proprio_mask_probability must lie in [0, 1], got {proprio_mask_probability}")
        self.shape = shape
        self.proprio_mask_probability = proprio_mask_probability
        self.embed_proprio = TokenEmbedder(shape.proprio_dim, width)
        self.embed_action = TokenEmbedder(shape.action_dim, width)
        self.proprio_mask_token = nn.Parameter(truncated_normal_(torch.empty(width), width))
        self.positions = nn.Parameter(truncated_normal_(torch.empty(shape.history + shape.horizon, width), width))
        self.time = PairTimeEmbedding(width)
        self.context_norm = nn.LayerNorm(shape.context_dim, eps=EPSILON)
        self.blocks = nn.ModuleList(Block(width, shape.context_dim, heads, mlp_ratio, adaln_dim) for _ in range(depth))
        self.head = Head(width, shape.action_dim, adaln_dim)

    def prepare_context(self, hidden_states: Float[Tensor, "batch tokens context_dim"]) -> PreparedContext:
        """One LayerNorm for all blocks, then each block's keys and values."""
        if hidden_states.shape[-1] != self.shape.context_dim:
            raise ValueError(f"the hidden states are {hidden_states.shape[-1]} wide, this decoder was built for {self.shape.context_dim}")
        projected = self._project(hidden_states)
        return PreparedContext(hidden_states.shape[0], *map(tuple, zip(*projected, strict=True)))

    def forward(
        self,
        actions: Float[Tensor, "samples horizon action_dim"],
        tau_action: Float[Tensor, " samples"],
        context: PreparedContext,
        tau_video: Float[Tensor, " samples"],
        proprio: Float[Tensor, "samples history proprio_dim"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "samples horizon action_dim"]:
        samples = actions.shape[0]
        if samples % context.batch:
            raise ValueError(f"{samples} samples cannot share {context.batch} contexts: give a multiple of it")
        if self.training:
            masked = (torch.rand(samples, generator=generator) < self.proprio_mask_probability).to(actions.device)
        else:
            masked = torch.zeros(samples, dtype=torch.bool, device=actions.device)
        return self._velocity(actions, tau_action, context.keys, context.values, tau_video, proprio, masked)

    def compile(self, *args, **kwargs) -> None:
        """`torch.compile` of everything but the random draw, whose generator the compiler does not take."""
        self._velocity = torch.compile(self._velocity, *args, **kwargs)
        self._project = torch.compile(self._project, *args, **kwargs)

    def _project(self, hidden_states: Float[Tensor, "batch tokens context_dim"]) -> list[tuple[Tensor, Tensor]]:
        context = self.context_norm(hidden_states.to(self.context_norm.weight.dtype))
        return [cast(Block, block).cross_attention.keys_and_values(context) for block in self.blocks]

    def _velocity(
        self,
        actions: Float[Tensor, "samples horizon action_dim"],
        tau_action: Float[Tensor, " samples"],
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        tau_video: Float[Tensor, " samples"],
        proprio: Float[Tensor, "samples history proprio_dim"],
        masked: Bool[Tensor, " samples"],
    ) -> Float[Tensor, "samples horizon action_dim"]:
        history = self.shape.history
        tau = expand_like(tau_action, actions)
        action_tokens = self.embed_action(actions / ((1 - tau) ** 2 + tau**2).sqrt())
        proprio_tokens = self.embed_proprio(proprio)
        proprio_tokens = torch.where(masked[:, None, None], self.proprio_mask_token.to(proprio_tokens.dtype), proprio_tokens)
        x = torch.cat([proprio_tokens, action_tokens], dim=1) + self.positions

        # All proprio tokens have one time and all action tokens another: two embeddings per sample serve every token.
        times = torch.stack([torch.full_like(tau_action, PROPRIO_TAU), tau_action], dim=1)
        shared, embedding = self.time(times, tau_video)
        for block, k, v in zip(self.blocks, keys, values, strict=True):
            x = block(x, k, v, shared, embedding, history)
        return self.head(x, shared, embedding, history)[:, history:].to(actions.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift; the norm has no weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def per_token(vectors: tuple[Tensor, ...], history: int, length: int) -> list[Tensor]:
    """(samples, 2, width) -> (samples, length, width): the first vector for proprio tokens, the second for action tokens."""
    return [torch.cat([vector[:, :1].expand(-1, history, -1), vector[:, 1:].expand(-1, length - history, -1)], dim=1) for vector in vectors]
