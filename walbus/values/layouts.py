"""What is derived from a table layout is derived once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from walbus.schema import TableSchema

T = TypeVar("T")
_LIMIT = 10_000


class PerLayout(Generic[T]):
    """A function of a table layout that remembers its results, by the layout's number and fingerprint.

    Safe in threads: at worst something is derived twice. Memory is bounded: it forgets everything when it knows
    10,000 layouts.
    """

    def __init__(self, derive: Callable[[TableSchema], T]) -> None:
        self._derive = derive
        self._known: dict[tuple[int, int], T] = {}
        self._last: tuple[TableSchema, T] | None = None  # most come for the layout of the row before

    def __call__(self, schema: TableSchema) -> T:
        """What belongs to this layout; the same object for every equal layout."""
        last = self._last
        if last is not None and last[0] is schema:
            return last[1]
        derived = self._found(schema)
        self._last = schema, derived
        return derived

    def _found(self, schema: TableSchema) -> T:
        key = (schema.id, schema.fingerprint)
        known = self._known.get(key)
        if known is not None:
            return known
        derived = self._derive(schema)
        if len(self._known) >= _LIMIT:
            self._known.clear()
        self._known[key] = derived
        return derived
