"""One table of the SQLite replica: its name, its SQL, and the values that go into it.

    PostgreSQL                        SQLite
    int2, int4, int8, oid, bool       INTEGER (bool: 0, 1)
    float4, float8                    REAL; NaN and the infinities as text; -0 becomes SQLite's 0
    bytea                             BLOB
    every other type                  TEXT, PostgreSQL's canonical text

A table of schema `public` keeps its bare name, any other is called `schema.name`; one whose name another relation has
taken since is parked as `name (oid)` until it tells its new name. Two columns are added: the row's
seq and its mark. A table without a key has the seq as its primary key: a row comes once, and never changes place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.sinks.layout import sources
from walbus.events import Change
from walbus.keys import key_texts
from walbus.native import new_converted_rows
from walbus.schema import Column, TableSchema
from walbus.values.types import NATIVE

SqlValue: TypeAlias = int | float | str | bytes | None
SEQ, MARK = "_walbus_seq", "_walbus_mark"

_INTEGERS = frozenset({16, 20, 21, 23, 26})
_FLOATS = frozenset({700, 701})
_BYTEA = 17


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def table_name(layout: TableSchema) -> str:
    """The name of a table in the replica."""
    return layout.name if layout.namespace == "public" else layout.table


@dataclass(frozen=True)
class ReplicaTable:
    """A table as it stands in the replica.

    Attributes:
        layout: the newest that its rows had.
        log_generation: `Marks.log_generation` when that layout came: its number counts only within one log.
        name: what it is called in the replica.
    """

    layout: TableSchema
    log_generation: int
    name: str

    @property
    def oid(self) -> int:
        """The relation's OID in the source."""
        return self.layout.oid

    @cached_property
    def sql(self) -> str:
        """The table's name as an SQL identifier."""
        return quoted(self.name)

    @cached_property
    def keyed(self) -> bool:
        """Whether rows have a key."""
        return bool(self.layout.key_indexes)

    @cached_property
    def columns(self) -> list[str]:
        """Its columns as SQL identifiers, in order, without seq and mark."""
        return [quoted(column.name) for column in self.layout.columns]

    def supersedes(self, other: TableSchema, marks: Marks) -> bool:
        """Whether a layout is no newer than the table's."""
        return (marks.log_generation, other.id) <= (self.log_generation, self.layout.id)

    # Statements. Parameters: the columns' values, seq, mark

    @cached_property
    def create(self) -> str:
        """Makes the table."""
        return self.create_as(self.sql)

    def create_as(self, name: str) -> str:
        """Makes the table under another name (an SQL identifier)."""
        key = [self.layout.columns[index] for index in self.layout.key_indexes]
        rowid = len(key) == 1 and key[0].type_oid in _INTEGERS
        parts = [
            f"{quoted(c.name)} {declared_type(c)}{' PRIMARY KEY' * (rowid and c.in_key)}" for c in self.layout.columns
        ]
        parts += [f"{SEQ} INTEGER {'NOT NULL' if key else 'PRIMARY KEY'}", f"{MARK} INTEGER NOT NULL"]
        if key and not rowid:
            parts.append(f"PRIMARY KEY ({', '.join(quoted(column.name) for column in key)})")
        return f"CREATE TABLE {name} ({', '.join(parts)})"

    def upsert(self, marks: Marks, newer: str) -> str:
        """Writes a whole row unless the one that is there is newer; `newer` is `>` or (snapshot rows) `>=`."""
        statement = self._upserts.get((marks, newer))
        if statement is None:
            statement = self._upserts[marks, newer] = self._make_upsert(marks, newer)
        return statement

    @cached_property
    def _upserts(self) -> dict[tuple[Marks, str], str]:
        return {}

    def _make_upsert(self, marks: Marks, newer: str) -> str:
        names = ", ".join([*self.columns, SEQ, MARK])
        values = ", ".join("?" * (len(self.columns) + 2))
        insert = f"INTO {self.sql} ({names}) VALUES ({values})"
        if not self.keyed:
            return f"INSERT OR IGNORE {insert}"
        sets = ", ".join(f"{name} = excluded.{name}" for name in [*self._values, SEQ, MARK])
        older = f"excluded.{SEQ} {newer} {self.sql}.{SEQ} OR {self.sql}.{MARK} < {marks.log_generation}"
        return f"INSERT {insert} ON CONFLICT ({', '.join(self._key)}) DO UPDATE SET {sets} WHERE {older}"

    def update(self, indexes: Sequence[int], marks: Marks) -> str:
        """Writes some columns (their values, seq, mark, the key, seq) of an older row."""
        sets = ", ".join(f"{name} = ?" for name in [*(self.columns[index] for index in indexes), SEQ, MARK])
        return (
            f"UPDATE {self.sql} SET {sets} WHERE {self._where_key} AND ({SEQ} < ? OR {MARK} < {marks.log_generation})"
        )

    def delete(self, marks: Marks) -> str:
        """Deletes a row (the key, seq) that is older."""
        return f"DELETE FROM {self.sql} WHERE {self._where_key} AND ({SEQ} < ? OR {MARK} < {marks.log_generation})"

    def delete_equal(self) -> str:
        """Deletes one row with these values (all columns) from a table without a key."""
        same = " AND ".join(f"{name} IS ?" for name in self.columns)
        return f"DELETE FROM {self.sql} WHERE {SEQ} = (SELECT {SEQ} FROM {self.sql} WHERE {same} LIMIT 1)"

    def truncate(self, marks: Marks) -> str:
        """Deletes all rows that are older (than seq)."""
        return f"DELETE FROM {self.sql} WHERE {SEQ} < ? OR {MARK} < {marks.log_generation}"

    def sweep(self, marks: Marks) -> str:
        """Deletes rows that the snapshot did not mark and that are no newer (than seq)."""
        unmarked = f"{MARK} < {marks.generation}"
        return f"DELETE FROM {self.sql} WHERE {unmarked} AND ({SEQ} <= ? OR {MARK} < {marks.log_generation})"

    @cached_property
    def select(self) -> str:
        """The columns, seq and mark of a row (by key)."""
        return f"SELECT {', '.join([*self.columns, SEQ, MARK])} FROM {self.sql} WHERE {self._where_key}"

    @cached_property
    def select_all(self) -> str:
        """The columns and seq of every row."""
        return f"SELECT {', '.join([*self.columns, SEQ])} FROM {self.sql}"

    def told(self, values: Sequence[SqlValue], seq: int) -> HeldRow:
        """A row with these values of its columns: in SQLite a boolean is an integer, and -0.0 is 0.0."""
        plain = [int(value) if value is True or value is False else value for value in values]
        plain = [value + 0.0 if type(value) is float else value for value in plain]
        key = [plain[index] for index in self.layout.key_indexes]
        texts = (value.hex() if type(value) is bytes else str(value) for value in key)
        return HeldRow(tuple(texts), seq, tuple(plain))

    @cached_property
    def _key(self) -> list[str]:
        return [self.columns[index] for index in self.layout.key_indexes]

    @cached_property
    def _values(self) -> list[str]:
        return [name for index, name in enumerate(self.columns) if index not in self.layout.key_indexes]

    @cached_property
    def _where_key(self) -> str:
        return " AND ".join(f"{name} = ?" for name in self._key)


