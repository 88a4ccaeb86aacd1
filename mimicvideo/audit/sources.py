"""The data of a configuration, built but not read, and its datasets opened as training would, but for what the audit itself judges."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from mimicvideo.data.episodes import Episodes
from mimicvideo.data.modules import ClipData
from mimicvideo.messages import ConfigError, ShortErrors


class _DataParser(ShortErrors, ArgumentParser):
    """A jsonargparse parser with short errors."""


def build_data(configuration: dict[str, Any] | None, argv: Sequence[str]) -> ClipData:
    """The data module.

    Args:
        configuration: `class_path` and `init_args`, checked before; or None:
        argv: `--data=FILE_OR_CLASS` and `--data.NAME=VALUE`.

    Raises:
        ConfigError: If it is not of a kind that can be audited.
        SystemExit: With status 2, if a flag is refused.
    """
    parser = _DataParser(prog="mimicvideo audit", parser_mode="omegaconf", allow_abbrev=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parsed = parser.parse_object({"data": configuration}) if configuration is not None else parser.parse_args(list(argv))
    data = parser.instantiate(parsed)["data"]
    if not isinstance(data, ClipData):
        raise ConfigError(f"only ClipData and DemonstrationData can be audited, not {type(data).__name__}")
    return data


def open_all(data: ClipData, name: str) -> Episodes:
    """A dataset of the configuration, whatever the number of its bad episodes, nothing of it kept in memory and no quarantine applied.

    Raises:
        DatasetError: If it cannot be opened, or no episode of it can be used.
    """
    # Damage inside videos is looked for by the audit's own processes.
    return data.open_source(name, max_bad_fraction=1.0, verify="quick", ram_cache_gb=0.0, quarantine=None)
