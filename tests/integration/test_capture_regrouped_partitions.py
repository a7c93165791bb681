"""ATTACH and DETACH under writers: every row behind the event is in the log, on PostgreSQL 14 too.

The session of 14 goes on to publish a table as it was when it met it, so capture takes another one there.
"""

from __future__ import annotations

import json
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import msgspec
import psycopg
import pytest
from structlog.testing import capture_logs

from support.capturing import CaptureProcess, capturing
from support.database import fresh_database
from support.log_view import log_records, raw_changes
from support.reseed_events import look_quickly, remembered, reseeds, wait_remembered
from support.waiting import wait_for
from walbus.capture.definition import CatalogState
from walbus.capture.steps import Step, StepPolicy, Stream
from walbus.events import Change
from walbus.position import ORIGIN
from walbus.records import Kind, Op
from walbus.relay import open_reader

VIA_ROOT = "FOR TABLE parts WITH (publish_via_partition_root)"
ALL_VIA_ROOT = "FOR ALL TABLES WITH (publish_via_partition_root)"
AS_THEMSELVES = "FOR TABLE parts"
ALL = "FOR ALL TABLES"
OPTIONS = {"tables": ("public.parts",)}

LOW, HIGH = 1_000_000, 1_000_000_000
ATTACH = f"ALTER TABLE parts ATTACH PARTITION q FOR VALUES FROM ({LOW}) TO ({HIGH})"
DETACH = "ALTER TABLE parts DETACH PARTITION q"


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def quick(monkeypatch):
    look_quickly(monkeypatch)


def make_tables(database, publication, *, attached):
    database.execute("CREATE TABLE parts (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE rest PARTITION OF parts DEFAULT")
    database.execute("CREATE TABLE q (LIKE parts INCLUDING ALL)")
    if attached:
        database.execute(ATTACH)
    database.execute(f"CREATE PUBLICATION walbus {publication}")


