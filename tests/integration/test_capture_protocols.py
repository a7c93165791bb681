"""Transactions streamed while they run, judged by a slot that streams nothing: the log must be the very same."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from support.capturing import CaptureThread, captured, capturing, file_log, source_of, spool_of
from support.log_view import log_records
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.errors import ConfigError
from walbus.records import Kind, origin_of
from walbus.relay import open_reader
from walbus.status import read_status


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def streamed_soon(database):
    """The database, whose transactions are streamed from their first changes on."""
    database.execute(f"ALTER DATABASE {database.name} SET logical_decoding_work_mem = '64kB'")
    if database.major >= 16:
        database.execute(f"ALTER DATABASE {database.name} SET debug_logical_replication_streaming = 'immediate'")
    return database


def streamed_transactions(database, slot="walbus"):
    query = "SELECT coalesce(sum(stream_txns), 0)::int FROM pg_stat_replication_slots WHERE slot_name = %s"
    return database.value(query, [slot])


def make_tables(database, sessions):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    database.execute("ALTER TABLE t ALTER b SET STORAGE EXTERNAL")
    for number in range(sessions):
        database.execute(f"CREATE TABLE own_{number} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text)")
        database.execute(f"CREATE TABLE child_{number} (id int PRIMARY KEY, p int REFERENCES own_{number})")


class Writer:
    """One session that works in random steps on keys and tables of its own, with savepoints in savepoints."""

    def __init__(self, database, number, dice, *, messages):
        self._session = database.connect(autocommit=False)
        self._number = number
        self._dice = dice
        self._savepoints = []
        self._columns = 0
        self._kinds = [self._insert] * 3 + [self._update, self._delete, self._savepoint, self._savepoint, self._undo]
        self._kinds += [self._undo, self._release, self._truncate, self._alter, self._own_row]
        if messages:
            self._kinds.append(self._message)

    def step(self):
        if self._dice.random() < 0.06:
            self.end()
        else:
            self._dice.choice(self._kinds)()

    def end(self):
        self._session.commit() if self._dice.random() < 0.8 else self._session.rollback()
        self._savepoints.clear()

    def _do(self, statement, *values):
        self._session.execute(statement, values)

    def _insert(self):
        first = self._number * 1_000_000 + self._dice.randrange(900_000)
        text = "x" * self._dice.choice([5, 300, 3000])
        self._do(
            "INSERT INTO t SELECT g, %s::text, repeat('y', 4000) FROM generate_series(%s::int, %s) g"
            " ON CONFLICT (id) DO UPDATE SET a = 'again'",
            text, first, first + self._dice.choice([0, 3, 40]),
        )  # fmt: skip

    def _update(self):
        low = self._number * 1_000_000
        self._do("UPDATE t SET a = a || '!' WHERE id BETWEEN %s AND %s", low, low + self._dice.randrange(900_000))

    def _delete(self):
        low = self._number * 1_000_000 + self._dice.randrange(900_000)
        self._do("DELETE FROM t WHERE id BETWEEN %s AND %s", low, low + 100_000)

    def _own_row(self):
        self._do(f"INSERT INTO own_{self._number} (a) SELECT 'own' FROM generate_series(1, 3)")

    def _savepoint(self):
        self._savepoints.append(f"s{len(self._savepoints)}")
        self._do(f"SAVEPOINT {self._savepoints[-1]}")

    def _undo(self):
        if self._savepoints:
            at = self._dice.randrange(len(self._savepoints))
            self._do(f"ROLLBACK TO {self._savepoints[at]}")
            del self._savepoints[at + 1 :]

    def _release(self):
        if self._savepoints:
            at = self._dice.randrange(len(self._savepoints))
            self._do(f"RELEASE {self._savepoints[at]}")
            del self._savepoints[at:]

    def _truncate(self):
        options = self._dice.choice(["CASCADE", "RESTART IDENTITY CASCADE"])
        self._do(f"TRUNCATE own_{self._number} {options}")

    def _alter(self):
        self._columns += 1
        self._do(f"ALTER TABLE own_{self._number} ADD c{self._columns} int DEFAULT {self._columns}")
        self._own_row()

    def _message(self):
        self._do("SELECT pg_logical_emit_message(%s, 'outbox', %s)", self._dice.random() < 0.7, str(self._columns))


def work(database, sessions, steps, seed, *, messages=False):
    dice = random.Random(seed)
    writers = [Writer(database, number, dice, messages=messages) for number in range(sessions)]
    for _ in range(steps):
        dice.choice(writers).step()
    for writer in writers:
        writer.end()
    database.execute("INSERT INTO t VALUES (-1, 'the last one', '')")


def test_savepoints_rollbacks_and_ddl_of_many_sessions_streamed_give_the_log_of_an_unstreamed_slot(
    streamed_soon, oracle, folder
):
    make_tables(streamed_soon, 5)
    with capturing(streamed_soon.dsn, folder) as capture:
        truth = oracle()
        work(streamed_soon, 5, 350, announced_seed("savepoints"))
        capture.caught_up()
        wait_for(lambda: streamed_transactions(streamed_soon) > 3, what="transactions were streamed")
    assert captured(folder) == truth.transactions()
    assert list(spool_of(folder).iterdir()) == []


def test_messages_in_and_out_of_savepoints_and_transactions_are_those_of_an_unstreamed_slot(
    streamed_soon, oracle, folder
):
    """A message of a rolled back savepoint cannot be told from others once it was streamed."""
    make_tables(streamed_soon, 3)
    with capturing(streamed_soon.dsn, folder) as capture:
        truth = oracle(messages=True)
        since = truth.start_lsn
        work(streamed_soon, 3, 150, announced_seed("messages"), messages=True)
        capture.caught_up(60)
        wait_for(lambda: streamed_transactions(streamed_soon) > 0, what="transactions were streamed")
    seen = [t for t in captured(folder, messages=True) if t.commit_lsn > since]
    expected = truth.transactions()
    assert [t for t in seen if t.commit_lsn <= expected[-1].commit_lsn] == expected


def test_a_message_of_a_rolled_back_savepoint_never_enters_the_log(streamed_soon, folder):
    make_tables(streamed_soon, 1)
    with capturing(streamed_soon.dsn, folder) as capture:
        with closing(streamed_soon.connect(autocommit=False)) as session:
            session.execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 400) g")
            session.execute("SAVEPOINT s")
            session.execute("SELECT pg_logical_emit_message(true, 'outbox', 'rolled back')")
            session.execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1001, 1400) g")
            wait_for(lambda: spooled(folder) > 0, what="it is streamed")
            session.execute("ROLLBACK TO s")
            session.execute("SELECT pg_logical_emit_message(true, 'outbox', 'kept')")
            session.commit()
        capture.caught_up()
    said = [c.detail for t in captured(folder, messages=True) for c in t.changes if c.detail.startswith("outbox")]
    assert said == [f"outbox: {b'kept'.hex()}"]


def spooled(folder):
    """Bytes of the open transactions in the spool's files; in memory there may be more."""
    return sum(path.stat().st_size for path in spool_of(folder).iterdir())


