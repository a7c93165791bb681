"""Decides what is seeded when: looks at the publication (`walbus.bootstrap.looks`), and hands jobs to workers.

A table gets a generation when it appears in the publication, when what the catalog says of it changes, when an
assumption of its seeding broke, and when its events were lost. The generation begins only once the applied position
has passed the W of the look that found the table: everything the log decoded under the old definition is then behind
P0. Jobs of all tables take turns; a source that does not answer is tried again with a growing pause, while the
applier goes on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import structlog
from msgspec import structs
from psycopg_pool import ConnectionPool, PoolTimeout

from walbus.bootstrap.catalog import SourceMoment, describes, read_identity, read_moment, read_published
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.looks import Looks, is_being_told, stands
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.seeding import SeedingJobs
from walbus.bootstrap.state import Phase, PublishedTable
from walbus.bootstrap.telling import Telling
from walbus.capture.refusals import refusal
from walbus.capture.sessions import parameters_of
from walbus.config import BootstrapConfig, SourceConfig
from walbus.errors import SourceError, SourceReplaced
from walbus.schema import TableSchema
from walbus.session import settings_sql

log = structlog.get_logger(__name__)

_TICK = 0.05
_JOBS_A_WORKER = 2  # one at work and one that waits, so that no worker idles until the next tick
_KEYS_READ_AGAIN = 200
_READ_AGAIN_PAUSE = 0.2
_SCHEMA_DEADLINE = 30.0
_DIFFERENCE_DEADLINE = 30.0  # for one that somebody removed by hand
_CONNECT_SECONDS = 10.0
#: Seconds between two looks whether a connection is still wanted.
_CONNECT_LOOK = 0.5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0

Pool = ConnectionPool[psycopg.Connection[Any]]
Job = Callable[[psycopg.Connection[Any]], None]


@dataclass(slots=True)
class Wanted:
    """A table that needs a generation.

    Attributes:
        published: as found.
        w: the applied position must pass it first.
        running: xids of the transactions that ran when it was found.
        reason: for the log and `/v1/tables`.
        since: when it was found.
        complained: whether its missing layout was already told.
    """

    published: PublishedTable
    w: int
    running: frozenset[int]
    reason: str
    since: float
    complained: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A job of one generation.

    Attributes:
        run: the generation.
        blocks: the range that it reads, first block and first behind; None where it is no chunk.
        call: the job.
    """

    run: TableRun
    blocks: tuple[int, int] | None
    call: Job


