"""Deltas: the last version of each key that changed since a place of the log, deletes included. Bytes out, no sockets.

A delta behind a seq is the log from there to the store's position with all but the last change of each key taken out.
It is read through the change index, in the order of the seqs, so its cost is that of the keys that changed, however
often each of them did. A place whose seq is not its entry's is stale: the key stands again at a later one. Many places
are walked together, in the native core where it was built, and only the last of each key is looked up; stale ones go
in time (`walbus.bootstrap.upkeep`).

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
from typing import NamedTuple

from walbus.bootstrap.change_index import latest_of
from walbus.bootstrap.horizon import HORIZON
from walbus.bootstrap.horizon import Horizon as TombstoneHorizon
from walbus.bootstrap.serving import LOOKED_AT, RECORD_BYTES, Batch, ServedView
from walbus.bootstrap.state import TableState, decode
from walbus.bootstrap.store import space_of
from walbus.native import pack_versions
from walbus.native.reading import WHOLE, Partition
from walbus.position import ORIGIN, Position, parse_position
from walbus.records import Flag, Kind, Op, key_hash

_KEYS = 50_000  # whose places are walked together: of one key only the last can be no stale one
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
    since = 0
    for looked_at, places in _latest(served, table, after_seq, _KEYS):
        since += looked_at
        for packed in _packed(served, table, _part(places, partition), batch):
            batch.add_packed(*packed)
            if batch.size >= RECORD_BYTES:
                yield batch.record()
                since = 0
        if since >= LOOKED_AT:
            yield batch.record()
            since = 0
    yield batch.record(Flag.END)


def count_changes(served: ServedView, table: TableState, after_seq: int, limit: int) -> tuple[int, bool]:
    """At most how many changes a delta has, up to a limit, and whether that was reached.

    Places that are stale for a key's later place, far behind, count too.
    """
    found = int(table.truncated_seq > after_seq)
    for _, places in _latest(served, table, after_seq, min(_KEYS, limit)):
        found += len(places)
        if found >= limit:
            return limit, True
    return found, False


def _latest(
    served: ServedView, table: TableState, after_seq: int, keys: int
) -> Iterator[tuple[int, list[tuple[bytes, int]]]]:
    pages = served.view.change_pages(space_of(table.oid, table.generation), after_seq)
    return latest_of(pages, after_seq, keys)


def _part(places: list[tuple[bytes, int]], partition: Partition) -> list[tuple[bytes, int]]:
    part, parts = partition
    return places if parts == 1 else [place for place in places if key_hash(place[0]) % parts == part]


def _packed(
    served: ServedView, table: TableState, places: list[tuple[bytes, int]], batch: Batch
) -> Iterator[tuple[bytes, int]]:
    """The changes of places that are not stale, as much at a time as the record has room for."""
    space = space_of(table.oid, table.generation)
    begin = 0
    while begin < len(places):
        looked_up = places[begin : _end_of(places, begin)]
        begin += len(looked_up)
        entries = served.view.get_many(space, [key for key, _ in looked_up])
        at = 0
        while at < len(looked_up):
            changes, count, at = pack_versions(looked_up, entries, at, table.oid, RECORD_BYTES - batch.size)
            yield changes, count


def _end_of(places: list[tuple[bytes, int]], begin: int) -> int:
    """Where those end that are looked up together; never between two of one seq."""
    end = begin + _LOOKED_UP
    while 0 < end < len(places) and places[end][1] == places[end - 1][1]:
        end += 1
    return end
