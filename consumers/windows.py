"""The windows that the state machine hands on, from the records and events that it was given. No I/O.

Most records of most logs are small transactions, each whole, one behind the other. What the machine makes of such a
record is known without asking it: a window of all changes, and a checkpoint at its end. So those that have come
together are made into windows at once (`whole_transactions`), and the machine is told of all of them in one event. The
first record that is anything else ends such a run, and goes the long way.
"""

from __future__ import annotations

from collections.abc import Sequence

from walbus.consumers.checkpoint import Point, Snapshotting
from walbus.consumers.decoding import Layouts
from walbus.consumers.steps import RecordRead, RowsRead
from walbus.events import Change, Window
from walbus.native import read_transactions
from walbus.position import ORIGIN
from walbus.record_parser import RecordParser
from walbus.records import Flag, Kind, Op, RawChange, time_of
from walbus.schema import TableSchema

_KINDS = {int(kind): kind for kind in Kind}  # looked up for every record
_NET = int(Flag.NET)


def whole_transactions(came: RecordParser, layouts: Layouts, received: Point) -> Sequence[Window]:
    """Takes the next records that are whole transactions, as `walbus.native.reading.ReadTransactions` has them.

    Args:
        came: what has come of the log.
        layouts: of the log.
        received: the log has been handed on up to here, and no transaction is open.
    """
    return came.take(lambda data, at: read_transactions(Change, Window, data, at, layouts.get, received)) or ()


def log_window(event: RecordRead, changes: Sequence[Change], *, begins: bool, ends: bool) -> Window:
    """A transaction or a piece of one, or an event by itself, with the changes that are left of it."""
    header = event.header
    return Window(
        kind=_KINDS[header.kind],
        changes=changes,
        xid=header.xid,
        commit_lsn=header.commit_lsn,
        commit_time=time_of(header.commit_time),
        last=header.last,
        last_seq=header.last_seq,
        begins=begins,
        ends=ends,
        origin=event.origin,
        net=header.flags & _NET != 0,
    )


def served_window(event: RowsRead) -> Window:
    """A batch of a snapshot's rows, or of a delta's changes."""
    header = event.header
    return Window(
        kind=_KINDS[header.kind],
        changes=event.changes,
        xid=0,
        commit_lsn=header.commit_lsn,
        commit_time=time_of(header.commit_time),
        last=header.last,
        last_seq=header.last_seq,
        begins=True,
        ends=True,
    )


def layout_window(layout: TableSchema, state: Snapshotting) -> Window:
    """What says a table's layout before its first row, and in place of rows where it has none."""
    at = state.low or Point(ORIGIN, 0)
    raw = RawChange(Op.SCHEMA, 0, layout.oid, layout.id, 0, 0, 0, None, None, b"", None, None)
    return Window(
        kind=Kind.SCHEMA,
        changes=(Change(raw, layout, at.last_done, at.seq),),
        xid=0,
        commit_lsn=at.last_done.commit_lsn,
        commit_time=time_of(0),
        last=at.last_done,
        last_seq=at.seq,
        begins=True,
        ends=True,
    )


#: What a table's sweep is delivered with.
NO_ROWS = Window(
    kind=Kind.SNAPSHOT,
    changes=(),
    xid=0,
    commit_lsn=0,
    commit_time=time_of(0),
    last=ORIGIN,
    last_seq=0,
    begins=True,
    ends=True,
)


def end_of_filtered(received: Point) -> Window:
    """The last piece of a transaction whose real one a filter left out."""
    return Window(
        kind=Kind.TRANSACTION,
        changes=(),
        xid=0,
        commit_lsn=received.last_done.commit_lsn,
        commit_time=time_of(0),
        last=received.last_done,
        last_seq=received.seq,
        begins=False,
        ends=True,
    )
