"""DatasetSpec: what the program must be told about a dataset: which keys are what, rates, names, and how to make it standard."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from mimicvideo.data.errors import DatasetError
from mimicvideo.messages import similar
from mimicvideo.shipped import CONF

SPECS = CONF / "dataset"


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset or kind of dataset. What is None follows the format's own custom, where it has one.

    Attributes:
        format: lerobot, rlds, zarr, hdf5, videos, or auto, which looks at the files.
        split: Of an RLDS dataset, such as train or val.
        robot: Its name, if the format does not say.
        hz: Stored rows per second, if the format does not say; if it does, the two must agree within a tenth.
        cameras: Keys of the pictures by the names that `cameras` of the data use.
        rotate_180: Cameras, by the same names, whose stored pictures stand on their heads and are turned by 180 degrees.
        proprio: Keys whose numbers, one after another, make a state.
        actions: Keys whose numbers make a control step's action.
        interpolate: Keys of numbers that change steadily, for datasets whose streams have times of their own: they are interpolated to
            the rows' times, others take the nearest. None means those of `proprio`. Rotations that `representation` names within one key
            turn evenly; other numbers, also angles, move along lines.
        instruction: Keys of sentences; all are alternatives.
        task: Key of the task's name.
        proprio_names: A name for each number of a state after standardisation.
        action_names: Likewise.
        swap_colours: Cameras, by these names, whose pictures are stored as blue, green, red.
        standardise: A function that makes the dataset standard: a name in `mimicvideo.data.standards`, or `package.module:function`.
        representation: What the numbers are and how actions are learned, see `representation.parse_representation`; None learns them as
            they are. It is what `DemonstrationData` uses unless it is given another.
        drop_first: Rows to leave out at the start of every episode.
        drop_last: Rows to leave out at its end.
    """

    format: str = "auto"
    split: str = "train"
    robot: str | None = None
    hz: float | None = None
    cameras: dict[str, str] | None = None
    rotate_180: list[str] | None = None
    proprio: list[str] | None = None
    actions: list[str] | None = None
    interpolate: list[str] | None = None
    instruction: list[str] | None = None
    task: str | None = None
    proprio_names: list[str] | None = None
    action_names: list[str] | None = None
    swap_colours: list[str] | None = None
    standardise: str | None = None
    representation: dict[str, Any] | None = None
    drop_first: int = 0
    drop_last: int = 0

    def __post_init__(self) -> None:
        for name in ("robot", "task", "standardise"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"{name} must be a text, got {value!r}")
        for name in ("rotate_180", "proprio", "actions", "interpolate", "instruction", "proprio_names", "action_names", "swap_colours"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)):
                raise ValueError(f"{name} must be a list of names, such as [{value if isinstance(value, str) else 'NAME'}], got {value!r}")
        cameras = {} if self.cameras is None else self.cameras
        if not isinstance(cameras, Mapping) or not all(isinstance(text, str) for pair in cameras.items() for text in pair):
            raise ValueError(f"cameras must map names to keys of pictures, such as {{front: KEY}}, got {cameras!r}")
        for name in ("drop_first", "drop_last"):
            if not isinstance(value := getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number of rows, got {value!r}")
        if self.hz is not None and not (isinstance(self.hz, int | float) and 0 < self.hz < math.inf):
            raise ValueError(f"hz must be positive, a number of rows per second, got {self.hz!r}")
        if self.hz is not None:
            object.__setattr__(self, "hz", float(self.hz))  # equal descriptions give equal fingerprints, however they were read
        if self.drop_first < 0 or self.drop_last < 0:
            raise ValueError(f"drop_first and drop_last must not be negative, got {self.drop_first} and {self.drop_last}")


def load_spec(spec: DatasetSpec | str | None) -> DatasetSpec:
    """A spec as it is, of a name in conf/dataset or of a yaml file.

    Raises:
        DatasetError: If there is no such name or file, or it does not describe a dataset.
    """
    if spec is None:
        return DatasetSpec()
    if isinstance(spec, DatasetSpec):
        return spec
    path = Path(spec) if spec.endswith((".yaml", ".yml")) else SPECS / f"{spec}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in SPECS.glob("*.yaml"))
        hint = similar(spec, known)
        raise DatasetError(f"there is no dataset description {spec!r}{hint}: give one of {', '.join(known)}, or a yaml file")
    try:
        content: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is no yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} describes no dataset: it holds no mapping")
    known = [field.name for field in fields(DatasetSpec)]
    if unknown := [key for key in content if key not in known]:
        hint = similar(str(unknown[0]), known)
        raise DatasetError(f"{path}: unknown key {unknown[0]!r}{hint}; a dataset description has {', '.join(known)}")
    try:
        return DatasetSpec(**content)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from error
