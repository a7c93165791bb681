"""The store with its meaning: every change of it goes through here, under one lock.

The applier (events) and the seeder's workers (chunks, plans, phases) meet in this class. Each operation is one
critical section and one atomic write, so an event and a chunk's row never interleave on a key, and what is in memory
is what is in the store.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence

import msgspec

from walbus.bootstrap.completions import Completions
from walbus.bootstrap.entry import Entry, FromEvent, FromSnapshot, pack_prefix
from walbus.bootstrap.fold import ChunkRow, Fill, admitted, fold_chunk_row
from walbus.bootstrap.generations import Generations
from walbus.bootstrap.horizon import HORIZON, MARKS
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import (
    APPLIED,
    LISTED,
    UNSEEN,
    Applied,
    ChunkDone,
    Cut,
    Listed,
    Unseen,
    chunk_document,
    decode,
    encode,
    snapshot_document,
)
from walbus.bootstrap.store import Store
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.log import SchemaRegistry, SourceIdentity
from walbus.position import Position
from walbus.schema import TableSchema
from walbus.values import merge_unchanged


class Verdict(enum.Enum):
    """What becomes of a chunk's rows."""

    COUNTS = enum.auto()
    SHUT_OUT = enum.auto()  #: a TRUNCATE came that their snapshot does not see
    OVER = enum.auto()  #: the generation is over


class Ledger(Generations):
    """All tables, the applied position, and the lock that guards both."""

    def __init__(self, store: Store, fill: Fill | None = None, complete: Sequence[str] = ()) -> None:
        """Loads what the store holds.

        Args:
            store: nobody else writes to it.
            fill: how columns are filled from another state of a row; a test's rows need not be Avro.
            complete: patterns of the tables of which completions are kept.
        """
        super().__init__(store)
        self.completions = Completions(store, complete)
        self._watchers: list[Callable[[], object]] = []
        self.schemas: SchemaRegistry | None = None  # of the log, once that is open
        self.source: SourceIdentity | None = None  # likewise
        self.fill = fill or self._merge
        self.behind = False  # whether there is more in the log than the batch that is applied now
        self.following = False  # whether the applier is at work, so that `unseen` speaks for the log
        self.unseen_at: Position | None = None
        stored = store.document(UNSEEN)
        if stored is not None:
            unseen = decode(stored, Unseen)
            self.unseen = UnseenCommits(unseen.xids)
            self.unseen_at = unseen.position
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
            for run in self.runs():
                self.break_table(stage, run, "the log was left behind")
            stage.document(APPLIED, encode(applied))
            for document in (LISTED, HORIZON, MARKS):
                stage.document(document, None)
            self.stage_unseen(stage, applied, unseen)
            self.completions.begin(stage, applied)
            stage.commit()
            self.applied = self.applied_whole = applied
            self.unseen, self.unseen_at = unseen, applied.position
            self._listed = None

    def resume(self, xids: Iterable[int]) -> None:
        """The applier is about to go on.

        Args:
            xids: of the log behind `unseen_at`, up to the applied position.
        """
        with self.lock:
            self.unseen.update(xids)
            for run in self.runs():
                if run.state.cut is None:
                    run.waiting_for = self.unseen.xids().union(run.state.running)
                if run.seeding and self.applied is not None and 0 < run.state.epoch < self.applied.epoch:
                    run.again = "the timeline changed"
            if self.applied is not None:
                stage = Stage(self.store)
                self.completions.settle(stage, self.applied, whole=self.store.whole)
                stage.commit()
            self.following = True

    def watch(self, watcher: Callable[[], object]) -> Callable[[], None]:
        """Has a function called, by the thread that folds, whenever the applied position has moved.

        Returns:
            what ends that.
        """
        self._watchers = [*self._watchers, watcher]

        def unwatch() -> None:
            self._watchers = [one for one in self._watchers if one is not watcher]

        return unwatch

    def moved(self) -> None:
        """The applied position has moved."""
        for watcher in self._watchers:
            watcher()

    def trim_completions(self, position: Position, seq: int) -> None:
        """The log has dropped what lies up to a position, which has the last seq given there."""
        with self.lock:
            kept = self.completions.kept
            if kept is None or position <= kept.position:
                return
            stage = Stage(self.store)
            self.completions.trim(stage, position, seq)
            stage.commit()

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
            for run in self.runs():
                if run.waiting_for:
                    run.waiting_for = frozenset(xid for xid in run.waiting_for if not snapshot.sees(xid))

    def folding(self) -> list[TableRun]:
        """Every run that events are folded into."""
        return [run for run in self.runs() if run.folding]

    def needed(self) -> tuple[str, Position] | None:
        """Which log is needed, and behind which "last done" position; None while none is followed."""
        with self.lock:
            if self.applied is None:
                return None
            return self.applied.log_id, min(self.applied.position, self.unseen_at or self.applied.position)

    def plan(self, run: TableRun, cut: Cut, w: int) -> bool:
        """The generation's blocks, counted in a snapshot whose W this is; False if the generation is over."""
        with self.lock:
            if not self._current(run) or run.waiting_for or not self.following:
                return False
            stage = Stage(self.store)
            high_water = max(run.state.high_water, w)
            self.save_state(stage, run, msgspec.structs.replace(run.state, cut=cut, high_water=high_water))
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

    def verdict(self, run: TableRun, origin: FromSnapshot) -> Verdict:
        """What becomes of rows of a chunk now; it holds as long as the caller holds the lock."""
        if not self._current(run):
            return Verdict.OVER
        by = run.state.truncated_by
        return Verdict.COUNTS if admitted(origin, None if by is None else FromEvent(by)) else Verdict.SHUT_OUT

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
            verdict = self.verdict(run, origin)
            if verdict is not Verdict.COUNTS:
                return verdict is Verdict.SHUT_OUT
            stage = Stage(self.store)
            run.rows += self._fold_rows(stage, run, origin, rows)
            self.save(stage, run)
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
            self.save(stage, run)
            stage.commit()
            run.note_done(block, done)

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

    def stage_unseen(self, stage: Stage, applied: Applied, unseen: UnseenCommits) -> None:
        """Stages the set of unseen transactions, which is complete up to the applied position."""
        xids = tuple(sorted(unseen.xids()))
        stage.document(UNSEEN, encode(Unseen(applied.epoch, applied.commit_lsn, applied.ordinal, xids)))

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
