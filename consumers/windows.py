"""The windows that the state machine hands on, from the records and events that it was given. No I/O.

Most records of most logs are small transactions, each whole, one behind the other. What the machine makes of such a
record is known without asking it: a window of all changes, and a checkpoint at its end. So those that have come
together are made into windows at once (`whole_transactions`), and the machine is told of all of them in one event. The
first record that is anything else ends such a run, and goes the long way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from walbus.consumers.checkpoint import Point, Snapshotting
from walbus.consumers.decoding import Layouts, decode_record
from walbus.consumers.steps import RecordRead, RowsRead
from walbus.errors import WalbusError
from walbus.events import Change, Window, time_of
from walbus.position import ORIGIN
from walbus.records import Flag, Kind, Op, RawChange, RecordHeader, origin_of
from walbus.schema import TableSchema

_KINDS = {int(kind): kind for kind in Kind}  # looked up for every record
_NET = int(Flag.NET)
_TRANSACTION = int(Kind.TRANSACTION)
_WHOLE, _LOOKED_AT = int(Flag.BEGIN | Flag.END), int(Flag.BEGIN | Flag.END | Flag.ASKED)


def whole_transactions(
    records: Iterable[tuple[RecordHeader, bytes]], layouts: Layouts, received: Point
) -> list[Window]:
    """The windows of those first records that are whole transactions, each later than the one before, with changes.

    A record that cannot be decoded, or has a seq that is not above the last one, is none of them: it is for whoever
    takes it by itself to say so.

    Args:
        records: of the log, in order.
        layouts: of the log.
        received: the log has been handed on up to here, and no transaction is open.
    """
    windows: list[Window] = []
    (epoch, lsn, _), seq = received
    place = epoch, lsn
    for header, record in records:
        here = header.epoch, header.commit_lsn
        whole = header.kind == _TRANSACTION and header.flags & _LOOKED_AT == _WHOLE
        if not whole or here <= place or header.last_seq <= seq:
            break
        try:
            changes = decode_record(header, record, layouts)
        except (WalbusError, OSError):
            break
        if not changes:
            break
        origin = origin_of(record, header).decode() if header.origin_length else ""
        windows.append(_window(header, changes, origin, begins=True, ends=True))
        place, seq = here, header.last_seq
    return windows


def log_window(event: RecordRead, changes: Sequence[Change], *, begins: bool, ends: bool) -> Window:
    """A transaction or a piece of one, or an event by itself, with the changes that are left of it."""
    return _window(event.header, changes, event.origin, begins=begins, ends=ends)


def _window(header: RecordHeader, changes: Sequence[Change], origin: str, *, begins: bool, ends: bool) -> Window:
    kind, net = _KINDS[header.kind], header.flags & _NET != 0
    time, last = time_of(header.commit_time), header.last
    # Not by names, which take as long as all else here: there are as many as transactions.
    return Window(kind, changes, header.xid, header.commit_lsn, time, last, header.last_seq, begins, ends, origin, net)


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
