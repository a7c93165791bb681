"""The load of the shipped pgbench."""

from __future__ import annotations

import pytest

from support.waiting import wait_for
from walbus.demo.pgbench import PgbenchLoad
from walbus.errors import SourceUnavailable

pytestmark = pytest.mark.one_version


@pytest.fixture
def load(database, pg_server):
    load = PgbenchLoad(pg_server.program("pgbench"), database.dsn, rate=200, seed=1)
    load.prepare(0)
    return load


def test_history_has_a_key_and_pgbench_does_not_notice(load, database):
    load.start()
    wait_for(lambda: database.value("SELECT count(*) FROM pgbench_history") > 100, 60)
    load.stop()
    assert database.value("SELECT count(DISTINCT id) = count(*) FROM pgbench_history")
    assert database.value("SELECT count(*) FROM pg_index WHERE indrelid = 'pgbench_history'::regclass AND indisprimary")


def test_a_pgbench_that_ended_by_itself_is_told(load, database):
    load.start()
    wait_for(lambda: database.value("SELECT count(*) FROM pgbench_history") > 0, 60)
    database.execute("DROP TABLE pgbench_history CASCADE")
    wait_for(lambda: load._process.poll() is not None, 60)
    with pytest.raises(SourceUnavailable, match="pgbench"):
        load.stop()
