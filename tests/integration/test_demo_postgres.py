"""The embedded PostgreSQL and the fixtures that stand on it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import psycopg
import pytest

from walbus.demo.postgres import free_port
from walbus.errors import SourceUnavailable


def test_a_killed_server_recovers_with_what_was_committed(own_pg_server):
    server = own_pg_server()
    with server.connect() as session:
        session.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)")
    server.kill()
    assert server.pid is None
    server.start()
    with server.connect() as session:
        assert session.execute("SELECT a FROM t").fetchall() == [(7,)]


@pytest.mark.one_version
def test_a_server_that_is_killed_while_sessions_begin_starts_again(own_pg_server):
    """A child that the postmaster made in its last moment would keep the cluster's memory, and the start would fail."""
    server, done = own_pg_server(), threading.Event()

    def knock() -> None:
        while not done.is_set():
            with suppress(psycopg.OperationalError):
                server.connect().close()

    knocking = [threading.Thread(target=knock) for _ in range(3)]
    for thread in knocking:
        thread.start()
    try:
        for _ in range(3):
            server.kill()
            server.start()
    finally:
        done.set()
        for thread in knocking:
            thread.join()


def test_a_port_that_was_given_is_held_for_whoever_binds_to_it_as_servers_do():
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))


def test_restart_keeps_the_port_and_takes_new_settings(own_pg_server):
    server = own_pg_server()
    before = server.dsn()
    server.restart("immediate", settings={"wal_level": "replica"})
    assert server.dsn() == before
    with server.connect() as session:
        assert session.execute("SHOW wal_level").fetchone() == ("replica",)


def test_a_wrong_setting_is_told_with_the_servers_own_words(own_pg_server):
    with pytest.raises(SourceUnavailable, match="no_such_setting"):
        own_pg_server(no_such_setting="1")


def test_tcp_asks_for_the_password(pg_server):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"host=127.0.0.1 port={pg_server.port} user=postgres")


def test_the_oracle_reads_every_kind_of_change_and_stays_where_it_is(database, oracle):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    database.execute("ALTER TABLE t ALTER b SET STORAGE EXTERNAL")
    database.execute("CREATE PUBLICATION walbus FOR TABLE t")
    truth = oracle("walbus")
    database.execute("BEGIN; INSERT INTO t VALUES (1, 'x', repeat('y', 9000)), (2, NULL, ''); COMMIT")
    database.execute("UPDATE t SET a = 'z' WHERE id = 1")
    database.execute("UPDATE t SET id = 3 WHERE id = 2")
    database.execute("DELETE FROM t WHERE id = 3")
    database.execute("TRUNCATE t")
    first, toast, moved, gone, emptied = (t.changes for t in truth.transactions())
    assert [c.key for c in first] == [("1",), ("2",)]
    assert first[1].after == {"id": "2", "a": None, "b": ""}
    assert (toast[0].after, toast[0].unchanged) == ({"id": "1", "a": "z"}, {"b"})
    assert (moved[0].key, moved[0].old_key) == (("3",), ("2",))
    assert (gone[0].op, gone[0].key) == ("delete", ("3",))
    assert emptied[0].op == "truncate"
    assert len(truth.transactions()) == 5


def test_a_database_with_a_live_walsender_can_be_dropped(database):
    database.execute("CREATE PUBLICATION walbus FOR ALL TABLES")
    database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
    stream = psycopg.pq.PGconn.connect(f"{database.dsn}?replication=database".encode())
    result = stream.exec_(b"START_REPLICATION SLOT walbus LOGICAL 0/0 (proto_version '1', publication_names 'walbus')")
    assert result.status == psycopg.pq.ExecStatus.COPY_BOTH


def test_redis_answers_and_is_empty(redis_url):
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
