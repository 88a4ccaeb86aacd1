"""ClipData and DemonstrationData: the data of stage 1 and stage 2 as LightningDataModules over LeRobot datasets."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from mimicvideo.data.batches import ClipBatches, DemonstrationBatches, Member
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.latents import LatentCache
from mimicvideo.data.resume import consumed_batches
from mimicvideo.data.sampler import BatchStream, ClipOrder, FixedBatches, Order, WindowOrder, spread
from mimicvideo.data.scan import Verify
from mimicvideo.data.sources import Source, require_same
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.split import in_turns, validation_episodes
from mimicvideo.data.statistics import Statistics, cached, window_statistics
from mimicvideo.data.window import Tail, Window

log = logging.getLogger(__name__)


class ClipData(LightningDataModule):
    """Clips with their instructions, for stage 1.

    Training batches never end and are a pure function of (seed, batch): set `trainer.max_steps`. A run that is resumed from any
    checkpoint continues with the batch after the last one that reached the weights. Batches are those of `types.Clip`; each sample also
    carries its `position` in the whole training.

    Args:
        root: Folder of a dataset; or give `sources`.
        spec: What it is, see `DatasetSpec`, or the name of a description in conf/dataset; LeRobot datasets need none.
        cameras: Which cameras, from left to right; may be left out if there is one only.
        observed: Frames up to now, 1 + 4m; 5 is the paper's.
        future: Frames after that, a multiple of 4; 56 is the paper's.
        frame_interval: Stored rows from one frame to the next.
        batch_size: Clips per batch and device.
        sources: Datasets by any name: folders, or `root` and `weight`. Their cameras must give pictures of one size.
        height: Height that each camera's pictures are resized to, with `width`; None keeps the dataset's.
        width: Likewise.
        validation_fraction: Share of the episodes of each task that validate.
        validation_episodes: How many episodes in all instead (of each source).
        validation_windows: How many windows of these, at fixed places.
        split_seed: Of the choice of these episodes. It is not `seed`, so that stages and runs with other seeds hold out the same.
        task_balanced: Whether every task is equally likely, however many episodes it has.
        num_workers: Processes that load; 0 loads in the training process, which is enough for small data and for cached latents.
        max_bad_fraction: Share of the episodes that may be skipped because they cannot be used.
        min_rows: Rows that an episode needs; see `open_episodes`.
        require_full_windows: Whether an episode shorter than one window counts as one that cannot be used.
        verify: `quick` or `full`; see `open_episodes`.
        quarantine: A file of `mimicvideo audit` that lists episodes to leave out.
        ram_cache_gb: Decoded frames kept per process, in 10^9 bytes.
        cache_dir: Where statistics are kept; None is beside the data, or in the user's cache if that cannot be written.
        seed: Of the order of batches.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        root: str | None = None,
        spec: DatasetSpec | str | None = None,
        cameras: list[str] | None = None,
        observed: int = 5,
        future: int = 56,
        frame_interval: int = 1,
        batch_size: int = 32,
        sources: dict[str, str | Source] | None = None,
        height: int | None = None,
        width: int | None = None,
        validation_fraction: float = 0.1,
        validation_episodes: int | None = None,
        validation_windows: int = 64,
        split_seed: int = 0,
        task_balanced: bool = False,
        num_workers: int = 0,
        max_bad_fraction: float = 0.0,
        min_rows: int = 2,
        require_full_windows: bool = False,
        verify: Verify = "quick",
        quarantine: str | None = None,
        ram_cache_gb: float = 2.0,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (root is None) == (not sources):
            raise ValueError("give either root, the folder of a dataset, or sources, several by name (and root: null)")
        if sources and spec is not None:
            raise ValueError("with sources, each has its own spec: sources.NAME.spec")
        if (height is None) != (width is None):
            raise ValueError(f"give both height and width, or neither, got height={height}, width={width}")
        for name, value in {"batch_size": batch_size, "validation_windows": validation_windows}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1), got {validation_fraction}")
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed and num_workers must not be negative, got {seed} and {num_workers}")
        self.window = Window(observed, future, frame_interval)
        named = sources or {"data": Source(str(root), spec=spec)}
        self._sources = {name: source if isinstance(source, Source) else Source(source) for name, source in named.items()}
        self._cameras, self._size = cameras, None if height is None or width is None else (height, width)
        self._batch_size, self._num_workers, self._seed, self._task_balanced = batch_size, num_workers, seed, task_balanced
        self._validation_windows = validation_windows
        self._split: dict[str, Any] = {"fraction": validation_fraction, "count": validation_episodes, "seed": split_seed}
        self._reader_options: dict[str, Any] = {
            "max_bad_fraction": max_bad_fraction,
            "min_rows": max(min_rows, self.window.span) if require_full_windows else min_rows,
            "verify": verify,
            "quarantine": quarantine,
            "ram_cache_gb": ram_cache_gb,
        }
        self._cache_dir = cache_dir
        self.readers: dict[str, Episodes] = {}
        self._training: list[Member] = []
        self._validating: list[Member] = []
        self._latents: dict[int, LatentCache] | None = None

    # ---- reading --------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the datasets, once.

        Raises:
            DatasetError: If something is wrong with one, or they do not go together.
        """
        if self.readers:
            return
        readers: dict[str, Episodes] = {name: self.open_source(name) for name in self._sources}
        self._check_alike(readers)
        training, validating, offset = [], [], 0
        for name, reader in readers.items():
            held_out = self.held_out(reader)
            for episode in reader.episodes:
                member = Member(reader, episode, offset + episode.index, self._sources[name].weight)
                (validating if episode.index in held_out else training).append(member)
            offset += 1 + max(episode.index for episode in reader.listed)
        if not training:
            raise DatasetError("no episode is left to train on: lower validation_fraction, or add episodes")
        self.readers, self._training, self._validating = (
            readers,
            training,
            in_turns(validating, [member.episode.task for member in validating]),
        )
        rank_zero_info(f"{len(training)} episodes to train on, {len(validating)} to validate on, {len(self.skipped)} skipped")
        if short := sum(member.episode.length < self.window.span for member in training):
            span = self.window.span
            rank_zero_info(f"{short} training episodes have fewer rows than a window ({span}): their first and last frames repeat")

    @property
    def source_names(self) -> list[str]:
        """Names of the datasets."""
        return list(self._sources)

    def open_source(self, name: str, **options: Any) -> Episodes:
        """One of the datasets as training reads it, but for `options` of `Source.open`.

        Raises:
            DatasetError: If it cannot be used.
        """
        return self._sources[name].open(self._cameras, **{"size": self._size, **self._reader_options, **options})

    def held_out(self, reader: Episodes) -> set[int]:
        """Indices of a dataset's episodes that validate."""
        return validation_episodes([(episode.index, episode.task) for episode in reader.listed], **self._split)

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the episodes that are not used, by source and index."""
        return {f"{name}/{index}": text for name, reader in self.readers.items() for index, text in reader.skipped.items()}

    def contract(self) -> dict[str, Any]:
        """What observations and actions of this data are, for checkpoints and benchmarks; see `action.contract`."""
        self.setup()
        readers = list(self.readers.values())
        return {
            "robot": " + ".join(dict.fromkeys(reader.robot for reader in readers)),
            "control_hz": readers[0].control_hz,
            "cameras": [
                {"name": camera.name, "height": camera.height, "width": camera.width, "view": camera.view} for camera in readers[0].cameras
            ],
            "observed": self.window.observed,
            "future": self.window.future,
            "frame_interval_steps": self.window.frame_interval * readers[0].stride,
            "proprio": readers[0].proprio_names,
            "actions": readers[0].action_names,
        }

    def attach_latents(self, encode: Callable[[Tensor], Tensor], key: str, cache_dir: str) -> None:
        """From now on batches carry `latents` (bfloat16) in place of pixels, and no video is decoded. `predict` keeps its pixels.

        Args:
            encode: UInt8[batch frames height width 3] -> Float[batch z_channels z_frames z_height z_width], on any device; called for
                windows that are not cached yet, divided among the ranks.
            key: Names the encoder: a hash of its weights.
            cache_dir: Where caches lie; both stages share them if their clips have the same geometry.

        Raises:
            OSError: If the disk is full.
        """
        self.setup()
        rank, ranks = self._rank()
        caches = {}
        for reader in self.readers.values():
            cache = LatentCache(cache_dir, reader, self.window, key)
            if missing := cache.missing(reader.episodes[rank::ranks]):
                cache.encode(missing, encode, progress=rank == 0)
            if ranks > 1:
                torch.distributed.barrier()
                cache = LatentCache(cache_dir, reader, self.window, key)
                if left := cache.missing(reader.episodes):
                    raise OSError(f"{cache.folder} lacks {len(left)} episodes that other processes were to encode: is it on a shared disk?")
            caches[id(reader)] = cache
        self._latents = caches

    # ---- batches --------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        self.setup()
        stream = BatchStream(self._order(), self._batch_size, *self._rank(), consumed=lambda: consumed_batches(self.trainer))
        return self._loader(self._batches(self._training, self._latents), stream)

    def val_dataloader(self) -> DataLoader | list[Any]:
        return self._fixed(self._latents)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader | list[Any]:
        return self._fixed(None)

    def _batches(self, members: Sequence[Member], latents: dict[int, LatentCache] | None) -> ClipBatches:
        return ClipBatches(members, self.window, latents)

    def _order(self) -> Order:
        weights = [member.weight for member in self._training]
        if self._task_balanced:
            tasks, totals = self._tasks(), defaultdict(float)
            for task, weight in zip(tasks, weights, strict=True):
                totals[task] += weight
            weights = [weight / (totals[task] or 1.0) for task, weight in zip(tasks, weights, strict=True)]
        return ClipOrder(self._anchors(self._training), self._seed, weights)

    def _tasks(self) -> list[str]:
        return [member.episode.task for member in self._training]

    def _anchors(self, members: Sequence[Member]) -> list[int]:
        return [self.window.clip_anchors(member.episode.length) for member in members]

    def _fixed(self, latents: dict[int, LatentCache] | None) -> DataLoader | list[Any]:
        self.setup()
        if not self._validating:
            return []
        items = spread(range(len(self._validating)), self._anchors(self._validating), self._validation_windows)
        return self._loader(self._batches(self._validating, latents), FixedBatches(items, self._batch_size, *self._rank()))

    def _loader(self, batches: ClipBatches, sampler: BatchStream | FixedBatches) -> DataLoader:
        return DataLoader(
            batches,
            batch_size=None,  # an item of the sampler is a whole batch
            sampler=sampler,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    # ---- resuming -------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on."""
        return {
            "data": [reader.tables_fingerprint for reader in self.readers.values()],
            "batch_size": self._batch_size,
            "ranks": self._rank()[1],
            "seed": self._seed,
            "episodes": len(self._training),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns if a resumed training will see other batches than the interrupted one would have."""
        now = self.state_dict()
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            for name, value in state_dict.items():
                if now.get(name) != value:
                    log.warning("resuming with other batches than before: %s was %s, now %s", name, value, now.get(name))

    def _check_alike(self, readers: Mapping[str, Episodes]) -> None:
        """Raises DatasetError if datasets cannot be mixed."""
        require_same(readers, "pictures", lambda r: (r.cameras[0].height, sum(camera.width for camera in r.cameras)))
        require_same(readers, "frames per second", lambda r: r.control_hz / r.stride)


class DemonstrationData(ClipData):
    """Observations with the expert's actions, for stage 2. Batches are those of `types.Demonstration`, with `position` added.

    Every window of every training episode comes once per epoch of an endless, reshuffled stream.

    Args:
        action_dim: Numbers of one control step's action; must be the dataset's.
        proprio_dim: Numbers of a state; must be the dataset's.
        horizon: Control steps of an action chunk.
        history: States per observation, as many rows back.
        tail: What the actions beyond an episode's end are: `repeat` the last, or `zero_delta`, which stays where it is.
        hold_dims: Dimensions (0-based) that keep their last value under `zero_delta`, such as a gripper command.
        kwargs: See `ClipData`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        action_dim: int,
        proprio_dim: int,
        horizon: int,
        history: int = 1,
        tail: Tail = "repeat",
        hold_dims: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._hold_dims = tuple(hold_dims or ())
        if any(not 0 <= dim < action_dim for dim in self._hold_dims):
            raise ValueError(f"hold_dims must lie in [0, {action_dim - 1}], got {list(self._hold_dims)}")
        if history < 1:
            raise ValueError(f"history must be at least 1, got {history}")
        if tail not in ("repeat", "zero_delta"):
            raise ValueError(f"tail must be repeat or zero_delta, got {tail!r}")
        if any(source.weight != 1 for source in self._sources.values()):
            raise ValueError("sources have no weight in stage 2, where every window comes equally often: use task_balanced")
        self._action_dim, self._proprio_dim, self._history = action_dim, proprio_dim, history
        self._tail: Tail = tail
        self.window = Window(self.window.observed, self.window.future, self.window.frame_interval, horizon)
        self._statistics: Statistics | None = None

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        stride = next(iter(self.readers.values())).stride
        self.window = Window(self.window.observed, self.window.future, self.window.frame_interval, self.window.horizon, stride)

    def contract(self) -> dict[str, Any]:
        return {**super().contract(), "horizon": self.window.horizon}

    def statistics(self) -> Statistics:
        """Of actions and proprio over all training windows; see `window_statistics`. Kept on disk by content."""
        self.setup()
        if self._statistics is None:
            readers = list(self.readers.values())
            key = [
                [reader.tables_fingerprint for reader in readers],
                [member.number for member in self._training],
                [self.window.horizon, self.window.stride, self._history, self._tail, self._hold_dims],
            ]
            self._statistics = cached(readers[0].root, self._cache_dir, key, self._compute_statistics)
        return self._statistics

    def _compute_statistics(self) -> Statistics:
        actions = [member.source.actions(member.episode) for member in self._training]
        proprio = [member.source.proprio(member.episode) for member in self._training]
        return window_statistics(actions, proprio, self.window, self._tail, self._hold_dims, self._history)

    def _batches(self, members: Sequence[Member], latents: dict[int, LatentCache] | None) -> ClipBatches:
        return DemonstrationBatches(members, self.window, self._history, self._tail, self._hold_dims, latents)

    def _order(self) -> Order:
        return WindowOrder(self._anchors(self._training), self._seed, self._tasks() if self._task_balanced else None)

    def _anchors(self, members: Sequence[Member]) -> list[int]:
        return [member.episode.length for member in members]

    def _check_alike(self, readers: Mapping[str, Episodes]) -> None:
        super()._check_alike(readers)
        for what in ("stride", "control_hz", "robot", "action_names", "proprio_names"):
            require_same(readers, what, lambda reader, what=what: getattr(reader, what))
        for reader in readers.values():
            for name, given, names in (
                ("action_dim", self._action_dim, reader.action_names),
                ("proprio_dim", self._proprio_dim, reader.proprio_names),
            ):
                if not names:
                    raise DatasetError(f"{reader.root} has videos only, no numbers to take {name} from: it serves stage 1 (ClipData)")
                if given != len(names):
                    has = f"{len(names)} ({', '.join(names)})"
                    raise DatasetError(f"data.init_args.{name} is {given}, {reader.root} has {has}: set it to {len(names)}")
