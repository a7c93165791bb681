"""Deltas: the last version of each key that changed since a place of the log, deletes included. Bytes out, no sockets.

A delta behind a seq is the log from there to the store's position with all but the last change of each key taken out.
It is read through the change index, in the order of the seqs, so its cost is that of the keys that changed, however
often each of them did. A place whose seq is not its entry's is stale: the key stands again at a later one. Many places
are read together, and only the last of each key is looked up; stale ones go in time (`walbus.bootstrap.upkeep`).

**Complete** it is for whoever has done everything up to a place that lies behind the table's horizon. Rows that chunks
read have no place in the index; they are as old as P0, where the generation began to fold, or older. So nothing is
missing behind P0: what changed there was changed by events. Below it something may be, and the reader is told to take a
snapshot. Two more things raise the horizon:

- an event that told that rows had changed without events, if the generation had read them already (`told_at`): who has
  not seen that event lacks those rows, and this delta does not have them;
- tombstones that were purged, with all that is older.

The place must lie *behind* the horizon, not at it: events stand at the position of the change before them, so of a
reader that is there nobody knows whether it has seen them.

**TRUNCATE** takes entries and places with it; a table that was emptied behind the reader's place begins with it.

**Resumed** it is behind the last seq that was dealt with, in any later process: that is another delta, which goes on
from there to a later position. A key of the first part that changed since comes again, with a larger seq. So a delta in
several parts is whole at the *last* part's position, unlike a snapshot. The two sides of a key change have one seq, and
are never parted by the end of a record: who has dealt with a record may go on behind its last seq.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from walbus.bootstrap.entry import served_version
from walbus.bootstrap.horizon import HORIZON
from walbus.bootstrap.horizon import Horizon as TombstoneHorizon
from walbus.bootstrap.serving import LOOKED_AT, RECORD_BYTES, Batch, ServedView
from walbus.bootstrap.state import TableState, decode
from walbus.bootstrap.store import space_of
from walbus.native.reading import WHOLE, Partition
from walbus.position import ORIGIN, Position, parse_position
from walbus.records import Flag, Kind, Op, key_hash

_PAGE = 50_000  # places that are looked at together: of one key only the last can be no stale one
_LOOKED_UP = 1_000  # entries that are looked up together


class Since(NamedTuple):
    """Where a reader of a delta is.

    Attributes:
        seq: it has every change of the table up to this one.
        position: it had done the whole log up to here ("last done") when it began; None if it does not say.
    """

    seq: int
    position: Position | None = None


class Horizon(NamedTuple):
    """Deltas are complete for readers that are behind this place of the log."""

    position: Position
    seq: int

    def is_before(self, since: Since) -> bool:
        """Whether a delta since there is complete."""
        return since.seq > self.seq if since.position is None else since.position > self.position


#: Below every place.
NOWHERE = Horizon(ORIGIN, -1)


def horizon_of(table: TableState, purged: Horizon = NOWHERE) -> Horizon:
    """Where a table's deltas begin to be complete.

    Args:
        table: its state.
        purged: tombstones up to here may be gone.
    """
    places = [Horizon(parse_position(table.p0), table.seq_p0), purged]
    if table.told_at:
        places.append(Horizon(parse_position(table.told_at), table.told_seq))
    return Horizon(max(place.position for place in places), max(place.seq for place in places))


def purged_up_to(served: ServedView) -> Horizon:
    """Up to where tombstones of the view may be gone, of every table."""
    content = served.view.documents(HORIZON).get(HORIZON)
    if content is None:
        return NOWHERE
    told = decode(content, TombstoneHorizon)
    return Horizon(told.position, told.seq) if told.log_id == served.applied.log_id else NOWHERE


def delta_records(
    served: ServedView, table: TableState, after_seq: int, partition: Partition = WHOLE
) -> Iterator[bytes]:
    """DELTA records of a table behind a seq; the first has the BEGIN flag, and the last, perhaps empty, END.

    Args:
        served: of the store.
        table: from `served`.
        after_seq: what was dealt with already.
        partition: of the keys; a TRUNCATE concerns every one.
    """
    batch = Batch(Kind.DELTA, served.applied, table.oid)
    if table.truncated_seq > after_seq:
        batch.add(Op.TRUNCATE, None, table.truncated_seq, table.schema_id, None)
    since, last = 0, -1
    for looked_at, page in _pages(served, table, after_seq):
        since += looked_at
        for key, seq, schema_id, row in _current(served, table, page, partition):
            if batch.size >= RECORD_BYTES and seq != last:
                yield batch.record()
                since = 0
            batch.add(Op.DELETE if row is None else Op.INSERT, key, seq, schema_id, row)
            last = seq
        if since >= LOOKED_AT:
            yield batch.record()
            since = 0
    yield batch.record(Flag.END)


def count_changes(served: ServedView, table: TableState, after_seq: int, limit: int) -> tuple[int, bool]:
    """At most how many changes a delta has, and whether there may be more behind the `limit` places looked at.

    Places that are stale for a key's later place, far behind, count too.
    """
    found, looked_at = int(table.truncated_seq > after_seq), 0
    for count, page in _pages(served, table, after_seq, limit):
        found, looked_at = found + len(page), looked_at + count
    return found, looked_at >= limit


def _pages(
    served: ServedView, table: TableState, after_seq: int, limit: int | None = None
) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """How many places were looked at, and the last (seq, key) of each key among them, by seq."""
    page: dict[bytes, int] = {}  # in the order of the seqs
    looked_at, last = 0, -1
    for seq, key in islice(served.view.changes(space_of(table.oid, table.generation), after_seq), limit):
        if looked_at >= _PAGE and seq != last:
            yield looked_at, [(at, one) for one, at in page.items()]
            page, looked_at = {}, 0
        page.pop(key, None)
        page[key] = last = seq
        looked_at += 1
    if page:
        yield looked_at, [(at, one) for one, at in page.items()]


def _current(
    served: ServedView, table: TableState, page: list[tuple[int, bytes]], partition: Partition
) -> Iterator[tuple[bytes, int, int, bytes | None]]:
    """(key, seq, schema id, row) of the places that are not stale, by seq."""
    part, parts = partition
    if parts > 1:
        page = [(seq, key) for seq, key in page if key_hash(key) % parts == part]
    space = space_of(table.oid, table.generation)
    for at in range(0, len(page), _LOOKED_UP):
        places = page[at : at + _LOOKED_UP]
        values = served.view.get_many(space, [key for _, key in places])
        for (place, key), value in zip(places, values, strict=True):
            if value is None:
                continue
            seq, schema_id, row = served_version(value)
            if seq == place:
                yield key, seq, schema_id, row
