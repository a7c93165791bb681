"""Which generations a table has, and how one follows another. The ledger folds into them; here they come and go.

A table's rows are those of one seeding, a *generation*, with the events behind its P0 folded in. When the rows of a
consistent one are no longer the source's (a statement changed them without events, the catalog describes the table
otherwise, somebody asks), the next one is seeded *beside* it:

    tables[OID]       consistent, stale      folded blindly, served, says that it is stale
    successors[OID]   seeding                folded by the seeding rule, not served

Both are folded to the same position by the same batches. When the successor is consistent, one write puts it in the
older one's place and drops the older one's rows: a reader finds the one or the other, whole, and a crash leaves the one
or the other.

The older generation is what the log says, from its P0 on, in the layouts that the rows had: whoever followed the log
has the same rows. So it may be served, as long as it tells that it is stale. It may not where it is nothing of
the kind:

- its rows are known by another key or name than the log's, or the log has lost its place: it is dropped at once;
- a failover lost transactions that it holds, so that the source has never had some of its rows: it is *wrong*, folded
  on so that the difference can be told, and not served.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from walbus.bootstrap.runs import TableRun, load_runs
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import (
    APPLIED,
    SUCCESSORS,
    TABLES,
    Applied,
    Cut,
    Phase,
    PublishedTable,
    TableState,
    chunk_document,
    decode,
    encode,
    rows_document,
    snapshot_document,
    successor_document,
    table_document,
)
from walbus.bootstrap.store import Store
from walbus.bootstrap.turns import TurnLock
from walbus.bootstrap.unseen import UnseenCommits
from walbus.position import Position

log = structlog.get_logger(__name__)


class Generations:
    """The tables of one store. Everything is done under `lock`.

    Attributes:
        lock: guards the tables and every write of the store.
        store: nobody else writes to it.
        applied: how far the log is folded in; None while none is followed.
        applied_whole: the last such place between two transactions that this process knows of.
        unseen: logged transactions that may not be visible at the source yet.
        tables: by OID, the generation that is served, or will be.
        successors: by OID, the generation that is seeded beside it.
    """

    def __init__(self, store: Store) -> None:
        self.lock = TurnLock()
        self.store = store
        content = store.document(APPLIED)
        self.applied: Applied | None = None if content is None else decode(content, Applied)
        self.applied_whole = self.applied if store.whole else None
        self.unseen = UnseenCommits()
        self.tables = load_runs(store, TABLES)
        self.successors = load_runs(store, SUCCESSORS)

    def runs(self) -> list[TableRun]:
        """Every generation that there is, those that are served first."""
        with self.lock:
            return [*self.tables.values(), *self.successors.values()]

    def runs_of(self, oid: int) -> list[TableRun]:
        """A table's generations, the served one first."""
        with self.lock:
            return [runs[oid] for runs in (self.tables, self.successors) if oid in runs]

    def newest(self, oid: int) -> TableRun | None:
        """A table's latest generation."""
        with self.lock:
            return self.successors.get(oid) or self.tables.get(oid)

    def start_generation(
        self, published: PublishedTable, schema_id: int, reason: str, running: Iterable[int] = ()
    ) -> TableRun:
        """The table folds from here: P0 is the applied position. A consistent generation stays until this one is.

        Args:
            published: as the catalog describes it.
            schema_id: the registered layout.
            reason: why.
            running: xids of the transactions that ran behind the look at the catalog.
        """
        with self.lock:
            applied = self._require_applied()
            earlier = self.runs_of(published.oid)
            state = TableState(
                oid=published.oid,
                table=published.table,
                generation=max((run.state.generation for run in earlier), default=0) + 1,
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
            served = self.tables.get(published.oid)
            beside = served is not None and served.settled and continues(served.state.published, published)
            stage = Stage(self.store)
            for old in earlier:
                if not (beside and old is served):
                    self._drop_rows(stage, old)
            if beside and served is not None and not served.state.stale:
                self.mark_stale(stage, served, reason, None)
            self._seat(stage, run, beside=beside)
            stage.commit()
        log.info(
            "seeding_starts",
            table=state.table, generation=state.generation, p0=state.p0, reason=reason, served_meanwhile=beside,
        )  # fmt: skip
        return run

    def _seat(self, stage: Stage, run: TableRun, *, beside: bool) -> None:
        """Gives a new generation its place, and stages that."""
        oid = run.state.oid
        if beside:
            self.successors[oid] = run
        else:
            self.tables[oid] = run
            self._vacate(stage, oid)
        self.save_state(stage, run, run.state)

    def _vacate(self, stage: Stage, oid: int) -> None:
        if self.successors.pop(oid, None) is not None:
            stage.document(successor_document(oid), None)

    def ready(self, run: TableRun) -> bool:
        """Whether all chunks of a seeding are in, every W is applied, and nothing is missing."""
        with self.lock:
            state = run.state
            if not self._current(run) or not run.read:
                return False
            return self._require_applied().commit_lsn >= state.high_water and not self.store.missing(run.space, 1)

    def finish(self, run: TableRun) -> bool:
        """The generation is consistent if it is `ready`, and takes the place of the one that was served meanwhile."""
        with self.lock:
            if not self.ready(run):
                return False
            oid, state = run.state.oid, run.state
            stage = Stage(self.store)
            self._drop_documents(stage, run)
            since, number = state.net_since, state.net_number  # it may have been consistent before
            if self.successors.get(oid) is run:
                since = self.tables[oid].state.net_since if run.told else ""
                number = run.told if since else 0  # of a broken chain nobody waits for the last difference
                self._drop_rows(stage, self.tables[oid])
                self._vacate(stage, oid)
                self.tables[oid] = run
            state = msgspec.structs.replace(
                state,
                phase=Phase.CONSISTENT,
                reason="",
                cut=Cut(()),
                net_since=since or self._begin_of_chain(state.generation),
                net_number=number,
            )
            self.save_state(stage, run, state)
            stage.commit()
            run.forget_chunks()
            run.missing, run.touched = False, None
            return True

    def _begin_of_chain(self, generation: int) -> str:
        """Since when who has a table's rows has them by the log, where no difference leads to them from earlier ones.

        The rows of an earlier generation may have been read at the very position that the log stands at.
        """
        position = self._require_applied().position
        return str(position if generation == 1 else position._replace(ordinal=position.ordinal + 1))

    def reopen(self, run: TableRun) -> None:
        """A consistent table has an entry with a column that was never seen: it is seeding until that is read."""
        with self.lock:
            stage = Stage(self.store)
            self.stage_reopening(stage, run)
            stage.commit()

    def stage_reopening(self, stage: Stage, run: TableRun) -> None:
        """Stages that; the caller holds the lock and commits."""
        if run.state.phase is Phase.CONSISTENT:
            state = msgspec.structs.replace(run.state, phase=Phase.SEEDING, reason="a column is missing")
            self.save_state(stage, run, state)
            run.missing = False

    def outdate(self, run: TableRun, why: str) -> None:
        """A consistent generation is to be followed by another one, at somebody's request."""
        with self.lock:
            stage = Stage(self.store)
            self.mark_stale(stage, run, why, None)
            stage.commit()

    def break_chain(self, run: TableRun, why: str) -> None:
        """What was to be told of a generation's rows will not be in the log: who has other rows must read them anew."""
        with self.lock:
            stage = Stage(self.store)
            run.state = msgspec.structs.replace(run.state, net_since="")
            self.mark_stale(stage, run, why, None)
            stage.commit()

    def mark_stale(self, stage: Stage, run: TableRun, why: str, at: Position | None) -> None:
        """Stages that a generation is not what the source has. The caller holds the lock and commits.

        Args:
            stage: of the caller.
            run: a generation that is folded on.
            why: for people.
            at: the position of the event that says so; None if none does.
        """
        stale_at = run.state.stale_at if at is None else str(at)
        self.save_state(stage, run, msgspec.structs.replace(run.state, stale=why, stale_at=stale_at))
        log.warning("table_stale", table=run.state.table, reason=why, note="served until it is seeded again")

    def mark_wrong(self, stage: Stage, run: TableRun, why: str) -> None:
        """Stages that a generation holds what the source never had. The caller holds the lock and commits."""
        self.save_state(stage, run, msgspec.structs.replace(run.state, phase=Phase.WRONG, reason=why))
        log.error("table_wrong", table=run.state.table, reason=why, mend="nothing to do: it is seeded again")

    def break_table(self, stage: Stage, run: TableRun, reason: str) -> None:
        """Stages that a generation's rows go; the next one follows. The caller holds the lock and commits."""
        self._drop_rows(stage, run)
        run.rows = 0
        self.save_state(stage, run, msgspec.structs.replace(run.state, phase=Phase.BROKEN, reason=reason))
        log.error("table_broken", table=run.state.table, reason=reason, mend="nothing to do: it is seeded again")

    def refuse(self, published: PublishedTable) -> None:
        """The table cannot be bootstrapped."""
        with self.lock:
            earlier = self.runs_of(published.oid)
            stage = Stage(self.store)
            for old in earlier:
                self._drop_rows(stage, old)
            state = TableState(
                oid=published.oid,
                table=published.table,
                generation=max((old.state.generation for old in earlier), default=0),
                phase=Phase.REFUSED,
                reason=published.refusal,
                published=published,
            )
            self._seat(stage, TableRun(state), beside=False)
            stage.commit()
        log.error("table_refused_for_bootstrap", table=state.table, reason=state.reason)

    def forget(self, oid: int) -> None:
        """The table is no longer published."""
        with self.lock:
            stage = Stage(self.store)
            for run in self.runs_of(oid):
                self._drop_rows(stage, run)
            stage.document(table_document(oid), None)
            self._vacate(stage, oid)
            stage.commit()
            gone = self.tables.pop(oid)
        log.warning("table_no_longer_published", table=gone.state.table)

    def save_state(self, stage: Stage, run: TableRun, state: TableState) -> None:
        """Stages a generation's new state; the caller holds the lock and commits."""
        run.state = run.stored = state = msgspec.structs.replace(state, rows=run.rows)
        beside = self.successors.get(state.oid) is run
        stage.document((successor_document if beside else table_document)(state.oid), encode(state))
        self._save_rows(stage, run)

    def save(self, stage: Stage, run: TableRun) -> None:
        """Stages what has changed of a generation: mostly its rows alone. The caller holds the lock and commits."""
        if run.state is run.stored:
            self._save_rows(stage, run)
        else:
            self.save_state(stage, run, run.state)

    def _save_rows(self, stage: Stage, run: TableRun) -> None:
        stage.document(rows_document(run.state.oid, run.state.generation), str(run.rows).encode())

    def _current(self, run: TableRun) -> bool:
        """Whether a seeding still counts."""
        seated = any(run is one for one in self.runs_of(run.state.oid))
        return seated and run.seeding and not run.again

    def _require_applied(self) -> Applied:
        if self.applied is None:
            raise AssertionError("the applier has not begun")
        return self.applied

    def _drop_rows(self, stage: Stage, run: TableRun) -> None:
        stage.clear(run.space)
        stage.document(rows_document(run.state.oid, run.state.generation), None)
        self._drop_documents(stage, run)

    def _drop_documents(self, stage: Stage, run: TableRun) -> None:
        oid, generation = run.state.oid, run.state.generation
        for block in run.done:
            stage.document(chunk_document(oid, generation, block), None)
        for number in run.snapshots:
            stage.document(snapshot_document(oid, generation, number), None)


def continues(served: PublishedTable | None, published: PublishedTable) -> bool:
    """Whether rows that were seeded as the one can be folded on and served while the other is what is published.

    The log's events come with the new definition. They fit if they name the table and its keys as the stored rows do.
    """
    if served is None:
        return False
    return (served.table, _key(served)) == (published.table, _key(published))


def _key(table: PublishedTable) -> list[tuple[str, int, int, bool]]:
    return [column for column in table.columns if column[3]]
