"""Attention of the action decoders: among the tokens, to the context, and to both at once."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimicvideo.action.layers import RMSNorm, linear


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


class JointAttention(nn.Module):
    """softmax(q [k_context, k]^T / sqrt(d)) [v_context, v]: one attention over the context and the tokens themselves.

    Context and tokens have projections and key norms of their own; otherwise as `SelfAttention`. Only the tokens ask.
    """

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = linear(width, 3 * width)
        self.to_context_kv = linear(context_dim, 2 * width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.context_key_norm = RMSNorm(width // heads)
        self.to_out = linear(width, width)

    def keys_and_values(
        self, context: Float[Tensor, "batch tokens context_dim"]
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """What the context offers, in the order of `scaled_dot_product_attention`."""
        k, v = rearrange(self.to_context_kv(context), "b t (two h d) -> two b h t d", two=2, h=self.heads)
        return self.context_key_norm(k), v

    def forward(
        self,
        x: Float[Tensor, "samples length width"],
        keys: Float[Tensor, "batch heads tokens head_dim"],
        values: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "samples length width"]:
        # As in CrossAttention the draws of a context lie side by side; here a mask keeps them from seeing each other.
        draws = x.shape[0] // keys.shape[0]
        q, k, v = rearrange(self.to_qkv(x), "(b draws) l (three h d) -> three b h (draws l) d", three=3, draws=draws, h=self.heads)
        mask = None if draws == 1 else visible(draws, x.shape[1], keys.shape[2], x.device)
        k, v = torch.cat([keys, self.key_norm(k)], dim=2), torch.cat([values, v], dim=2)
        x = F.scaled_dot_product_attention(self.query_norm(q), k, v, attn_mask=mask)
        return self.to_out(rearrange(x, "b h (draws l) d -> (b draws) l (h d)", draws=draws))


def visible(draws: int, length: int, tokens: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """True where a token may look: at all `tokens` of the context, and at the `length` tokens of its own draw."""
    draw = torch.arange(draws, device=device).repeat_interleave(length)
    own = draw[:, None] == draw
    return torch.cat([own.new_ones(draws * length, tokens), own], dim=1)
