"""The store with its meaning: every change of it goes through here, under one lock.

The applier (events) and the seeder's workers (chunks, plans, phases) meet in this class. Each operation is one
critical section and one atomic write, so an event and a chunk's row never interleave on a key, and what is in memory
is what is in the store.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot, pack_prefix
from walbus.bootstrap.fold import ChunkRow, Fill, admitted, fold_chunk_row
from walbus.bootstrap.runs import TableRun, load_runs
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import (
    APPLIED,
    LISTED,
    UNSEEN,
    Applied,
    ChunkDone,
    Listed,
    Phase,
    Plan,
    PublishedTable,
    TableState,
    Unseen,
    chunk_document,
    decode,
    encode,
    snapshot_document,
    table_document,
)
from walbus.bootstrap.store import Store
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.log import SchemaRegistry, SourceIdentity
from walbus.position import Position
from walbus.schema import TableSchema
from walbus.values import merge_unchanged

log = structlog.get_logger(__name__)


class Ledger:
    """All tables, the applied position, and the lock that guards both."""

    def __init__(self, store: Store, fill: Fill | None = None) -> None:
        """Loads what the store holds.

        Args:
            store: nobody else writes to it.
            fill: how columns are filled from another state of a row; a test's rows need not be Avro.
        """
        self.lock = threading.RLock()
        self.store = store
        self.schemas: SchemaRegistry | None = None  # of the log, once that is open
        self.source: SourceIdentity | None = None  # likewise
        self.fill = fill or self._merge
        content = store.document(APPLIED)
        self.applied: Applied | None = None if content is None else decode(content, Applied)
        self.following = False  # whether the applier is at work, so that `unseen` speaks for the log
        self.unseen = UnseenCommits()
        self.unseen_at: Position | None = None
        stored = store.document(UNSEEN)
        if stored is not None:
            unseen = decode(stored, Unseen)
            self.unseen = UnseenCommits(unseen.xids)
            self.unseen_at = unseen.position
        self.tables = {run.state.oid: run for run in load_runs(store)}
        content = store.document(LISTED)
        self._listed: Listed | None = None if content is None else decode(content, Listed)

    @property
    def listed(self) -> bool:
        """Whether every published table is among `tables`, as far as the log tells.

        A list without one of them would leave its rows out of a consumer's snapshot for good. A table enters the log by
        its layout: where the newest one is that of the last look at the publication, none can be missing, even if the
        source is away since this process began.
        """
        return self._listed is not None and self._listed.schema_id == self.newest_schema()

    def newest_schema(self) -> int | None:
        """The number of the log's newest layout, 0 if there is none; None while the log is not open."""
        schemas = self.schemas
        return None if schemas is None else max((schema.id for schema in schemas.all()), default=0)

    def tell_listed(self, schema_id: int | None) -> None:
        """Notes the outcome of a look at the publication.

        Args:
            schema_id: `newest_schema` before the look; None if a published table is not among `tables` yet.
        """
        listed = None if schema_id is None else Listed(schema_id)
        with self.lock:
            if listed == self._listed:
                return
            stage = Stage(self.store)
            stage.document(LISTED, None if listed is None else encode(listed))
            stage.commit()
            self._listed = listed

    def begin(self, applied: Applied, unseen: UnseenCommits) -> None:
        """A store without history starts to follow a log."""
        with self.lock:
            stage = Stage(self.store)
            for run in self.tables.values():
                self.break_table(stage, run, "the log was left behind")
            stage.document(APPLIED, encode(applied))
            stage.document(LISTED, None)
            self.stage_unseen(stage, applied, unseen)
            stage.commit()
            self.applied, self.unseen, self.unseen_at = applied, unseen, applied.position
            self._listed = None

    def resume(self, xids: Iterable[int]) -> None:
        """The applier is about to go on.

        Args:
            xids: of the log behind `unseen_at`, up to the applied position.
        """
        with self.lock:
            for xid in xids:
                self.unseen.add(xid)
            for run in self.tables.values():
                if run.state.plan is None:
                    run.waiting_for = self.unseen.xids().union(run.state.running)
                if run.seeding and self.applied is not None and 0 < run.state.epoch < self.applied.epoch:
                    run.again = "the timeline changed"
            self.following = True

    def observe(self, snapshot: Snapshot) -> None:
        """Takes note of what the source shows now."""
        with self.lock:
            if self.applied is None or not self.following:
                return
            self.unseen.observe(snapshot)
            stage = Stage(self.store)
            self.stage_unseen(stage, self.applied, self.unseen)
            stage.commit()
            self.unseen_at = self.applied.position
            for run in self.tables.values():
                if run.waiting_for:
                    run.waiting_for = frozenset(xid for xid in run.waiting_for if not snapshot.sees(xid))

    def needed_after(self) -> Position | None:
        """The log is needed behind this "last done" position; None while none is followed."""
        with self.lock:
            if self.applied is None:
                return None
            return min(self.applied.position, self.unseen_at or self.applied.position)

    def start_generation(
        self, published: PublishedTable, schema_id: int, reason: str, running: Iterable[int] = ()
    ) -> TableRun:
        """The table folds from here: P0 is the applied position, earlier generations go.

        Args:
            published: as the catalog describes it.
            schema_id: the registered layout.
            reason: why.
            running: xids of the transactions that ran behind the look at the catalog.
        """
        with self.lock:
            applied = self._require_applied()
            old = self.tables.get(published.oid)
            stage = Stage(self.store)
            if old is not None:
                self._drop_rows(stage, old)
            state = TableState(
                oid=published.oid,
                table=published.table,
                generation=old.state.generation + 1 if old else 1,
                phase=Phase.SEEDING,
                reason=reason,
                published=published,
                schema_id=schema_id,
                p0=str(applied.position),
                seq_p0=applied.last_seq,
                epoch=applied.epoch,
                running=tuple(sorted(running)),
            )
            run = TableRun(state, waiting_for=self.unseen.xids().union(state.running))
            self.save_state(stage, run, state)
            stage.commit()
            self.tables[published.oid] = run
        log.info("seeding_starts", table=state.table, generation=state.generation, p0=state.p0, reason=reason)
        return run

    def plan(self, run: TableRun, plan: Plan, w: int) -> bool:
        """The generation's chunks, counted in a snapshot whose W this is; False if the generation is over."""
        with self.lock:
            if not self._current(run) or run.waiting_for or not self.following:
                return False
            stage = Stage(self.store)
            high_water = max(run.state.high_water, w)
            self.save_state(stage, run, msgspec.structs.replace(run.state, plan=plan, high_water=high_water))
            stage.commit()
            return True

    def admit(self, run: TableRun, snapshot: Snapshot, w: int) -> FromSnapshot | None:
        """A chunk's snapshot, numbered and stored before its first row; None if the generation is over."""
        with self.lock:
            if not self._current(run):
                return None
            number = run.state.last_snapshot + 1
            stage = Stage(self.store)
            name = snapshot_document(run.state.oid, run.state.generation, number)
            stage.document(name, str(snapshot).encode())
            high_water = max(run.state.high_water, w)
            state = msgspec.structs.replace(run.state, high_water=high_water, last_snapshot=number)
            self.save_state(stage, run, state)
            stage.commit()
            run.snapshots[number] = snapshot
            return FromSnapshot(number, snapshot)

    def fold_rows(self, run: TableRun, origin: FromSnapshot, rows: Sequence[tuple[bytes, bytes]]) -> bool:
        """Folds rows of a chunk in.

        Args:
            run: the table.
            origin: from `admit`.
            rows: (memcomparable key, Avro row), each key once.

        Returns:
            False if they no longer count: the generation is over, or a TRUNCATE that the snapshot does not see came.
        """
        with self.lock:
            if not self._current(run):
                return False
            truncated_by = run.state.truncated_by
            if not admitted(origin, None if truncated_by is None else FromEvent(truncated_by)):
                return True
            stage = Stage(self.store)
            run.rows += self._fold_rows(stage, run, origin, rows)
            self.save_state(stage, run, run.state)
            stage.commit()
            return True

    def _fold_rows(self, stage: Stage, run: TableRun, origin: FromSnapshot, rows: Sequence[tuple[bytes, bytes]]) -> int:
        """Stages rows of a chunk; returns how many keys got a row that had none.

        A key without an entry is what nearly every row of a seeding meets, so those are packed without ado; the rule
        for them is the first line of `fold_chunk_row`.
        """
        state, space = run.state, run.space
        store_keys = [space + key for key, _ in rows]
        stored = stage.get_many(store_keys, run.snapshots)
        prefix = pack_prefix(state.seq_p0, state.schema_id, origin)
        new_keys = [key for key, entry in zip(store_keys, stored, strict=True) if entry is None]
        stage.put_new(new_keys, [prefix + row for (_, row), entry in zip(rows, stored, strict=True) if entry is None])
        added = len(new_keys)
        if added == len(rows):
            return added
        for store_key, (_, row), entry in zip(store_keys, rows, stored, strict=True):
            if entry is None:
                continue
            folded = fold_chunk_row(entry, ChunkRow(state.seq_p0, state.schema_id, row, origin), self.fill)
            if folded is not entry:
                stage.put(store_key, folded, entry)
                added += entry.row is None
        return added

    def chunk_done(self, run: TableRun, block: int, done: ChunkDone) -> None:
        """A chunk is wholly in the store: it is not read again after a crash."""
        with self.lock:
            if not self._current(run):
                return
            stage = Stage(self.store)
            stage.document(chunk_document(run.state.oid, run.state.generation, block), encode(done))
            stage.commit()
            run.done[block] = done

    def forget_missing(self, run: TableRun, keys: Sequence[bytes]) -> None:
        """Drops marks of missing columns from keys whose entries are whole by now."""
        with self.lock:
            if not self._current(run):
                return
            stage = Stage(self.store)
            for key, entry in zip(keys, stage.get_many(list(keys), run.snapshots), strict=True):
                if entry is None or not entry.missing:
                    stage.unmark(key)
            stage.commit()

    def finish(self, run: TableRun) -> bool:
        """The table is consistent, if every W is applied and nothing is missing."""
        with self.lock:
            state = run.state
            if not self._current(run) or state.plan is None or len(run.done) < state.plan.chunks:
                return False
            if self._require_applied().commit_lsn < state.high_water or self.store.missing(run.space, 1):
                return False
            stage = Stage(self.store)
            self._drop_documents(stage, run)
            seeded = Plan(state.plan.filenode, blocks=0, step=1)
            self.save_state(stage, run, msgspec.structs.replace(state, phase=Phase.CONSISTENT, reason="", plan=seeded))
            stage.commit()
            run.snapshots, run.done, run.missing = {}, {}, False
            return True

    def reopen(self, run: TableRun) -> None:
        """A consistent table has an entry with a column that was never seen: it is seeding until that is read."""
        with self.lock:
            if run.state.phase is Phase.CONSISTENT:
                stage = Stage(self.store)
                self.save_state(
                    stage, run, msgspec.structs.replace(run.state, phase=Phase.SEEDING, reason="a column is missing")
                )
                stage.commit()
                run.missing = False

    def refuse(self, published: PublishedTable) -> None:
        """The table cannot be bootstrapped."""
        with self.lock:
            old = self.tables.get(published.oid)
            stage = Stage(self.store)
            if old is not None:
                self._drop_rows(stage, old)
            state = TableState(
                oid=published.oid,
                table=published.table,
                generation=old.state.generation if old else 0,
                phase=Phase.REFUSED,
                reason=published.refusal,
                published=published,
            )
            run = TableRun(state)
            self.save_state(stage, run, state)
            stage.commit()
            self.tables[published.oid] = run
        log.error("table_refused_for_bootstrap", table=state.table, reason=state.reason)

    def forget(self, run: TableRun) -> None:
        """The table is no longer published."""
        with self.lock:
            stage = Stage(self.store)
            self._drop_rows(stage, run)
            stage.document(table_document(run.state.oid), None)
            stage.commit()
            self.tables.pop(run.state.oid, None)
        log.warning("table_no_longer_published", table=run.state.table)

    def save_state(self, stage: Stage, run: TableRun, state: TableState) -> None:
        """Stages a table's new state; the caller holds the lock and commits."""
        run.state = state = msgspec.structs.replace(state, rows=run.rows)
        stage.document(table_document(state.oid), encode(state))

    def _current(self, run: TableRun) -> bool:
        return self.tables.get(run.state.oid) is run and run.seeding and not run.again

    def _require_applied(self) -> Applied:
        if self.applied is None:
            raise AssertionError("the applier has not begun")
        return self.applied

    def break_table(self, stage: Stage, run: TableRun, reason: str) -> None:
        """Stages that the table's rows are wrong and go; it is seeded again. The caller holds the lock and commits."""
        self._drop_rows(stage, run)
        run.rows = 0
        self.save_state(stage, run, msgspec.structs.replace(run.state, phase=Phase.BROKEN, reason=reason))
        log.error("table_broken", table=run.state.table, reason=reason, mend="nothing to do: it is seeded again")

    def stage_unseen(self, stage: Stage, applied: Applied, unseen: UnseenCommits) -> None:
        """Stages the set of unseen transactions, which is complete up to the applied position."""
        xids = tuple(sorted(unseen.xids()))
        stage.document(UNSEEN, encode(Unseen(applied.epoch, applied.commit_lsn, applied.ordinal, xids)))

    def _drop_rows(self, stage: Stage, run: TableRun) -> None:
        stage.clear(run.space)
        self._drop_documents(stage, run)

    def _drop_documents(self, stage: Stage, run: TableRun) -> None:
        oid, generation = run.state.oid, run.state.generation
        for block in run.done:
            stage.document(chunk_document(oid, generation, block), None)
        for number in run.snapshots:
            stage.document(snapshot_document(oid, generation, number), None)

    def _merge(self, schema_id: int, row: bytes, unchanged: bytes, other: Entry) -> tuple[bytes, bytes]:
        if other.row is None:
            return row, unchanged
        schema, stored = self.schema_of(schema_id), self.schema_of(other.schema_id)
        return merge_unchanged(schema, row, unchanged, stored, other.row, other.missing)

    def schema_of(self, schema_id: int) -> TableSchema:
        """A layout of the log.

        Raises:
            KeyError: the log has none with this number.
        """
        if self.schemas is None:
            raise KeyError(schema_id)
        return self.schemas.get(schema_id)
