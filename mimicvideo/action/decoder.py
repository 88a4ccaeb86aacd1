"""ActionDecoder: what stage 2 trains, the velocity field of an action chunk given the video model's hidden states."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from mimicvideo.noise import Generators


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that a decoder takes from elsewhere: the backbone's width and the robot's data.

    Attributes:
        context_dim: Width of the backbone's hidden states.
        action_dim: Numbers per control step.
        proprio_dim: Numbers per observed state.
        horizon: Control steps in a chunk.
        history: Observed states.
        blocks: Video blocks whose hidden states are read.
    """

    context_dim: int
    action_dim: int
    proprio_dim: int
    horizon: int
    history: int = 1
    blocks: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class PreparedContext:
    """What a decoder needs of the hidden states, computed once per chunk: it does not depend on tau_action.

    Attributes:
        batch: How many samples it holds.
        keys: One tensor per block of the decoder, laid out as it likes.
        values: The same.
    """

    batch: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class PreparedTimes:
    """What a decoder needs of its samples' noise levels: it does not depend on the actions, so that all steps share one computation.

    Attributes:
        vectors: One tensor per block of the decoder and one for its head, (samples, ...) each.
    """

    vectors: tuple[Tensor, ...]

    def split(self, samples: int) -> list["PreparedTimes"]:
        """Parts of `samples` samples each, in their order."""
        return [PreparedTimes(parts) for parts in zip(*(vectors.split(samples) for vectors in self.vectors), strict=True)]


class ActionDecoder(nn.Module, ABC):
    """v(A_tau, proprio, hidden states, tau_action, tau_video) = noise - clean, in normalised action units."""

    shape: DecoderShape

    @abstractmethod
    def prepare_context(self, *hidden_states: Float[Tensor, "batch tokens context_dim"]) -> PreparedContext:
        """The part of the computation that every integration step and every draw shares.

        Args:
            hidden_states: One tensor for each of the `shape.blocks` video blocks that are read, in the order of the policy's `block`.

        Raises:
            ValueError: If their number or width is not the one that the decoder was built for.
        """

    @abstractmethod
    def prepare_times(self, tau_action: Float[Tensor, " samples"], tau_video: Float[Tensor, " samples"]) -> PreparedTimes:
        """What `forward` needs of these noise levels: an integration asks once for all its steps."""

    @abstractmethod
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
        """The velocity at noise level `tau_action`.

        Args:
            actions: Noisy, normalised actions. Several draws per context may be given: samples = batch * draws, and
                sample i reads context i // draws, as `repeat_interleave(draws)` lays them out.
            tau_action: Noise level of the actions, in [0, 1].
            context: From `prepare_context`.
            tau_video: Noise level at which the hidden states were taken, in [0, 1].
            proprio: Normalised proprioception.
            generator: CPU generator for what is random in training, the proprio mask; or one for each sample of the batch.
            times: From `prepare_times` for the same levels; None computes them.
        """

    def compile_blocks(self) -> None:
        """`torch.compile` of parts that recur, in place and for fixed shapes: seconds where the whole takes minutes. Nothing by default."""


DecoderFactory = Callable[[DecoderShape], ActionDecoder]
