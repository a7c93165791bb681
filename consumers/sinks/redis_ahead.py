"""Rows of a Redis as they are stored, read together before each one is asked for, but never all at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.redis_rows import StoredRow
from walbus.consumers.sinks.redis_stored import READ_AT_ONCE, RedisRows

_MOST_BYTES: Final = 16 << 20  # of values that are kept


class RowsAhead:
    """Methods may raise what `RedisStore.errors` translates.

    Args:
        rows: that are read.
    """

    def __init__(self, rows: RedisRows) -> None:
        self._rows = rows
        self._found: dict[str, StoredRow | None] = {}
        self._bytes = 0
        self._expected: dict[str, dict[str, None]] = {}  # keys by table, each once

    def expect(self, keys: Iterable[tuple[str, str]]) -> None:
        """Rows, by table and key, that will be asked for, and no others."""
        self._expected = {}
        for table, key in keys:
            if key not in self._found:
                self._expected.setdefault(table, {})[key] = None

    def row(self, table: str, key: str, marks: Marks) -> StoredRow | None:
        """A row as it was stored when it was read; None: there is none."""
        if key not in self._found:
            self._read(table, key, marks)
        return self._found[key]

    def forget(self) -> None:
        """Something was written: rows are read anew."""
        self._found, self._bytes = {}, 0

    def _read(self, table: str, key: str, marks: Marks) -> None:
        if self._bytes > _MOST_BYTES:
            self.forget()
        expected = self._expected.get(table, {})
        keys = list(islice(expected, READ_AT_ONCE)) if key in expected else []
        if key not in keys:
            keys.append(key)
        for one in keys:
            expected.pop(one, None)
        rows = self._rows.rows(table, keys, marks)
        self._found.update(zip(keys, rows, strict=True))
        self._bytes += sum(len(value) for row in rows if row is not None for value in row.columns.values())


__all__ = ["RowsAhead"]
