"""How one layout of a table differs from the next, as far as two column lists can tell.

PostgreSQL sends columns without their numbers, so a rename has to be recognised: two layouts of the same length
whose columns differ in name at the same place, with the same type, and neither name occurs in the other layout.
Anything else that is missing was dropped, and anything else that is new was added. (A column dropped and another of
the same type added at its very place, between two versions, would be taken for a rename; PostgreSQL adds at the end.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from walbus.schema import Column, TableSchema

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """What must be done to a table of the old layout.

    Attributes:
        renamed: (old name, new name).
        dropped: old names.
        added: new columns.
        retyped: columns whose type is another, by their new name.
        rekeyed: whether the key consists of other columns, or its columns have other types.
    """

    renamed: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    added: tuple[Column, ...]
    retyped: tuple[Column, ...]
    rekeyed: bool


def layout_change(old: TableSchema, new: TableSchema) -> LayoutChange:
    """The way from one layout to another of the same table."""
    renames = _renames(old, new)
    before = {renames.get(column.name, column.name): column for column in old.columns}
    now = {column.name: column for column in new.columns}
    retyped = tuple(c for name, c in now.items() if name in before and before[name].type_oid != c.type_oid)
    return LayoutChange(
        renamed=tuple(renames.items()),
        dropped=tuple(name for name in before if name not in now),
        added=tuple(column for name, column in now.items() if name not in before),
        retyped=retyped,
        rekeyed=_key(old, renames) != _key(new, {}),
    )


def sources(row: TableSchema, table: TableSchema) -> list[int | None]:
    """For each column of the table's layout: its index in a row of another layout; None if that has no such column."""
    renames = _renames(row, table)
    indexes = {renames.get(column.name, column.name): index for index, column in enumerate(row.columns)}
    return [indexes.get(column.name) for column in table.columns]


def fitted(row: Mapping[str, T], change: LayoutChange) -> dict[str, T]:
    """A row of the old layout with the new one's names, without what was dropped; added columns are not in it."""
    renamed, dropped = dict(change.renamed), set(change.dropped)
    return {renamed.get(name, name): value for name, value in row.items() if name not in dropped}


def _renames(old: TableSchema, new: TableSchema) -> dict[str, str]:
    if len(old.columns) != len(new.columns):
        return {}
    was, names = {c.name for c in old.columns}, {c.name for c in new.columns}
    return {
        a.name: b.name
        for a, b in zip(old.columns, new.columns, strict=True)
        if a.name != b.name and a.type_oid == b.type_oid and a.name not in names and b.name not in was
    }


def _key(schema: TableSchema, renames: dict[str, str]) -> list[tuple[str, int]]:
    columns = (schema.columns[index] for index in schema.key_indexes)
    return [(renames.get(column.name, column.name), column.type_oid) for column in columns]
