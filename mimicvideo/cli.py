"""LightningCLI over conf/: the arguments that all runs share and the links between them."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from safetensors.torch import save_file

from mimicvideo.callbacks.nan_guard import NanGuard
from mimicvideo.callbacks.safe_checkpoint import SafeCheckpoint
from mimicvideo.compose import compose_argv
from mimicvideo.memory import BACKBONE, execution_of, expected_memory, require_memory, takes_all
from mimicvideo.messages import ConfigError, ShortErrors, nearest
from mimicvideo.parts import check_parts
from mimicvideo.provenance import command_line

# Lightning trips over torch's deprecations, takes a stream that resumes by its position for one that does not, and advertises.
warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.getMessage())

FROM_DATA = ("action_dim", "proprio_dim", "horizon")  # arguments of a policy that its data determines
NAMED_CHECKPOINTS = ("last", "best", "hpc")


def _checkpoint_folder(run_dir: str) -> str:
    return f"{run_dir}/checkpoints"


# What follows from another argument: target, source, and how. jsonargparse leaves out a link to an argument that the chosen
# class does not have, so that those from the data hold for an ActionPolicy and do nothing for VideoFinetune.
LINKS: dict[str, tuple[str, Callable[[Any], Any] | None]] = {
    "trainer.default_root_dir": ("run_dir", None),
    "trainer.logger.init_args.save_dir": ("run_dir", None),  # of one logger, or of each in a list
    "checkpoint.dirpath": ("run_dir", _checkpoint_folder),
    **{f"model.init_args.{name}": (f"data.init_args.{name}", None) for name in FROM_DATA},
    "data.init_args.seed": ("seed_everything", int),
    "model.init_args.seed": ("seed_everything", int),
}


class TrainingParser(ShortErrors, LightningArgumentParser):
    """Lightning's parser with short errors, for which `null` is no text at any depth."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        # jsonargparse hands `--model.backbone.adapter=null` down from class to class as what it read: None, written as text.
        given = None if args is None else [arg.removesuffix("None") + "null" if arg.endswith("=None") else arg for arg in args]
        return super().parse_args(given, *rest, **kwargs)


class SaveRun(SaveConfigCallback):
    """Writes the whole resolved configuration as `<run_dir>/<verb>.yaml`, which `--config` takes again, and the command beside it."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run_dir = Path(trainer.default_root_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        verb = trainer.state.fn.value if trainer.state.fn else stage
        (run_dir / f"{verb}.yaml").write_text(self.parser.dump(self.config, skip_none=False))
        with open(run_dir / "commands.txt", "a") as file:  # a resumed run has several
            file.write(f"{command_line()}\n")


class MimicVideoCLI(LightningCLI):
    """LightningCLI whose `--config` takes files of conf/ and whose runs end by writing `<run_dir>/metrics.json`."""

    def __init__(self, **kwargs: Any) -> None:
        options = {"parser_mode": "omegaconf", "allow_abbrev": False}
        super().__init__(
            save_config_callback=SaveRun,
            auto_configure_optimizers=False,  # optimizer and scheduler are factories that a module is given
            seed_everything_default=0,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "mimicvideo", **options, **{verb: dict(options) for verb in self.subcommands()}},
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default="runs/dev", help="Where the run writes everything.")
        parser.add_argument("--memory_gb", type=float | None, default=None, help="10^9 bytes that a device has; null: what its GPU says.")
        parser.add_argument("--objective", type=str, default="val/loss", help="Metric that a sweep optimises.")
        # Standing callbacks are named arguments, since flags cannot reach the items of a list.
        parser.add_lightning_class_args(SafeCheckpoint, "checkpoint")
        parser.add_lightning_class_args(NanGuard, "nan_guard")
        # last.ckpt is always the last one, also when a run is repeated in its folder.
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
        for target, (source, compute) in LINKS.items():
            parser.link_arguments(source, target, compute_fn=compute)

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:  # type: ignore[override]
        # sys.argv stays as it was typed: the other processes of DDP start from it.
        args = compose_argv(sys.argv[1:] if args is None else args)
        check_links(args)
        self.config = parser.parse_args(args)
        self._check_sizes()
        check_parts(self.config[self.config.subcommand].as_dict(), trains=self.config.subcommand == "fit")

    def _check_sizes(self) -> None:
        """Refuses data that cannot say what the model must take from it; jsonargparse leaves such a link out silently."""
        config = self.config[self.config.subcommand]
        model, data = config.model.get("init_args", {}), (config.get("data") or Namespace()).get("init_args", {})
        missing = [name for name in FROM_DATA if name in model and model[name] is None and name not in data]
        if missing:
            chosen = config.data.class_path if config.get("data") else "no data"
            raise ConfigError(f"{config.model.class_path} takes {', '.join(missing)} from its data, but {chosen} has none: choose --data")

    def _parse_ckpt_path(self) -> None:
        """The command line, not the checkpoint, says what is run: Lightning 2.6 lets the checkpoint win."""

    def before_instantiate_classes(self) -> None:
        """Refuses before anything is built what can only fail later: a GPU, a video model or a checkpoint that is not there."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        check_machine(self.config[str(self.subcommand)], weights=first)
        path = self._get(self.config, "ckpt_path")
        if path and path not in NAMED_CHECKPOINTS and not Path(path).exists():
            beside = [other.name for other in Path(path).parent.glob("*.ckpt")]
            raise ConfigError(f"ckpt_path: there is no {path}{nearest(Path(path).name, beside)}")
        if self.subcommand == "fit" and first:
            report_memory(self.config["fit"])

    def _write_metrics(self) -> None:
        if self.trainer.is_global_zero:
            run_dir = Path(self.trainer.default_root_dir)  # not log_dir, which is a collective operation
            run_dir.mkdir(parents=True, exist_ok=True)
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2))

    after_fit = after_validate = after_test = _write_metrics

    def before_predict(self) -> None:
        """Raises ConfigError for a model that has no `predict_step`."""
        if type(self.model).predict_step is LightningModule.predict_step:
            raise ConfigError(f"{type(self.model).__name__} predicts no actions: `predict` takes an experiment of stage 2")

    def after_predict(self) -> None:
        """Writes all that `predict_step` returned to `<run_dir>/predictions.safetensors`; of several processes each writes its share."""
        trainer = self.trainer
        batches: Any = trainer.predict_loop.predictions
        if not batches:
            raise ConfigError(
                "there is nothing to predict: the data holds nothing out; set data.init_args.validation_fraction or _episodes"
            )
        share = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{share}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}, path)
        print(f"predictions of {sum(len(batch['actions']) for batch in batches)} windows are in {path}")