def test_truncate_with_its_options_and_unchanged_toast_are_kept_in_streams(streamed_soon, oracle, folder):
    make_tables(streamed_soon, 2)
    streamed_soon.execute("INSERT INTO t VALUES (1, 'a', repeat('toasted', 3000))")
    streamed_soon.execute("INSERT INTO own_0 (a) VALUES ('x'); INSERT INTO child_0 VALUES (1, 1)")
    with capturing(streamed_soon.dsn, folder) as capture:
        truth = oracle()
        with closing(streamed_soon.connect(autocommit=False)) as session:
            session.execute("UPDATE t SET a = 'b'")
            session.execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(2, 400) g")
            session.execute("TRUNCATE own_0 CASCADE")
            session.execute("TRUNCATE own_1, child_1 RESTART IDENTITY")
            session.execute("UPDATE t SET id = -id WHERE id < 20")
            session.commit()
        capture.caught_up()
        wait_for(lambda: streamed_transactions(streamed_soon) > 0, what="it was streamed")
    (transaction,) = [t for t in captured(folder) if len(t.changes) > 10]
    assert transaction == truth.transactions()[0]
    assert transaction.changes[0].unchanged == {"b"}
    emptied = [(c.oid, c.detail) for c in transaction.changes if c.op == "truncate"]
    assert [detail for _, detail in emptied] == ["cascade", "cascade", "restart", "restart"]


