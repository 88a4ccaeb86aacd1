"""The type checker of the tests: beartype for annotations with shapes and for nothing else.

Other annotations are left to pyright: a test may well pass an int for a float, or a name that must be refused.
"""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes every call of `function` compare its arrays with their annotations."""
    function.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if _has_shape(kind)}
    return beartype(function) if function.__annotations__ else function


def _has_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(annotation))
