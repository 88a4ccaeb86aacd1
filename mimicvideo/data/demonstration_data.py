"""DemonstrationData: the data of stage 2, observations with the expert's actions, as a LightningDataModule."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mimicvideo.data.batches import Caption, ClipBatches, DemonstrationBatches
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.members import Members
from mimicvideo.data.modules import ClipData
from mimicvideo.data.sources import require_same
from mimicvideo.data.statistics import Statistics, cached, window_statistics
from mimicvideo.data.view import viewed
from mimicvideo.data.window import Tail, Window


class DemonstrationData(ClipData):
    """Observations with the expert's actions, for stage 2. Batches are those of `types.Demonstration`, with `position` added.

    Every window of every training episode comes once per epoch of an endless, reshuffled stream, unless sources have weights.

    Args:
        action_dim: Numbers of one control step's action; must be the dataset's.
        proprio_dim: Numbers of a state; must be the dataset's.
        horizon: Control steps of an action chunk.
        control_hz: Control steps per second, a multiple of the rows per second; None takes what is stored.
        representation: What the stored numbers are and how actions are learned, such as relative to the newest state, with 6-D rotations;
            see `representation.parse_representation`. None takes what the dataset's description says, if anything.
        history: States per observation, as many rows back.
        tail: What the actions beyond an episode's end are: `repeat` the last, or `zero_delta`, which stays where it is.
        hold_dims: Dimensions (0-based) that keep their last value under `zero_delta`, such as a gripper command. A representation knows
            its own.
        kwargs: See `ClipData`.

    Raises:
        ValueError: If a number is out of range.
    """

    _by_window = True
    _past_end = False

    def __init__(
        self,
        action_dim: int,
        proprio_dim: int,
        horizon: int,
        control_hz: float | None = None,
        representation: dict[str, Any] | None = None,
        history: int = 1,
        tail: Tail = "repeat",
        hold_dims: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._control_hz, self._representation = control_hz, representation
        self._hold_dims = tuple(hold_dims or ())
        if any(not 0 <= dim < action_dim for dim in self._hold_dims):
            raise ValueError(f"hold_dims must lie in [0, {action_dim - 1}], got {list(self._hold_dims)}")
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        if tail not in ("repeat", "zero_delta"):
            raise ValueError(f"tail must be repeat or zero_delta, got {tail!r}")
        self._action_dim, self._proprio_dim, self._history = action_dim, proprio_dim, history
        self._tail: Tail = tail
        self.window = Window(self.window.observed, self.window.future, self.window.frame_interval, horizon)
        self._statistics: Statistics | None = None

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        stride = next(iter(self.readers.values())).stride
        self.window = Window(self.window.observed, self.window.future, self.window.frame_interval, self.window.horizon, stride)

    def _view(self, reader: Episodes) -> Episodes:
        described = self._representation or reader.described_representation
        return viewed(reader, self._frame_hz, self._control_hz, described, numbers=True)

    def contract(self) -> dict[str, Any]:
        return {**super().contract(), "horizon": self.window.horizon}

    def statistics(self) -> Statistics:
        """Of actions and proprio over all training windows; see `window_statistics`. Kept on disk by content."""
        self.setup()
        if self._statistics is None:
            readers = list(self.readers.values())
            key = [
                [reader.tables_fingerprint for reader in readers],
                self._training.numbers.tolist(),
                [self.window.horizon, self.window.stride, self._history, self._tail, self._hold_dims],
                [self.anchors().first, self.anchors().beyond],
            ]
            self._statistics = cached(readers[0].root, self._cache_dir, key, self._compute_statistics)
        return self._statistics

    def _compute_statistics(self) -> Statistics:
        numbers = [(member.source.actions(member.episode), member.source.proprio(member.episode)) for member in self._training]
        actions, proprio = ([pair[place] for pair in numbers] for place in (0, 1))  # of each episode at once: files are read once
        representation = self._training[0].source.representation
        where = replace(self.anchors(), every=1)
        return window_statistics(actions, proprio, self.window, self._tail, self._hold_dims, self._history, representation, where)

    def _batches(self, members: Members, latents: dict[int, LatentCache] | None, caption: Caption) -> ClipBatches:
        numbers = (self._history, self._tail, self._hold_dims)
        return DemonstrationBatches(members, self.window, *numbers, latents, self._seed, self.anchors(), caption, self._not_to_show())

    def _check_alike(self, readers: Mapping[str, Episodes]) -> None:
        super()._check_alike(readers)
        for what in ("stride", "control_hz", "robot", "action_names", "proprio_names"):
            require_same(readers, what, lambda reader, what=what: getattr(reader, what))
        require_same(readers, "what actions are learned as", lambda reader: reader.representation and reader.representation.learned)
        for reader in readers.values():
            for name, given, names in (
                ("action_dim", self._action_dim, reader.action_names),
                ("proprio_dim", self._proprio_dim, reader.proprio_names),
            ):
                if not names and (keys := getattr(getattr(reader, "store", None), "keys", None)):
                    numbers = ", ".join(sorted(keys))
                    raise DatasetError(
                        f"nothing says which numbers of {reader.root} to take {name} from; it has {numbers}: describe it with "
                        "data.spec, a name in conf/dataset or a yaml file"
                    )
                if not names:
                    raise DatasetError(f"{reader.root} has videos only, no numbers to take {name} from: it serves stage 1 (ClipData)")
                if given != len(names):
                    has = f"{len(names)} ({', '.join(names)})"
                    raise DatasetError(f"data.init_args.{name} is {given}, {reader.root} has {has}: set it to {len(names)}")
