"""TokenDecoder: what decoders over the tokens [proprio, actions] share: embedders, times, proprio mask, head, compilation."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimicvideo.action.attention import CrossAttention, JointAttention
from mimicvideo.action.decoder import ActionDecoder, DecoderShape, PreparedContext, PreparedTimes
from mimicvideo.action.layers import EPSILON, TokenEmbedder, linear, truncated_normal_
from mimicvideo.action.time_embedding import Modulation, PairTimeEmbedding
from mimicvideo.execution import compile_method
from mimicvideo.flow import expand_like
from mimicvideo.noise import Generators, joined

COMPILED = (
    "_velocity",
    "_project",
    "_vectors",
    "forward",
    "vectors",
    "keys_and_values",
)  # methods that `compile` and `compile_blocks` replace
PROPRIO_TAU = 1e-3  # the flow time of proprio tokens, which are never noised: official `world2action_dit.py`


class Head(nn.Module):
    """Linear(LN(x) * (1 + scale) + shift), without bias; shift and scale use the first two thirds of the shared term."""

    def __init__(self, width: int, action_dim: int, adaln_dim: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, adaln_dim, parts=2)
        self.to_velocity = linear(width, action_dim)

    def vectors(self, shared: Tensor, embedding: Tensor) -> Float[Tensor, "samples 2 parts width"]:
        """Shift and scale."""
        return stacked([self.modulation], shared, embedding)

    def forward(self, x: Tensor, vectors: Float[Tensor, "samples 2 parts width"], history: int) -> Tensor:
        shift, scale = per_token(vectors, history, x.shape[1])
        return self.to_velocity(modulate(x, shift, scale))


class ModulatedBlock(nn.Module):
    """A block whose sublayers are each x <- x + gate * sublayer(LN(x) * (1 + scale) + shift)."""

    @abstractmethod
    def modulations(self) -> Sequence[nn.Module]:
        """One `Modulation` of three parts for each sublayer, in the order in which they run."""

    def vectors(self, shared: Tensor, embedding: Tensor) -> Float[Tensor, "samples 2 parts width"]:
        """Shift, scale and gate of every sublayer."""
        return stacked(self.modulations(), shared, embedding)

    @abstractmethod
    def forward(self, x: Tensor, keys: Tensor, values: Tensor, vectors: Float[Tensor, "samples 2 parts width"], history: int) -> Tensor:
        """The tokens after the block. `vectors` are its own, the first for proprio tokens, the second for action tokens."""


class TokenDecoder(ActionDecoder):
    """A transformer over [proprio, actions]. Actions enter with unit variance, x / sqrt((1 - tau)^2 + tau^2).

    A subclass sets `blocks` and `head` at the end of its `__init__`, and says in `_project` what each block reads of the video.

    Args:
        shape: What the backbone and the data say.
        width: Width of the tokens.
        depth: Blocks.
        heads: Attention heads; they divide the width.
        adaln_dim: Rank of each modulation.
        proprio_mask_probability: In training, how often a sample's proprio tokens are all replaced by a learned one.

    Raises:
        ValueError: If the heads do not divide the width, the width is odd, or a size is < 1.
    """

    blocks: nn.ModuleList  # of ModulatedBlock
    head: Head

    def __init__(self, shape: DecoderShape, width: int, depth: int, heads: int, adaln_dim: int, proprio_mask_probability: float) -> None:
        super().__init__()
        for name, value in {"width": width, "depth": depth, "heads": heads, "adaln_dim": adaln_dim}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if width % heads or width % 2:
            raise ValueError(f"width must be even and divisible by heads, got width={width}, heads={heads}")
        if not 0 <= proprio_mask_probability <= 1:
            raise ValueError(f"proprio_mask_probability must lie in [0, 1], got {proprio_mask_probability}")
        self.shape = shape
        self.proprio_mask_probability = proprio_mask_probability
        self.embed_proprio = TokenEmbedder(shape.proprio_dim, width)
        self.embed_action = TokenEmbedder(shape.action_dim, width)
        self.proprio_mask_token = nn.Parameter(truncated_normal_(torch.empty(width), width))
        self.positions = nn.Parameter(truncated_normal_(torch.empty(shape.history + shape.horizon, width), width))
        self.time = PairTimeEmbedding(width)

    def prepare_context(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> PreparedContext:
        """Each decoder block's keys and values."""
        if len(hidden_states) != self.shape.blocks:
            raise ValueError(f"got hidden states of {len(hidden_states)} video blocks, this decoder was built for {self.shape.blocks}")
        for hidden in hidden_states:
            if hidden.shape[-1] != self.shape.context_dim:
                raise ValueError(f"the hidden states are {hidden.shape[-1]} wide, this decoder was built for {self.shape.context_dim}")
        projected = self._project(*hidden_states)
        return PreparedContext(hidden_states[0].shape[0], *map(tuple, zip(*projected, strict=True)))

    def forward(
        self,
        actions: Float[Tensor, "samples horizon action_dim"],
        tau_action: Float[Tensor, " samples"],
        context: PreparedContext,
        tau_video: Float[Tensor, " samples"],
        proprio: Float[Tensor, "samples history proprio_dim"],
        generator: Generators = None,
        times: PreparedTimes | None = None,
    ) -> Float[Tensor, "samples horizon action_dim"]:
        samples = actions.shape[0]
        if samples % context.batch:
            raise ValueError(f"{samples} samples cannot share {context.batch} contexts: give a multiple of it")
        if self.training:
            masked = joined(lambda count, one: torch.rand(count, generator=one), samples, generator)
            masked = (masked < self.proprio_mask_probability).to(actions.device)
        else:
            masked = torch.zeros(samples, dtype=torch.bool, device=actions.device)
        times = times or self.prepare_times(tau_action, tau_video)
        return self._velocity(actions, tau_action, context.keys, context.values, times.vectors, proprio, masked)

    def prepare_times(self, tau_action: Float[Tensor, " samples"], tau_video: Float[Tensor, " samples"]) -> PreparedTimes:
        """Shifts, scales and gates of every block and of the head."""
        return PreparedTimes(self._vectors(tau_action, tau_video))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` of everything but the random draw, whose generator the compiler does not take."""
        for name in ("_velocity", "_project", "_vectors"):
            compile_method(self, name, *args, **kwargs)

    def compile_blocks(self) -> None:
        """Blocks, their shifts, scales and gates, and their keys and values: each compiled once, since all blocks share their code."""
        for block in cast(list[ModulatedBlock], self.blocks):
            for name in ("forward", "vectors"):
                compile_method(block, name, dynamic=False)
            for part in block.modules():
                if isinstance(part, CrossAttention | JointAttention):
                    compile_method(part, "keys_and_values", dynamic=False)

    @abstractmethod
    def _project(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values for each of `blocks`, from the hidden states of the video blocks that are read."""

    def _velocity(
        self,
        actions: Float[Tensor, "samples horizon action_dim"],
        tau_action: Float[Tensor, " samples"],
        keys: tuple[Tensor, ...],
        values: tuple[Tensor, ...],
        vectors: tuple[Tensor, ...],
        proprio: Float[Tensor, "samples history proprio_dim"],
        masked: Bool[Tensor, " samples"],
    ) -> Float[Tensor, "samples horizon action_dim"]:
        history = self.shape.history
        tau = expand_like(tau_action, actions)
        action_tokens = self.embed_action(actions / ((1 - tau) ** 2 + tau**2).sqrt())
        proprio_tokens = self.embed_proprio(proprio)
        proprio_tokens = torch.where(masked[:, None, None], self.proprio_mask_token.to(proprio_tokens.dtype), proprio_tokens)
        x = torch.cat([proprio_tokens, action_tokens], dim=1) + self.positions
        *of_blocks, of_head = vectors
        for block, k, v, own in zip(self.blocks, keys, values, of_blocks, strict=True):
            x = block(x, k, v, own, history)
        return self.head(x, of_head, history)[:, history:].to(actions.dtype)

    def _vectors(self, tau_action: Float[Tensor, " samples"], tau_video: Float[Tensor, " samples"]) -> tuple[Tensor, ...]:
        # All proprio tokens have one time and all action tokens another: two embeddings per sample serve every token.
        times = torch.stack([torch.full_like(tau_action, PROPRIO_TAU), tau_action], dim=1)
        shared, embedding = self.time(times, tau_video)
        return tuple(cast(ModulatedBlock | Head, part).vectors(shared, embedding) for part in (*self.blocks, self.head))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift; the norm has no weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def stacked(modulations: Sequence[nn.Module], shared: Tensor, embedding: Tensor) -> Float[Tensor, "samples 2 parts width"]:
    """The parts of all `modulations`, one after the other."""
    return torch.stack([part for modulation in modulations for part in modulation(shared, embedding)], dim=2)


def per_token(vectors: Float[Tensor, "samples 2 parts width"], history: int, length: int) -> tuple[Tensor, ...]:
    """Each part as (samples, length, width): the first vector for proprio tokens, the second for action tokens."""
    counts = (history, length - history)
    return torch.cat(
        [vector[:, None].expand(-1, count, -1, -1) for vector, count in zip(vectors.unbind(1), counts, strict=True)], 1
    ).unbind(2)
