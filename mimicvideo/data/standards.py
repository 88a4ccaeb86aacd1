"""Functions that make a dataset standard where naming its keys is not enough: one small function per quirk, named in its description.

A function takes an episode's columns, float64 with one row per step: `proprio` and `actions`, joined from the keys that the description
names, and every other key that it asks for with `@needs`, where a key of sentences gives the different ones as an array of strings. It
returns the same with `proprio` and `actions` as they should be, and may add `keep`, a bool per row that says which rows stay (if none, the
episode is left out, which is no fault of it), and `instructions`, the episode's sentences as an array of strings. It never changes its
argument.
"""

import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from mimicvideo.data.errors import DatasetError

Columns = dict[str, np.ndarray]
Standard = Callable[[Columns], Columns]


_needed: dict[Standard, tuple[str, ...]] = {}


def needs(*keys: str) -> Callable[[Standard], Standard]:
    """Marks a function that wants these keys of the dataset beside those that make states and actions."""

    def mark(function: Standard) -> Standard:
        _needed[function] = keys
        return function

    return mark


def needed(function: Standard) -> tuple[str, ...]:
    """The keys that a function was marked with."""
    return _needed.get(function, ())


def find(name: str) -> Standard:
    """A function of this module by its name, or of another as `package.module:function`.

    Raises:
        DatasetError: If there is none.
    """
    module, _, function = name.rpartition(":")
    try:
        found: Any = getattr(importlib.import_module(module or __name__), function)
    except (ImportError, AttributeError) as error:
        raise DatasetError(f"standardise {name!r} is no function: {error}. Name one of {__name__}, or package.module:function") from error
    if not callable(found):
        raise DatasetError(f"standardise {name!r} is no function but a {type(found).__name__}")
    return cast(Standard, found)