class CheckingCLI(MimicVideoCLI):
    """Parses and checks a configuration; builds nothing, runs nothing, and asks for no GPU."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def report_memory(config: Namespace) -> None:
    """Prints what the run will need of each device's memory; raises ConfigError if that is not there."""
    config = config.clone()
    if takes_all(config.trainer) and config.trainer.accelerator != "cpu":
        config.trainer.devices = max(torch.cuda.device_count(), 1)
    try:
        expected = expected_memory(config.as_dict())
    except ConfigError:
        raise
    except Exception as error:  # a model that is still to be downloaded, or parts of the user's own that cannot do without data
        print(f"the memory that the run needs is not known beforehand: {type(error).__name__}: {error}")
        return
    if expected is not None:
        print("expected memory of each device:", *expected.table(), sep="\n")
        require_memory(expected, config.as_dict(), config.memory_gb)


def check_machine(config: Namespace, weights: bool = True) -> None:
    """Raises ConfigError with all that the machine lacks: GPUs, their kernels and, if `weights`, the pretrained video model."""
    missing, model = [], config.as_dict()["model"]
    checks = [lambda: check_devices(config.trainer), lambda: check_execution(model, config.trainer)]
    for check in [*checks, lambda: check_weights(model)] if weights else checks:
        try:
            check()
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("\n".join(missing))


def check_weights(model: Mapping[str, Any]) -> None:
    """Raises ConfigError if the video model is neither on this machine nor given by the hub, or its adapter is not there."""
    backbone = (model.get("init_args") or {}).get("backbone") or {}
    if backbone.get("class_path") != BACKBONE:
        return
    from mimicvideo.video.pretrained import check_source

    adapter = backbone["init_args"].get("adapter")
    if adapter is not None and not Path(adapter).expanduser().is_dir():
        raise ConfigError(
            f"model.backbone.adapter={adapter!r}: there is no such folder: run stage 1 first, give the folder that it wrote, "
            "<run_dir>/adapter, or null for the video model as it is"
        )
    try:
        check_source(backbone["init_args"]["pretrained"], backbone["init_args"].get("revision"))
    except FileNotFoundError as error:
        raise ConfigError(f"model.backbone.{error}") from error


def check_devices(trainer: Namespace) -> None:
    """Raises ConfigError if the trainer asks for a GPU, or for more of them, than this machine has."""
    if trainer.get("accelerator") not in ("gpu", "cuda"):
        return
    there, devices = torch.cuda.device_count(), trainer.get("devices", 1)
    if isinstance(devices, str) and not devices.isdigit():
        wanted = 1  # "auto", "-1", "0,1": at least one
    elif isinstance(devices, list):
        wanted = max(devices, default=0) + 1
    else:
        wanted = max(int(devices), 1)
    if wanted > there:
        has = "no GPU that PyTorch can use" if there == 0 else f"{there} GPU(s)"
        fix = "--config conf/trainer/cpu.yaml (in a sweep: trainer=cpu)" if there == 0 else f"--trainer.devices={there}"
        raise ConfigError(f"trainer.accelerator={trainer.accelerator} asks for {wanted} GPU(s), but this machine has {has}: use {fix}")


def check_execution(model: Mapping[str, Any], trainer: Namespace) -> None:
    """Raises ConfigError if the video model's execution needs a GPU or packages that are not there."""
    backbone = (model.get("init_args") or {}).get("backbone") or {}
    options = execution_of(backbone.get("init_args") or {})
    on_gpu = trainer.get("accelerator") in ("gpu", "cuda") or (trainer.get("accelerator") == "auto" and torch.cuda.is_available())
    if backbone.get("class_path") != BACKBONE or not options or (on_gpu and torch.cuda.device_count() == 0):
        return
    from mimicvideo.execution import Execution
    from mimicvideo.video.kernels import check_kernels

    try:
        check_kernels(Execution(**options), torch.device("cuda" if on_gpu else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"model.backbone.{error}") from error


def check_links(args: list[str]) -> None:
    """Raises ConfigError if something is given that follows from another argument: the link would override it without a word."""
    given: set[str] = set()
    for argument in args:
        key, _, value = argument.removeprefix("--").partition("=")
        if key == "config":
            path = Path(value) if len(value) < 1000 and "\n" not in value else None
            given |= set(_leaves(yaml.safe_load(path.read_text() if path and path.is_file() else value)))
        elif argument.startswith("--"):
            given.add(key)
    for target, (source, _) in LINKS.items():
        if short := given & {target, target.replace(".init_args", "")}:
            raise ConfigError(f"{short.pop()} follows from {source}: give that instead")


def _leaves(config: Any, key: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _leaves(value, f"{key}.{name}".lstrip("."))
    else:
        yield key
