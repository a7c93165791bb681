"""What the sinks hold, read with the sinks' own clients and none of the code that writes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from walbus.demo.source_rows import Key, SourceTable

#: What a sink holds of one row: a value for each column.
Found: TypeAlias = tuple[Key, Mapping[str, object]]


class SinkRows(Protocol):
    """A sink's content.

    Attributes:
        name: how differences call it.
    """

    name: str

    def rows(self, table: SourceTable) -> Iterator[Found]:
        """Every row that it holds of a table."""

    def close(self) -> None:
        """Frees it."""


class SqliteRows:
    """The SQLite replica: one table a source table, named as the table (`schema.name` outside of `public`)."""

    name = "cache"

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def rows(self, table: SourceTable) -> Iterator[Found]:
        """See `SinkRows.rows`."""
        name = table.name if table.namespace == "public" else table.table
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
            return
        columns = [column.name for column in table.columns]
        query = f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(name)}"  # noqa: S608 (quoted names)
        for row in self._database.execute(query):
            values = dict(zip(columns, row, strict=True))
            yield key_of(table, values), values

    def close(self) -> None:
        """See `SinkRows.close`."""
        self._database.close()


def key_of(table: SourceTable, values: Mapping[str, object]) -> Key:
    """The key of a sink's row as texts."""
    return tuple(_key_text(values[column.name]) for column in table.key_columns)


def _key_text(value: object) -> str:
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def open_sinks(cache: Path | None = None) -> Sequence[SinkRows]:
    """The sinks that take part, those first that answer first."""
    return [SqliteRows(cache)] if cache else []
