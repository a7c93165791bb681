"""Faults 8, 10, 11, 15, 25, 26 and misconfiguration: what the slot and the publication can suffer."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from pydantic import SecretStr

from support.capturing import CaptureThread, captured, capturing, file_log, filled, flushed_lsn, refusal, source_of
from support.database import fresh_database
from support.memory_log import MemoryLog
from support.waiting import wait_for
from walbus.capture import identify
from walbus.capture.pgoutput_options import PgoutputOptions
from walbus.capture.pieces import progress_piece
from walbus.capture.publication import Completion, ensure_publication, matched_tables
from walbus.capture.replication import Walsender
from walbus.capture.sessions import open_session, parameters_of, stream_names
from walbus.errors import (
    ConfigError,
    Directive,
    SlotInUse,
    SourceGap,
    SourceMisconfigured,
    SourceReplaced,
    SourceUnavailable,
    directive_of,
)


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


# The slot.


def test_a_slot_that_is_gone_is_a_gap(database, folder):
    filled(database, folder)
    database.drop_slot("walbus")
    error = refusal(database.dsn, folder)
    assert isinstance(error, SourceGap)
    assert "it is gone" in error.what
    assert error.mend
    assert database.value("SELECT count(*) FROM pg_replication_slots") == 0


def test_a_slot_that_was_made_again_is_a_gap(database, folder):
    filled(database, folder)
    database.drop_slot("walbus")
    database.execute("INSERT INTO t VALUES (2)")
    database.execute("SELECT pg_create_logical_replication_slot('walbus', 'pgoutput')")
    error = refusal(database.dsn, folder)
    assert isinstance(error, SourceGap)
    assert "made again" in error.what


def test_a_slot_that_somebody_else_read_is_a_gap(database, folder):
    filled(database, folder)
    database.execute("INSERT INTO t VALUES (2)")
    database.execute(
        "SELECT count(*) FROM pg_logical_slot_get_binary_changes("
        "'walbus', NULL, NULL, 'proto_version', '1', 'publication_names', 'walbus')"
    )
    database.execute("SELECT pg_replication_slot_advance('walbus', pg_current_wal_flush_lsn())")
    assert isinstance(refusal(database.dsn, folder), SourceGap)


def test_a_slot_dropped_under_a_running_capture_is_a_gap(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log)
        capture.streaming()
        wait_for(lambda: dropped(database), what="the slot is dropped between two connections")
        assert isinstance(capture.ended(), SourceGap)


def dropped(database):
    database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL")
    database.execute("SELECT pg_drop_replication_slot('walbus')")
    return True


def test_a_lost_slot_is_a_gap(own_pg_server, folder):
    server = own_pg_server(max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB")
    with fresh_database(server) as database:
        filled(database, folder)
        for _ in range(4):
            database.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'x', repeat('x', 1000))")
        database.execute("CHECKPOINT")
        assert database.value("SELECT wal_status FROM pg_replication_slots") == "lost"
        error = refusal(database.dsn, folder)
        assert isinstance(error, SourceGap)
        assert "lost" in error.what


def test_a_slot_of_another_kind_is_refused(pg_server, database):
    name = f"physical_{database.name}"
    database.execute(f"SELECT pg_create_physical_replication_slot('{name}')")
    error = CaptureThread(source_of(database.dsn, slot=name), MemoryLog()).ended()
    database.execute(f"SELECT pg_drop_replication_slot('{name}')")
    assert isinstance(error, SourceMisconfigured)
    assert "is a physical one" in error.what


def test_a_slot_that_another_session_holds_is_waited_for(database, folder):
    filled(database, folder)
    source, status = source_of(database.dsn), folder.parent / "c.json"
    other = Walsender(source.dsn)
    other.start("walbus", "walbus", PgoutputOptions())
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, status)
        wait_for(lambda: status.exists() and "is active for PID" in status.read_text(), what="capture tells why")
        assert capture.error is None
        other.close()
        database.execute("INSERT INTO t VALUES (2)")
        capture.caught_up()
        capture.stop()


def test_what_an_earlier_writer_of_the_log_left_streaming_is_ended_at_once(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder) as first:
        log_id = first.log.bounds().log_id
    database.wait_until_free("walbus")
    stale = Walsender(first.source.dsn, stream_names(first.source.dsn, log_id, 1)[0])
    stale.start("walbus", "walbus", PgoutputOptions())  # and nobody is left to read it
    try:
        with capturing(database.dsn, folder) as second:
            database.execute("INSERT INTO t VALUES (1)")
            second.caught_up(10)  # the server itself would wait for a minute
    finally:
        stale.close()


def test_a_name_that_the_dsn_gives_stays_and_says_nothing_of_whose_stream_it_is():
    ours = "walbus-capture 0123456789abcdef"
    assert stream_names(SecretStr("postgresql://h/d"), "0123456789abcdef0123", 1) == [ours]
    assert stream_names(SecretStr("postgresql://h/d"), "0123456789abcdef0123", 3) == [ours, f"{ours} 2", f"{ours} 3"]
    assert stream_names(SecretStr("postgresql://h/d?application_name=standby1"), "0123456789abcdef0123", 1) == []


def test_the_slot_in_use_passes_by_itself():
    assert directive_of(SlotInUse("x")) is Directive.RETRY


# The publication.


def test_a_publication_dropped_under_a_running_capture_stops_it(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log)
        capture.streaming()
        database.execute("INSERT INTO t VALUES (1)")
        capture.caught_up()
        database.execute("DROP PUBLICATION walbus")
        dropped_at = database.insert_lsn()
        database.execute("INSERT INTO t VALUES (2)")
        error = capture.ended()
        assert isinstance(error, SourceGap)
        assert "publication" in error.what
        skipped = flushed_lsn(source)
        assert log.bounds().end_lsn < skipped
        assert dropped_at < skipped
    assert isinstance(refusal(database.dsn, folder), SourceGap)


def test_rows_skipped_while_the_publication_was_missing_are_a_gap_even_after_it_is_back(database, folder):
    filled(database, folder)
    database.execute("DROP PUBLICATION walbus")
    database.execute("INSERT INTO t VALUES (2)")
    before = database.insert_lsn()
    database.execute("CREATE PUBLICATION walbus FOR TABLE t")
    database.execute("INSERT INTO t VALUES (3)")
    error = refusal(database.dsn, folder)
    assert isinstance(error, SourceGap)
    assert database.confirmed_lsn() < before


def test_a_publication_that_leaves_operations_out_is_told(database, folder, capsys):
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE t WITH (publish = 'insert, delete')")
    with capturing(database.dsn, folder):
        pass
    said = capsys.readouterr().out
    assert "publication.operations_left_out" in said
    assert "'update', 'truncate'" in said


def test_a_table_dropped_while_it_is_added_to_the_publication_does_not_stop_capture(database):
    source = source_of(database.dsn)
    with closing(open_session(source.dsn)) as session:
        database.execute("CREATE TABLE kept (id int PRIMARY KEY)")
        completion = Completion(source)
        ensure_publication(session, completion, log_is_empty=True, known=())
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        matched = matched_tables(session, source)
        database.execute("DROP TABLE t")
        with pytest.raises(SourceUnavailable):
            completion.complete(session, matched, known=())
        completion.complete(session, matched_tables(session, source), known=())


def test_a_table_taken_out_of_the_publication_stops_capture_until_it_is_put_back(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE kept (id int PRIMARY KEY)")
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log)
        capture.streaming()
        wait_for(lambda: len(log.schemas.all()) == 2, what="the log knows both tables")
        database.execute("ALTER PUBLICATION walbus DROP TABLE t")
        error = capture.ended()
    assert isinstance(error, SourceMisconfigured)
    assert "public.t" in error.what
    assert isinstance(refusal(database.dsn, folder), SourceMisconfigured)
    database.execute("ALTER PUBLICATION walbus ADD TABLE t")
    with capturing(database.dsn, folder) as capture:
        capture.caught_up()


def test_a_look_at_the_catalog_that_fails_unforeseen_stops_capture_too(database, monkeypatch):
    def fail(*_):
        raise ValueError("a catalog that nobody foresaw")

    monkeypatch.setattr("walbus.capture.watch.read_state", fail)
    capture = CaptureThread(source_of(database.dsn), MemoryLog())
    assert isinstance(capture.ended(), ValueError)


# Misconfiguration: one clear error that names the mend.


def test_a_dsn_that_cannot_be_parsed_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        identify(source_of("host=x password=hunter2 nonsense"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:pa@hunter2@h/d", "postgres://me:7/hunter2@h/d", "postgresql://me:7/hunter2@h:5432/d?a=b"]
)
def test_a_password_that_should_be_encoded_is_not_repeated(dsn):
    with pytest.raises(ConfigError) as caught:
        identify(source_of(dsn))
    assert "hunter2" not in str(caught.value)
    assert "%40" in str(caught.value)


@pytest.mark.parametrize(
    "dsn", ["postgresql:///d?user=a@b", "postgresql://me@%2Ftmp/d", "postgresql://me:x%40y@h/d", "host=@abstract"]
)
def test_an_at_sign_in_its_place_is_no_error(dsn):
    assert parameters_of(SecretStr(dsn))


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        (lambda dsn: dsn.replace("postgres:", "postgres:wrong", 2).replace("wrongql", "ql"), "user and password"),
        (lambda dsn: dsn.rsplit("/", 1)[0] + "/nowhere", "database's name"),
    ],
    ids=["wrong password", "wrong database"],
)
def test_a_wrong_dsn_is_told_with_its_mend(database, change, mend):
    with pytest.raises(SourceMisconfigured) as caught:
        identify(source_of(change(database.dsn)))
    assert mend in (caught.value.mend or "")


def test_a_server_that_is_not_there_may_come_later(free_port):
    with pytest.raises(SourceUnavailable) as caught:
        identify(source_of(f"postgresql://postgres:secret@127.0.0.1:{free_port}/postgres"))
    assert "secret" not in str(caught.value)
    assert directive_of(caught.value) is Directive.RETRY


@pytest.mark.parametrize("level", ["replica", "minimal"])
def test_a_wal_level_below_logical_is_told_with_its_mend(own_pg_server, level):
    server = own_pg_server(wal_level=level, max_wal_senders="0" if level == "minimal" else "5")
    with pytest.raises(SourceMisconfigured, match=f"wal_level is {level}") as caught:
        identify(source_of(server.dsn()))
    assert "wal_level = logical" in (caught.value.mend or "")


def test_a_missing_table_or_schema_is_named(database):
    for pattern, name in (("public.nowhere", "table public.nowhere"), ("nowhere.*", "schema nowhere")):
        with pytest.raises(SourceMisconfigured, match=name):
            identify(source_of(database.dsn, tables=(pattern,)))


def test_a_named_table_without_identity_is_refused_before_it_is_published(database):
    database.execute("CREATE TABLE t (id int)")
    with pytest.raises(SourceMisconfigured, match="no replica identity") as caught:
        identify(source_of(database.dsn, tables=("public.t",)))
    assert "REPLICA IDENTITY FULL" in (caught.value.mend or "")


@pytest.fixture
def poor_dsn(database):
    """Makes a role with what is given, and the DSN of it."""

    def make(attributes: str) -> str:
        role = f"poor_{database.name}"
        database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'poor' {attributes}")
        return f"postgresql://{role}:poor@127.0.0.1:{database.server.port}/{database.name}"

    return make


def test_a_role_without_replication_is_told_what_it_lacks(database, poor_dsn):
    with pytest.raises(SourceMisconfigured, match="lacks REPLICATION") as caught:
        identify(source_of(poor_dsn("")))
    assert "ALTER ROLE" in (caught.value.mend or "")


def test_a_role_that_may_not_create_a_publication_is_told(database, poor_dsn):
    with pytest.raises(SourceMisconfigured, match="may not create a publication") as caught:
        identify(source_of(poor_dsn("REPLICATION")))
    assert "GRANT CREATE" in (caught.value.mend or "")


def test_a_role_that_does_not_own_the_tables_is_told(database, poor_dsn):
    dsn = poor_dsn("REPLICATION")
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(f"GRANT CREATE ON DATABASE {database.name} TO poor_{database.name}")
    error = CaptureThread(source_of(dsn, tables=("public.t",)), MemoryLog()).ended()
    assert isinstance(error, SourceMisconfigured)
    assert "belongs to role postgres" in error.what
    assert 'ALTER PUBLICATION "walbus" ADD TABLE "public"."t"' in (error.mend or "")


def test_a_poor_role_captures_with_a_publication_that_others_made(database, poor_dsn, folder):
    dsn = poor_dsn("REPLICATION")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION walbus FOR TABLE t")
    with capturing(dsn, folder) as capture:
        database.execute("INSERT INTO t VALUES (1)")
        capture.durable_to(database.insert_lsn())
    assert len(captured(folder)) == 1


def test_another_database_behind_the_same_address_is_refused(own_pg_server, folder):
    first, second = own_pg_server(), own_pg_server()
    with first.connect() as session:
        session.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(first.dsn(), folder):
        pass
    with pytest.raises(SourceReplaced):
        file_log(folder, source_of(second.dsn()))


def test_a_source_that_was_set_back_behind_the_log_is_refused(database):
    """As a restored volume: same system identifier and timeline, and less WAL."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source, log = source_of(database.dsn), MemoryLog()
    capture = CaptureThread(source, log)
    capture.streaming()
    capture.stop()
    log.append(progress_piece(1, log.bounds().end_lsn + (1 << 30), 1))
    log.sync()
    error = CaptureThread(source, log).ended()
    assert isinstance(error, SourceReplaced)
    assert "set back" in error.what


def test_the_mend_of_too_few_slots_names_the_setting(own_pg_server):
    server = own_pg_server(max_replication_slots="1")
    with server.connect() as session:
        session.execute("SELECT pg_create_physical_replication_slot('taken')")
    error = CaptureThread(source_of(server.dsn()), MemoryLog()).ended()
    assert isinstance(error, SourceMisconfigured)
    assert "max_replication_slots" in (error.mend or "")


def test_psycopg_reports_no_sqlstate_for_failed_connections(database):
    """Why texts are looked at: should this ever fail, `refusals` can go by code alone."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(database.dsn.rsplit("/", 1)[0] + "/nowhere")
    assert caught.value.sqlstate is None