@dataclass(slots=True)
class Pauses:
    """When a table, or everything (None), may be tried again."""

    until: dict[int | None, float] = field(default_factory=dict)
    length: dict[int | None, float] = field(default_factory=dict)

    def over(self, what: int | None, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self.until.get(what, 0.0)

    def lengthen(self, what: int | None, now: float, jitter: float) -> float:
        """After a failure: the next pause, in seconds."""
        length = self.length.get(what, _SHORTEST_PAUSE)
        self.length[what] = min(length * 2, _LONGEST_PAUSE)
        pause = length * (0.5 + jitter)
        self.until[what] = now + pause
        return pause

    def succeeded(self, what: int | None) -> None:
        """After a success the next pause is short again."""
        self.length.pop(what, None)


class Seeder:
    """The loop. `run` belongs to one thread; the workers are its own."""

    def __init__(  # noqa: PLR0913  # time and chance are passed in
        self,
        source: SourceConfig,
        config: BootstrapConfig,
        ledger: Ledger,
        requests: RequestFolder,
        handing: Handing,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._config = config
        self._ledger = ledger
        self._requests = requests
        self._handing = handing
        self._telling = Telling(ledger, handing, clock)
        self._stop = stop
        self._clock = clock
        self._jitter = jitter
        self._jobs = SeedingJobs(ledger, source.publication, config, stop=stop, clock=clock)
        self._wanted: dict[int, Wanted] = {}
        self._running: dict[Future[None], Task] = {}
        self._pauses = Pauses()
        self._told_lacking: str | None = None  # the event
        self._looks = Looks(ledger)

    def run(self) -> None:
        """Seeds until `stop` is set.

        Raises:
            WalbusError: of the store; errors of the source are tried again.
        """
        with (
            _open_pool(self._source, self._config.workers + 1) as pool,
            ThreadPoolExecutor(self._config.workers, thread_name_prefix="seeding") as workers,
        ):
            try:
                while not self._stop.wait(_TICK):
                    self._tick(pool, workers)
            finally:
                self._stop.set()  # an error must not wait for jobs that rest, or that wait for the source
                workers.shutdown(wait=False, cancel_futures=True)
                self._telling.close()

    def _tick(self, pool: Pool, workers: ThreadPoolExecutor) -> None:
        self._collect()
        now = self._clock()
        if not self._ledger.following or not self._pauses.over(None, now):
            return
        if self._looks.notes_due(now):
            self._grant()
            self._heed_refusals()
        if self._looks.due(now, self._wanted):
            self._attempt(None, partial(_on_connection, pool, self._stop, self._look))
        self._start_wanted()
        self._finish()
        self._dispatch(pool, workers)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        self._check_source(connection)
        newest = self._ledger.newest_schema()
        published = read_published(connection, self._source.publication)
        moment = read_moment(connection)
        self._ledger.observe(moment.snapshot)
        lacking = "publication_missing" if published is None else None if published else "nothing_published"
        if lacking is not None and lacking != self._told_lacking:
            log.warning(lacking, publication=self._source.publication)
        self._told_lacking = lacking
        if published is None:  # not made yet, or dropped: it does not tell that no table is published
            self._looks.layout = None
            self._ledger.tell_listed(None)
            return
        for table in published.values():
            self._compare(table, moment)
        for oid in list(self._ledger.tables):
            if oid not in published:
                self._wanted.pop(oid, None)
                self._ledger.forget(oid)
        self._looks.layout = newest

    def _grant(self) -> None:
        """Notes which tables somebody wants to be seeded again; a look at the publication begins that."""
        if self._looks.layout is None:
            return  # which tables there are is not known yet
        for request in self._requests.waiting():
            tables = {run.state.table: run for run in list(self._ledger.tables.values())}
            unknown = [name for name in request.tables if name not in tables]
            refused = [run for name in request.tables if (run := tables.get(name)) and run.state.phase is Phase.REFUSED]
            if unknown:
                what = f"no table {' or '.join(unknown)} is published"
                self._requests.refuse(request.id, what, "see `walbus status --json`, or add it to [source] tables")
            elif refused:
                self._requests.refuse(request.id, f"{refused[0].state.table} cannot be seeded", refused[0].state.reason)
            else:
                self._requests.grant(request.id, {name: self._again(tables[name]) for name in request.tables})

    def _heed_refusals(self) -> None:
        """A difference that capture could not take is lost to those who follow the log: its table is seeded again."""
        for refused in self._handing.refused():
            run = self._ledger.tables.get(refused.oid)
            log.error("difference_was_refused", table=run.state.table if run else None, why=refused.why)
            if run is not None and run.settled:
                self._ledger.break_chain(run, "its net difference was refused")

    def _again(self, served: TableRun) -> int:
        """The number of the generation that is seeded from now on, or has not been seeded to its end yet."""
        newest = self._ledger.newest(served.state.oid) or served
        if newest.settled:
            self._ledger.outdate(newest, "an operator asked for it")
            log.info("seeding_asked_for", table=newest.state.table)
        return newest.state.generation + (not newest.seeding)

    def _check_source(self, connection: psycopg.Connection[Any]) -> None:
        """Rows of another database than the log's must never enter the store."""
        source, found = self._ledger.source, read_identity(connection)
        if source is not None and found != (source.system_identifier, source.database):
            raise SourceReplaced(
                "the database is not the one that the log was captured from",
                where=f"system {found[0]}, database {found[1]}",
                mend=f"point source.dsn at system {source.system_identifier}, database {source.database}",
            )

    def _compare(self, table: PublishedTable, moment: SourceMoment) -> None:
        """Notes the table if it needs a generation."""
        run = self._ledger.newest(table.oid)
        if run is not None and _describes(run, table) and stands(run):
            self._wanted.pop(table.oid, None)
            return
        if table.refusal:
            if run is None or run.state.published != table:
                self._ledger.refuse(table)
            return
        wanted = self._wanted.get(table.oid)
        if wanted is None or wanted.published != table:
            running = frozenset(moment.snapshot.running)
            self._wanted[table.oid] = Wanted(table, moment.w, running, _reason(run), self._clock())

    def _start_wanted(self) -> None:
        applied = self._ledger.applied
        for oid, wanted in list(self._wanted.items()):
            if applied is None or applied.commit_lsn < wanted.w or not self._ledger.unseen.complete:
                continue
            if is_being_told(self._ledger.tables.get(oid)) and self._clock() - wanted.since < _DIFFERENCE_DEADLINE:
                continue
            schema = self._schema_for(wanted)
            if schema is not None:
                self._ledger.start_generation(wanted.published, schema.id, wanted.reason, wanted.running)
                del self._wanted[oid]
        if self._looks.layout is not None:
            listed = all(oid in self._ledger.tables for oid in self._wanted)
            self._ledger.tell_listed(self._looks.layout if listed else None)

    def _schema_for(self, wanted: Wanted) -> TableSchema | None:
        """The table's last registered layout; None while that is another one than the catalog's."""
        schemas = self._ledger.schemas
        versions = [] if schemas is None else schemas.all()
        newest = next((schema for schema in reversed(versions) if schema.oid == wanted.published.oid), None)
        found = newest if newest is not None and describes(newest, wanted.published) else None
        if found is None and not wanted.complained and self._clock() - wanted.since > _SCHEMA_DEADLINE:
            wanted.complained = True
            log.error(
                "layout_not_registered",
                table=wanted.published.table,
                mend="start `walbus capture`: it registers the layouts of all published tables",
            )
        return found

    def _finish(self) -> None:
        for run in self._ledger.runs():
            if run.state.phase is Phase.CONSISTENT and run.missing and not run.state.stale:
                self._ledger.reopen(run)
            elif run.seeding and self._ledger.ready(run) and self._telling.told(run) and self._ledger.finish(run):
                log.info("table_consistent", table=run.state.table, generation=run.state.generation, rows=run.rows)

    def _dispatch(self, pool: Pool, workers: ThreadPoolExecutor) -> None:
        free = self._config.workers * _JOBS_A_WORKER - len(self._running)
        if free <= 0:
            return
        queues = [self._jobs_of(run) for run in self._ledger.runs() if run.seeding and not run.again]
        while queues and free > 0:
            queue = queues.pop(0)
            task = next(queue, None)
            if task is None:
                continue
            queues.append(queue)
            self._running[workers.submit(_on_connection, pool, self._stop, task.call)] = task
            free -= 1

    def _jobs_of(self, run: TableRun) -> Iterator[Task]:
        """What can be done for a generation now; each job is handed out before the next one is asked for."""
        oid, now = run.state.oid, self._clock()
        if not self._pauses.over(oid, now):
            return
        busy = [task.blocks for task in self._running.values() if task.run is run]
        if run.state.cut is None:
            if not busy:
                yield Task(run, None, partial(self._jobs.plan, run=run))
        elif not run.read:
            yield from self._chunks_of(run)
        elif not busy:
            yield from self._reading_again(run, now)

    def _chunks_of(self, run: TableRun) -> Iterator[Task]:
        while True:
            busy = [task.blocks for task in self._running.values() if task.run is run and task.blocks]
            gap = next(iter(run.gaps(busy)), None)
            if gap is None:
                return
            first, behind = gap[0], min(gap[1], gap[0] + max(1, run.stride))
            yield Task(run, (first, behind), partial(self._jobs.chunk, run=run, first=first, behind=behind))

    def _reading_again(self, run: TableRun, now: float) -> Iterator[Task]:
        applied = self._ledger.applied
        if applied is None or applied.commit_lsn < run.state.high_water:
            return
        keys = self._ledger.store.missing(run.space, _KEYS_READ_AGAIN)
        if keys:
            self._pauses.until[run.state.oid] = now + _READ_AGAIN_PAUSE
            yield Task(run, None, partial(self._jobs.read_again, run=run, store_keys=keys))

    def _collect(self) -> None:
        for future in [future for future in self._running if future.done()]:
            task = self._running.pop(future)
            self._attempt(task.run.state.oid, future.result)

    def _attempt(self, oid: int | None, call: Callable[[], None]) -> None:
        """Runs what asks the source; a failure pauses that table, or (None: the look at the catalog) everything."""
        try:
            call()
        except SourceError as error:
            pause = self._pauses.lengthen(oid, self._clock(), self._jitter())
            run = self._ledger.tables.get(oid) if oid is not None else None
            table = run.state.table if run else None
            if not self._stop.is_set():
                log.warning("source_refused", table=table, error=str(error), retry_in=round(pause, 1))
        else:
            self._pauses.succeeded(oid)


def _describes(run: TableRun, table: PublishedTable) -> bool:
    """Whether a generation is of the table as it is published now.

    Partitions of one that was consistent are not compared: of those that came or went with rows the log tells, and one
    that is made each day, empty, changes nothing.
    """
    known = run.state.published
    return known == (structs.replace(table, leaves=known.leaves) if known and run.settled else table)


def _reason(run: TableRun | None) -> str:
    """Why a table that is published needs a generation."""
    if run is None or run.state.phase is Phase.REFUSED:
        return "newly published"
    if run.state.phase in (Phase.BROKEN, Phase.WRONG):
        return run.state.reason
    return run.again or run.state.stale or "its columns, key, filter or publication changed"


@contextmanager
def _open_pool(source: SourceConfig, size: int) -> Iterator[Pool]:
    """Sessions with the shared settings, opened when they are needed."""
    parameters = {**parameters_of(source.dsn), "application_name": "walbus-bootstrap"}
    pool: Pool = ConnectionPool(
        "",
        kwargs={**parameters, "autocommit": True, "prepare_threshold": None},
        min_size=0,
        max_size=size,
        open=False,
        configure=_configure,
        check=ConnectionPool.check_connection,
        max_idle=60.0,
        name="walbus-bootstrap",
    )
    pool.open()
    try:
        yield pool
    finally:
        pool.close(timeout=2.0)


def _configure(connection: psycopg.Connection[Any]) -> None:
    connection.execute(settings_sql())


def _on_connection(pool: Pool, stop: threading.Event, call: Job) -> None:
    """Runs a job on a connection of the pool.

    Raises:
        SourceError: PostgreSQL refused or is not reachable, or `stop` was set before there was a connection.
    """
    until = time.monotonic() + _CONNECT_SECONDS
    try:
        with ExitStack() as held:
            connection: psycopg.Connection[Any] | None = None
            while connection is None:
                try:
                    connection = held.enter_context(pool.connection(_CONNECT_LOOK))
                except PoolTimeout:
                    if stop.is_set() or time.monotonic() > until:
                        raise
            call(connection)
    except psycopg.Error as error:
        raise refusal(error, "seeding") from None
