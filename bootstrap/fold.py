"""The seeding rule, as functions from an entry and what arrives to the entry that follows. No I/O.

Two streams meet at a key while its table is seeded: the log's events from P0 on, in commit order, and rows that
chunks read in snapshots taken at any time after everything up to P0 was visible. Neither waits for the other, so
either may be ahead. What decides is never the order of arrival, but whether the snapshot S of a chunk *sees* the
transaction X of an event:

    entry is from          arrives                 result
    -                      event                   the event's state (an update is an upsert)
    -                      row read in S           the row, with seq(P0)
    event X                later event             the later event's state
    event X                row read in S, sees X   the row (it holds X, perhaps more); the seq stays
    event X                row, S blind to X       the entry, a tombstone too; the row fills its missing columns
    row read in S          event X, S sees X       the row, with X's seq
    row read in S          event X, S blind to X   the event's state, its unchanged columns from the row
    row read in S          row read in S'          the later snapshot's

A key change is a delete at the old key and an insert at the new one, each under this table by itself. The values that
PostgreSQL did not send come from the old key's entry; if it does not have them, they stay missing until the key is
read again, for a chunk's row of the *new* key may be another row that had this key before.

A net difference (`walbus.bootstrap.telling`) is an event that no transaction made, so every snapshot sees it. It says
what the row is behind the last event that touched the key, and so it stands for that one: a chunk's row counts if its
snapshot sees X, whose entry the difference has corrected.

TRUNCATE by X removes every entry except those from snapshots that see X, and shuts out rows whose snapshot does not.

`docs/bootstrap.md` explains why each line is needed, and the model test holds a schedule for each that breaks without
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot

#: The xid of a net difference.
NO_TRANSACTION = 0


@dataclass(frozen=True, slots=True)
class Upsert:
    """An insert or update of one key.

    Attributes:
        seq, schema_id, row: of the new state, `row` as Avro bytes.
        unchanged: bitmap of the columns that were not sent.
        origin: the transaction.
    """

    seq: int
    schema_id: int
    row: bytes
    unchanged: bytes
    origin: FromEvent


@dataclass(frozen=True, slots=True)
class Removal:
    """A delete of one key."""

    seq: int
    schema_id: int
    origin: FromEvent


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One row that a chunk read.

    Attributes:
        seq: seq(P0), what a row has that no event has touched.
        schema_id, row: the row as Avro bytes; always whole.
        origin: the chunk's snapshot.
    """

    seq: int
    schema_id: int
    row: bytes
    origin: FromSnapshot


#: Fills columns of a row from another state of the same row, by name: (schema id, row, bitmap to fill, the other
#: state) -> (row, bitmap of what the other state did not have either).
Fill = Callable[[int, bytes, bytes, Entry], tuple[bytes, bytes]]


def holds(entry: Entry | None, origin: FromEvent) -> bool:
    """Whether the entry's row was read in a snapshot that already saw the transaction."""
    return entry is not None and isinstance(entry.origin, FromSnapshot) and entry.origin.snapshot.sees(origin.xid)


def fold_upsert(entry: Entry | None, event: Upsert, fill: Fill) -> Entry:
    """What an insert, or an update that keeps its key, makes of the key's entry."""
    if entry is not None and holds(entry, event.origin):
        return replace(entry, seq=event.seq)
    return _applied(event, entry, fill, moved=False)


def fold_removal(entry: Entry | None, event: Removal) -> Entry:
    """What a delete makes of the key's entry. An absent key gets a tombstone too: a chunk may still bring its row."""
    if entry is not None and holds(entry, event.origin):
        return replace(entry, seq=event.seq)
    return Entry(event.seq, event.schema_id, None, _origin(entry, event.origin))


def fold_key_change(old: Entry | None, new: Entry | None, event: Upsert, fill: Fill) -> tuple[Entry, Entry]:
    """What an update that changes the key makes of the entries of the old key and of the new one."""
    removed = fold_removal(old, Removal(event.seq, event.schema_id, event.origin))
    if new is not None and holds(new, event.origin):
        return removed, replace(new, seq=event.seq)
    before = None if holds(old, event.origin) else old
    return removed, _applied(event, before, fill, moved=True)


def fold_chunk_row(entry: Entry | None, row: ChunkRow, fill: Fill) -> Entry:
    """What a chunk's row makes of the key's entry."""
    if entry is None:
        return Entry(row.seq, row.schema_id, row.row, row.origin)
    snapshot = row.origin.snapshot
    if isinstance(entry.origin, FromSnapshot):
        newer = snapshot.is_later_than(entry.origin.snapshot)
        return Entry(entry.seq, row.schema_id, row.row, row.origin) if newer else entry
    if snapshot.sees(entry.origin.xid):
        return Entry(entry.seq, row.schema_id, row.row, row.origin)
    if entry.row is None or not entry.missing or entry.moved:
        return entry
    filled, missing = fill(entry.schema_id, entry.row, entry.missing, Entry(0, row.schema_id, row.row, row.origin))
    return replace(entry, row=filled, missing=missing)


def survives_truncate(entry: Entry, origin: FromEvent) -> bool:
    """Whether an entry stays when a TRUNCATE arrives: it was read in a snapshot that saw the table emptied."""
    return holds(entry, origin)


def admitted(origin: FromSnapshot, truncated_by: FromEvent | None) -> bool:
    """Whether a chunk's rows still count after the table's last TRUNCATE.

    The last one speaks for all: each held the table's exclusive lock until it was visible, so whoever sees the last
    sees every earlier one.
    """
    return truncated_by is None or origin.snapshot.sees(truncated_by.xid)


def _applied(event: Upsert, before: Entry | None, fill: Fill, *, moved: bool) -> Entry:
    """The event's state, what was not sent taken from the row's state before it, as far as that is known."""
    origin = _origin(before, event.origin)
    if not event.unchanged:
        return Entry(event.seq, event.schema_id, event.row, origin)
    if before is None or before.row is None:
        return Entry(event.seq, event.schema_id, event.row, origin, event.unchanged, moved)
    row, missing = fill(event.schema_id, event.row, event.unchanged, before)
    return Entry(event.seq, event.schema_id, row, origin, missing, bool(missing) and (moved or before.moved))


def _origin(before: Entry | None, origin: FromEvent) -> FromEvent:
    """The transaction that chunks' rows are weighed against from now on."""
    if origin.xid == NO_TRANSACTION and before is not None and isinstance(before.origin, FromEvent):
        return before.origin
    return origin