@dataclass
class Writer:
    """Sessions that write to `q` and to the default partition until they are told to end."""

    dsn: str
    written: list[int] = field(default_factory=lambda: [0, 0, 0])
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def write(self, number: int) -> None:
        try:
            with closing(psycopg.connect(self.dsn, autocommit=True)) as session:
                while not self.done.is_set():
                    turn, first = self.written[number], 10_000_000 * (number + 1)
                    session.execute("INSERT INTO q VALUES (%s, 'new')", [first + turn])
                    session.execute("INSERT INTO parts VALUES (%s, 'new')", [-first - turn])
                    session.execute("UPDATE q SET a = 'changed' WHERE id = %s", [first + turn // 2])
                    if turn % 3 == 0:
                        session.execute("DELETE FROM q WHERE id = %s", [first + turn // 3])
                    self.written[number] += 1
        except BaseException as error:  # the test looks at it
            self.error = error

    def goes_on(self, turns: int = 30) -> None:
        """Waits until each session has done so many more turns."""
        goals = [count + turns for count in self.written]

        def reached() -> bool:
            assert self.error is None, self.error
            return all(count >= goal for count, goal in zip(self.written, goals, strict=True))

        wait_for(reached, 60, what="the writers go on")


@contextmanager
def writing(dsn):
    writer = Writer(dsn)
    threads = [threading.Thread(target=writer.write, args=(number,)) for number in range(len(writer.written))]
    for thread in threads:
        thread.start()
    try:
        writer.goes_on()
        yield writer
    finally:
        writer.done.set()
        for thread in threads:
            thread.join()
    assert writer.error is None, writer.error


def rows_of(database, table):
    return dict(database.execute(f"SELECT id, a FROM {table}"))


def changes_behind(folder, oid, event):
    """Changes of a table behind its event of that number: (id, new row)."""
    found, seen = [], 0
    with closing(open_reader(folder)) as reader:
        for header, record in log_records(reader, ORIGIN):
            for raw in raw_changes(header, record):
                if raw.op == Op.SCHEMA and header.kind == Kind.SCHEMA and b'"reseed"' in (raw.after or b""):
                    seen += raw.table == oid
                elif raw.table == oid and seen >= event and header.kind == Kind.TRANSACTION:
                    schema = reader.schemas.get(raw.schema_id)
                    change = Change(raw, schema, header.first, header.first_seq + raw.seq_delta)
                    assert change.op != Op.TRUNCATE
                    assert change.key is not None
                    found.append((change.key["id"], change.after))
    assert seen >= event
    return found


def events_of(folder, table):
    return [reason for name, reason in reseeds(folder) if name == f"public.{table}"]


def assert_read_again_gives_source(database, folder, table, read, event):
    """What a reader has that read the table once it had met the event, and followed the log from there."""
    oid = database.value(f"SELECT '{table}'::regclass::oid::int8")
    for key, row in changes_behind(folder, oid, event):
        if row is None:
            read.pop(key, None)
        else:
            read[key] = row["a"]
    source = rows_of(database, table)
    missing, over = source.keys() - read.keys(), read.keys() - source.keys()
    assert read == source, f"{len(missing)} rows are missing, {len(over)} are too many"


def renewals(said):
    return sum(line["event"] == "capture.renews_session" for line in said)


@pytest.mark.parametrize(
    ("publication", "table"),
    [(VIA_ROOT, "parts"), (ALL_VIA_ROOT, "parts"), (AS_THEMSELVES, "q")],
)  # fmt: skip
def test_rows_behind_an_attach_are_in_the_log(database, folder, quick, publication, table):
    make_tables(database, publication, attached=False)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        wait_remembered(folder, '"parts"' if table == "parts" else '"rest"')
        with writing(database.dsn) as writer:
            capture.caught_up()  # the session has met the table
            database.execute(ATTACH)
            wait_for(lambda: events_of(folder, table), 60, what="the event")
            read = rows_of(database, table)
            writer.goes_on()
        capture.caught_up()
    assert_read_again_gives_source(database, folder, table, read, 1)
    assert renewals(said) == (1 if database.major == 14 else 0)


@pytest.mark.parametrize("publication", [VIA_ROOT, ALL_VIA_ROOT])
def test_rows_behind_a_detach_are_not_taken_for_the_roots(database, folder, quick, publication):
    make_tables(database, publication, attached=True)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        wait_remembered(folder, '"parts"')
        with writing(database.dsn) as writer:
            capture.caught_up()
            database.execute(DETACH)
            wait_for(lambda: events_of(folder, "parts"), 60, what="the event")
            read = rows_of(database, "parts")
            writer.goes_on()
        capture.caught_up()
    assert_read_again_gives_source(database, folder, "parts", read, 1)
    assert renewals(said) == (1 if database.major == 14 else 0)


def test_rows_of_a_detached_table_are_no_longer_in_the_log(database, folder, quick):
    make_tables(database, AS_THEMSELVES, attached=True)
    oid = database.value("SELECT 'q'::regclass::oid::int8")
    with capturing(database.dsn, folder, **OPTIONS) as capture:
        wait_remembered(folder, '"q"')
        with writing(database.dsn) as writer:
            capture.caught_up()
            database.execute(DETACH)
            wait_for(lambda: events_of(folder, "q"), 60, what="the event")
            writer.goes_on()
        capture.caught_up()
    assert events_of(folder, "q") == ["unpublished"]
    assert changes_behind(folder, oid, 1) == []


@pytest.mark.parametrize(
    ("publication", "attached", "statements"),
    [
        (ALL, False, [ATTACH]),  # published as themselves, whatever they belong to
        (VIA_ROOT, False, [f"CREATE TABLE q2 PARTITION OF parts FOR VALUES FROM ({HIGH}) TO ({HIGH + 1})"]),
        (VIA_ROOT, True, ["DROP TABLE q"]),
        (VIA_ROOT, False, ["ALTER TABLE parts ADD b int DEFAULT 1", "CREATE TABLE other (id int)", "DROP TABLE q"]),
    ],
)
def test_no_session_is_renewed_in_vain(database, folder, quick, publication, attached, statements):
    make_tables(database, publication, attached=attached)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        wait_remembered(folder, '"parts"' if "root" in publication else '"rest"')
        database.execute(f"INSERT INTO q VALUES ({LOW}, 'x')")
        capture.caught_up()
        for statement in statements:
            database.execute(statement)
        database.execute("CREATE TABLE sentinel PARTITION OF parts FOR VALUES FROM (7) TO (8)")
        oid = database.value("SELECT 'sentinel'::regclass::oid::int8")
        wait_remembered(folder, f"{oid}")
    assert renewals(said) == 0


def test_a_transaction_that_stays_open_is_sent_anew(database, folder, quick):
    database.needs(14, "streaming of transactions")
    make_tables(database, VIA_ROOT, attached=False)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        wait_remembered(folder, '"parts"')
        database.execute(f"INSERT INTO q VALUES ({LOW}, 'x')")
        with closing(psycopg.connect(database.dsn)) as session:
            session.execute("SET lock_timeout = '10s'")
            session.execute("CREATE TABLE unrelated (id int)")
            session.execute("INSERT INTO unrelated SELECT generate_series(1, 200000)")
            capture.caught_up()
            database.execute(ATTACH)
            wait_for(lambda: events_of(folder, "parts"), 60, what="the event, while a transaction is open")
            session.execute(f"INSERT INTO parts SELECT {LOW} + g, 'open' FROM generate_series(1, 5000) g")
            session.commit()
        capture.caught_up()
    oid = database.value("SELECT 'parts'::regclass::oid::int8")
    assert len(changes_behind(folder, oid, 1)) == 5000
    assert renewals(said) == (1 if database.major == 14 else 0)


def begin(processes, dsn, folder):
    """Starts another process on the log, and waits until it streams."""
    said = "capture.streaming"
    before = processes[-1].output.count(said) if processes else 0
    processes.append(CaptureProcess(dsn, folder, **OPTIONS))
    process = processes[-1]
    wait_for(lambda: process.output.count(said) > before or not process.running, 60, what="it streams")


def test_whoever_is_killed_before_it_told_tells_it_in_its_next_life(database, folder):
    make_tables(database, VIA_ROOT, attached=False)
    processes = []
    try:
        begin(processes, database.dsn, folder)
        with writing(database.dsn) as writer:
            writer.goes_on()
            database.execute(ATTACH)
            for _ in range(4):
                writer.goes_on(10)
                processes[-1].kill()
                assert "Error" not in processes[-1].output
                begin(processes, database.dsn, folder)
            wait_for(lambda: events_of(folder, "parts") or not processes[-1].running, 60, what="the event")
            assert processes[-1].running, processes[-1].output
            count = len(events_of(folder, "parts"))
            read = rows_of(database, "parts")
            writer.goes_on()
        end = database.insert_lsn()
        wait_for(lambda: database.confirmed_lsn("walbus") >= end or not processes[-1].running, 60, what="caught up")
        assert processes[-1].terminate() == 0, processes[-1].output
    finally:
        processes[-1].kill()
    assert_read_again_gives_source(database, folder, "parts", read, count)


def remembered_partitions(folder):
    """OIDs of the partitions of published tables, as they were told."""
    told = msgspec.json.decode(remembered(folder), type=dict[str, msgspec.Raw])["state"]
    tables = msgspec.json.decode(told, type=CatalogState).tables.values()
    return {file.oid for table in tables if table.kind == "p" for file in table.files}


def test_a_slot_that_went_back_to_before_an_attach_has_it_told_again(own_pg_server, pg_version, folder, quick):
    server = own_pg_server(version=pg_version)
    with fresh_database(server) as database:
        make_tables(database, VIA_ROOT, attached=False)
        with capturing(database.dsn, folder, **OPTIONS) as capture:
            wait_remembered(folder, '"parts"')
            with writing(database.dsn):
                capture.caught_up()
            database.execute(f"INSERT INTO q VALUES ({LOW}, 'met'); INSERT INTO parts VALUES (-1, 'known')")
            capture.caught_up()
            slot = server.data / "pg_replslot" / "walbus" / "state"
            written = slot.read_bytes()
            database.execute(ATTACH)
            wait_for(lambda: events_of(folder, "parts"), 60, what="the event")
            database.execute(f"INSERT INTO q VALUES ({LOW + 1}, 'sent')")
            capture.caught_up()
            q = database.value("SELECT 'q'::regclass::oid::int8")
            wait_for(lambda: q in remembered_partitions(folder), 30, what="that it was told is remembered")
        database.close()
        server.kill()
        slot.write_bytes(written)  # the server may have written it since, as it does every now and then
        server.start()
        told_at = json.loads(remembered(folder))["regrouped_lsn"]
        assert (database.confirmed_lsn("walbus") < told_at) is (database.major == 14)
        with capturing(database.dsn, folder, **OPTIONS) as capture:
            database.execute(f"INSERT INTO q VALUES ({LOW + 2}, 'perhaps left out')")
            capture.caught_up()
            events = 2 if database.major == 14 else 1
            wait_for(lambda: len(events_of(folder, "parts")) >= events, 60, what="the event")
            read = rows_of(database, "parts")
            database.execute(f"INSERT INTO q VALUES ({LOW + 3}, 'last')")
            capture.caught_up()
        assert_read_again_gives_source(database, folder, "parts", read, events)
        assert len(events_of(folder, "parts")) == events


@pytest.mark.parametrize("attached", [False, True])
def test_what_comes_again_with_other_rows_is_the_same_history(database, folder, monkeypatch, attached):
    make_tables(database, VIA_ROOT, attached=attached)
    with monkeypatch.context() as patch:
        patch.setattr("walbus.capture.watch.PERIOD", 3600.0)  # it looks once, and no more before its end
        with capturing(database.dsn, folder, **OPTIONS) as capture:
            wait_for(capture.log.schemas.all, 60, what="it has looked, or it would see what is altered below")
            database.execute(f"INSERT INTO q VALUES ({LOW}, 'met')")
            met = database.insert_lsn()
            wait_for(lambda: database.confirmed_lsn("walbus") >= met, 60, what="it is confirmed")
            database.execute("SELECT pg_copy_logical_replication_slot('walbus', 'kept')")
            database.execute(DETACH if attached else ATTACH)
            for number in range(1, 4):
                database.execute(f"INSERT INTO q VALUES ({LOW + number}, 'x')")
            capture.durable_to(database.insert_lsn())
    database.drop_slot("walbus")
    database.execute("SELECT pg_copy_logical_replication_slot('kept', 'walbus')")  # as a crash of the server leaves it
    look_quickly(monkeypatch)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        database.execute(f"INSERT INTO q VALUES ({LOW + 9}, 'x')")
        wait_for(lambda: capture.error or events_of(folder, "parts"), 60, what="the event")
        read = rows_of(database, "parts")
        database.execute(f"INSERT INTO q VALUES ({LOW + 10}, 'x')")
        capture.caught_up()
    assert_read_again_gives_source(database, folder, "parts", read, 1)
    assert renewals(said) == (1 if database.major == 14 else 0)


class OneStep(StepPolicy):
    """One step over everything."""

    def is_far_behind(self, backlog):
        return backlog.left > 0

    def next(self, backlog):
        return Step(backlog.end) if backlog.left else Stream("the tail is near")


class SmallSteps(StepPolicy):
    """Steps of a few transactions, up to the tail."""

    def is_far_behind(self, backlog):
        return backlog.left > 0

    def next(self, backlog):
        if not backlog.left:
            return Stream("the tail is near")
        return Step(min(backlog.end, backlog.confirmed + 3_000))


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("policy", [SmallSteps, OneStep])
def test_steps_over_it_lose_no_row_behind_the_event(database, folder, quick, monkeypatch, policy, attached):
    make_tables(database, VIA_ROOT, attached=attached)
    with capturing(database.dsn, folder, **OPTIONS):
        wait_remembered(folder, '"parts"')
    for number in range(200):
        if number == 100:
            database.execute(DETACH if attached else ATTACH)
        database.execute(f"INSERT INTO q VALUES ({LOW + number}, 'x')")
    monkeypatch.setattr("walbus.capture.service.StepPolicy.is_far_behind", policy.is_far_behind)
    monkeypatch.setattr("walbus.capture.service.StepPolicy.next", policy.next)
    with capture_logs() as said, capturing(database.dsn, folder, **OPTIONS) as capture:
        with writing(database.dsn) as writer:
            wait_for(lambda: capture.error or events_of(folder, "parts"), 60, what="the event")
            read = rows_of(database, "parts")
            writer.goes_on()
        capture.caught_up()
    assert any(line["event"] == "catch_up.done" for line in said)
    assert_read_again_gives_source(database, folder, "parts", read, 1)
