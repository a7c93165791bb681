"""Capture of real servers into the file engine's log, compared with the oracle's slot transaction by transaction."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from support.capturing import CaptureThread, captured, capturing, file_log, source_of
from support.log_view import log_records
from support.waiting import wait_for
from walbus.capture import identify
from walbus.capture.catalog import builtin_types, read_state
from walbus.capture.receiving import Receiving
from walbus.capture.replication import Walsender
from walbus.capture.sessions import open_session
from walbus.log import SourceIdentity
from walbus.lsn import parse_lsn
from walbus.position import ORIGIN
from walbus.records import Kind, read_header
from walbus.relay import open_reader
from walbus.status import read_status


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


def make_tables(database):
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    database.execute("CREATE DOMAIN posint AS int CHECK (VALUE > 0)")
    database.execute("CREATE DOMAIN tinyposint AS posint CHECK (VALUE < 100)")
    database.execute("CREATE SCHEMA other; CREATE TYPE other.pair AS (a int, b text)")
    database.execute("""
        CREATE TABLE plain (id int PRIMARY KEY, a text, b numeric(10, 2), m mood, ms mood[], d tinyposint, p other.pair,
                            at timestamptz DEFAULT now(), c char(5), v varchar(9), f float8, y bytea)""")
    database.execute("CREATE TABLE toasted (a text, id bigint, b text, PRIMARY KEY (id))")
    database.execute("ALTER TABLE toasted ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL")
    database.execute("CREATE TABLE whole (id int PRIMARY KEY, note text); ALTER TABLE whole REPLICA IDENTITY FULL")
    database.execute("CREATE TABLE keyless (note text); ALTER TABLE keyless REPLICA IDENTITY FULL")
    database.execute("CREATE TABLE indexed (id int, code text NOT NULL, n int)")
    database.execute("CREATE UNIQUE INDEX codes ON indexed (code)")
    database.execute("ALTER TABLE indexed REPLICA IDENTITY USING INDEX codes")
    database.execute("CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)")
    database.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-07-01')")
    database.execute('CREATE TABLE "Odd name" ("select" int PRIMARY KEY, "ä ""b" text, gone int)')
    database.execute('ALTER TABLE "Odd name" DROP COLUMN gone')
    database.execute('ALTER TABLE "Odd name" ADD doubled int GENERATED ALWAYS AS ("select" * 2) STORED, ADD last text')


STATEMENTS = [
    "INSERT INTO plain VALUES (1, 'x', 1.5, 'glad', '{sad,NULL}', 7, '(1,\"a b\")', now(), 'ab', 'v', 'NaN',"
    " '\\x00ff')",
    "INSERT INTO plain (id) VALUES (2), (3)",
    "UPDATE plain SET a = NULL, f = 1e300 WHERE id = 1",
    "UPDATE plain SET id = 20 WHERE id = 2",
    "DELETE FROM plain WHERE id = 3",
    "INSERT INTO toasted VALUES (repeat('a', 9000), 1, repeat('b', 9000)), (repeat('c', 9000), 2, 'short')",
    "UPDATE toasted SET b = 'changed' WHERE id = 1",
    "UPDATE toasted SET id = 5 WHERE id = 2",
    "UPDATE toasted SET a = a WHERE id = 1",
    "INSERT INTO whole VALUES (1, repeat('n', 5000)), (2, NULL)",
    "UPDATE whole SET note = 'short' WHERE id = 1",
    "UPDATE whole SET id = 3 WHERE id = 2",
    "DELETE FROM whole WHERE id = 3",
    "INSERT INTO keyless VALUES ('same'), ('same'), (NULL)",
    "UPDATE keyless SET note = 'other' WHERE note IS NULL",
    "DELETE FROM keyless WHERE note = 'same'",
    "INSERT INTO indexed VALUES (1, 'one', 1), (NULL, 'two', 2)",
    "UPDATE indexed SET n = 3 WHERE code = 'one'",
    "UPDATE indexed SET code = 'uno' WHERE code = 'one'",
    "DELETE FROM indexed WHERE code = 'two'",
    "INSERT INTO parts VALUES (1, '2026-02-03')",
    "INSERT INTO \"Odd name\" VALUES (1, 'q')",
    "BEGIN; INSERT INTO plain (id) VALUES (50); SAVEPOINT s; INSERT INTO plain (id) VALUES (51); ROLLBACK TO s;"
    " INSERT INTO plain (id) VALUES (52); COMMIT",
    "BEGIN; INSERT INTO plain (id) VALUES (60); ROLLBACK",
    "BEGIN; DELETE FROM plain; INSERT INTO whole VALUES (9, 'x'); TRUNCATE plain, whole RESTART IDENTITY; COMMIT",
]


def test_every_kind_of_change_is_in_the_log_as_the_oracle_saw_it(database, oracle, folder):
    make_tables(database)
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        for statement in STATEMENTS:
            database.execute(statement)
        capture.caught_up()
    expected = truth.transactions()
    assert len(expected) == len(STATEMENTS) - 1
    assert captured(folder) == expected


def test_layouts_change_in_mid_stream_without_a_row_misread(database, oracle, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 'a', 'b')")
        database.execute("ALTER TABLE t ADD COLUMN c int DEFAULT 7; INSERT INTO t VALUES (2, 'a', 'b', 3)")
        database.execute(
            "BEGIN; INSERT INTO t VALUES (3); ALTER TABLE t DROP COLUMN a; INSERT INTO t VALUES (4); COMMIT"
        )
        database.execute("ALTER TABLE t RENAME b TO bb; UPDATE t SET bb = 'x'")
        database.execute("ALTER TABLE t ALTER c TYPE text USING 'c' || c; INSERT INTO t VALUES (5, 'b', 'c')")
        database.execute("ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (6)")
        database.execute("ALTER TABLE u REPLICA IDENTITY FULL; DELETE FROM u WHERE id = 1")
        capture.caught_up()
        names = [schema.table for schema in capture.log.schemas.all()]
    assert captured(folder) == truth.transactions()
    assert names[0] == "public.t"
    assert names[-1] == "public.u"


def test_the_catalog_and_the_stream_give_equal_layouts(database, oracle, folder):
    make_tables(database)
    with capturing(database.dsn, folder) as capture:
        for statement in STATEMENTS:
            database.execute(statement)
        capture.caught_up()
        from_stream = {schema.oid: schema for schema in capture.log.schemas.all()}
        with closing(open_session(capture.source.dsn)) as session:
            state, builtin = read_state(session, "walbus"), builtin_types(session)
        assert state is not None
        from_catalog = [state.layout(table, builtin) for table in state.tables.values()]
        assert len(from_catalog) == 7
        for layout in from_catalog:
            assert layout.same_layout(from_stream[layout.oid])
        wait_for(lambda: len(capture.log.schemas.all()) == 7, what="the poll has registered all, and nothing twice")


def test_a_table_without_changes_gets_a_registered_layout(database, folder):
    database.execute("CREATE TABLE quiet (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        wait_for(lambda: [s.table for s in capture.log.schemas.all()] == ["public.quiet"])


def test_a_table_made_later_is_added_and_one_without_identity_is_left_out(database, folder):
    with capturing(database.dsn, folder) as capture:
        database.execute("CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE unidentified (id int)")
        published = "SELECT array_agg(tablename::text) FROM pg_publication_tables"
        wait_for(lambda: database.value(published) == ["later"], what="the new table is published")
        database.execute("INSERT INTO later VALUES (1)")
        database.execute("INSERT INTO unidentified VALUES (1)")
        database.execute("UPDATE unidentified SET id = 2")
        capture.caught_up()
    assert [[c.after for c in t.changes] for t in captured(folder)] == [[{"id": "1"}]]


def test_a_partition_made_later_is_captured(database, folder):
    database.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    with capturing(database.dsn, folder) as capture:
        database.execute("CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        database.execute("INSERT INTO parts VALUES (3)")
        capture.caught_up()
    assert len(captured(folder)) == 1


def test_a_roles_own_settings_change_no_byte(database, oracle, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, d timestamptz, i interval, f float8, y bytea, m money)")
    role = f"tester_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'secret'")
    for name, value in {
        "DateStyle": "German", "IntervalStyle": "sql_standard", "TimeZone": "Asia/Tokyo", "extra_float_digits": "-5",
        "bytea_output": "escape", "search_path": "nowhere", "client_min_messages": "error", "statement_timeout": "900",
        "default_transaction_read_only": "on", "client_encoding": "LATIN1",
    }.items():  # fmt: skip
        database.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    dsn = database.dsn.replace("//postgres:", f"//{role}:").replace(database.dsn.split(":")[2].split("@")[0], "secret")
    with capturing(dsn, folder) as capture:
        truth = oracle()
        database.execute(
            "INSERT INTO t VALUES (1, '2026-03-04 05:06:07+00', '1 day 02:03', 0.1::float8 / 3, '\\x00ff', 12.5)"
        )
        capture.caught_up()
    (transaction,) = captured(folder)
    assert transaction.changes[0].after == {
        "id": "1", "d": "2026-03-04 05:06:07+00", "i": "1 day 02:03:00", "f": "0.03333333333333333",
        "y": "\\x00ff", "m": "$12.50",
    }  # fmt: skip
    assert len(truth.transactions()) == 1


def test_logical_messages_are_kept_in_and_outside_of_transactions(database, folder):
    with capturing(database.dsn, folder) as capture:
        database.execute("SELECT pg_logical_emit_message(false, 'outbox', 'alone')")
        database.execute("SELECT pg_logical_emit_message(true, 'outbox', 'inside')")
        capture.caught_up()
    seen = [t for t in captured(folder, messages=True) if t.changes]
    assert [bool(t.xid) for t in seen][:2] == [False, True]


def test_an_idle_slot_moves_on_with_its_busy_neighbours(database, pg_server, folder):
    with capturing(database.dsn, folder) as capture:
        with pg_server.connect() as neighbour:
            neighbour.execute("CREATE TABLE IF NOT EXISTS noise (a text)")
            neighbour.execute("INSERT INTO noise SELECT repeat('x', 100) FROM generate_series(1, 2000)")
        target = database.insert_lsn()
        wait_for(lambda: database.confirmed_lsn() >= target, 60, what="the slot is confirmed past the neighbour's WAL")
        confirmed = database.confirmed_lsn()
        assert confirmed <= capture.log.bounds().end_lsn
    with closing(open_reader(folder)) as reader, closing(reader.cursor(ORIGIN)) as cursor:
        kinds = {read_header(record).kind for record in cursor.read(1 << 20)}
    assert kinds == {Kind.PROGRESS}


def test_keepalives_for_the_transactions_of_busy_neighbours_are_read_some_at_a_time(
    database, pg_server, folder, monkeypatch
):
    steps = []
    read_round, wait = Receiving.read_round, Walsender.wait

    def noted_round(self):
        dry = read_round(self)
        steps.append("keepalives" if self.keepalives_only else "other")
        return dry

    def noted_wait(self, timeout):
        steps.append("wait")
        wait(self, timeout)

    monkeypatch.setattr(Receiving, "read_round", noted_round)
    monkeypatch.setattr(Walsender, "wait", noted_wait)
    with capturing(database.dsn, folder), pg_server.connect() as neighbour:
        neighbour.execute("CREATE TABLE IF NOT EXISTS noise (a text)")

        def there_were_many() -> bool:
            neighbour.execute("INSERT INTO noise VALUES ('x')")
            return steps.count("keepalives") >= 20

        wait_for(there_were_many, 30)
    assert ("keepalives", "wait") not in set(pairwise(steps))


def test_the_slot_is_never_confirmed_past_the_log(database, folder):
    database.execute("CREATE TABLE t (id serial PRIMARY KEY, a text)")
    with capturing(database.dsn, folder) as capture:
        for _ in range(60):
            database.execute("INSERT INTO t (a) SELECT repeat('x', 50) FROM generate_series(1, 20)")
            confirmed = database.confirmed_lsn()
            assert confirmed <= capture.log.bounds().end_lsn
        capture.caught_up()


def test_a_stopped_capture_has_confirmed_what_it_holds(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1)")
        capture.caught_up()
    with closing(open_reader(folder)) as reader:
        end = reader.bounds().end_lsn
    wait_for(lambda: database.confirmed_lsn() >= end, what="the last confirmation has arrived")


def test_many_sessions_with_savepoints_agree_with_the_oracle(database, oracle, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, n int)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        writers = [threading.Thread(target=write_at_random, args=(database, seed)) for seed in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        capture.caught_up()
    assert captured(folder) == truth.transactions()


def write_at_random(database, seed):
    dice = random.Random(seed)
    session = database.connect(autocommit=False)
    for _ in range(30):
        session.execute("SELECT 1")
        for _ in range(dice.randrange(1, 5)):
            key = dice.randrange(1000) * 4 + seed  # every session has keys of its own: no deadlocks
            session.execute("SAVEPOINT s")
            session.execute(
                "INSERT INTO t VALUES (%s, %s, 0) ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
                [key, "x" * dice.randrange(9)],
            )
            if dice.random() < 0.3:
                session.execute("DELETE FROM t WHERE id = %s", [dice.randrange(1000) * 4 + seed])
            if dice.random() < 0.3:
                session.execute("ROLLBACK TO s")
        session.rollback() if dice.random() < 0.2 else session.commit()
    session.close()


def test_identify_names_cluster_database_and_slot(database):
    source = source_of(database.dsn, slot="my_slot")
    known = identify(source)
    assert known == SourceIdentity(known.system_identifier, database.name, "my_slot")
    assert int(known.system_identifier) == int(database.value("SELECT system_identifier FROM pg_control_system()"))


def test_a_log_begins_with_a_record_at_the_slots_confirmed_place(database, folder):
    with capture_logs() as said, capturing(database.dsn, folder):
        pass
    with closing(open_reader(folder)) as reader, closing(reader.cursor(ORIGIN)) as cursor:
        header = read_header(cursor.read(1)[0])
    assert header.kind == Kind.PROGRESS
    [created] = [line["lsn"] for line in said if line["event"] == "slot.created"]
    assert header.commit_lsn == parse_lsn(created)
    with closing(file_log(folder, source_of(database.dsn))) as log:
        assert log.bounds().end_lsn >= header.commit_lsn


def test_an_operators_publication_with_columns_and_filters_is_taken_as_it_is(database, oracle, folder):
    database.needs(15, "column lists and row filters of a publication")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, secret text, a text)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE t (id, a) WHERE (id < 10)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 'hidden', 'seen'), (11, 'hidden', 'unseen')")
        database.execute("UPDATE t SET id = 12 WHERE id = 1")
        capture.caught_up()
        wait_for(capture.log.schemas.all, what="the poll has registered it")
        schemas = capture.log.schemas.all()
    inserted, moved_out = (t.changes for t in captured(folder))
    assert [c.after for c in inserted] == [{"id": "1", "a": "seen"}]
    assert [c.op for c in moved_out] == ["delete"]
    assert captured(folder) == truth.transactions()
    assert [[c.name for c in schema.columns] for schema in schemas] == [["id", "a"]]


def test_transaction_ids_are_widened_to_64_bits(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as capture:
        with database.connect(autocommit=False) as session:
            session.execute("INSERT INTO t VALUES (1)")
            (xid,) = session.execute("SELECT pg_current_xact_id()::text::int8").fetchone()
            session.commit()
        capture.caught_up()
    with closing(open_reader(folder)) as reader:
        assert next(h.xid for h, _ in log_records(reader) if h.kind == Kind.TRANSACTION) == xid


def test_the_status_file_tells_what_capture_does(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source, path = source_of(database.dsn), folder.parent / "capture.json"
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, path)
        capture.streaming()
        database.execute("INSERT INTO t VALUES (1), (2)")
        status = wait_for(lambda: counted(path), what="rows and tables are counted")
        capture.stop()
    assert (status["state"], status["error"], status["slot"], status["tables"]) == ("streaming", None, "walbus", 1)
    assert status["walbus_capture_confirmed_lsn"] > 0
    assert (read_status(path) or {})["state"] == "stopped"
    assert database.dsn.split(":")[2].split("@")[0] not in path.read_text()


def counted(path):
    """The status, once it counts two changes and has the catalog's first look: neither waits for the other."""
    status = read_status(path) or {}
    return status if status.get("walbus_capture_changes_total", 0) >= 2 and status["tables"] else None
