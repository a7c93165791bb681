"""The PostgreSQL sink: its server away, its database empty or changed by others, names that meet, and two writers."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.database import Database, fresh_database
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.running_consumer import consumer, equal, followed
from support.scripted_relay import ScriptedRelay
from support.sink_writing import MARKS, fill, windows
from support.sinks_under_test import SinkUnderTest, postgres_under_test
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.sinks import Sink, SinkPlace
from walbus.demo.postgres import EmbeddedPostgres
from walbus.errors import ConfigError, SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.position import ORIGIN, parse_position
from walbus.records import Kind, Op, RawChange, time_of
from walbus.schema import ReplicaIdentity, TableSchema
from walbus.values import row_encoder

pytestmark = pytest.mark.one_version

KEY = column("id", 23, "int4", in_key=True)


@pytest.fixture
def under_test(target_database: Database, tmp_path: Path) -> SinkUnderTest:
    return postgres_under_test(tmp_path, target_database.dsn)


@pytest.fixture
def sink(under_test: SinkUnderTest) -> Iterator[Sink]:
    opened = under_test.open()
    yield opened
    opened.close()


# The server and its database


def test_a_server_that_is_killed_is_waited_for(
    relay: ScriptedRelay, source: ModelSource, own_pg_server: Callable[..., EmbeddedPostgres], tmp_path: Path
) -> None:
    server = own_pg_server()
    with fresh_database(server) as database:
        under_test = postgres_under_test(tmp_path, database.dsn)
        source.commit([insert(ITEMS, n) for n in range(5)])
        with consumer(relay, under_test) as running:
            equal(under_test, relay)
            source.commit([update(ITEMS, 3, name="behind the snapshot")])
            equal(under_test, relay)
            server.kill()
            source.commit([update(ITEMS, 1, name="meanwhile"), delete(ITEMS, 2)])
            wait_for(lambda: "PostgreSQL" in str(running.status().get("waiting_for")), 60)
            server.start()
            equal(under_test, relay)
        assert len(relay.asked("/v1/snapshot")) == 1


def test_a_database_that_is_made_anew_is_filled_from_a_snapshot(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    source.trim(source.end)
    with consumer(relay, under_test) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 3, name="behind the snapshot"))
        source.trim(source.end)
        target_database.close()
        with target_database.server.connect() as admin:
            admin.execute(f'DROP DATABASE "{target_database.name}" WITH (FORCE)'.encode())
            admin.execute(f'CREATE DATABASE "{target_database.name}"'.encode())
        source.commit([update(ITEMS, 1, name="x")])
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == 2


def test_a_session_that_an_operator_ends_is_made_again(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'walbus test'"
        assert target_database.value(ended) == 1
        source.commit([update(ITEMS, 1, name="x"), delete(ITEMS, 2)])
        equal(under_test, relay)


def test_a_replica_without_its_checkpoint_and_with_its_tables_keeps_no_ghost(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test):
        equal(under_test, relay)
    target_database.execute("DELETE FROM _walbus.checkpoints")
    source.commit([delete(ITEMS, 1), update(ITEMS, 2, new_id=9, name="m")])
    with consumer(relay, under_test):
        equal(under_test, relay)


def test_a_database_that_is_read_only_by_default_is_written_all_the_same(
    source: ModelSource, under_test: SinkUnderTest, sink: Sink, target_database: Database
) -> None:
    target_database.execute(f'ALTER DATABASE "{target_database.name}" SET default_transaction_read_only = on')
    sink.close()
    again = under_test.open()
    source.commit([insert(ITEMS, 1)])
    fill(again, source)
    again.close()
    assert under_test.rows() == source.rows()


def test_a_password_is_in_no_error(tmp_path: Path) -> None:
    secret = "hunter2canary"
    with pytest.raises(SinkUnavailable) as away:
        postgres_under_test(tmp_path, f"postgresql://walbus:{secret}@127.0.0.1:1/db").open()
    assert secret not in str(away.value) + repr(away.value)
    for dsn in (f"postgresql://walbus:{secret}/x@127.0.0.1/db", f"postgresql://walbus:{secret}@[/db", f"host {secret}"):
        with pytest.raises(ConfigError, match=r"consumer\.test\.dsn") as wrong:
            postgres_under_test(tmp_path, dsn).open()
        assert secret not in str(wrong.value)


def test_a_database_that_is_not_there_ends_the_consumer_with_a_mend(target_database: Database, tmp_path: Path) -> None:
    dsn = target_database.dsn.replace(target_database.name, "no_such_database")
    with pytest.raises(SinkRefused, match=r"correct the database's name in consumer\.test\.dsn"):
        postgres_under_test(tmp_path, dsn).open()


def test_a_database_of_another_encoding_is_refused(target_database: Database, tmp_path: Path) -> None:
    with (
        fresh_database(target_database.server, encoding="LATIN1") as latin,
        pytest.raises(SinkRefused, match="LATIN1, cannot hold every text"),
    ):
        postgres_under_test(tmp_path, latin.dsn).open()


# Tables that are there already


def test_a_table_that_the_sink_has_not_made_is_refused_and_left_alone(
    source: ModelSource, sink: Sink, under_test: SinkUnderTest, target_database: Database
) -> None:
    target_database.execute("CREATE TABLE public.items (id int PRIMARY KEY, other text)")
    target_database.execute("INSERT INTO public.items VALUES (7, 'mine')")
    source.commit([insert(ITEMS, 1)])
    with pytest.raises(SinkRefused, match=r'exists already, and this sink has not made it.*into = "replica_'):
        fill(sink, source)
    sink.rollback()
    assert target_database.execute("SELECT * FROM public.items") == [(7, "mine")]
    beside = under_test.open(into="replica_{schema}")
    fill(beside, source)
    beside.close()
    assert under_test.rows("replica_public.items") == source.rows()


def test_a_table_of_another_consumer_is_refused(source: ModelSource, sink: Sink, under_test: SinkUnderTest) -> None:
    source.commit([insert(ITEMS, 1)])
    fill(sink, source)
    other = replace(under_test, place=SinkPlace("other", under_test.place.folder, ("public.*",))).open()
    with pytest.raises(SinkRefused, match="belongs to the consumer test"):
        fill(other, source)
    other.close()


def test_the_database_that_the_changes_come_from_is_refused(
    database: Database, source: ModelSource, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE public.items (id int PRIMARY KEY, name text, body text)")
    oid = database.value("SELECT 'public.items'::regclass::oid::int8")
    database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
    source.add_layout(items_layout("items", oid=oid))
    source.commit([insert(ITEMS, 1)])
    for options in ({}, {"into": "replica_{schema}"}):
        sink = postgres_under_test(tmp_path, database.dsn).open(**options)
        with pytest.raises(SinkRefused, match=r"the target is the database that public\.items comes from"):
            fill(sink, source)
        sink.close()
    assert database.value("SELECT count(*) FROM public.items") == 0


@pytest.mark.parametrize(
    ("done", "told"),
    [("DROP TABLE public.items", "is gone"), ("ALTER TABLE public.items DROP COLUMN body", "has lost columns: body")],
)
def test_a_table_that_others_changed_is_named_at_the_next_start(
    done: str, told: str, source: ModelSource, sink: Sink, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, 1)])
    fill(sink, source)
    sink.close()
    target_database.execute(done)
    with pytest.raises(SinkRefused, match=rf"{told}.*public.*items.*_walbus\.checkpoints"):
        under_test.open()


def test_a_row_that_the_targets_own_constraint_forbids_is_named_without_its_values(
    source: ModelSource, sink: Sink, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, 1, "fine")])
    fill(sink, source)
    done = source.end
    target_database.execute("ALTER TABLE public.items ADD CONSTRAINT short CHECK (length(name) < 10)")
    source.commit([insert(ITEMS, 2, "canary of a row")])
    with pytest.raises(
        SinkRefused, match=rf"CheckViolation, short.*public\.items at {re.escape(str(source.end))}"
    ) as no:
        fill(sink, source, done)
    assert "canary" not in str(no.value) + repr(no.value)
    sink.rollback()
    assert set(under_test.rows()) == {"1"}
    target_database.execute("ALTER TABLE public.items DROP CONSTRAINT short")
    fill(sink, source, done)
    assert under_test.rows() == source.rows()


# Names that meet


def rows_of(layout: TableSchema, *rows: list[str | None], kind: Kind = Kind.SNAPSHOT) -> Window:
    """A window with rows of one layout, their key being an int4 in the first column."""
    encoder = row_encoder(layout)
    changes = []
    at = parse_position("1:0/1000:1")
    for seq, row in enumerate(rows, 1):
        texts = [None if value is None else value.encode() for value in row]
        key = encoder.key(texts)
        raw = RawChange(Op.INSERT, 0, layout.oid, layout.id, 0, 0, 0, key, None, b"", encoder.encode(texts), None)
        changes.append(Change(raw, layout, at, seq))
    return Window(kind, changes, 0, at.commit_lsn, time_of(0), at, len(rows), begins=True, ends=True)


def test_names_that_differ_by_case_alone_or_are_the_sinks_own_or_contain_dots_and_quotes(
    sink: Sink, target_database: Database
) -> None:
    names = ["Name", "name", "NAME", "_walbus_seq", "_walbus_mark", "_walbus_seq_", 'a"b', "100%s", "$1", "select"]
    columns = (KEY, *(column(name) for name in names))
    odd = TableSchema(1, 20_001, "public", 'Odd "table" %s', ReplicaIdentity.DEFAULT, columns)
    dotted = TableSchema(2, 20_002, "public", "a.c", ReplicaIdentity.DEFAULT, (KEY, column("v")))
    beside = TableSchema(3, 20_003, "a", "c", ReplicaIdentity.DEFAULT, (KEY, column("v")))
    values: list[str | None] = [f"of {name}" for name in names]
    windows = [rows_of(odd, ["1", *values]), rows_of(dotted, ["1", "dotted"]), rows_of(beside, ["1", "beside"])]
    sink.write(windows, MARKS)
    sink.commit(Following("log-a", MARKS, Point(ORIGIN, 9)))
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    assert target_database.execute(f'SELECT {quoted} FROM public."Odd ""table"" %s"') == [tuple(values)]
    assert target_database.execute('SELECT v FROM public."a.c"') == [("dotted",)]
    assert target_database.execute("SELECT v FROM a.c") == [("beside",)]


def test_a_column_that_comes_to_have_the_sinks_own_name_moves_the_sinks(
    source: ModelSource, sink: Sink, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    fill(sink, source)
    done = source.end
    source.add_layout(items_layout("items", KEY, column("name"), column("body"), column("_walbus_seq")))
    source.commit([update(ITEMS, 1, name="n", body="b", _walbus_seq="the source's")])
    fill(sink, source, done)
    done = source.end
    assert target_database.execute("SELECT id, _walbus_seq FROM items ORDER BY id") == [(1, "the source's"), (2, None)]
    source.add_layout(items_layout("items", KEY, column("name"), column("body")))
    source.commit([update(ITEMS, 1, name="m", body="b"), delete(ITEMS, 2)])
    fill(sink, source, done)
    sink.close()
    again = under_test.open()
    fill(again, source)
    again.close()
    assert under_test.rows() == source.rows()


# Layouts


def test_a_value_that_a_columns_new_type_does_not_take_is_null_until_the_difference_comes(
    source: ModelSource, sink: Sink, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, 1, "5"), insert(ITEMS, 2, "five")])
    fill(sink, source)
    done = source.end
    source.add_layout(items_layout("items", KEY, column("name", 23, "int4"), column("body")))
    source.commit([update(ITEMS, 1, name="6", body="b")])
    fill(sink, source, done)
    assert {id: row["name"] for id, row in under_test.rows().items()} == {"1": "6", "2": None}


def test_a_new_key_is_followed(source: ModelSource, sink: Sink, target_database: Database) -> None:
    source.commit(
        [insert(ITEMS, 1, "a"), insert(ITEMS, 2, "b"), insert(ITEMS, 3, "b", "later"), insert(ITEMS, 4, None)]
    )
    fill(sink, source)
    rekeyed = replace(
        items_layout("items", replace(KEY, in_key=False), column("name", in_key=True), column("body")), id=9
    )
    sink.write([rows_of(rekeyed, ["1", "a", "anew"])], Marks(1, 1))
    sink.commit(Following("log-a", MARKS, Point(source.end, 9)))
    assert target_database.execute("SELECT name, id, body FROM items ORDER BY 1") == [
        ("a", 1, "anew"),
        ("b", 3, "later"),
    ]


# Writers and readers


def test_a_zombie_with_an_open_transaction_is_waited_for_and_then_stopped(
    source: ModelSource, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, 1, "old")])
    zombie = under_test.open()
    zombie.write(windows(source), MARKS)  # it stops here, and another process takes over
    other = under_test.open()
    assert other.checkpoint() is None
    with pytest.raises(SinkUnavailable, match="lock"):
        fill(other, source)
    zombie.rollback()
    other.rollback()
    source.commit([update(ITEMS, 1, name="new", body="b"), insert(ITEMS, 2)])
    fill(other, source)
    with pytest.raises(SinkRefused, match="another process has written this replica"):
        fill(zombie, source)
    other.close()
    zombie.close()
    assert under_test.rows() == source.rows()


def test_a_commit_that_comes_through_without_an_answer_is_the_consumers_own(
    source: ModelSource, under_test: SinkUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.commit([insert(ITEMS, 1)])
    sink = under_test.open()
    session = sink._session
    run, broken = session.run, []

    def breaks_at_commit(statement: str, parameters: Sequence[object] = ()) -> object:
        if statement != "COMMIT":
            return run(statement, parameters)
        broken.append(session._connection)
        session._connection = None
        raise psycopg.OperationalError("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr(session, "run", breaks_at_commit)
        with pytest.raises(SinkUnavailable):
            fill(sink, source)
    sink.rollback()
    assert sink.checkpoint() is None, "the server is still at it"
    broken[0].execute("COMMIT")
    broken[0].close()
    with pytest.raises(SinkUnavailable, match="has come through"):
        fill(sink, source)
    sink.rollback()
    assert sink.checkpoint() is not None
    source.commit([insert(ITEMS, 2)])
    fill(sink, source)
    sink.close()
    assert under_test.rows() == source.rows()


def test_readers_see_whole_transactions_however_large(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, n, "0") for n in range(40)])
    with consumer(relay, under_test):
        equal(under_test, relay)
        with psycopg.connect(under_test.options["dsn"], autocommit=True) as reader:
            for version in range(1, 40):
                source.commit([update(ITEMS, n, name=str(version), body="b") for n in range(40)], pieces=8)
                names = {row[0] for row in reader.execute("SELECT name FROM items")}
                assert len(names) == 1
        equal(under_test, relay)


def test_thousands_of_changes_of_every_kind_in_one_batch_end_as_the_source(
    source: ModelSource, sink: Sink, under_test: SinkUnderTest
) -> None:
    source.commit([insert(ITEMS, n, f"{n}", "toasted") for n in range(1000)])
    for round_ in range(3):
        source.commit([update(ITEMS, n, name=f"r{round_}") for n in range(round_, 1000, 3)])
    source.commit([update(ITEMS, n, new_id=n + 5000, name="moved") for n in range(0, 300, 2)])
    source.commit([delete(ITEMS, n) for n in range(301, 600)])
    source.commit([insert(ITEMS, n, 'quo"ted, {back\\slash}', None) for n in range(301, 400)])
    fill(sink, source)
    assert under_test.rows() == source.rows()
    done = source.end
    source.commit([truncate(ITEMS), insert(ITEMS, 1, "")])
    fill(sink, source, done)
    assert under_test.rows() == source.rows()


# A server that says nothing


def test_a_way_that_swallows_everything_is_noticed_told_and_gone_again_when_it_is_open(
    relay: ScriptedRelay, source: ModelSource, target_database: Database, tmp_path: Path
) -> None:
    given = conninfo_to_dict(target_database.dsn)
    with TcpProxy(int(str(given["port"]))) as proxy:
        dsn = make_conninfo(target_database.dsn, host="127.0.0.1", port=proxy.port, connect_timeout=2)
        under_test = postgres_under_test(tmp_path, target_database.dsn)
        source.commit([insert(ITEMS, n) for n in range(5)])
        with consumer(relay, under_test, dsn=dsn, statement_seconds=1.0) as running:
            equal(under_test, relay)
            followed(running, under_test, relay, update(ITEMS, 3, name="behind the snapshot"))
            snapshots = len(relay.asked("/v1/snapshot"))  # more than one where the server was slow
            proxy.swallow = True
            source.commit([update(ITEMS, 1, name="swallowed"), delete(ITEMS, 2)])
            wait_for(lambda: "not answered for 3 seconds" in str(running.status().get("waiting_for")), 60)
            proxy.swallow = False
            proxy.reset()
            wait_for(lambda: under_test.rows() == source.rows(), 60)
    assert len(relay.asked("/v1/snapshot")) == snapshots


def test_a_backend_that_stands_still_is_noticed_and_its_late_answer_changes_nothing(
    relay: ScriptedRelay, source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    source.commit([insert(ITEMS, n) for n in range(5)])
    with consumer(relay, under_test, statement_seconds=1.0) as running:
        equal(under_test, relay)
        followed(running, under_test, relay, update(ITEMS, 3, name="behind the snapshot"))
        snapshots = len(relay.asked("/v1/snapshot"))  # more than one where the server was slow
        session = "SELECT pid FROM pg_stat_activity WHERE application_name = 'walbus test'"
        pid = int(str(target_database.value(session)))
        os.kill(pid, signal.SIGSTOP)
        try:
            source.commit([update(ITEMS, 1, name="meanwhile"), delete(ITEMS, 2)])
            wait_for(lambda: "not answered for 3 seconds" in str(running.status().get("waiting_for")), 60)
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: under_test.rows() == source.rows(), 60)
        source.commit([insert(ITEMS, 9)])
        equal(under_test, relay)
    assert len(relay.asked("/v1/snapshot")) == snapshots


def test_a_statement_that_is_only_slow_is_ended_and_tried_again(
    source: ModelSource, under_test: SinkUnderTest, target_database: Database
) -> None:
    sink = under_test.open(statement_seconds=4.0)
    source.commit([insert(ITEMS, 1)])
    fill(sink, source)
    done = source.end
    target_database.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'"
    )
    target_database.execute("CREATE TRIGGER slow BEFORE INSERT ON public.items FOR EACH ROW EXECUTE FUNCTION slow()")
    source.commit([insert(ITEMS, 2)])
    with pytest.raises(SinkUnavailable, match=r"statement timeout.*raise consumer\.test\.statement_seconds"):
        fill(sink, source, done)
    sink.rollback()
    target_database.execute("DROP TRIGGER slow ON public.items")
    assert sink.checkpoint() is not None
    fill(sink, source, done)
    sink.close()
    assert under_test.rows() == source.rows()


# Rows of an earlier key


def test_rows_from_before_their_key_had_another_type_stay_where_the_new_type_has_their_key(
    source: ModelSource, sink: Sink, target_database: Database
) -> None:
    texts = items_layout("items", column("id", in_key=True), column("name"), column("body"))
    numbers = replace(items_layout("items", KEY, column("name"), column("body")), id=9)
    sink.write([rows_of(texts, ["1", "a", None], ["x", "b", None])], MARKS)
    sink.write([rows_of(numbers, ["2", "c", None])], MARKS)
    assert target_database.execute("SELECT count(*) FROM pg_catalog.pg_tables WHERE tablename = 'items'") == [(0,)]
    earlier = rows_of(texts, ["1", "a", None], ["01", "twin", None], ["x", "b", None], ["5", "d", None])
    sink.write([earlier, rows_of(numbers, ["2", "newer", None])], MARKS)
    sink.commit(Following("log-a", MARKS, Point(source.end, 9)))
    assert target_database.execute("SELECT id, name FROM items ORDER BY id") == [
        (1, "twin"), (2, "newer"), (5, "d"),
    ]  # fmt: skip


def test_rows_from_before_their_table_had_a_key_are_left_out_where_it_is_null(
    source: ModelSource, sink: Sink, target_database: Database
) -> None:
    keyed = replace(items_layout("items", KEY, column("name"), column("body")), id=9)
    other = replace(items_layout("items", column("name", in_key=True), column("body")), id=3)
    sink.write([rows_of(keyed, ["1", "a", None])], MARKS)
    sink.write([rows_of(other, ["p", "no id then"])], MARKS)
    sink.commit(Following("log-a", MARKS, Point(source.end, 9)))
    assert target_database.execute("SELECT id, name FROM items ORDER BY id") == [(1, "a")]
