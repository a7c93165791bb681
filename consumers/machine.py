"""The consumer's state machine: what happened goes in, what to hand on comes out. No I/O, no clock.

                 no checkpoint, start = earliest | latest
        START ───────────────────────────────────────────► ONLINE ◄──────────────┐
          │                                                  │ 410, another log, │ `until` passed
          │ start = snapshot                                 ▼ incomplete rows   │
          └───────────────────────────────────────────────► LISTING          CATCHUP
                                                             │  ▲                ▲ │
                           tables, their state, their deltas │  │ delta gone,    │ │
                                                             ▼  │ another log    │ │ 410, another log
                                                  SNAPSHOT or DELTA, a table ────┘ └──► LISTING
                                                                     last table read

A consumer that is so far behind that it asks (`delta_above`) goes from ONLINE or CATCHUP to DELTA too, if the bootstrap
has one of every table and they have fewer changes than the log.

`wanted` says which connection the machine needs next: a function of its state, so that after a broken connection
the driver simply asks again. `receive` takes an event and gives the outputs that it causes, in order. Which event
is allowed in which phase stands in one table, `_TRANSITIONS`; any other is the driver's mistake.

These rules keep a consumer right:

- Only a window that ends a transaction carries a checkpoint. Pieces before it carry none, and `Discard` says that
  those handed on will not be completed.
- A snapshot whose tables were listed at the state Q0, and whose answers came from Q1…Qn, is replayed from the lowest,
  for the log alone tells tables that came since, and is consistent after the highest. Its tables are swept at the
  lowest, so that no change behind it is ever taken for a ghost.
- A delta tells deletes, so its table is not swept. One that can be had no more is given up together with the snapshot
  that it is a part of: rows that it brought carry its mark, and only a later one tells them from ghosts.
- A table that is gone when its turn comes may have another name by now, which the log tells as no new table: so all are
  listed anew. Those that were read go on by a delta.
- A checkpoint knows which tables it was `asked` for. One that the consumer asks for since then is read too, as one that
  comes to the log; until that has begun, no delta is read of it.
- Where the log no longer holds the lowest state, what the bootstrap is read for is finished all the same: a delta
  since then takes the replay's place. A snapshot that takes longer than the log is kept so comes to an end.
- A table that comes to the log later may have rows that the log does not hold, and one of which a failover has lost
  transactions, or that a statement changed without events, has rows here that the source does not. So has one whose
  snapshot says that it is stale. It is `unread`, in every checkpoint from then on, until the bootstrap has it
  (`RowsIncomplete`); the log is followed on meanwhile.
- A later position whose seq is not above the last one is a log that does not continue the one read so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from walbus.consumers.checkpoint import (
    CatchingUp,
    Checkpoint,
    Following,
    Lacking,
    Marks,
    Part,
    Point,
    Snapshotting,
)
from walbus.consumers.phases import (
    Listing,
    Starting,
    State,
    advanced,
    begun,
    behind_window,
    current,
    log_regressed,
    lowest,
    point_of,
    read_up_to,
    reading_of,
    resumed,
    with_table,
    worthwhile_deltas,
)
from walbus.consumers.steps import (
    Advance,
    Asked,
    AskLog,
    Deliver,
    DeliverRun,
    DeltaGone,
    Discard,
    Disconnected,
    Event,
    ListTables,
    LogReplaced,
    LogSeen,
    Output,
    PositionGone,
    ReadLog,
    RecordRead,
    RowsIncomplete,
    RowsRead,
    RowsSettled,
    RowsStale,
    Start,
    Sweep,
    TableGone,
    TableOpened,
    TablesListed,
    TransactionsRead,
    UnreadFound,
    Want,
)
from walbus.consumers.windows import end_of_filtered, layout_window, log_window, served_window
from walbus.errors import ProtocolError
from walbus.events import Window
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader

_END, _ASKED = int(Flag.END), int(Flag.ASKED)  # an `&` of a Flag makes another one, for every record


class ConsumerMachine:
    """One consumer's progress through log and snapshot.

    Args:
        checkpoint: where to go on; None for a consumer's first start.
        start: where a consumer without a checkpoint begins.
        delta_above: changes of the log that are still to be read from which on a delta is weighed against them; None:
            the log is followed as long as it holds the position.
        asked: patterns of the tables that the consumer asks for; None: whatever the checkpoint is of.
        part: of all keys, the same as the checkpoint's; None: all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        start: Start,
        delta_above: int | None = None,
        asked: tuple[str, ...] | None = None,
        part: Part | None = None,
    ) -> None:
        self._asked, self._part = asked, part
        self._state: State = Starting(start) if checkpoint is None else resumed(checkpoint, asked)
        self._log: LogSeen | None = None  # what the relay said since the last disconnect
        self._received = point_of(checkpoint)  # the log has been handed on up to here, pieces included
        self._open: tuple[int, int] | None = None  # (epoch, commit LSN) of a transaction that has begun to arrive
        self._listed: Point | None = None  # the state of the list of tables that a reading began with
        self._delta_above = delta_above
        self._weighing = False  # whether the bootstrap is to be asked what deltas cost, before the log is read on

    @property
    def state(self) -> State:
        """The phase and what it knows."""
        return self._state

    @property
    def log(self) -> LogSeen | None:
        """What the relay said on the present connection."""
        return self._log

    @property
    def received(self) -> Position:
        """The log has been handed on up to here."""
        return self._received.last_done

    @property
    def received_seq(self) -> int:
        """The last seq given at `received`; 0 where that is not known."""
        return self._received.seq

    @property
    def between(self) -> Point | None:
        """Behind which place whole transactions may be told together; None where each record is to be told."""
        return self._received if self._open is None and isinstance(self._state, Following) else None

    @property
    def layouts(self) -> int:
        """The largest number of a layout that the consumer was told."""
        return 0 if isinstance(self._state, (Starting, Listing)) else self._state.layouts

    @property
    def wanted(self) -> Want:
        """The connection that is needed now."""
        if self._log is None:
            return AskLog()
        match self._state:
            case Following(log_id=log_id) | CatchingUp(log_id=log_id) as state:
                weighing = ListTables(None, state, waits=False)
                return weighing if self._weighing else ReadLog(log_id, self._received.last_done)
            case Snapshotting() as state:
                return reading_of(state)
            case Listing(only=only, before=before):
                return ListTables(only, before if only is None else None)
            case Starting():
                return AskLog()

    def receive(self, event: Event) -> list[Output]:
        """What the event causes.

        Raises:
            PositionUnknown: the log does not continue the one that was read so far.
            ProtocolError: the event has no place in this phase.
        """
        transition = _TRANSITIONS.get((type(self._state), type(event)))
        if transition is None:
            raise ProtocolError(f"{type(event).__name__} has no place in phase {type(self._state).__name__}")
        return transition(self, self._state, event)

    # Connections

    def _log_seen(self, state: State, event: LogSeen) -> list[Output]:
        self._log = event
        match state:
            case Starting(start="snapshot"):
                self._state = Listing(None)
            case Starting(start="earliest"):
                return self._begin(event, Point(event.trimmed, 0))
            case Starting():
                return self._begin(event, Point(event.end, event.last_seq))
            case Listing():
                pass
            case _ if state.log_id != event.log_id:
                return self._need_snapshot(state, event)
            case Snapshotting():
                pass
            case Following() | CatchingUp():
                return self._check_log(state, event)
        return []

    def _begin(self, event: LogSeen, point: Point) -> list[Output]:
        state = Following(event.log_id, Marks(0, 0), point, asked=self._asked, part=self._part)
        self._state, self._received = state, point
        return [Advance(state)]

    def _check_log(self, state: Following | CatchingUp, event: LogSeen) -> list[Output]:
        if self._received.last_done < event.trimmed:
            return self._need_snapshot(state, event)
        if event.end >= self._received.last_done and event.last_seq < self._received.seq:
            raise log_regressed(event.last_seq, event.end, self._received)
        above = self._delta_above
        self._weighing = above is not None and event.behind >= above and self._open is None and self._received.seq > 0
        return []

    def _need_snapshot(self, state: Listing | Checkpoint, _: Event) -> list[Output]:
        outputs: list[Output] = [Discard()] if self._open else []
        self._open, self._log, self._weighing = None, None, False  # the relay is asked again: it may be another log
        self._state = Listing(state.before if isinstance(state, Listing) else state)
        return outputs

    def _disconnected(self, _state: State, _event: Disconnected) -> list[Output]:
        self._log = None
        return []

    # Snapshot

    def _rows_incomplete(self, state: Following, event: RowsIncomplete) -> list[Output]:
        outputs: list[Output] = [Discard()] if self._open else []
        self._open, self._received = None, state.point
        self._state = Listing(state, event.tables)
        return outputs

    def _rows_settled(self, state: Following, event: RowsSettled) -> list[Output]:
        self._state = replace(state, unread=tuple(one for one in state.unread if one.table not in event.tables))
        return [] if self._open else [Advance(self._state)]

    def _unread_found(self, state: Following, event: UnreadFound) -> list[Output]:
        self._state = replace(state, unread=event.unread, asked=event.asked)
        return [] if self._open else [Advance(self._state)]

    def _tables_listed(self, listing: Listing, event: TablesListed) -> list[Output]:
        if self._log is None or event.log_id != self._log.log_id or not event.tables:
            return []  # the bootstrap is not there yet: the driver backs off, and asks again
        self._listed = event.at
        self._state = state = replace(begun(listing, event, self._received, self._asked), part=self._part)
        return [Advance(state)]

    def _weighed(self, before: Following | CatchingUp, event: TablesListed) -> list[Output]:
        """Whether deltas of all tables are cheaper than the log."""
        self._weighing = False
        log = self._log
        if log is None or event.log_id != before.log_id or event.refused or not event.tables:
            return []
        deltas = worthwhile_deltas(before, event, log.behind)
        if deltas is None:
            return []
        self._state, self._listed = deltas, event.at
        return [Advance(deltas)]

    def _table_opened(self, state: Snapshotting, event: TableOpened) -> list[Output]:
        return [Deliver(layout_window(event.layout, state), state.marks, state)]

    def _rows_stale(self, state: Snapshotting, event: RowsStale) -> list[Output]:
        unread = (*state.unread, Lacking(current(state).table, event.oid))
        self._state = replace(state, unread=tuple(dict.fromkeys(unread)))
        return []

    def _rows_read(self, before: Snapshotting, event: RowsRead) -> list[Output]:
        table, at = current(before), Point(event.header.last, event.header.last_seq)
        if table.since is not None and at.last_done < table.since.last_done:
            at = Point(table.since.last_done, at.seq)  # nothing of the table changed between the two
        low = min(at, before.low or lowest(at, self._listed, table))
        high = max(before.high or at, at)
        state = replace(before, low=low, high=high)
        outputs: list[Output] = []
        if event.changes:
            table = read_up_to(table, event.changes[-1])
            state = with_table(state, table)
            outputs.append(Deliver(served_window(event), state.marks, state))
        self._state = state
        if event.header.flags & _END:
            after = self._after_table(with_table(state, replace(table, done=True)))
            ended = Sweep(table.table, low.seq, state.marks, after) if table.since is None else Advance(after)
            outputs.append(ended)
        return outputs

    def _after_table(self, state: Snapshotting) -> Checkpoint:
        self._state = state
        match state:
            case Snapshotting(low=Point() as low, high=Point() as high) if all(table.done for table in state.tables):
                self._received = low
                rows = low.last_done if state.rows is None else state.rows
                behind = CatchingUp(
                    state.log_id, state.marks, low, high.last_done, state.unread, state.layouts, rows, state.asked,
                    state.part,
                )  # fmt: skip
                self._state = advanced(behind, low)
        return self._state

    # Log

    def _record_read(self, state: Following | CatchingUp, event: RecordRead) -> list[Output]:
        outputs = self._record(state, event)
        return [*outputs, Asked(event.header.last)] if event.header.flags & _ASKED else outputs

    def _transactions_read(self, state: Following, event: TransactionsRead) -> list[Output]:
        first, last = event.windows[0], event.windows[-1]
        if self._open is not None or (first.last, first.last_seq) <= self._received:
            raise ProtocolError("transactions are told together that are not behind what was received")
        self._received = Point(last.last, last.last_seq)
        self._state = after = behind_window(state, last)
        return [DeliverRun(event.windows, state.marks, after)]

    def _record(self, state: Following | CatchingUp, event: RecordRead) -> list[Output]:
        self._check_seq(event.header)
        outputs = self._close_before(state, event.header)
        match event.header.kind:
            case Kind.TRANSACTION:
                return outputs + self._transaction(state, event)
            case Kind.SCHEMA | Kind.EPOCH:
                return outputs + self._aside(state, event)
            case Kind.PROGRESS:
                return outputs + self._progress(state, event.header)
            case kind:
                raise ProtocolError(f"a record of kind {kind} has no place in a log")

    def _close_before(self, state: Following | CatchingUp, header: RecordHeader) -> list[Output]:
        """A transaction whose last piece a filter left out has ended when something later arrives.

        Progress at a later place of the same transaction says so too: inside one, a relay reports none.
        """
        if self._open is None:
            return []
        progress = header.kind == Kind.PROGRESS and header.last > self._received.last_done
        if not progress and (header.epoch, header.commit_lsn) <= self._open:
            return []
        self._open = None
        return [self._deliver(state, end_of_filtered(self._received))]

    def _transaction(self, state: Following | CatchingUp, event: RecordRead) -> list[Output]:
        header, last, done = event.header, event.header.last, self._received.last_done
        if last < done or (last == done and self._open is None):
            return []  # a repeat
        begins, ends = self._open is None, bool(header.flags & _END)
        changes = event.changes
        if changes and changes[0].position <= done:  # positions rise
            changes = [change for change in changes if change.position > done]
        self._received = Point(last, header.last_seq)
        self._open = None if ends or (begins and not changes) else (header.epoch, header.commit_lsn)
        if begins and ends and not changes:
            return [Advance(self._advance(state))]
        if not changes and not ends:
            return []  # a sign of life in the middle of a transaction
        return [self._deliver(state, log_window(event, changes, begins=begins, ends=ends))]

    def _aside(self, state: Following | CatchingUp, event: RecordRead) -> list[Output]:
        self._receive_up_to(event.header)
        whole = self._open is None
        if event.new_table is not None and event.new_table.id > state.layouts:
            state = replace(state, unread=(*state.unread, Lacking(event.new_table.table, event.new_table.oid)))
        names = dict(event.renamed)
        unread = (*(names.get(one, one) for one in state.unread), *event.lost)
        state = replace(state, unread=tuple(dict.fromkeys(unread)))
        told = max((change.raw.schema_id for change in event.changes), default=0)
        self._state = state = replace(state, layouts=max(state.layouts, told))
        return [self._deliver(state, log_window(event, event.changes, begins=whole, ends=whole))]

    def _progress(self, state: Following | CatchingUp, header: RecordHeader) -> list[Output]:
        if header.last <= self._received.last_done:
            return []
        self._receive_up_to(header)
        return [] if self._open else [Advance(self._advance(state))]

    def _receive_up_to(self, header: RecordHeader) -> None:
        if header.last > self._received.last_done:
            self._received = Point(header.last, max(header.last_seq, self._received.seq))

    def _deliver(self, state: Following | CatchingUp, window: Window) -> Deliver:
        return Deliver(window, state.marks, None if self._open else self._advance(state))

    def _advance(self, state: Following | CatchingUp) -> Checkpoint:
        self._state = advanced(state, self._received)
        return self._state

    def _check_seq(self, header: RecordHeader) -> None:
        if header.last <= self._received.last_done:
            return
        takes_seq = header.kind == Kind.TRANSACTION and header.last_ordinal > 0
        if header.last_seq < self._received.seq + takes_seq:
            raise log_regressed(header.last_seq, header.last, self._received)


