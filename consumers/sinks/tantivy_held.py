"""Documents of a tantivy index as the rows that `walbus verify --sink` compares."""

from __future__ import annotations

from collections.abc import Sequence

from walbus.consumers.sinks.base import HeldRow
from walbus.consumers.sinks.tantivy_documents import columns_of, key_of
from walbus.consumers.sinks.tantivy_reading import StoredDocument


def held_of(together: Sequence[StoredDocument], table: str, key_columns: int) -> HeldRow:
    """What a table has under one name.

    A document without a version, or without the table's name, is none of the sink's. One whose name is none of the
    table's has a key of more texts than the table's own. Several documents with one name are no row's, whatever they
    are.
    """
    first, *others = together
    key = key_of(first.name or "", table)
    if key is None or len(key) != key_columns:
        key = (*("_id",) * key_columns, first.name or "")
    seqs = [one.seq for one in together if one.seq is not None and one.mark is not None and table in one.tables]
    if others or len(first.tables) != 1:
        return HeldRow(key, max(seqs, default=None), (len(together), *sorted(first.tables)))
    return told(key, max(seqs, default=None), first.tables[0], first.source)


def told(key: tuple[str, ...], seq: int | None, table: str, source: bytes) -> HeldRow:
    """A document of this `_source` as it is held."""
    columns = columns_of(source)
    if columns is None:
        return HeldRow(key, seq, ())
    return HeldRow(key, seq, (table, *sorted((name, bytes(value)) for name, value in columns.items())))


__all__ = ["held_of", "told"]
