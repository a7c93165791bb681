"""A publication that is not there tells nothing of its tables: they are not listed without it, and keep their rows."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.database import Database
from support.memory_store import MemoryStore
from support.model_source import ModelSource
from support.serving_bootstrap import SourceLayouts
from support.waiting import wait_for
from walbus.bootstrap.catalog import read_published
from walbus.bootstrap.handing import Handing
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.requests import RequestFolder
from walbus.bootstrap.seeder import Seeder
from walbus.bootstrap.state import Applied
from walbus.bootstrap.threads import Threads
from walbus.bootstrap.unseen import UnseenCommits
from walbus.config import BootstrapConfig, SourceConfig
from walbus.position import ORIGIN

pytestmark = pytest.mark.one_version


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(MemoryStore())
    ledger.begin(Applied("log", *ORIGIN, 0, 0), UnseenCommits())
    ledger.resume([])
    ledger.schemas = SourceLayouts(ModelSource(layouts=()))
    return ledger


def test_no_table_is_listed_before_capture_has_made_the_publication(
    ledger: Ledger, database: Database, tmp_path: Path
) -> None:
    """Else a bootstrap that begins beside capture calls itself ready, and consumers bootstrap from nothing."""
    threads = Threads()
    with capture_logs() as logs:
        threads.start("seeder", seeder(ledger, database, tmp_path, threads.over).run)
        wait_for(lambda: logs, what="a first look")
        assert [entry["event"] for entry in logs] == ["publication_missing"]
        assert not ledger.listed
        database.execute("CREATE PUBLICATION walbus")
        wait_for(lambda: ledger.listed, what="the publication to be seen")
        threads.end()
    assert [entry["event"] for entry in logs][:2] == ["publication_missing", "nothing_published"]


def test_tables_keep_their_rows_while_the_publication_is_gone(
    ledger: Ledger, database: Database, tmp_path: Path
) -> None:
    """A list without them is told to nobody meanwhile."""
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE public.t")
    with database.connect() as session:
        (published,) = (read_published(session, "walbus") or {}).values()
    ledger.refuse(published)  # the least that is kept of a table
    threads = Threads()
    with capture_logs() as logs:
        threads.start("seeder", seeder(ledger, database, tmp_path, threads.over).run)
        wait_for(lambda: ledger.listed, what="a first look")
        database.execute("DROP PUBLICATION walbus")
        wait_for(lambda: not ledger.listed, what="the publication to be missed")
        assert list(ledger.tables) == [published.oid]
        database.execute("CREATE PUBLICATION walbus")  # without the table: now that is told
        wait_for(lambda: ledger.listed, what="the publication to be seen")
        assert not ledger.tables
        threads.end()
    assert [entry["event"] for entry in logs].count("publication_missing") == 1


def seeder(ledger: Ledger, database: Database, folder: Path, stop: threading.Event) -> Seeder:
    source, requests = SourceConfig(dsn=database.dsn), RequestFolder(folder / "requests")
    return Seeder(source, BootstrapConfig(), ledger, requests, Handing(None), stop=stop)
