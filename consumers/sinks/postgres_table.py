"""One table of the PostgreSQL replica: its name, its SQL, and the values that go into it. Pure.

Every statement takes arrays, one a column, and so writes thousands of rows at once. Two columns are added to the
source's own: the row's seq and its mark. They are called `_walbus_seq` and `_walbus_mark`, with more underscores behind
where the source has columns of these names. A table without a key has the seq as its primary key: a row comes once, and
never changes place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from walbus.consumers.checkpoint import Marks
from walbus.consumers.sinks.layout import sources
from walbus.consumers.sinks.postgres_pending import Gone, Put
from walbus.consumers.sinks.postgres_types import array_literal, equality, takes, texts_of, travels_as
from walbus.keys import key_texts
from walbus.schema import TableSchema
from walbus.values.decode import row_reader

SEQ, MARK = "_walbus_seq", "_walbus_mark"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class ReplicaTable:
    """A table as it stands in the target.

    Attributes:
        layout: the newest that its rows had.
        log_generation: `Marks.log_generation` when that layout came: its number counts only within one log.
        namespace, name: what it is called in the target.
        types: the type that each column is declared with, in SQL.
        seq, mark: names of the columns that are the sink's own.
    """

    layout: TableSchema
    log_generation: int
    namespace: str
    name: str
    types: tuple[str, ...]
    seq: str = SEQ
    mark: str = MARK

    @property
    def oid(self) -> int:
        """The relation's OID in the source."""
        return self.layout.oid

    @cached_property
    def sql(self) -> str:
        """The table's name in SQL."""
        return f"{quoted(self.namespace)}.{quoted(self.name)}"

    @property
    def names(self) -> list[str]:
        """All of its columns, the sink's own too."""
        return [*(column.name for column in self.layout.columns), self.seq, self.mark]

    @cached_property
    def keyed(self) -> bool:
        """Whether rows have a key."""
        return bool(self.layout.key_indexes)

    @cached_property
    def columns(self) -> list[str]:
        """The source's columns in SQL, in order."""
        return [quoted(column.name) for column in self.layout.columns]

    @cached_property
    def key(self) -> list[str]:
        """The primary key's columns in SQL."""
        return [self.columns[index] for index in self.layout.key_indexes] or [quoted(self.seq)]

    def supersedes(self, other: TableSchema, marks: Marks) -> bool:
        """Whether a layout is no newer than the table's."""
        return (marks.log_generation, other.id) <= (self.log_generation, self.layout.id)

    def with_own_names(self, before: set[str]) -> ReplicaTable:
        """The table with names of the sink's own columns that no column of the source has, or had `before`."""
        names = before | {column.name for column in self.layout.columns}
        return replace(self, seq=_free(self.seq, names), mark=_free(self.mark, names))

    @cached_property
    def create(self) -> str:
        """Makes the table."""
        parts = [f"{name} {declared}" for name, declared in zip(self.columns, self.types, strict=True)]
        parts += [f"{quoted(self.seq)} int8 NOT NULL", f"{quoted(self.mark)} int8 NOT NULL"]
        return f"CREATE TABLE {self.sql} ({', '.join(parts)}, PRIMARY KEY ({', '.join(self.key)}))"

    # Statements. Parameters: an array for each column (of `puts` or `keys` below), then one of seqs

    def upsert(self, marks: Marks, *, or_equal: bool) -> str:
        """Writes whole rows over older ones (or those of the same version as well)."""
        own = [quoted(self.seq), quoted(self.mark)]
        names, every = ", ".join([*self.columns, *own]), range(len(self.columns))
        sets = ", ".join(f"{name} = excluded.{name}" for name in [*self.columns, *own])
        newer = f"excluded.{own[0]} {'>=' if or_equal else '>'} t.{own[0]}"
        return (
            f"INSERT INTO {self.sql} AS t ({names}) SELECT v.*, {marks.generation} FROM {self._rows(every)} AS v "
            f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {sets} "
            f"WHERE {newer} OR t.{own[1]} < {marks.log_generation}"
        )

    def update(self, indexes: Sequence[int], marks: Marks) -> str:
        """Writes some columns (these and the key's) of older rows."""
        sets = [f"{self.columns[index]} = v.c{index}" for index in indexes]
        sets += [f"{quoted(self.seq)} = v.seq", f"{quoted(self.mark)} = {marks.generation}"]
        taken = sorted({*indexes, *self.layout.key_indexes})
        return f"UPDATE {self.sql} AS t SET {', '.join(sets)} FROM {self._rows(taken)} AS v WHERE {self._older(marks)}"

    def delete(self, marks: Marks) -> str:
        """Deletes older rows, by key."""
        return (
            f"DELETE FROM {self.sql} AS t USING {self._rows(self.layout.key_indexes)} AS v WHERE {self._older(marks)}"
        )

    @cached_property
    def absent(self) -> str:
        """Which keys have no row; gives the seqs that came with them."""
        keys = self._rows(self.layout.key_indexes)
        return f"SELECT v.seq FROM {keys} AS v WHERE NOT EXISTS (SELECT FROM {self.sql} AS t WHERE {self._same_key})"

    @cached_property
    def select(self) -> str:
        """The columns as text, seq and mark of one row, by key."""
        texts = [f"t.{name}::text" for name in self.columns]
        own = [f"t.{quoted(self.seq)}", f"t.{quoted(self.mark)}"]
        keys = self._rows(self.layout.key_indexes)
        return f"SELECT {', '.join([*texts, *own])} FROM {keys} AS v JOIN {self.sql} AS t ON {self._same_key}"

    @cached_property
    def delete_equal(self) -> str:
        """Deletes one row with these values (texts, one parameter a column) from a table without a key."""
        same = " AND ".join(
            equality(column.type_oid, declared, name, f"${number}::text")
            for number, (column, declared, name) in enumerate(
                zip(self.layout.columns, self.types, self.columns, strict=True), 1
            )
        )
        one = f"SELECT ctid FROM {self.sql} WHERE {same or 'true'} LIMIT 1"
        return f"DELETE FROM {self.sql} WHERE ctid = ({one})"

    def truncate(self, marks: Marks) -> str:
        """Deletes all rows that are older (than seq)."""
        older = f"{quoted(self.seq)} < $1::int8 OR {quoted(self.mark)} < {marks.log_generation}"
        return f"DELETE FROM {self.sql} WHERE {older}"

    def sweep(self, marks: Marks) -> str:
        """Deletes rows that the snapshot did not mark and that are no newer (than seq)."""
        seq, mark = quoted(self.seq), quoted(self.mark)
        ghosts = f"({seq} <= $1::int8 OR {mark} < {marks.log_generation})"
        return f"DELETE FROM {self.sql} WHERE {mark} < {marks.generation} AND {ghosts}"

    # Parameters

    def puts(self, rows: Sequence[Put], indexes: Sequence[int]) -> list[str]:
        """Rows as parameters: their columns with these indexes, and seqs."""
        types = [self.layout.columns[index].type_oid for index in indexes]
        values = [texts_of(oid, [row.values[i] for row in rows]) for oid, i in zip(types, indexes, strict=True)]
        return [*map(array_literal, values), _seqs(row.seq for row in rows)]

    def keys(self, keys: Sequence[Gone]) -> list[str]:
        """Keys as parameters, and seqs."""
        values = [[gone.key[part] for gone in keys] for part in range(len(self.layout.key_indexes))]
        return [*map(array_literal, values), _seqs(gone.seq for gone in keys)]

    def _rows(self, indexes: Sequence[int]) -> str:
        """The parameters as a table with columns `c0`, `c1`, …, `seq`."""
        travel = [travels_as(self.layout.columns[index].type_oid, self.types[index]) for index in indexes]
        arrays = [f"${number}::{kind or 'text'}[]" for number, kind in enumerate(travel, 1)]
        names = [f"c{index}" for index in indexes]
        given = ", ".join([*arrays, f"${len(arrays) + 1}::int8[]"])
        casts = [
            name if kind else f"{name}::{self.types[index]} AS {name}"
            for index, name, kind in zip(indexes, names, travel, strict=True)
        ]
        return f"(SELECT {', '.join([*casts, 'seq'])} FROM unnest({given}) AS u ({', '.join([*names, 'seq'])}))"

    def _older(self, marks: Marks) -> str:
        older = f"t.{quoted(self.seq)} < v.seq OR t.{quoted(self.mark)} < {marks.log_generation}"
        return f"{self._same_key} AND ({older})"

    @cached_property
    def _same_key(self) -> str:
        return " AND ".join(f"t.{self.columns[index]} = v.c{index}" for index in self.layout.key_indexes)


