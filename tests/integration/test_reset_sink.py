"""A sink that somebody wrote into by hand, reset with all rooms as processes: the source's rows are there again."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from support.compare import assert_sinks_equal
from support.single_rooms import SingleRooms
from support.waiting import wait_for
from support.walbus_command import walbus
from support.whole_system import make_marker


def equal(dsn, replica) -> bool:
    assert_sinks_equal(dsn, cache=replica)
    return True


@pytest.mark.long
def test_a_reset_sink_has_the_sources_rows_again(database, open_folder):
    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 300) i")
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        config = str(system.config)
        running = walbus("consumers", "reset", "cache", "--to", "snapshot", "-c", config)
        assert "consumer cache is running" in running.one_line()
        assert system.stop() == 0
        with closing(sqlite3.connect(replica)) as file:
            file.execute("UPDATE t SET n = -1 WHERE id = 1")
            file.execute("DELETE FROM t WHERE id = 2")
            file.execute("INSERT INTO t SELECT 1000, n, _walbus_seq, _walbus_mark FROM t WHERE id = 3")
            file.commit()
        with pytest.raises(AssertionError):
            equal(database.dsn, replica)
        done = walbus("consumers", "reset", "cache", "--to", "snapshot", "-c", config)
        assert done.code == 0, done.stderr
        system.start()
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is right again", every=0.2)
        database.execute("UPDATE t SET n = n + 1 WHERE id < 10")
        wait_for(lambda: equal(database.dsn, replica), 60, what="it goes on", every=0.2)
