"""What a report is made from: folders of rollouts, training runs and datasets, read as they lie there."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mimicvideo.evaluation import RESULTS, Evaluation

STAGES = {
    "AutoencoderTraining": "Video autoencoder",
    "VideoFinetune": "Stage 1, video model",
    "ActionPolicy": "Stage 2, action decoder",
}
VERBS = ("fit", "validate", "test", "rollout")
NO_METRICS = ("step", "epoch")


@dataclass
class Training:
    """A `fit`.

    Attributes:
        folder: Its run_dir.
        stage: What was trained, in words.
        curves: (step, value) by metric.
        samples: Folders `samples/step_<n>`, in the order of steps.
    """

    folder: Path
    stage: str
    curves: dict[str, list[tuple[int, float]]]
    samples: list[Path]


@dataclass
class Rollout:
    """A rollout.

    Attributes:
        folder: Its run_dir.
        evaluation: Its results.
        videos: Recorded episodes, those of the grid first.
    """

    folder: Path
    evaluation: Evaluation
    videos: list[Path]


@dataclass
class Dataset:
    """Demonstrations. `meta` is their meta/mimicvideo.json."""

    folder: Path
    meta: dict[str, Any]


@dataclass
class Inputs:
    """All that was found, by label, and in words what was not."""

    trainings: dict[str, Training] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.trainings or self.rollouts or self.datasets)


def read_inputs(folders: Sequence[str]) -> Inputs:
    """Reads each folder as what it holds: `results.json`, `metrics.csv` of the CSV logger, or `meta/mimicvideo.json`."""
    inputs, labels = Inputs(), _labels(folders)
    for name in folders:
        folder, label = Path(name), labels[name]
        if not folder.is_dir():
            inputs.missing.append(f"{name}: there is no such folder")
        elif (folder / RESULTS).exists():
            _read_rollout(folder, label, inputs)
        elif (folder / "meta" / "mimicvideo.json").exists():
            inputs.datasets[label] = Dataset(folder, json.loads((folder / "meta" / "mimicvideo.json").read_text()))
        elif next(folder.rglob("metrics.csv"), None):
            _read_training(folder, label, inputs)
        else:
            inputs.missing.append(
                f"{name}: holds neither {RESULTS} (a rollout), metrics.csv (a training) nor meta/mimicvideo.json (a dataset)"
            )
    stages = {training.stage for training in inputs.trainings.values()}
    inputs.missing += [f"no training run of {stage!r} was given" for stage in list(STAGES.values())[1:] if stage not in stages]
    controls = {rollout.evaluation.control for rollout in inputs.rollouts.values()}
    if "none" not in controls:
        inputs.missing.append("no rollout of a policy (control: none) was given")
    if not controls - {"none"}:
        inputs.missing.append("no control rollout (say control: zero_context) was given")
    return inputs


def commands(folder: Path) -> list[str]:
    """The commands that filled a folder: as typed where that was recorded, else those that do the same from the saved configuration."""
    if (folder / RESULTS).exists():
        return [Evaluation.read(folder).record["command"]]
    if (recorded := folder / "commands.txt").exists():
        return recorded.read_text().splitlines()
    return [f"mimicvideo {verb} --config {folder / verb}.yaml" for verb in VERBS if (folder / f"{verb}.yaml").exists()]


def _read_rollout(folder: Path, label: str, inputs: Inputs) -> None:
    try:
        evaluation = Evaluation.read(folder)
    except ValueError as error:
        inputs.missing.append(str(error))
        return
    videos = sorted((folder / "videos").glob("*.mp4"), key=lambda path: (path.name != "grid.mp4", path.name))
    if not videos:
        inputs.missing.append(f"{folder}: no videos were recorded (videos=0?)")
    inputs.rollouts[label] = Rollout(folder, evaluation, videos)


def _read_training(folder: Path, label: str, inputs: Inputs) -> None:
    curves = read_curves(folder)
    stage = _stage(folder, curves)
    samples = sorted(path.parent for path in folder.glob("samples/step_*/strip.png"))
    if stage == STAGES["VideoFinetune"] and not samples:
        inputs.missing.append(f"{folder}: no generated videos (callback VideoSamples)")
    if not any(name.startswith("val/") for name in curves):
        inputs.missing.append(f"{folder}: no validation figures")
    if not commands(folder):
        inputs.missing.append(f"{folder}: no fit.yaml, so no command and no configuration")
    inputs.trainings[label] = Training(folder, stage, curves, samples)


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All metrics of the CSV logger by step. Of a resumed run's several files, the later one wins where both have a step."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.rglob("metrics.csv"), key=_version):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if text and name not in NO_METRICS and row.get("step"):
                        values[name][int(row["step"])] = float(text)
    return {name: sorted(by_step.items()) for name, by_step in values.items()}


def _version(path: Path) -> tuple[int, str]:
    """version_10 comes after version_9."""
    number = path.parent.name.rpartition("_")[2]
    return (int(number) if number.isdigit() else -1, str(path))


def _stage(folder: Path, curves: dict[str, Any]) -> str:
    config = folder / "fit.yaml"
    model = (yaml.safe_load(config.read_text()) or {}).get("model") or {} if config.exists() else {}
    name = str(model.get("class_path", "")).rpartition(".")[2] if isinstance(model, dict) else ""
    if name:
        return STAGES.get(name, name)
    if any(metric.startswith("val/action_mse") for metric in curves):
        return STAGES["ActionPolicy"]
    return STAGES["VideoFinetune"] if any(metric.startswith("val/velocity") for metric in curves) else "Training"


def _labels(folders: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or as many as tell it from the others."""
    labels = {}
    for name in folders:
        parts = Path(name).resolve().parts
        others = [Path(other).resolve().parts for other in folders if Path(other).resolve().parts != parts]
        length = next((n for n in range(1, len(parts)) if all(parts[-n:] != other[-n:] for other in others)), len(parts))
        labels[name] = "/".join(parts[-length:])
    return labels
