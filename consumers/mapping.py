"""What a sink gets of a table instead of its rows as they are: chosen, renamed and added columns. Pure.

A `TableMapper` makes changes of one table into changes of another layout, which stands under the same name and number.
Chosen columns go over as the bytes that they are; nothing is decoded unless a function asks for the row. The layout
begins with the columns that identify a row, in the order in which `id` names them: sinks make their keys and document
ids of those. They are the table's key, so that a delete, which has nothing else, finds its row, and constants.

A function gets the row by its columns' names as Python values, and returns the columns that it sets; `fields` declares
those that it adds. It is not given a long value that did not change and was not sent, and what it leaves out of such a
row stays as it is in the sink. For None the row is not wanted: it is deleted where the sink may have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from walbus.consumers.mapping_values import TYPES, constant_column, text_of
from walbus.consumers.refused_rows import RefusedRow, RowRefused, row_of
from walbus.errors import ConfigError, SinkRefused
from walbus.events import Change, Window
from walbus.keys import encode_key, key_texts
from walbus.records import Kind, Op, RawChange, key_hash
from walbus.schema import Column, ReplicaIdentity, TableSchema
from walbus.table_mapping import TableMapping
from walbus.values import decode_row, row_encoder, row_texts
from walbus.values.merge import split_row

RowFunction = Callable[[dict[str, Any]], Mapping[str, Any] | None]

_NULL = b"\x00"
_ROW_OPS = frozenset((Op.INSERT, Op.UPDATE, Op.DELETE))


class MappedLayout:
    """A layout of the source and the one that sinks see.

    Args:
        source: the source's.
        mapping: what is made of it.
        where: the configuration's key, for errors.

    Attributes:
        source, layout: both.

    Raises:
        ConfigError: the mapping does not fit the table.
    """

    def __init__(self, source: TableSchema, mapping: TableMapping, where: str) -> None:
        self.source, self._where = source, where
        places = {column.name: index for index, column in enumerate(source.columns)}
        chosen = list(mapping.columns) or list(places)
        self._check(mapping, places, chosen)
        names = {name: mapping.rename.get(name, name) for name in chosen}
        columns: dict[str, tuple[Column, int | None, bytes]] = {}
        for name in chosen:
            column = replace(source.columns[places[name]], name=names[name])
            self._add(columns, column, places[name], _NULL)
        for name, value in mapping.constants.items():
            column, text = constant_column(name, value)
            self._add(columns, column, None, encoded(column, text))
        for name, kind in mapping.fields.items():
            self._add(columns, Column(name, TYPES[kind][0], TYPES[kind][1], -1, in_key=False), None, _NULL)
        identity = self._identity(mapping, names, columns)
        ordered = [*mapping.id, *(name for name in columns if name not in mapping.id)]
        self.layout = replace(
            source, columns=tuple(replace(columns[name][0], in_key=name in identity) for name in ordered)
        )
        self._parts = [columns[name][1:] for name in ordered]
        self._key = [self._key_part(*columns[name]) for name in identity]
        self._same_key = [part for part, _ in self._key] == list(range(len(source.key_indexes)))

    def _add(
        self, columns: dict[str, tuple[Column, int | None, bytes]], column: Column, place: int | None, part: bytes
    ) -> None:
        if column.name in columns:
            raise ConfigError(f"two columns are called {column.name!r}", where=self._where, mend="rename one of them")
        columns[column.name] = column, place, part

    def _check(self, mapping: TableMapping, places: Mapping[str, int], chosen: Sequence[str]) -> None:
        unknown = [name for name in [*mapping.columns, *mapping.rename] if name not in places]
        if unknown:
            what = f"{self.source.table} has no column {unknown[0]!r}"
            raise ConfigError(what, where=self._where, mend=f"its columns are {', '.join(places)}")
        left_out = [self.source.columns[i].name for i in self.source.key_indexes]
        left_out = [name for name in left_out if name not in chosen]
        if left_out:
            what = f"columns leaves out {left_out[0]!r}, which is in the table's key"
            raise ConfigError(what, where=self._where, mend="add it: a row is found by its key")

    def _identity(
        self, mapping: TableMapping, names: Mapping[str, str], columns: Mapping[str, object]
    ) -> tuple[str, ...]:
        key = tuple(names[self.source.columns[index].name] for index in self.source.key_indexes)
        if not mapping.id:
            return tuple(name for name in columns if name in key)
        allowed = {*key, *mapping.constants}
        for name in mapping.id:
            if name not in allowed:
                what = f"id names {name!r}, which is neither in the table's key nor a constant"
                mend = f"name columns of {', '.join(allowed) or 'a key, which the table has not'}"
                raise ConfigError(what, where=f"{self._where}.id", mend=mend)
        missing = [name for name in key if name not in mapping.id]
        if missing or not key:
            what = f"id leaves out {missing[0]!r}: two rows would be one" if missing else "the table has no key"
            raise ConfigError(what, where=f"{self._where}.id", mend="name every column of the table's key")
        return tuple(mapping.id)

    def _key_part(self, column: Column, place: int | None, part: bytes) -> tuple[int, bytes]:
        """Where a part of the key comes from: its index in the source's key, or -1 and the text itself."""
        if place is not None:
            return self.source.key_indexes.index(place), b""
        text = decode_text(column, part)
        return -1, text

    # Changes

    def row(self, payload: bytes) -> bytes:
        """A row of the source as one of the mapped layout."""
        parts = split_row(self.source, payload)
        return b"".join([part if place is None else parts[place] for place, part in self._parts])

    def key(self, key: bytes) -> bytes:
        """A key of the source as one of the mapped layout."""
        if self._same_key:
            return key
        texts = key_texts(key)
        parts = [text if place < 0 else texts[place].encode() for place, text in self._key]
        return encode_key(parts, [self.layout.columns[index].type_oid for index in self.layout.key_indexes])

    def unchanged(self, bitmap: bytes) -> bytes:
        """Which columns of the mapped layout were not sent."""
        bits = int.from_bytes(bitmap, "little")
        return bitmap_of(
            (place is not None and bits >> place & 1 for place, _ in self._parts), len(self.layout.columns)
        )


