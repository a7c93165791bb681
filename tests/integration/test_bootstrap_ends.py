"""The bootstrap's seeder ends within a few seconds, whatever it is at, and an error of the store is not held up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql
from structlog.testing import capture_logs

from support.database import Database
from support.memory_store import MemoryStore
from support.net_differences import LAYOUT
from support.waiting import wait_for
from walbus.bootstrap.catalog import read_published
from walbus.bootstrap.chunks import copy_rows
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.seeder import Seeder
from walbus.bootstrap.seeding import SeedingJobs
from walbus.bootstrap.state import Applied
from walbus.bootstrap.threads import _JOIN_SECONDS, Threads
from walbus.bootstrap.unseen import UnseenCommits
from walbus.config import BootstrapConfig, SourceConfig
from walbus.errors import SourceUnavailable, StoreFull
from walbus.native import new_copied_rows
from walbus.position import ORIGIN


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(MemoryStore())
    ledger.begin(Applied("log", *ORIGIN, 0, 0), UnseenCommits())
    ledger.resume([])
    return ledger


def seeding(ledger: Ledger, dsn: str, folder: Path, stop: threading.Event, **options: object) -> Callable[[], None]:
    config = BootstrapConfig.model_validate(options)
    requests, handing = RequestFolder(folder / "requests"), Handing(None)
    return Seeder(SourceConfig(dsn=dsn), config, ledger, requests, handing, stop=stop).run


def test_a_source_that_takes_connections_and_does_not_answer_is_not_waited_for(ledger: Ledger, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        threads = Threads()
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]} user=nobody dbname=nothing"
        threads.start("seeder", seeding(ledger, dsn, tmp_path, threads.over))
        connection, _ = silent.accept()
        with connection:
            ended = threading.Thread(target=threads.end)
            ended.start()
            ended.join(_JOIN_SECONDS)  # after which the bootstrap says that a thread does not end
            assert not ended.is_alive()


def test_an_error_of_the_store_does_not_wait_for_jobs_that_rest(
    ledger: Ledger, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A throttled worker rests for minutes; the error would be told only behind that."""
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE public.t")
    with database.connect() as session:
        (published,) = (read_published(session, "walbus") or {}).values()
    ledger.start_generation(published, 1, "test")
    rests = threading.Event()

    def rest(jobs: SeedingJobs, connection: object, run: TableRun) -> None:
        del connection, run
        rests.set()
        jobs._stop.wait(60)

    def full(run: TableRun) -> bool:
        del run
        if rests.is_set():
            raise StoreFull("the disk is full")
        return False

    monkeypatch.setattr(SeedingJobs, "plan", rest)
    monkeypatch.setattr(ledger, "ready", full)
    threads = Threads()
    threads.start("seeder", seeding(ledger, database.dsn, tmp_path, threads.over))
    wait_for(threads.over.is_set, 40, what="the thread is over")
    assert isinstance(threads.end(), StoreFull)


def test_a_chunk_whose_rows_keep_coming_is_left_when_it_is_to_end(database: Database) -> None:
    stop, rows = threading.Event(), new_copied_rows(LAYOUT)
    endless = sql.SQL("COPY (SELECT generate_series(1, 2000000000), 1, 'a') TO STDOUT").format()
    with database.connect() as connection:
        slices = copy_rows(connection, endless, rows, 10_000, stop)
        next(slices)
        rows.take(b"prefix", b"")
        next(slices)
        stop.set()
        with pytest.raises(SourceUnavailable):
            next(slices)
        assert connection.closed
