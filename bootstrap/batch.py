"""What is folded into the store in one write: some records, by the rule of each table that they concern.

For a consistent table an event is written blindly: what it says is the state, whatever was there. So the native core
takes those events from the records' bytes (`walbus.native.folding`); only what it leaves, and the columns that an
update left out, are Python's. While a table is seeded, every event reads the key's entry and follows
`walbus.bootstrap.fold`, in Python. Events of a table whose completions are kept
(`walbus.bootstrap.completions`) are Python's too: the entry that each meets is the completion. Nearly all of them carry
whole rows of a key that stays, and are folded as bytes, without taking an entry apart.

A table may have two generations (`walbus.bootstrap.generations`); each event is folded into both, by the rule of each.

An EPOCH record that names tables says that a failover lost transactions which are folded into them: their rows are
wrong, and they are seeded again. Lost transactions are not waited for any more either: nobody will ever see them. A
SCHEMA record may say of one table that a statement changed rows without an event (`walbus.bootstrap.reseed`): its rows
are stale. A seeding that began before such a record begins again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from walbus.bootstrap.entry import Entry, FromEvent
from walbus.bootstrap.fold import Removal, Upsert, fold_key_change, fold_removal, fold_upsert, survives_truncate
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.reseed import difference_of, reseed_of
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import APPLIED, Applied, encode
from walbus.bootstrap.unseen import UnseenCommits
from walbus.errors import ProtocolError
from walbus.native.folding import ENTRY_HEADER, TOMBSTONE, Fold
from walbus.position import Position, parse_position
from walbus.records import Flag, Kind, Op, RawChange, RecordHeader, body_of, iter_changes, read_header

# As numbers, since enums are slow where each record asks.
_TRANSACTION, _SCHEMA, _EPOCH = int(Kind.TRANSACTION), int(Kind.SCHEMA), int(Kind.EPOCH)
_END, _NET = int(Flag.END), int(Flag.NET)
_INSERT, _UPDATE, _DELETE, _TRUNCATE = int(Op.INSERT), int(Op.UPDATE), int(Op.DELETE), int(Op.TRUNCATE)
_LOST = "a failover lost transactions that it held"
_GAP = "the slot was lost, and changes with it"
_READ_AHEAD = 512  # changes whose rows before them are read at once


class Batch:
    """The records of one write, from the applied position on; the caller holds the ledger's lock."""

    def __init__(self, ledger: Ledger, applied: Applied) -> None:
        self._ledger = ledger
        self._applied = applied
        self._done = applied.position
        self._stage = Stage(ledger.store, ledger.fill)
        self._unseen_before = ledger.unseen
        self._touched: dict[bytes, TableRun] = {}  # by space
        self._completed: frozenset[bytes] = frozenset()  # spaces whose completions are kept
        self._net = False  # whether the change at hand is part of a net difference
        self._whole: bool | None = None

    def fold(self, records: list[bytes]) -> None:
        """Records that the native core takes, and between them those that it leaves."""
        at = 0
        while at < len(records):
            known, others = self._runs()
            fold = self._stage.fold({run.state.oid: run.space for run in known})
            while at < len(records):
                left = fold.take(records, at, self._done)
                if left > at:
                    self._taken(records[at:left], fold, known, others)
                if left == len(records):
                    return
                at = left + 1
                header = read_header(records[left])
                self._record(records[left], header, [*known, *others])
                if header.kind != _TRANSACTION or not all(run.folding for run in known + others):
                    break  # it may have broken a table

    def write(self) -> None:
        """Writes everything at once, and the ledger follows."""
        ledger, stage, applied = self._ledger, self._stage, self._applied
        lacking = stage.settle()
        for run in ledger.folding():
            run.missing = run.missing or (run.space in lacking and not run.seeding)
            if run.missing and not run.state.stale:  # at once: no reader may be served the row without its value
                ledger.stage_reopening(stage, run)
        stage.document(APPLIED, encode(applied))
        ledger.completions.settle(stage, applied, whole=self._whole is True)
        for run in self._touched.values():
            ledger.save(stage, run)
        if ledger.unseen is not self._unseen_before:
            ledger.stage_unseen(stage, applied, ledger.unseen)
        stage.commit(self._whole)
        was_whole = ledger.applied_whole == ledger.applied
        ledger.applied = applied
        if self._whole or (self._whole is None and was_whole):
            ledger.applied_whole = applied
        if ledger.unseen is not self._unseen_before:
            ledger.unseen_at = applied.position

    def _runs(self) -> tuple[list[TableRun], list[TableRun]]:
        """Those whose events are written blindly, and those whose events read the entry first."""
        runs = self._ledger.folding()
        wants = self._ledger.completions.wants
        self._completed = frozenset(run.space for run in runs if not run.seeding and wants(run.state))
        known = {run.state.oid: run for run in runs if not run.seeding and run.space not in self._completed}
        return list(known.values()), [run for run in runs if known.get(run.state.oid) is not run]

    def _taken(self, records: list[bytes], fold: Fold, known: list[TableRun], others: list[TableRun]) -> None:
        """What the native core took of the known tables; the others' part of the same records."""
        counts = fold.counts()
        for run in known:
            if run.state.oid in counts:
                self._touch(run)
                _count(run, counts[run.state.oid])
        self._ledger.unseen.update(fold.xids)
        fold.xids.clear()
        self._changes(records, others)
        last = next((h for h in map(read_header, reversed(records)) if h.kind == _TRANSACTION), None)
        if last is not None:
            self._whole = bool(last.flags & _END)
        self._passed(read_header(records[-1]))

    def _passed(self, header: RecordHeader) -> None:
        """Everything up to the end of a record is folded."""
        if header.last > self._done:
            self._done = header.last
            self._applied = Applied.at(self._applied.log_id, header.last, header.last_seq, header.commit_time)

    def _record(self, record: bytes, header: RecordHeader, runs: list[TableRun]) -> None:
        """A record that the native core left."""
        if header.epoch != self._done.epoch and self._done.epoch:
            self._epoch_changed()
        if header.kind == _EPOCH:
            self._switched(record, header)
        elif header.kind == _SCHEMA:
            self._altered(record, header)
        elif header.kind == _TRANSACTION:
            self._ledger.unseen.update((header.xid,))
            self._changes([record], runs)
            self._whole = bool(header.flags & _END)
        self._passed(header)

    def _changes(self, records: list[bytes], runs: list[TableRun]) -> None:
        """The part of records that concerns some tables, change by change."""
        by_oid: dict[int, list[TableRun]] = {}
        for run in runs:
            by_oid.setdefault(run.state.oid, []).append(run)
        bits = _bits(runs)
        found = (
            (header, change)
            for record, header in zip(records, map(read_header, records), strict=True)
            if header.kind == _TRANSACTION and header.tables & bits
            for change in _behind(record, header, self._done)
            if change.table in by_oid
        )
        while portion := list(islice(found, _READ_AHEAD)):
            if self._completed:
                self._stage.read_ahead(
                    run.space + key
                    for _, change in portion
                    if (key := _key_before(change)) is not None
                    for run in by_oid[change.table]
                    if run.space in self._completed
                )
            for header, change in portion:
                self._net = bool(header.flags & _NET)
                seq = header.first_seq + change.seq_delta
                for run in by_oid[change.table]:
                    if not run.folding:
                        continue
                    self._touch(run)
                    if not self._exchanged(run, change, seq, header.xid):
                        self._change(run, change, seq, FromEvent(header.xid))

    def _exchanged(self, run: TableRun, change: RawChange, seq: int, xid: int) -> bool:
        """Folds a change of a completed table that needs no look into entries; whether it did."""
        if self._net or run.space not in self._completed or change.unchanged or change.key is None:
            return False
        op, after = change.op, change.after
        if change.old_key is not None and change.old_key != change.key:
            return False
        completed = seq if op != _INSERT and change.before is None else None
        if op == _DELETE:
            packed = ENTRY_HEADER.pack(TOMBSTONE, seq, change.schema_id, xid, 0)
        elif after is not None and op in (_INSERT, _UPDATE):
            packed = ENTRY_HEADER.pack(0, seq, change.schema_id, xid, 0) + after
        else:
            return False
        if not self._stage.exchange(run.space + change.key, packed, completed):
            return False
        if op != _UPDATE:
            _count(run, 1 if op == _INSERT else -1)
        return True

    def _touch(self, run: TableRun) -> None:
        self._touched[run.space] = run

    def _altered(self, record: bytes, header: RecordHeader) -> None:
        """Notes that the table must be seeded again; a generation that began behind the statement need not."""
        self._note_difference(record, header)
        reseed = reseed_of(record, header)
        for run in [] if reseed is None else self._ledger.runs_of(reseed.oid):
            if reseed is None or not run.folding:
                continue
            if reseed.is_behind(parse_position(run.state.p0), header.last):
                self._told(run, header)
            elif run.seeding or reseed.ending:
                self._ledger.break_table(self._stage, run, reseed.reason)
            else:
                self._ledger.mark_stale(self._stage, run, reseed.reason, header.last)

    def _told(self, run: TableRun, header: RecordHeader) -> None:
        """Notes that the log tells only here what the generation has read already: deltas from before it lack that."""
        if parse_position(run.state.p0) <= header.last:
            state = msgspec.structs.replace(run.state, told_at=str(header.last), told_seq=header.last_seq)
            self._ledger.save_state(self._stage, run, state)

    def _note_difference(self, record: bytes, header: RecordHeader) -> None:
        """Notes that a net difference has come by the log, and where it stands."""
        oid, number = difference_of(record, header) or (0, 0)
        for run in self._ledger.runs_of(oid):
            if number > run.state.net_seen:
                state = msgspec.structs.replace(run.state, net_seen=number, net_at=str(header.last))
                self._ledger.save_state(self._stage, run, state)

    def _epoch_changed(self) -> None:
        for run in self._ledger.runs():
            if run.seeding and not run.again:
                run.again = "the timeline changed"

    def _switched(self, record: bytes, header: RecordHeader) -> None:
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
                    self._ledger.break_table(self._stage, run, why)
                elif why is _GAP:
                    self._ledger.mark_stale(self._stage, run, why, header.last)
                else:
                    self._ledger.mark_wrong(self._stage, run, why)

    def _change(self, run: TableRun, change: RawChange, seq: int, origin: FromEvent) -> None:
        op, key = change.op, change.key
        if op == _TRUNCATE:
            self._truncate(run, seq, origin)
        elif op not in (_INSERT, _UPDATE, _DELETE):
            return
        elif key is None:  # it was dropped, which the log tells only when capture has looked at the catalog
            self._ledger.break_table(self._stage, run, "its rows came without a key")
        elif op == _DELETE:
            self._remove(run, key, change, Removal(seq, change.schema_id, origin))
        else:
            self._upsert(run, key, change, seq, origin)

    def _upsert(self, run: TableRun, key: bytes, change: RawChange, seq: int, origin: FromEvent) -> None:
        if change.after is None:
            raise ProtocolError("an insert or update without a row", where=run.state.table)
        event = Upsert(seq, change.schema_id, change.after, change.unchanged, origin)
        completes = change.op == _UPDATE and self._completes(run, change)
        reads = run.seeding or completes or bool(change.unchanged)
        if change.old_key is not None and change.old_key != key:
            before = self._move(run, (run.space + change.old_key, run.space + key), event, reads=reads)
            self._complete(seq, before, completes=completes)
            return
        store_key = run.space + key
        before = self._stage.get(store_key, run.snapshots) if reads else None
        self._complete(seq, before, completes=completes)
        entry = fold_upsert(before, event, self._ledger.fill)
        self._put(run, store_key, entry, before)
        _count(run, int(before is None or before.row is None) if run.seeding else int(change.op == _INSERT))

    def _move(self, run: TableRun, keys: tuple[bytes, bytes], event: Upsert, *, reads: bool) -> Entry | None:
        """A row's way to another key; the old key's entry before it, where that was read."""
        old_key, new_key = keys
        old = self._stage.get(old_key, run.snapshots) if reads else None
        new = self._stage.get(new_key, run.snapshots) if run.seeding else None
        removed, entry = fold_key_change(old, new, event, self._ledger.fill)
        self._put(run, old_key, removed, old)
        self._put(run, new_key, entry, new)
        return old

    def _completes(self, run: TableRun, change: RawChange) -> bool:
        """Whether a completion of this change is to be kept: the log does not have the row before it."""
        return run.space in self._completed and change.before is None and not self._net

    def _complete(self, seq: int, before: Entry | None, *, completes: bool) -> None:
        if completes and before is not None and before.row is not None:
            self._stage.complete(seq, before)

    def _remove(self, run: TableRun, key: bytes, change: RawChange, event: Removal) -> None:
        store_key = run.space + key
        completes = self._completes(run, change)
        before = self._stage.get(store_key, run.snapshots) if run.seeding or completes else None
        self._complete(event.seq, before, completes=completes)
        entry = fold_removal(before, event)
        self._put(run, store_key, entry, before)
        if not run.seeding or (before is not None and before.row is not None and entry.row is None):
            _count(run, -1)

    def _truncate(self, run: TableRun, seq: int, origin: FromEvent) -> None:
        rows = 0
        if any(snapshot.sees(origin.xid) for snapshot in run.snapshots.values()):
            for store_key, entry in list(self._stage.entries(run.space, run.snapshots)):
                if survives_truncate(entry, origin):
                    rows += 1
                else:
                    self._stage.remove(store_key, entry)
        else:
            self._stage.clear(run.space)
        run.rows = rows
        run.state = msgspec.structs.replace(run.state, truncated_by=origin.xid, truncated_seq=seq)

    def _put(self, run: TableRun, store_key: bytes, entry: Entry, before: Entry | None) -> None:
        self._stage.put_changed(store_key, entry, before)
        if entry.missing and not run.seeding:
            run.missing = True


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


def _key_before(change: RawChange) -> bytes | None:
    """The key of the row that a change finds; None if it finds none."""
    if change.op == _UPDATE and change.old_key is not None:
        return change.old_key
    return change.key if change.op in (_UPDATE, _DELETE) else None


def _bits(runs: list[TableRun]) -> int:
    """Table bits, as in a record's header."""
    bits = 0
    for run in runs:
        bits |= 1 << run.state.oid % 64
    return bits


def _count(run: TableRun, difference: int) -> None:
    run.rows = max(0, run.rows + difference)