def bitmap_of(marked: Iterable[bool | int], width: int) -> bytes:
    """A bitmap as changes have it; empty where nothing is marked."""
    bits = sum(1 << index for index, mark in enumerate(marked) if mark)
    return bits.to_bytes((width + 7) // 8, "little") if bits else b""


def encoded(column: Column, text: str | None) -> bytes:
    """One value as it stands in a row."""
    if text is None:
        return _NULL
    alone = TableSchema(0, 0, "", "", ReplicaIdentity.DEFAULT, (column,))
    return row_encoder(alone).encode([text.encode()])


def decode_text(column: Column, part: bytes) -> bytes:
    """The canonical text of one value as it stands in a row."""
    alone = TableSchema(0, 0, "", "", ReplicaIdentity.DEFAULT, (column,))
    text = row_texts(alone, part)[0]
    return (text or "").encode()


class TableMapper:
    """Changes of one table, mapped.

    Args:
        mapping: what is made of them.
        where: the configuration's key, for errors.
        function: what `mapping.function` names.
    """

    def __init__(self, mapping: TableMapping, where: str, function: RowFunction | None) -> None:
        self._mapping, self._where, self._function = mapping, where, function
        self._layouts: dict[tuple[int, int], MappedLayout] = {}

    def layout(self, source: TableSchema) -> MappedLayout:
        """The layout that sinks see of one of the source.

        Raises:
            ConfigError: the mapping does not fit the table.
        """
        key = (source.id, source.fingerprint)
        known = self._layouts.get(key)
        if known is None:
            known = self._layouts[key] = MappedLayout(source, self._mapping, self._where)
        return known

    def changes(self, change: Change, *, snapshot: bool) -> list[Change]:
        """What a sink gets for one change; `snapshot` says that it is a row of a snapshot.

        Raises:
            ConfigError: the mapping does not fit the table.
            RowRefused: the function raised, or returned what no column takes.
        """
        if change.schema is None:
            return [change]
        mapped = self.layout(change.schema)
        raw = change.raw
        if raw.op not in _ROW_OPS:
            return [replace_schema(change, raw, mapped.layout)]
        key = None if raw.key is None else mapped.key(raw.key)
        made = raw._replace(
            key=key,
            key_hash=raw.key_hash if key is None else key_hash(key),
            old_key=None if raw.old_key is None else mapped.key(raw.old_key),
            unchanged=mapped.unchanged(raw.unchanged) if raw.unchanged else raw.unchanged,
            after=None if raw.after is None else mapped.row(raw.after),
            before=None if raw.before is None else mapped.row(raw.before),
        )
        result = replace_schema(change, made, mapped.layout)
        return [result] if self._function is None else self._asked(result, snapshot=snapshot)

    # The function

    def _asked(self, change: Change, *, snapshot: bool) -> list[Change]:
        raw, layout = change.raw, change.schema
        if layout is None:
            return [change]
        if raw.before is not None and raw.key is None:  # a row without a key is found by what the function made of it
            before = self._called(change, layout, raw.before, b"")[0]
            if before is None and raw.op == Op.DELETE:
                return []
            raw = raw._replace(before=before, op=Op.INSERT if before is None else raw.op)
        if raw.after is None:
            return [replace_schema(change, raw, layout)]
        after, unchanged = self._called(change, layout, raw.after, raw.unchanged)
        if after is not None:
            return [replace_schema(change, raw._replace(after=after, unchanged=unchanged), layout)]
        if snapshot or (raw.key is None and raw.op == Op.INSERT):
            return []
        gone = raw._replace(op=Op.DELETE, after=None, unchanged=b"", old_key=None)
        deletes = [replace_schema(change, gone, layout)]
        if raw.old_key is not None:
            old = gone._replace(key=raw.old_key, key_hash=key_hash(raw.old_key))
            deletes.insert(0, replace_schema(change, old, layout))
        return deletes

    def _called(
        self, change: Change, layout: TableSchema, payload: bytes, unchanged: bytes
    ) -> tuple[bytes | None, bytes]:
        """The row with what the function sets, and what is not sent of it; None: it is not wanted."""
        bits = int.from_bytes(unchanged, "little")
        unsent = {column.name for index, column in enumerate(layout.columns) if bits >> index & 1}
        row = {name: value for name, value in decode_row(layout, payload).items() if name not in unsent}
        given = {name: value for name, value in row.items() if name not in self._mapping.fields}
        result = self._call(change, dict(given))
        if result is None:
            return None, b""
        set_ = {name: value for name, value in result.items() if name not in given or value is not given[name]}
        self._check(change, layout, set_)
        parts = split_row(layout, payload)
        for index, column in enumerate(layout.columns):
            if column.name in set_:
                parts[index] = self._part(change, column, set_[column.name])
        still = (
            column.name not in set_ and (column.name in unsent or (bits and column.name in self._mapping.fields))
            for column in layout.columns
        )
        return b"".join(parts), bitmap_of(still, len(layout.columns))

    def _call(self, change: Change, row: dict[str, Any]) -> Mapping[str, Any] | None:
        if self._function is None:
            return row
        try:
            result = self._function(row)
        except (Exception, SystemExit) as error:  # a process that ends so tells neither row nor table
            raise self._refused(f"the function raised {type(error).__name__}", change) from None
        if result is not None and not isinstance(result, Mapping):
            raise self._refused(f"the function returned {type(result).__name__} instead of a dict or None", change)
        return result

    def _check(self, change: Change, layout: TableSchema, set_: Mapping[str, Any]) -> None:
        columns = {column.name: column for column in layout.columns}
        for name in set_:
            if name not in columns:
                raise self._refused(f"the function set {name!r}, which is no column; declare it in fields", change)
            if columns[name].in_key:
                raise self._refused(f"the function set {name!r}, which identifies the row", change)

    def _part(self, change: Change, column: Column, value: object) -> bytes:
        try:
            return encoded(column, text_of(value, column.type_oid))
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise self._refused(f"column {column.name!r} ({column.type_name}) does not take a {kind}", change) from None

    def _refused(self, what: str, change: Change) -> RowRefused:
        where, mend = f"{change.table} at {change.position}", f"correct the function {self._mapping.function}"
        return RowRefused(what, where=where, mend=mend, row=row_of(change))


def replace_schema(change: Change, raw: RawChange, layout: TableSchema) -> Change:
    """The change with other contents, and the layout that they have."""
    return Change(raw, layout, change.position, change.seq)


class Mapper:
    """All tables of a consumer; those without a mapping pass as they are.

    Args:
        tables: mappers by `namespace.name`.
    """

    def __init__(self, tables: Mapping[str, TableMapper]) -> None:
        self._tables = tables
        self._mapped: dict[int, str] = {}  # relations that were mapped, and under which name

    def window(self, window: Window) -> Window:
        """A window as sinks see it; raises as `TableMapper.changes`.

        Raises:
            SinkRefused: a table that was mapped has another name now.
        """
        if not self._tables:
            return window
        snapshot = window.kind is Kind.SNAPSHOT
        changes: list[Change] = []
        for change in window.changes:
            mapper = self._tables.get(change.table)
            if mapper is not None:
                self._mapped[change.raw.table] = change.table
                changes += mapper.changes(change, snapshot=snapshot)
            elif change.schema is not None and change.raw.table in self._mapped:
                raise self._renamed(change)
            else:
                changes.append(change)
        return replace(window, changes=changes)

    def row_of(self, change: Change) -> RefusedRow:
        """The row of a change as errors name it, of a sink too: by the key that it is mapped to."""
        mapper, row = self._tables.get(change.table), row_of(change)
        if mapper is None or change.schema is None or change.raw.key is None or change.raw.op not in _ROW_OPS:
            return row
        return row._replace(key=mapper.layout(change.schema).key(change.raw.key))

    def _renamed(self, change: Change) -> SinkRefused:
        """Its rows would come with columns that were left out on purpose."""
        what = f"{self._mapped[change.raw.table]}, which has a mapping, is called {change.table} now"
        return SinkRefused(what, where=f"{change.table} at {change.position}", mend="name it so in the mapping")
