"""ClipData: the data of stage 1, clips with their instructions, as a LightningDataModule over datasets of any format."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mimicvideo.data.batches import Caption, ClipBatches
from mimicvideo.data.captioning import Captioning, instruction
from mimicvideo.data.captions import parse_captions
from mimicvideo.data.episodes import Episodes
from mimicvideo.data.errors import DatasetError
from mimicvideo.data.faults import Ledger
from mimicvideo.data.latents import LatentCache, filled_caches
from mimicvideo.data.loading import Loader, died
from mimicvideo.data.members import Members, divide, held_out
from mimicvideo.data.mixture import Share, WeightBy, checked_mixture, table
from mimicvideo.data.resume import Place, interrupted
from mimicvideo.data.sampler import BatchStream, ClipOrder, FixedBatches, Order, WindowOrder, spread
from mimicvideo.data.scan import Opening
from mimicvideo.data.short import leave_out_short
from mimicvideo.data.sources import Source, require_same
from mimicvideo.data.spec import DatasetSpec
from mimicvideo.data.view import viewed
from mimicvideo.data.window import Anchors, Window

log = logging.getLogger(__name__)


class ClipData(LightningDataModule):
    """Clips with their instructions, for stage 1.

    Training batches never end and are a pure function of (seed, batch): set `trainer.max_steps`. A run that is resumed from any
    checkpoint continues with the sample after the last one that reached the weights, also with other workers, ranks or batch sizes.
    Batches are those of `types.Clip`; each sample also carries its `position` in the whole training. A window that turns out to be
    unreadable is replaced by one of another episode, and its episode counted against `max_bad_fraction`.

    Args:
        root: Folder of a dataset; or give `sources`.
        spec: What it is, see `DatasetSpec`, or the name of a description in conf/dataset; LeRobot datasets need none.
        cameras: Which cameras, from left to right; may be left out if there is one only.
        observed: Frames up to now, 1 + 4m; 5 is the paper's.
        future: Frames after that, a multiple of 4; 56 is the paper's.
        frame_interval: Rows from one frame to the next.
        frame_hz: Rows per second, to which datasets of other rates are brought by taking the nearest pictures; None takes what is stored.
        anchor_interval: Rows from one window to the next; with more than 1 fewer windows train, and fewer latents are cached.
        repeat_first: Whether windows that begin before an episode are samples, in which its first frame is repeated.
        repeat_last: Whether windows that end after an episode are samples, in which its last frame is repeated.
        captions: What becomes of empty and foreign instructions, and how often long descriptions take their place in training; see
            `captions.CaptionPolicy`. None takes each episode's first instruction as it is.
        batch_size: Clips per batch and device.
        sources: Datasets by any name: folders, or `root` and `weight`. Their cameras must give pictures of one size.
        height: Height that each camera's pictures are resized to, with `width`; None keeps the dataset's.
        width: Likewise.
        validation_fraction: Share of the episodes of each task that validate.
        validation_episodes: How many episodes in all instead (of each source).
        validation_windows: How many windows of these, at fixed places.
        split_seed: Of the choice of these episodes. It is not `seed`, so that stages and runs with other seeds hold out the same.
        task_balanced: Whether every task is equally likely, however many episodes it has; with `weight_by`, within its dataset.
        weight_by: What a source's probability is its weight times: 1 (`dataset`), its `episodes`, its `frames`, or `temperature`,
            frames^(1 / temperature). None: episodes in stage 1, frames in stage 2.
        temperature: See there.
        exhaustive: Whether every window comes once per epoch, or samples are drawn with replacement, as weights ask for. None: the
            latter in stage 1, and in stage 2 where sources have weights.
        num_workers: Processes that load; 0 loads in the training process, which is enough for small data and for cached latents.
        prefetch_factor: Batches that each of these loads ahead.
        max_bad_fraction: Share of each dataset's episodes that may be skipped because they cannot be used, at opening or later.
        min_rows: Rows that an episode needs; see `open_episodes`.
        require_full_windows: Whether an episode shorter than one window counts as one that cannot be used.
        verify: `auto`, `meta`, `quick` or `full`: what of the datasets is looked at before training; see `LeRobotEpisodes`.
        quarantine: A file of `mimicvideo audit` that lists episodes to leave out.
        ram_cache_gb: Decoded frames kept per process, in 10^9 bytes.
        remote_cache_gb: Copies of files of remote datasets (roots such as s3://…) kept on disk, in 10^9 bytes.
        cache_dir: Where statistics are kept; None is beside the data, or in the user's cache if that cannot be written.
        seed: Of the order of batches.

    Raises:
        ValueError: If a number is out of range.
    """

    _by_window = False  # whether windows are equally likely, or episodes
    _past_end = True  # whether all that is observed may lie beyond an episode's end

    def __init__(
        self,
        root: str | None = None,
        spec: DatasetSpec | str | None = None,
        cameras: list[str] | None = None,
        observed: int = 5,
        future: int = 56,
        frame_interval: int = 1,
        frame_hz: float | None = None,
        anchor_interval: int = 1,
        repeat_first: bool = True,
        repeat_last: bool = True,
        captions: dict[str, Any] | None = None,
        batch_size: int = 32,
        sources: dict[str, str | Source] | None = None,
        height: int | None = None,
        width: int | None = None,
        validation_fraction: float = 0.1,
        validation_episodes: int | None = None,
        validation_windows: int = 64,
        split_seed: int = 0,
        task_balanced: bool = False,
        weight_by: WeightBy | None = None,
        temperature: float = 1.0,
        exhaustive: bool | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        max_bad_fraction: float = 0.0,
        min_rows: int = 2,
        require_full_windows: bool = False,
        verify: Opening = "auto",
        quarantine: str | None = None,
        ram_cache_gb: float = 2.0,
        remote_cache_gb: float = 100.0,
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
        least = {"batch_size": batch_size, "anchor_interval": anchor_interval, "validation_windows": validation_windows}
        for name, value in {**least, "prefetch_factor": prefetch_factor}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1), got {validation_fraction}")
        if seed < 0 or num_workers < 0:
            raise ValueError(f"seed and num_workers must not be negative, got {seed} and {num_workers}")
        self.window = Window(observed, future, frame_interval)
        named = sources or {"data": Source(str(root), spec=spec)}
        self._sources = {name: source if isinstance(source, Source) else Source(source) for name, source in named.items()}
        self._frame_hz, self._caption_options = frame_hz, captions
        self._captions: Captioning | None = None
        if captions is not None:
            parse_captions(captions)  # a mistake is told before any data is read
        self._cameras, self._size = cameras, None if height is None or width is None else (height, width)
        weights = {name: source.weight for name, source in self._sources.items()}
        self._mixture = checked_mixture(weights, weight_by, temperature, exhaustive, task_balanced, self._by_window)
        self._batch_size, self._num_workers, self._prefetch, self._seed = batch_size, num_workers, prefetch_factor, seed
        self._validation_windows = validation_windows
        self.samples: dict[str, Any] = {"anchor_interval": anchor_interval, "repeat_first": repeat_first, "repeat_last": repeat_last}
        self._split: dict[str, Any] = {"fraction": validation_fraction, "count": validation_episodes, "seed": split_seed}
        self._reader_options: dict[str, Any] = {
            "max_bad_fraction": max_bad_fraction,
            "min_rows": min_rows,
            "verify": verify,
            "quarantine": quarantine,
            "ram_cache_gb": ram_cache_gb,
            "remote_cache_gb": remote_cache_gb,
        }
        self._cache_dir, self._full_windows = cache_dir, require_full_windows
        self.readers: dict[str, Episodes] = {}
        self._training = self._validating = Members({}, np.zeros(0, int), np.zeros(0, int))
        self._latents: dict[int, LatentCache] | None = None
        self._ledger = Ledger({}, 0.0)
        self._unused: dict[str, dict[int, str]] = {}  # why episodes take no part in this training, by source and index
        self._place: Place | None = None
        self._skipped_at_start: dict[str, list[int]] | None = None  # of a training that is resumed

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
        unused = {name: dict(reader.skipped) for name, reader in readers.items()}
        if self._caption_options is not None:
            self._captions = Captioning(self._caption_options, readers, self._seed)
            unused = {name: {**self._captions.dropped[name], **problems} for name, problems in unused.items()}
            rank_zero_info(str(self._captions))
        training, validating = divide(readers, self._split, unused)
        if not training:
            raise DatasetError("no episode is left to train on: lower validation_fraction, or add episodes")
        self.readers, self._training, self._validating, self._unused = readers, training, validating, unused
        self._ledger = Ledger(readers, self._reader_options["max_bad_fraction"])
        rank_zero_info(f"{len(training)} episodes to train on, {len(validating)} to validate on, {len(self.skipped)} skipped")
        rank_zero_info(f"datasets and their share of the samples:\n{table(self.mixture())}")
        span = self.window.span
        if short := int((training.lengths < span).sum()):
            rank_zero_info(f"{short} training episodes have fewer rows than a window ({span}): their first and last frames repeat")

    def _view(self, reader: Episodes) -> Episodes:
        """A dataset as this training wants it."""
        return viewed(reader, self._frame_hz, None, None, numbers=False)

    def mixture(self) -> list[Share]:
        """What training takes from each dataset, with the probability of a sample to come from it."""
        self.setup()
        return self._mixture.shares(self._training, self.anchors().counts(self._training.lengths))

    @property
    def source_names(self) -> list[str]:
        """Names of the datasets."""
        return list(self._sources)

    def open_source(self, name: str, **options: Any) -> Episodes:
        """One of the datasets as training reads it, but for `options` of `Source.open`.

        Raises:
            DatasetError: If it cannot be used.
        """
        options = {"size": self._size, **self._reader_options, **options}
        reader = self._view(self._sources[name].open(self._cameras, name=name, **options))
        leave_out_short(reader, self.window, self.anchors(), self._full_windows, options["max_bad_fraction"])
        return reader

    def anchors(self) -> Anchors:
        """Which rows of an episode are anchors of samples."""
        return self.window.anchors(self._past_end, **self.samples)

    def unlabelled(self, name: str, reader: Episodes) -> dict[int, str]:
        """Why the captions' policy does not use episodes of a dataset, by their index.

        Raises:
            DatasetError: If its file of long captions is damaged.
        """
        return {} if self._caption_options is None else Captioning(self._caption_options, {name: reader}, self._seed).dropped[name]

    def held_out(self, reader: Episodes) -> set[int]:
        """Indices of a dataset's episodes that validate."""
        return held_out(reader, self._split)

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with the episodes that are not used, by source and index: at opening, and as found while training."""
        opening = {f"{name}/{index}": text for name, unused in self._unused.items() for index, text in unused.items()}
        return opening | self._ledger.found

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
            **readers[0].interface(),
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
            DatasetError: If too many episodes cannot be read.
        """
        self.setup()
        self._latents, faults = filled_caches(
            self.readers, self.window, encode, key, cache_dir, self.samples["anchor_interval"], *self._rank()
        )
        self._ledger.add(faults)

    # ---- batches --------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Loader:
        self.setup()
        stream = BatchStream(self._order(), self._batch_size, *self._rank(), start=lambda: self._stretches().position(self.trainer))
        caption = self._captions.training if self._captions else instruction
        return self._loader(self._batches(self._training, self._latents, caption), stream)

    def val_dataloader(self) -> Loader | list[Any]:
        return self._fixed(self._latents)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> Loader | list[Any]:
        return self._fixed(None)

    def prompts(self) -> list[str]:
        """Every sentence that a sample may come with."""
        self.setup()
        if self._captions is not None:
            return self._captions.all_texts()
        return list(dict.fromkeys(text for reader in self.readers.values() for episode in reader.episodes for text in episode.instructions))

    def _batches(self, members: Members, latents: dict[int, LatentCache] | None, caption: Caption) -> ClipBatches:
        return ClipBatches(members, self.window, latents, self._seed, self.anchors(), caption, self._not_to_show())

    def _not_to_show(self) -> list[frozenset[int]]:
        return [frozenset(unused) for unused in self._unused.values()]

    def _order(self) -> Order:
        where = self.anchors()
        counts = where.counts(self._training.lengths)
        if self._mixture.exhaustive:
            return WindowOrder(counts, self._seed, self._training.tasks if self._mixture.task_balanced else None, where)
        return ClipOrder(counts, self._seed, self._mixture.episode_weights(self._training, counts), where)

    def _fixed(self, latents: dict[int, LatentCache] | None) -> Loader | list[Any]:
        self.setup()
        if not self._validating:
            return []
        where = self.anchors()
        items = spread(np.arange(len(self._validating)), where.counts(self._validating.lengths), self._validation_windows, where)
        caption = self._captions.evaluation if self._captions else instruction
        return self._loader(self._batches(self._validating, latents, caption), FixedBatches(items, self._batch_size, *self._rank()))

    def _loader(self, batches: ClipBatches, sampler: BatchStream | FixedBatches) -> Loader:
        return Loader(
            batches,
            self._ledger,
            batch_size=None,  # an item of the sampler is a whole batch
            sampler=sampler,
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch if self._num_workers else None,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def teardown(self, stage: str) -> None:
        self._ledger.tell()

    def on_exception(self, exception: BaseException) -> None:
        if advice := died(exception, self._num_workers):  # PyTorch may raise it anywhere in the training process
            exception.add_note(advice)

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    # ---- resuming -------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the order of samples depends on, how far training has come in it, and what could not be read."""
        return {
            "data": [_fingerprint(reader) for reader in self.readers.values()],
            "pictures": [reader.pictures_mark for reader in self.readers.values()],
            "seed": self._seed,
            "episodes": len(self._training),
            "skipped": self._skipped_at_start or {name: sorted(unused) for name, unused in self._unused.items()},
            **self.samples,
            "mixture": asdict(self._mixture),
            "stretch": asdict(self._stretches().saved),
            "unreadable": self._ledger.found,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the interrupted training stopped; warns if it would have seen other samples, or as many at once."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if state_dict.get("skipped", {}).keys() == self.readers.keys():
                # What has broken since keeps its place in the order; its windows are replaced, as they were before the interruption.
                self._skipped_at_start = state_dict["skipped"]
                self._training, self._validating = divide(self.readers, self._split, state_dict["skipped"])
                for name, unused in self._unused.items():
                    if mended := sorted(set(state_dict["skipped"][name]) - set(unused)):
                        text = "%d episodes of %s could not be used when this training began and stay out, such as %d"
                        log.warning(text, len(mended), name, mended[0])
            self._ledger.restore(state_dict.get("unreadable", {}))
            self._stretches().resume(interrupted(state_dict, self.state_dict()))

    def _stretches(self) -> Place:
        if self._place is None:
            self._place = Place(self._batch_size * self._rank()[1], getattr(self.trainer, "accumulate_grad_batches", 1))
        return self._place

    def _check_alike(self, readers: Mapping[str, Episodes]) -> None:
        """Raises DatasetError if datasets cannot be mixed."""
        require_same(readers, "pictures", lambda r: (r.cameras[0].height, sum(camera.width for camera in r.cameras)))
        require_same(readers, "frames per second", lambda r: r.control_hz / r.stride)


def _fingerprint(reader: Episodes) -> str:
    """A dataset's `tables_fingerprint`; without one, because a file has vanished, training goes on, and is told so if it is resumed."""
    try:
        return reader.tables_fingerprint
    except OSError as error:
        log.warning("%s has changed since it was opened (%s): a resumed training may see other samples", reader.root, error)
        return f"unknown: {error}"
