"""Quarantine: a file that lists episodes which training shall leave out, and of which dataset they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimicvideo.data.errors import DatasetError

VERSION = 1


def write_quarantine(path: Path, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the list.

    Args:
        path: Of the file.
        datasets: By name: `root`, `fingerprint` (`Episodes.stored_fingerprint`) and `episodes`, the reasons by index. A dataset that has
            nothing to leave out is listed too: it was looked at.
    """
    content = {
        "version": VERSION,
        "datasets": [
            {
                "name": name,
                "root": str(dataset["root"]),
                "fingerprint": dataset["fingerprint"],
                "episodes": [{"index": index, "reason": reason} for index, reason in sorted(dataset["episodes"].items())],
            }
            for name, dataset in datasets.items()
        ],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_quarantine(path: str | Path, root: Path, fingerprint: str, name: str | None = None) -> dict[int, str]:
    """The reasons why episodes of a dataset shall be left out, by index.

    Args:
        path: A file of `mimicvideo audit`.
        root: The dataset's folder, for messages.
        fingerprint: Its `tables_fingerprint`, which stays when the dataset is moved and changes when episodes do.
        name: Of the source. Where several in the list are of this dataset, perhaps with other cameras each, that of this name counts, and
            all of them if none has it.

    Raises:
        DatasetError: If the file cannot be read or is about other datasets.
    """
    again = "audit this dataset (mimicvideo audit) and give the file that it writes"
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise DatasetError(f"the quarantine {path} is of version {content['version']!r}, this reads {VERSION}: {again}")
        listed = {
            dataset["name"]: {int(entry["index"]): str(entry["reason"]) for entry in dataset["episodes"]}
            for dataset in content["datasets"]
            if dataset["fingerprint"] == fingerprint
        }
    except OSError as error:
        raise DatasetError(f"there is no quarantine {path} ({error.strerror}): {again}, or leave quarantine out") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no quarantine or damaged ({type(error).__name__}: {error}): {again}") from error
    if not listed:
        raise DatasetError(f"the quarantine {path} is of other datasets, or of {root} before it changed: {again}")
    if name in listed:
        return listed[name]
    return {index: reason for reasons in listed.values() for index, reason in reasons.items()}
