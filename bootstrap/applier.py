"""Follows the log and folds its events into the store.

Read some records, fold them in memory, write everything they changed together with the position of the last one: a
crash in between repeats the batch from the stored position, and folding is a function of the stored state, so nothing
is skipped and nothing counts twice.

For a consistent table an event is written blindly: what it says is the state, whatever was there. Only an update that
left a TOASTed value out reads first. While a table is seeded, every event reads the key's entry and follows
`walbus.bootstrap.fold`.

A table may have two generations (`walbus.bootstrap.generations`); each event is folded into both, by the rule of each.

An EPOCH record that names tables says that a failover lost transactions which are folded into them: their rows are
wrong, and they are seeded again. Lost transactions are not waited for any more either: nobody will ever see them. A
SCHEMA record may say of one table that a statement changed rows without an event (`walbus.bootstrap.reseed`): its rows
are stale. A seeding that began before such a record begins again.

A batch ends between two transactions if it can; one that is larger than `MAX_BATCH_BYTES` is cut, and readers are
shown the state before that transaction until it is complete (`Store`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence

import msgspec
import structlog

from walbus.bootstrap.entry import Entry, FromEvent
from walbus.bootstrap.fold import Removal, Upsert, fold_key_change, fold_removal, fold_upsert, survives_truncate
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.reseed import difference_of, reseed_of
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import APPLIED, Applied, encode
from walbus.bootstrap.unseen import UnseenCommits
from walbus.errors import (
    Directive,
    LogError,
    PositionTrimmed,
    PositionUnknown,
    ProtocolError,
    WalbusError,
    directive_of,
)
from walbus.log import LogCursor, LogReader
from walbus.position import ORIGIN, Position, parse_position
from walbus.records import Flag, Kind, Op, RawChange, RecordHeader, body_of, iter_changes, read_header

log = structlog.get_logger(__name__)

# As numbers, since enums are slow where each record asks.
_TRANSACTION, _SCHEMA, _EPOCH, _END = int(Kind.TRANSACTION), int(Kind.SCHEMA), int(Kind.EPOCH), int(Flag.END)
_INSERT, _UPDATE, _DELETE, _TRUNCATE = int(Op.INSERT), int(Op.UPDATE), int(Op.DELETE), int(Op.TRUNCATE)

READ_BYTES = 1 << 20
MAX_BATCH_BYTES = 8 << 20
_IDLE_WAIT = 0.5
_LOST = "a failover lost transactions that it held"
_GAP = "the slot was lost, and changes with it"
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class EventFolder:
    """Records of the log in, entries of a stage out."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def fold(self, records: Sequence[bytes]) -> None:
        """Folds records that follow the applied position, and writes the result as one batch.

        Raises:
            StoreError: nothing of it was kept.
        """
        ledger = self._ledger
        with ledger.lock:
            applied = ledger.applied
            if applied is None:
                raise AssertionError("the store does not follow a log yet")
            stage = Stage(ledger.store)
            whole: bool | None = None
            unseen_before = ledger.unseen
            touched: dict[bytes, TableRun] = {}
            done = applied.position
            last = None
            for record in records:
                header = read_header(record)
                self._record(stage, record, header, done, touched)
                if header.kind == _TRANSACTION:
                    whole = bool(header.flags & _END)
                if header.last > done:
                    done, last = header.last, header
            if last is not None:
                applied = Applied.at(applied.log_id, done, last.last_seq, last.commit_time)
            stage.document(APPLIED, encode(applied))
            for run in touched.values():
                ledger.save_state(stage, run, run.state)
            if ledger.unseen is not unseen_before:
                ledger.stage_unseen(stage, applied, ledger.unseen)
            stage.commit(whole)
            ledger.applied = applied
            if ledger.unseen is not unseen_before:
                ledger.unseen_at = applied.position

    def _record(
        self, stage: Stage, record: bytes, header: RecordHeader, done: Position, touched: dict[bytes, TableRun]
    ) -> None:
        if header.epoch != done.epoch and done.epoch:
            self._epoch_changed()
        if header.kind == _EPOCH:
            self._switched(stage, record, header)
        if header.kind != _TRANSACTION:
            if header.kind == _SCHEMA:
                self._altered(stage, record, header)
            return
        self._ledger.unseen.add(header.xid)
        runs: dict[int, list[TableRun]] = {}
        for run in self._ledger.runs():
            if run.folding and header.tables >> run.state.oid % 64 & 1:
                runs.setdefault(run.state.oid, []).append(run)
        if not runs:
            return
        origin = FromEvent(header.xid)
        for change in _behind(record, header, done):
            for run in runs.get(change.table, ()):
                touched[run.space] = run
                self._change(stage, run, change, header.first_seq + change.seq_delta, origin)

    def _altered(self, stage: Stage, record: bytes, header: RecordHeader) -> None:
        """Notes that the table must be seeded again; a generation that began behind the statement need not."""
        self._note_difference(stage, record, header)
        reseed = reseed_of(record, header)
        for run in [] if reseed is None else self._ledger.runs_of(reseed.oid):
            if reseed is None or not run.folding:
                continue
            if reseed.is_behind(parse_position(run.state.p0), header.last):
                self._told(stage, run, header)
            elif run.seeding or reseed.ending:
                self._ledger.break_table(stage, run, reseed.reason)
            else:
                self._ledger.mark_stale(stage, run, reseed.reason, header.last)

    def _told(self, stage: Stage, run: TableRun, header: RecordHeader) -> None:
        """Notes that the log tells only here what the generation has read already: deltas from before it lack that."""
        if parse_position(run.state.p0) <= header.last:
            state = msgspec.structs.replace(run.state, told_at=str(header.last), told_seq=header.last_seq)
            self._ledger.save_state(stage, run, state)

    def _note_difference(self, stage: Stage, record: bytes, header: RecordHeader) -> None:
        """Notes that a net difference has come by the log, and where it stands."""
        oid, number = difference_of(record, header) or (0, 0)
        for run in self._ledger.runs_of(oid):
            if number > run.state.net_seen:
                state = msgspec.structs.replace(run.state, net_seen=number, net_at=str(header.last))
                self._ledger.save_state(stage, run, state)

    def _epoch_changed(self) -> None:
        for run in self._ledger.runs():
            if run.seeding and not run.again:
                run.again = "the timeline changed"

    def _switched(self, stage: Stage, record: bytes, header: RecordHeader) -> None:
        """Notes which tables hold what a failover lost, or lack what a gap did; none that began behind it does."""
        for change in iter_changes(body_of(record, header)):
            told = msgspec.json.decode(change.after or b"{}")
            why = _GAP if told.get("gap") and not told.get("lost") else _LOST
            oids = [int(table["oid"]) for table in told.get("reseed", ())]
            if oids and why is _LOST:
                self._ledger.unseen = UnseenCommits(complete=self._ledger.unseen.complete)
            for run in [run for oid in oids for run in self._ledger.runs_of(oid)]:
                if not run.folding or parse_position(run.state.p0) >= header.last:
                    continue
                if run.seeding:
                    self._ledger.break_table(stage, run, why)
                elif why is _GAP:
                    self._ledger.mark_stale(stage, run, why, header.last)
                else:
                    self._ledger.mark_wrong(stage, run, why)

    def _change(self, stage: Stage, run: TableRun, change: RawChange, seq: int, origin: FromEvent) -> None:
        op = change.op
        if op in (_INSERT, _UPDATE):
            self._upsert(stage, run, change, seq, origin)
        elif op == _DELETE:
            self._remove(stage, run, _key(change, run), Removal(seq, change.schema_id, origin))
        elif op == _TRUNCATE:
            self._truncate(stage, run, seq, origin)

    def _upsert(self, stage: Stage, run: TableRun, change: RawChange, seq: int, origin: FromEvent) -> None:
        key = _key(change, run)
        if change.after is None:
            raise ProtocolError("an insert or update without a row", where=run.state.table)
        event = Upsert(seq, change.schema_id, change.after, change.unchanged, origin)
        reads = run.seeding or bool(change.unchanged)
        if change.old_key is not None and change.old_key != key:
            self._move(stage, run, (run.space + change.old_key, run.space + key), event, reads=reads)
            return
        store_key = run.space + key
        before = stage.get(store_key, run.snapshots) if reads else None
        entry = fold_upsert(before, event, self._ledger.fill)
        self._put(stage, run, store_key, entry, before)
        _count(run, int(before is None or before.row is None) if run.seeding else int(change.op == _INSERT))

    def _move(self, stage: Stage, run: TableRun, keys: tuple[bytes, bytes], event: Upsert, *, reads: bool) -> None:
        old_key, new_key = keys
        old = stage.get(old_key, run.snapshots) if reads else None
        new = stage.get(new_key, run.snapshots) if run.seeding else None
        removed, entry = fold_key_change(old, new, event, self._ledger.fill)
        self._put(stage, run, old_key, removed, old)
        self._put(stage, run, new_key, entry, new)

    def _remove(self, stage: Stage, run: TableRun, key: bytes, event: Removal) -> None:
        store_key = run.space + key
        before = stage.get(store_key, run.snapshots) if run.seeding else None
        entry = fold_removal(before, event)
        self._put(stage, run, store_key, entry, before)
        if not run.seeding or (before is not None and before.row is not None and entry.row is None):
            _count(run, -1)

    def _truncate(self, stage: Stage, run: TableRun, seq: int, origin: FromEvent) -> None:
        rows = 0
        if any(snapshot.sees(origin.xid) for snapshot in run.snapshots.values()):
            for store_key, entry in list(stage.entries(run.space, run.snapshots)):
                if survives_truncate(entry, origin):
                    rows += 1
                else:
                    stage.remove(store_key, entry)
        else:
            stage.clear(run.space)
        run.rows = rows
        run.state = msgspec.structs.replace(run.state, truncated_by=origin.xid, truncated_seq=seq)

    def _put(self, stage: Stage, run: TableRun, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        stage.put_changed(store_key, entry, before)
        if entry.missing and not run.seeding:
            run.missing = True


class Applier:
    """The loop around `EventFolder`."""

    def __init__(
        self,
        ledger: Ledger,
        open_reader: Callable[[], LogReader],
        *,
        stop: threading.Event,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """A loop that is not running yet.

        Args:
            ledger: where events go.
            open_reader: opens the log; called again after an error, for it may be another log by then.
            stop: ends the loop between two batches.
            jitter: numbers in [0, 1) that spread retries.
        """
        self._ledger = ledger
        self._open_reader = open_reader
        self._folder = EventFolder(ledger)
        self._stop = stop
        self._jitter = jitter

    def run(self) -> None:
        """Follows the log until `stop` is set.

        Raises:
            WalbusError: what only an operator can mend; what may pass is tried again with a growing pause.
        """
        pause = _SHORTEST_PAUSE
        while not self._stop.is_set():
            started = self._ledger.applied
            try:
                self._read_log()
            except LogError as error:
                if directive_of(error) is Directive.STOP:
                    raise
                if self._ledger.applied != started:
                    pause = _SHORTEST_PAUSE
                log.warning("log_not_readable", error=str(error), retry_in=pause)
                self._stop.wait(pause * (0.5 + self._jitter()))
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _read_log(self) -> None:
        reader = self._open_reader()
        try:
            self._ledger.schemas, self._ledger.source = reader.schemas, reader.source
            try:
                self._follow(reader)
            except (PositionTrimmed, PositionUnknown) as error:
                log.error("log_left_behind", error=str(error), mend="nothing to do: every table is seeded again")
                self._restart(reader)
        finally:
            reader.close()

    def _follow(self, reader: LogReader) -> None:
        applied = self._ledger.applied
        log_id = reader.bounds().log_id
        if applied is None or applied.log_id != log_id:
            if applied is not None:
                log.error("log_replaced", was=applied.log_id, now=log_id, mend="every table is seeded again")
            self._restart(reader)
        self._ledger.resume(list(self._logged_since(reader)))
        cursor = reader.cursor(self._applied().position)
        try:
            while not self._stop.is_set():
                records = read_batch(cursor)
                if records:
                    self._folder.fold(records)
                elif not reader.wait(self._applied().position, _IDLE_WAIT) and reader.bounds().log_id != log_id:
                    return
        finally:
            cursor.close()

    def _restart(self, reader: LogReader) -> None:
        """Begins anew at the start of what the log holds."""
        bounds = reader.bounds()
        last_seq = bounds.last_seq if bounds.end == bounds.trimmed else 0
        applied = Applied.at(bounds.log_id, bounds.trimmed, last_seq, 0)
        self._ledger.begin(applied, UnseenCommits(complete=bounds.trimmed == ORIGIN))

    def _logged_since(self, reader: LogReader) -> Iterator[int]:
        """The xids between the position that the stored set of unseen ones is complete for and the applied one."""
        applied, start = self._applied().position, self._ledger.unseen_at
        if start is None or start >= applied:
            return
        cursor = reader.cursor(start)
        try:
            while records := cursor.read(READ_BYTES):
                for header in map(read_header, records):
                    if header.first > applied:
                        return
                    if header.kind == _TRANSACTION:
                        yield header.xid
        finally:
            cursor.close()

    def _applied(self) -> Applied:
        if self._ledger.applied is None:
            raise AssertionError("the applier has not begun")
        return self._ledger.applied


def read_batch(cursor: LogCursor) -> list[bytes]:
    """The next records, to the end of a transaction if that is not farther than `MAX_BATCH_BYTES`."""
    records = cursor.read(READ_BYTES)
    size = sum(map(len, records))
    while records and size < MAX_BATCH_BYTES and _inside(records):
        more = cursor.read(READ_BYTES)
        if not more:
            break
        records += more
        size += sum(map(len, more))
    return records


def _inside(records: list[bytes]) -> bool:
    for header in map(read_header, reversed(records)):
        if header.kind == _TRANSACTION:
            return not header.flags & _END
    return False


def _behind(record: bytes, header: RecordHeader, done: Position) -> Iterator[RawChange]:
    """The changes of a record that are behind a "last done" position."""
    changes = iter_changes(body_of(record, header))
    if header.first > done:
        return changes
    return (
        change
        for change in changes
        if Position(header.epoch, header.commit_lsn, header.first_ordinal + change.ordinal_delta) > done
    )


def _key(change: RawChange, run: TableRun) -> bytes:
    if change.key is None:
        raise WalbusError(
            "a change of a table with a key came without one",
            where=run.state.table,
            mend="report this with the table's definition",
        )
    return change.key


def _count(run: TableRun, difference: int) -> None:
    run.rows = max(0, run.rows + difference)
