"""What the sinks hold, read with the sinks' own clients and none of the code that writes them."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from walbus.demo.source_rows import Key, SourceTable
from walbus.values.to_text import float4_text, float8_text

if TYPE_CHECKING:
    import tantivy

_OWN = "_walbus_"  # tables of the sink's own
_AT_ONCE = 1000  # rows asked for in one go

#: What a sink holds of one row: a value for each column.
Found: TypeAlias = tuple[Key, Mapping[str, object]]


class SinkRows(Protocol):
    """A sink's content.

    Attributes:
        name: how differences call it.
    """

    name: str

    def tables(self) -> set[str]:
        """`namespace.name` of every table that it holds a row of."""

    def rows(self, table: SourceTable) -> Iterator[Found]:
        """Every row that it holds of a table."""

    def close(self) -> None:
        """Frees it."""


class SqliteRows:
    """The SQLite replica: one table a source table, named as the table (`schema.name` outside of `public`)."""

    name = "cache"

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def tables(self) -> set[str]:
        """See `SinkRows.tables`."""
        names = self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found = {name for (name,) in names if not name.startswith(_OWN) and self._has_rows(name)}
        return {name if "." in name else f"public.{name}" for name in found}

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

    def _has_rows(self, name: str) -> bool:
        query = f"SELECT 1 FROM {_quoted(name)} LIMIT 1"  # noqa: S608 (a quoted name)
        return self._database.execute(query).fetchone() is not None


class SearchRows:
    """The tantivy index: one document a row, its `_table` in a field and the row as JSON in `_source`."""

    name = "search"

    def __init__(self, folder: Path) -> None:
        import tantivy  # noqa: PLC0415 (an extra: without this sink it need not be there)

        self._index = tantivy.Index.open(str(folder))
        self._searcher = self._index.searcher()
        self._by_table = partial(tantivy.Query.term_query, self._index.schema, "_table")
        self._all = tantivy.Query.all_query()

    def tables(self) -> set[str]:
        """See `SinkRows.tables`; the sink's own documents are in no table."""
        return {str(table) for document in self._documents(self._all) if (table := document.get_first("_table"))}

    def rows(self, table: SourceTable) -> Iterator[Found]:
        """See `SinkRows.rows`."""
        for document in self._documents(self._by_table(table.table)):
            values = json.loads(bytes(document.get_first("_source") or b""))
            yield key_of(table, values), values

    def close(self) -> None:
        """See `SinkRows.close`."""

    def _documents(self, query: tantivy.Query) -> Iterator[tantivy.Document]:
        hits = self._searcher.search(query, max(1, self._searcher.num_docs), count=False).hits
        return (self._searcher.doc(address) for _, address in hits)


class RedisRows:
    """Redis with the sink's defaults: a hash of texts at `schema.table:key`; NULL is no field."""

    name = "redis"

    def __init__(self, url: str) -> None:
        import redis  # noqa: PLC0415 (an extra: without this sink it need not be there)

        self._redis = redis.Redis.from_url(url)

    def tables(self) -> set[str]:
        """See `SinkRows.tables`."""
        keys = (key.decode() for key in self._redis.scan_iter(count=_AT_ONCE))
        return {key.partition(":")[0] for key in keys if not key.startswith("walbus:")}

    def rows(self, table: SourceTable) -> Iterator[Found]:
        """See `SinkRows.rows`."""
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", table.table) + ":*"
        keys = sorted(set(self._redis.scan_iter(match=pattern, count=_AT_ONCE)))
        for first in range(0, len(keys), _AT_ONCE):
            with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys[first : first + _AT_ONCE]:
                    pipeline.hgetall(key)
                for fields in pipeline.execute():
                    texts = {name.decode(): value.decode() for name, value in fields.items()}
                    values = {column.name: texts.get(column.name) for column in table.columns}
                    yield key_of(table, values), values

    def close(self) -> None:
        """See `SinkRows.close`."""
        self._redis.close()


def key_of(table: SourceTable, values: Mapping[str, object]) -> Key:
    """The key of a sink's row as the source's texts."""
    return tuple(_key_text(column.type_name, values[column.name]) for column in table.key_columns)


def _key_text(type_name: str, value: object) -> str:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if type_name == "boolean" and isinstance(value, int):
        return "t" if value else "f"
    if type_name in ("real", "double precision") and isinstance(value, (int, float)):
        return _float_text(type_name, value)
    return str(value)


def _float_text(type_name: str, value: float) -> str:
    """As PostgreSQL prints it: a sink has a `real` as the double with the same digits."""
    if type_name == "real":
        return float4_text(struct.unpack("<f", struct.pack("<f", value))[0])
    return float8_text(value)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def open_sinks(
    cache: Path | None = None, search: Path | None = None, redis_url: str | None = None
) -> Sequence[SinkRows]:
    """The sinks that are given: a SQLite file, the folder of a search index, a Redis."""
    sinks: list[SinkRows] = []
    if cache is not None:
        sinks.append(SqliteRows(cache))
    if search is not None:
        sinks.append(SearchRows(search))
    if redis_url is not None:
        sinks.append(RedisRows(redis_url))
    return sinks