@pytest.mark.parametrize("streaming", [True, False])
def test_the_origin_of_a_transaction_is_kept_streamed_and_not(streamed_soon, folder, streaming):
    make_tables(streamed_soon, 1)
    name = f"far_{streamed_soon.name}"
    streamed_soon.execute("SELECT pg_replication_origin_create(%s)", [name])
    try:
        with capturing(streamed_soon.dsn, folder, streaming=streaming) as capture:
            with closing(streamed_soon.connect()) as session:
                session.execute("SELECT pg_replication_origin_session_setup(%s)", [name])
                session.execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 400) g")
                session.execute("SELECT pg_replication_origin_session_reset()")  # or it could not be dropped below
            streamed_soon.execute("INSERT INTO t VALUES (0)")
            capture.caught_up()
    finally:
        streamed_soon.execute("SELECT pg_replication_origin_drop(%s)", [name])
    with closing(open_reader(folder)) as reader:
        pairs = [p for p in log_records(reader) if p[0].kind == Kind.TRANSACTION and p[0].tables]
        origins = [origin_of(record, header).decode() for header, record in pairs]
    assert origins[-1] == ""
    assert set(origins[:-1]) == {name}


def test_the_protocol_in_use_is_the_newest_that_the_server_knows(database, folder):
    make_tables(database, 1)
    source = source_of(database.dsn)
    newest = {14: 2, 15: 3}.get(database.major, 4)
    for streaming, protocol in ((True, newest), (False, 1)):
        status = folder.parent / f"{streaming}.json"
        with closing(file_log(folder, source)) as log:
            capture = CaptureThread(source.model_copy(update={"streaming": streaming}), log, status)
            capture.streaming()
            wait_for(lambda s=status: (read_status(s) or {}).get("state") == "streaming")
            capture.stop()
        assert read_status(status)["protocol"] == protocol


def test_a_spool_folder_that_cannot_be_used_is_what_the_status_tells_from_then_on(database, folder):
    make_tables(database, 1)
    source, status = source_of(database.dsn), folder.parent / "capture.json"
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, status, spool_dir=spool_of(folder))
        capture.streaming()
        wait_for(lambda: read_status(status) and read_status(status)["state"] == "streaming", what="it is told")
        last = status.read_text()
        capture.stop()
    status.write_text(last)  # as a killed one leaves it
    (folder.parent / "a file").touch()
    with closing(file_log(folder, source)) as log:
        error = CaptureThread(source, log, status, spool_dir=folder.parent / "a file" / "spool").ended()
    assert isinstance(error, ConfigError)
    told = read_status(status)
    assert (told["state"], told["error"]) == ("stopped", str(error))
    assert str(folder.parent / "a file" / "spool") in told["error"]


def test_an_open_transaction_holds_back_neither_confirmation_nor_others_and_shows_in_the_status(streamed_soon, folder):
    make_tables(streamed_soon, 1)
    source, status = source_of(streamed_soon.dsn), folder.parent / "capture.json"
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, status, spool_dir=spool_of(folder))
        capture.streaming()
        with closing(streamed_soon.connect(autocommit=False)) as session:
            session.execute("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 2000) g")
            wait_for(lambda: read_status(status)["walbus_capture_spooled_bytes"] > 1_000_000, what="it is spooled")
            streamed_soon.execute("INSERT INTO t VALUES (-1)")
            capture.caught_up()
            lsn = streamed_soon.insert_lsn()
            wait_for(lambda: streamed_soon.confirmed_lsn() >= lsn, what="the slot is confirmed past it")
            session.rollback()
        wait_for(lambda: read_status(status)["walbus_capture_spooled_bytes"] == 0, what="it is forgotten")
        capture.stop()
    assert [len(t.changes) for t in captured(folder)] == [1]


def test_a_broken_connection_in_the_middle_of_a_stream_loses_and_repeats_nothing(streamed_soon, oracle, folder):
    make_tables(streamed_soon, 1)
    with capturing(streamed_soon.dsn, folder) as capture:
        truth = oracle()
        with closing(streamed_soon.connect(autocommit=False)) as session:
            for number in range(3):
                first = number * 1000
                session.execute(
                    "INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(%s::int, %s) g", [first, first + 800]
                )
                wait_for(lambda: spooled(folder) > 0, what="it is streamed")
                streamed_soon.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                capture.streaming()
            session.commit()
        capture.caught_up()
    assert captured(folder) == truth.transactions()
