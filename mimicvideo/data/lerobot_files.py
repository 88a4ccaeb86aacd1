"""The files of a LeRobotDataset that hold no video, tables and JSON: read, and written as version 3.0 has them."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from mimicvideo.data.errors import DatasetError

AGAIN = "copy or download the dataset again"


def columns_table(columns: Mapping[str, Shaped[np.ndarray, "rows dim"]]) -> pa.Table:
    """A table of [rows, dim] arrays: lists of fixed size, or plain numbers where dim is 1."""
    arrays = {}
    for name, values in columns.items():
        flat = pa.array(values.reshape(-1))
        arrays[name] = flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(arrays)


def tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """Sentences and their indices. Sentences are the index of a pandas table, which LeRobot reads it as."""
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks.keys(), pa.string())})
    column = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    text = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **column},
            {"name": "task", "field_name": "task", **text},
        ],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a parquet file, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_parquet(root: Path, path: Path, names: Collection[str] | None = None) -> pa.Table:
    """A parquet file; of its columns those with these names that are there, if names are given.

    Raises:
        DatasetError: If the file is missing or damaged.
    """
    with open_parquet(root, path) as file, damaged(path):
        return file.read(None if names is None else [name for name in file.schema_arrow.names if name in names])


def open_parquet(root: Path, path: Path) -> pq.ParquetFile:
    """A parquet file of which the footer has been read.

    Raises:
        DatasetError: If it is missing or damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{root} is truncated: {path.relative_to(root)} is missing; {AGAIN}")
    with damaged(path):
        return pq.ParquetFile(path)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Around what reads a parquet file: turns Arrow's complaints into a DatasetError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({str(error).splitlines()[0]}): {AGAIN}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DatasetError: If it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is damaged or truncated ({error}): {AGAIN}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is damaged: it holds no JSON object; {AGAIN}")
    return content


def read_lines(root: Path, path: Path, keys: Collection[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file, one per line, each of which must have these keys.

    Raises:
        DatasetError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{root} is truncated: {path.relative_to(root)} is missing; {AGAIN}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{path} is damaged or truncated in line {number} ({error}): {AGAIN}") from error
            if not isinstance(row, dict) or any(key not in row for key in keys):
                raise DatasetError(f"{path} lacks {' or '.join(keys)} in line {number}: {AGAIN}")
            yield row