_M = ConsumerMachine
_LOG: tuple[type[State], ...] = (Following, CatchingUp)
_ALL: tuple[type[State], ...] = (Starting, Listing, Snapshotting, *_LOG)

# Each method takes the very state and event that its row names; the table's common type cannot say that.
_Transition: TypeAlias = Callable[[ConsumerMachine, Any, Any], list[Output]]


def _table(*rows: tuple[tuple[type[State], ...], type[Event], _Transition]) -> dict[tuple[type, type], _Transition]:
    return {(state, event): transition for states, event, transition in rows for state in states}


#: The only place that says which event may come in which phase.
_TRANSITIONS = _table(
    (_ALL, LogSeen, _M._log_seen),
    (_ALL, Disconnected, _M._disconnected),
    (_LOG, PositionGone, _M._need_snapshot),
    ((*_LOG, Snapshotting, Listing), LogReplaced, _M._need_snapshot),
    (_LOG, RecordRead, _M._record_read),
    ((Following,), TransactionsRead, _M._transactions_read),
    ((Following,), RowsIncomplete, _M._rows_incomplete),
    ((Following,), RowsSettled, _M._rows_settled),
    ((Following,), UnreadFound, _M._unread_found),
    ((Listing,), TablesListed, _M._tables_listed),
    (_LOG, TablesListed, _M._weighed),
    ((Snapshotting,), TableOpened, _M._table_opened),
    ((Snapshotting,), RowsStale, _M._rows_stale),
    ((Snapshotting,), RowsRead, _M._rows_read),
    ((Snapshotting, Listing), TableGone, _M._need_snapshot),
    ((Snapshotting,), DeltaGone, _M._need_snapshot),
)
