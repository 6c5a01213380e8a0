"""A mapping that forgets what has not been used for longest."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The entries read or written last, the latest at the end.

    Args:
        limit: how much of them is kept; the latest entry is, whatever it weighs.
        weight: of a value. By default each weighs 1, and `limit` is their number.
    """

    def __init__(self, limit: int, weight: Callable[[Value], int] | None = None):
        self.limit = limit
        self._weight = weight
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value of a key, which counts as used; None if it is not there."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Adds an entry, and drops the oldest as long as there is too much."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > 1 and self._total() > self.limit:
            self._entries.popitem(last=False)

    def _total(self) -> int:
        if self._weight is None:
            return len(self._entries)
        return sum(map(self._weight, self._entries.values()))

    def clear(self) -> None:
        self._entries.clear()

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)
