"""What a promotion means to the log: epochs, and what a failover lost. Pure.

The log's positions carry the timeline that holds a commit's WAL (`walbus.capture.timelines`). Where the server's
history leaves the log's timeline, at the switch point, one of two things is true:

- The log ends at or below the switch point. Nothing is lost: the new primary sends what lies below it with the same
  LSNs, under the old epoch, and goes on under the new one. An EPOCH record stands before the first record of the new
  epoch, at the switch point.
- The log holds more. The standby that was promoted had not received that WAL, so those commits are gone from the
  source while the log, and whoever read it, has them. They stay where they are, in the old epoch: a log is not
  rewritten. An EPOCH record is written before anything else. It sets what may be confirmed back to the switch point,
  tells the positions that were lost, and names the tables that their changes touched, which must be seeded again.

    {"epoch": 2, "previous": 1, "switch": "0/3000148",
     "lost": {"first": "1:0/3000200:1", "last": "1:0/3000A18:4", "transactions": 7},    (null if nothing was lost)
     "reseed": [{"oid": 16390, "table": "public.t"}]}

Where a slot was lost, and capture went on with another one (`walbus.capture.reconciling`), the record has a `gap`: what
committed from `after` to `before` is in no log. Its epoch may be the one of the records before it then.

The record stands at (new epoch, switch point, 0) and takes no ordinal and no seq.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from walbus.capture.timelines import Timelines
from walbus.log import Held, Piece
from walbus.lsn import format_lsn
from walbus.position import Position
from walbus.records import Flag, Kind, Op, body_of, iter_changes, pack_change, read_header
from walbus.schema import TableSchema


@dataclass(frozen=True, slots=True)
class Switch:
    """Where one epoch ends and the next one begins.

    Attributes:
        previous: the timeline that was left.
        epoch: the timeline that goes on there.
        lsn: the switch point: the first byte of the new timeline.
    """

    previous: int
    epoch: int
    lsn: int

    @property
    def position(self) -> Position:
        """Of the EPOCH record; everything of the previous epoch behind `before` was lost."""
        return Position(self.epoch, self.lsn, 0)

    @property
    def before(self) -> Position:
        """What a reader has done ("last done") that has everything of the previous epoch that the new one continues."""
        return Position(self.previous, self.lsn, 0)


@dataclass(frozen=True, slots=True)
class Lost:
    """What the log holds of an epoch behind its switch point.

    Attributes:
        first, last: positions of the first and the last change.
        transactions: how many there are.
        tables: OIDs of the tables that they changed.
    """

    first: Position
    last: Position
    transactions: int
    tables: frozenset[int]


@dataclass(slots=True)
class _Tally:
    first: Position | None = None
    last: Position | None = None
    transactions: int = 0
    tables: set[int] = field(default_factory=set)


def lost_transactions(records: Iterable[bytes], switch: Switch) -> Lost | None:
    """What was lost at a switch; None if no transaction was.

    Args:
        records: of the log behind `switch.before`, up to its end.
        switch: where the server left the log's epoch.
    """
    tally = _Tally()
    for record in records:
        header = read_header(record)
        if header.kind != Kind.TRANSACTION or header.epoch != switch.previous or header.last <= switch.before:
            continue
        tally.first, tally.last = tally.first or header.first, header.last
        tally.transactions += bool(header.flags & Flag.END)
        tally.tables.update(change.table for change in iter_changes(body_of(record, header)) if change.table)
    if tally.first is None or tally.last is None:
        return None
    return Lost(tally.first, tally.last, tally.transactions, frozenset(tally.tables))


def last_transaction(records: Iterable[bytes], timelines: Timelines) -> Held | None:
    """The last transaction among records of the log that the server's history still holds; None without one.

    Messages outside transactions do not count: whether they are sent is a matter of the stream's options.
    """
    last = None
    for record in records:
        header = read_header(record)
        counts = header.kind == Kind.TRANSACTION and header.flags & Flag.END and header.xid
        if counts and header.epoch == timelines.epoch_of(header.commit_lsn):
            last = header
    return None if last is None else Held(last.commit_lsn, last.end_lsn, last.xid, last.commit_time)


def epoch_piece(
    switch: Switch, lost: Lost | None, reseed: Sequence[TableSchema], now: int, gap: Mapping[str, str] | None = None
) -> Piece:
    """The EPOCH piece of a switch, or of a gap.

    Args:
        switch: where, and between which epochs.
        lost: what the log held behind it.
        reseed: the newest layouts of the tables that must be seeded again.
        now: Unix microseconds.
        gap: `after` and `before`, LSNs, and `why`: what committed between them is missing.
    """
    document: dict[str, object] = {
        "epoch": switch.epoch,
        "previous": switch.previous,
        "switch": format_lsn(switch.lsn),
        "lost": lost and {"first": str(lost.first), "last": str(lost.last), "transactions": lost.transactions},
        "reseed": [{"oid": table.oid, "table": f"{table.namespace}.{table.name}"} for table in reseed],
    }
    if gap is not None:
        document["gap"] = dict(gap)
    body = pack_change(Op.EPOCH, seq_delta=0, ordinal_delta=0, after=json.dumps(document).encode())
    return Piece(
        kind=Kind.EPOCH,
        flags=0,
        epoch=switch.epoch,
        commit_lsn=switch.lsn,
        end_lsn=0,
        first_ordinal=0,
        last_ordinal=0,
        count=1,
        xid=0,
        commit_time=now,
        body=body,
    )


def switches_between(timelines: Timelines, after: int, upto: int) -> list[Switch]:
    """The switches that lead from one epoch to a later one, oldest first."""
    path = [switch for switch in timelines.switches if switch[0] >= after]
    epochs = [timeline for timeline, _ in path] + [timelines.current]
    found = [Switch(old, new, lsn) for (old, lsn), new in zip(path, epochs[1:], strict=True)]
    return [switch for switch in found if switch.epoch <= upto]