class RowForm:
    """Rows of one layout as values for a table's columns.

    Args:
        row: the layout that the rows have.
        table: the layout that the table has.
    """

    def __init__(self, row: TableSchema, table: TableSchema) -> None:
        self._rows = new_converted_rows(row, [_converter(column) for column in row.columns])
        self._same = row.id == table.id
        self._sources = sources(row, table)
        self._key = [_text_converter(row.columns[index]) for index in row.key_indexes]

    def values(self, payload: bytes) -> list[SqlValue]:
        """The table's columns, from a row; NULL for a column that the row's layout does not have."""
        values = self._rows.values(payload)
        return values if self._same else [None if i is None else values[i] for i in self._sources]

    def whole_puts(self, changes: Sequence[Change], at: int, marks: Marks) -> list[tuple[SqlValue, ...]]:
        """Parameters of an upsert for each change from `at` on that is one of a whole row in this layout."""
        return self._rows.whole_puts(changes, at, marks.generation) if self._same else []

    def key(self, key: bytes) -> list[SqlValue]:
        """The values of the key's columns."""
        return [convert(text) for convert, text in zip(self._key, key_texts(key), strict=True)]

    def sent(self, unchanged: bytes) -> list[int]:
        """Indexes of the table's columns whose value the change carries."""
        bits = int.from_bytes(unchanged, "little")
        return [index for index, source in enumerate(self._sources) if source is None or not bits >> source & 1]


def declared_type(column: Column) -> str:
    """The type that a column is declared with."""
    if column.type_oid in _INTEGERS:
        return "INTEGER"
    if column.type_oid in _FLOATS:
        return "REAL"
    return "BLOB" if column.type_oid == _BYTEA else "TEXT"


def _converter(column: Column) -> Callable[[object], SqlValue] | None:
    """From the raw Avro value; None where that is what SQLite takes."""
    native = NATIVE.get(column.type_oid)
    if native is None or native.text_like or column.type_oid in _INTEGERS or column.type_oid == _BYTEA:
        return None
    return native.json if column.type_oid in _FLOATS else native.text  # type: ignore[return-value]  # a float or a text


def _text_converter(column: Column) -> Callable[[str], SqlValue]:
    """From canonical text, as keys have it."""
    if column.type_oid == 16:
        return lambda text: int(text == "t")
    if column.type_oid in _INTEGERS:
        return int
    if column.type_oid in _FLOATS:
        return lambda text: text if text in ("NaN", "Infinity", "-Infinity") else float(text)
    if column.type_oid == _BYTEA:
        return lambda text: bytes.fromhex(text[2:])
    return str
