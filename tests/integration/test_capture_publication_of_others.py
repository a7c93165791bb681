"""Tables and publications that belong to others: what cannot be added is left out and told, or refused by name."""

from __future__ import annotations

import pytest

from support.capturing import CaptureThread, captured, capturing, source_of
from support.database import fresh_database
from support.memory_log import MemoryLog
from support.reseed_events import look_quickly, remembered, told
from support.waiting import wait_for
from walbus.capture import identify
from walbus.errors import SourceMisconfigured

PUBLISHED = "SELECT coalesce(array_agg(tablename::text ORDER BY tablename), '{}') FROM pg_publication_tables"


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture
def role_dsn(database):
    """DSN of a role that may replicate and make a publication, and owns table `ours`."""
    role = f"capture_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret' REPLICATION")
    database.execute(f"GRANT CREATE ON DATABASE {database.name} TO {role}")
    database.execute("CREATE TABLE ours (id int PRIMARY KEY); CREATE TABLE theirs (id int PRIMARY KEY)")
    database.execute(f"ALTER TABLE ours OWNER TO {role}; GRANT SELECT ON theirs TO {role}")
    return f"postgresql://{role}:secret@127.0.0.1:{database.server.port}/{database.name}"


def test_a_table_of_another_owner_that_a_wildcard_matches_is_left_out_and_told_once(database, role_dsn, folder, capsys):
    with capturing(role_dsn, folder) as capture:
        database.execute("INSERT INTO ours VALUES (1); INSERT INTO theirs VALUES (1)")
        database.execute("CREATE TABLE later (id int PRIMARY KEY)")  # of the superuser as well
        database.execute(f"CREATE TABLE mine (id int PRIMARY KEY); ALTER TABLE mine OWNER TO capture_{database.name}")
        wait_for(lambda: database.value(PUBLISHED) == ["mine", "ours"], what="what can be added is added")
        database.execute("INSERT INTO mine VALUES (2)")
        capture.durable_to(database.insert_lsn())
    said = capsys.readouterr().out
    assert said.count("publication.table_left_out") == 2
    assert 'ALTER PUBLICATION "walbus" ADD TABLE "public"."theirs"' in said
    assert len(captured(folder)) == 2


def test_a_table_that_may_be_added_later_is_added_then(database, role_dsn, folder, monkeypatch):
    monkeypatch.setattr("walbus.capture.watch.WHOLE_PERIOD", 0.5)  # a grant leaves no trace in the catalog's tables
    with capturing(role_dsn, folder):
        owner = f"owner_{database.name}"
        database.execute(f"CREATE ROLE {owner}; ALTER TABLE theirs OWNER TO {owner}")
        database.execute(f"GRANT {owner} TO capture_{database.name}")
        wait_for(lambda: database.value(PUBLISHED) == ["ours", "theirs"], what="it is added")


def test_a_named_table_of_another_owner_is_an_error_that_says_the_statement(database, role_dsn):
    source = source_of(role_dsn, tables=("public.ours", "public.theirs"))
    error = CaptureThread(source, MemoryLog()).ended()
    assert isinstance(error, SourceMisconfigured)
    assert "public.theirs" in error.what
    assert 'ALTER PUBLICATION "walbus" ADD TABLE "public"."theirs"' in (error.mend or "")


def test_a_publication_of_another_owner_is_used_as_it_is(database, role_dsn, folder, capsys):
    database.execute("CREATE PUBLICATION walbus FOR TABLE theirs")
    with capturing(role_dsn, folder) as capture:
        database.execute("INSERT INTO ours VALUES (1); INSERT INTO theirs VALUES (1)")
        capture.durable_to(database.insert_lsn())
    assert "publication.table_left_out" in capsys.readouterr().out
    assert len(captured(folder)) == 1


def test_a_partition_that_is_detached_and_cannot_be_added_is_left_out_from_then_on(
    database, role_dsn, folder, monkeypatch, capsys
):
    look_quickly(monkeypatch)
    database.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE gone PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    database.execute("CREATE PUBLICATION walbus FOR TABLE ours, parts")
    with capturing(role_dsn, folder) as capture:
        wait_for(lambda: "gone" in [s.name for s in capture.log.schemas.all()], what="the log knows the partition")
        database.execute("ALTER TABLE parts DETACH PARTITION gone")
        assert told(folder, 1) == [("public.gone", "unpublished")]
        wait_for(lambda: '"gone"' not in remembered(folder), 60, what="it is remembered as not published")
        database.execute("ALTER TABLE ours ADD looked int DEFAULT 1")
        wait_for(lambda: capture.error or '"looked"' in remembered(folder), 60, what="another look at the tables")
    with capturing(role_dsn, folder):  # which it looks at when it starts, too
        pass
    said = capsys.readouterr().out
    assert said.count('ALTER PUBLICATION "walbus" ADD TABLE "public"."gone"') == 2  # each told it once


def test_a_partition_without_an_identity_of_its_own_keeps_its_table_out(database):
    database.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    database.execute("ALTER TABLE p1 REPLICA IDENTITY NOTHING")
    with pytest.raises(SourceMisconfigured, match="no replica identity"):
        identify(source_of(database.dsn, tables=("public.parts",)))


def test_a_database_in_sql_ascii_is_refused(pg_server):
    with fresh_database(pg_server, encoding="SQL_ASCII") as database:
        with pytest.raises(SourceMisconfigured, match="SQL_ASCII") as caught:
            identify(source_of(database.dsn))
        assert "UTF8" in (caught.value.mend or "")
