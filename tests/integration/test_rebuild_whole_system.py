"""A sink rebuilt with all rooms as processes, while its consumer runs and the source is written to."""

from __future__ import annotations

import threading

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
def test_a_sink_is_rebuilt_beside_its_running_consumer(database, open_folder):
    make_marker(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 300) i")
    with SingleRooms(open_folder, database.dsn, {"cache": {"sink": "sqlite"}}) as system:
        system.start()
        system.wait_until_streaming()
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        wait_for(lambda: equal(database.dsn, replica), 60, what="the replica is filled", every=0.2)
        config, stop = str(system.config), threading.Event()

        def write() -> None:
            while not stop.wait(0.02):
                database.execute("UPDATE t SET n = n + 1 WHERE id < 10")

        writing = threading.Thread(target=write)
        writing.start()
        try:
            done = walbus("rebuild", "cache", "-c", config, deadline=120)
        finally:
            stop.set()
            writing.join()
        assert done.code == 0, done.stderr
        assert done.stdout.startswith("cache was swapped at ")
        assert walbus("rebuild", "cache", "--drop-old", "-c", config).code == 0
        wait_for(lambda: equal(database.dsn, replica), 60, what="the consumer goes on with the copy", every=0.2)
        known = walbus("consumers", "list", "-c", config)
        assert "cache" in known.stdout
        assert "cache.rebuild" not in known.stdout
        database.execute("DELETE FROM t WHERE id = 1")
        wait_for(lambda: equal(database.dsn, replica), 60, what="it goes on", every=0.2)
