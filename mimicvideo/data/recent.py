"""Recent: what was used last, up to a number of bytes, in each process its own."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """Values by key; the one that was not used for longest goes first.

    Args:
        limit: Bytes that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Value | None:
        """The value of a key; None if it is not there (any more)."""
        if (found := self._values.get(key)) is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def keep(self, key: Hashable, value: Value, size: int) -> None:
        """Adds a value of so many bytes, instead of others that were used before it."""
        self._bytes += size - self._values.pop(key, (None, 0))[1]
        self._values[key] = (value, size)
        while self._bytes > self._limit:
            self._bytes -= self._values.popitem(last=False)[1][1]

    def __getstate__(self) -> dict[str, Any]:
        """Without values: another process keeps its own."""
        return {"_limit": self._limit, "_values": OrderedDict(), "_bytes": 0}