class RowForm:
    """Rows of one layout as values for a table's columns: raw where the layouts are the same, and else as texts.

    Args:
        row: the layout that the rows have.
        table: where they go.

    Attributes:
        rekeyed: whether a column of the table's key has a type, now, that may not have the row's value. The value is
            given all the same, as text: without it nobody finds the row again.
    """

    def __init__(self, row: TableSchema, table: ReplicaTable) -> None:
        reader = row_reader(row)
        self._raw, self._texts = reader.raw, reader.texts
        self._same = row.id == table.layout.id
        self._sources: list[int | None] = []
        self.rekeyed = False
        columns = zip(sources(row, table.layout), table.layout.columns, table.types, strict=True)
        for index, (source, column, declared) in enumerate(columns):
            fits = source is None or takes(column.type_oid, declared, row.columns[source].type_oid)
            in_key = index in table.layout.key_indexes
            self._sources.append(source if fits or in_key else None)
            self.rekeyed = self.rekeyed or (in_key and (source is None or not fits))

    def values(self, payload: bytes) -> list[object]:
        """The table's columns, from a row; None for one that the row's layout does not have, or with another type."""
        if self._same:
            return self._raw(payload)
        values = self._texts(payload)
        return [None if i is None else values[i] for i in self._sources]

    def texts(self, payload: bytes) -> list[str | None]:
        """The same as texts."""
        values = self._texts(payload)
        return [None if i is None else values[i] for i in self._sources]

    def sent(self, unchanged: bytes) -> frozenset[int]:
        """Indexes of the table's columns whose value the change carries."""
        bits = int.from_bytes(unchanged, "little")
        return frozenset(i for i, source in enumerate(self._sources) if source is None or not bits >> source & 1)


def key_values(key: bytes) -> list[str | None]:
    """The texts of a key's columns."""
    return [*key_texts(key)]


def _seqs(seqs: Iterable[int]) -> str:
    return "{" + ",".join(map(str, seqs)) + "}"


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
