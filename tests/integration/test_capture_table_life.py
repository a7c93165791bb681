"""A table's life while it is captured: log == oracle, and the log folded by key == the source."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from support.bootstrap_rig import source_rows
from support.capturing import captured, capturing
from support.database import fresh_database
from support.log_view import log_records, raw_changes
from support.waiting import wait_for
from walbus.records import Kind
from walbus.relay import open_reader

Rows = dict[tuple[str | None, ...], dict[str, str | None]]


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr("walbus.capture.watch.PERIOD", 0.1)
    monkeypatch.setattr("walbus.capture.watch._SHARE", 1.0)
    monkeypatch.setattr("walbus.capture.loop.CHORE_SECONDS", 0.1)


def folded(folder: Path) -> dict[int, Rows]:
    """The last row of every key, by table OID."""
    tables: dict[int, Rows] = {}
    for transaction in captured(folder):
        for change in transaction.changes:
            rows = tables.setdefault(change.oid, {})
            if change.op == "truncate":
                rows.clear()
                continue
            assert change.key is not None, f"a change of {change.oid} without a key"
            old = rows.pop(change.old_key or change.key, {})
            if change.op != "delete":
                rows[change.key] = {**{name: old[name] for name in change.unchanged}, **(change.after or {})}
    return tables


def assert_source_is_the_folded_log(database, folder, *tables: str) -> None:
    found = folded(folder) if tables else {}
    for table in tables:
        rows = found.get(int(database.value(f"SELECT '{table}'::regclass::oid::int8")), {})
        name = table if "." in table else f"public.{table}"
        mine = sorted(repr(sorted(row.items())) for row in rows.values())
        theirs = sorted(repr(sorted(row.items())) for row in source_rows(database, name))
        assert mine == theirs, table


def version(database) -> int:
    return int(database.value("SHOW server_version_num"))


LIVES = {
    "renamed, moved and renamed back": (
        "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE SCHEMA elsewhere",
        "INSERT INTO t VALUES (1, 'a')",
        "ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (2, 'b')",
        "BEGIN; UPDATE u SET a = 'c' WHERE id = 1; ALTER TABLE u SET SCHEMA elsewhere;"
        " UPDATE elsewhere.u SET a = 'd' WHERE id = 2; COMMIT",
        "ALTER TABLE elsewhere.u SET SCHEMA public; ALTER TABLE u RENAME TO t; DELETE FROM t WHERE id = 1",
    ),
    "two tables that swap their names": (
        "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, b int)",
        "INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1, 5)",
        "BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u;"
        " INSERT INTO t VALUES (2, 6); INSERT INTO u VALUES (2, 'b'); COMMIT",
        "UPDATE t SET b = 7; UPDATE u SET a = 'c'",
    ),
    "columns added, dropped, renamed and retyped": (
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text)",
        "INSERT INTO t VALUES (1, 'a', 'b')",
        "ALTER TABLE t ADD c int; INSERT INTO t VALUES (2, 'a', 'b', 3)",
        "BEGIN; INSERT INTO t VALUES (3); ALTER TABLE t DROP a; INSERT INTO t VALUES (4, 'b');"
        " ALTER TABLE t RENAME b TO bb; INSERT INTO t VALUES (5, 'b'); ALTER TABLE t ADD b date;"
        " INSERT INTO t VALUES (6, 'b', 1, '2026-01-01'); COMMIT",
        "BEGIN; ALTER TABLE t ALTER c TYPE text USING 'c' || c; UPDATE t SET c = c || 'x' WHERE id = 6; COMMIT",
        "ALTER TABLE t ALTER bb TYPE varchar(9), ALTER id TYPE bigint; UPDATE t SET bb = bb",
    ),
    "a savepoint that altered is rolled back": (
        "CREATE TABLE t (id int PRIMARY KEY, a text)",
        "BEGIN; INSERT INTO t VALUES (1, 'a'); SAVEPOINT s; ALTER TABLE t ADD b int; INSERT INTO t VALUES (2, 'a', 2);"
        " ROLLBACK TO s; INSERT INTO t VALUES (3, 'c'); ALTER TABLE t ADD c int; INSERT INTO t VALUES (4, 'd', 4);"
        " COMMIT",
        "UPDATE t SET a = a",
    ),
    "identities": (
        "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL, n int); CREATE UNIQUE INDEX codes ON t (code)",
        "INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3)",
        "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET id = 10 WHERE id = 1; DELETE FROM t WHERE id = 2",
        "ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET id = 30 WHERE id = 3",
        "ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (4, 'four', 4)",
        "ALTER TABLE t REPLICA IDENTITY USING INDEX codes; UPDATE t SET code = 'ten' WHERE id = 10",
    ),
    "partitions as themselves": (
        "CREATE TABLE parts (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 (a text, extra int, id int NOT NULL); ALTER TABLE p2 DROP extra",
        "ALTER TABLE p2 ADD PRIMARY KEY (id); ALTER TABLE p1 REPLICA IDENTITY FULL",
        "ALTER TABLE parts ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO parts VALUES (1, 'a'), (11, 'b')",
        "UPDATE parts SET id = 12, a = 'c' WHERE id = 1; UPDATE parts SET a = 'd' WHERE id = 11",
        "DELETE FROM p2 WHERE id = 12",
        "INSERT INTO parts VALUES (2, 'z'); TRUNCATE p2; INSERT INTO p2 (id) VALUES (13)",
    ),
    "children that inherit": (
        "CREATE TABLE parent (id int PRIMARY KEY, a text);"
        " CREATE TABLE child (PRIMARY KEY (id), b int) INHERITS (parent)",
        "INSERT INTO parent VALUES (1, 'a'); INSERT INTO child VALUES (1, 'a', 5)",
        "UPDATE parent SET a = 'b'; ALTER TABLE parent ADD c int; UPDATE parent SET c = 1",
        "ALTER TABLE child NO INHERIT parent",
        "INSERT INTO child VALUES (2, 'q', 6, 7)",
    ),
    "tables that are not logged": (
        "CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)",
        "INSERT INTO fast VALUES (1); CREATE TEMP TABLE scratch (id int PRIMARY KEY); INSERT INTO scratch VALUES (1)",
        "BEGIN; INSERT INTO t VALUES (1); INSERT INTO fast VALUES (2); INSERT INTO scratch VALUES (2); COMMIT",
    ),
}
FOLDED = {
    "renamed, moved and renamed back": ("t",),
    "two tables that swap their names": ("t", "u"),
    "columns added, dropped, renamed and retyped": ("t",),
    "a savepoint that altered is rolled back": ("t",),
    "identities": (),
    "partitions as themselves": ("p1", "p2"),
    "children that inherit": ("child",),
    "tables that are not logged": ("t",),
}


@pytest.mark.parametrize("life", LIVES)
def test_the_log_follows_a_table_through(database, oracle, folder, life):
    first, *statements = LIVES[life]
    database.execute(first)
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        published = "SELECT count(*) FROM pg_publication_tables"
        for statement in statements:
            database.execute(statement)
            if statement.startswith("CREATE TABLE p"):
                wait_for(lambda: database.value(published) > 0, what="the partition is published")
        capture.caught_up()
    expected = truth.transactions()
    assert expected
    without_keys = life == "identities"  # the oracle takes today's key for what was FULL then
    mine = captured(folder)
    if without_keys:
        assert [[(c.op, c.after) for c in t.changes] for t in mine] == [
            [(c.op, c.after) for c in t.changes] for t in expected
        ]
    else:
        assert mine == expected
    assert_source_is_the_folded_log(database, folder, *FOLDED[life])


def test_a_table_that_is_dropped_and_made_again_is_another_one(database, oracle, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 'a')")
        database.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, b int)")
        wait_for(lambda: database.value("SELECT count(*) FROM pg_publication_tables") == 1, what="it is published")
        database.execute("INSERT INTO t VALUES (1, 5)")
        capture.caught_up()
    assert captured(folder) == truth.transactions()
    first, second = (t.changes[0] for t in captured(folder))
    assert first.oid != second.oid
    assert_source_is_the_folded_log(database, folder, "t")


def test_a_key_that_changed_is_told_and_rows_behind_it_have_the_new_one(database, oracle, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        wait_for((folder / "catalog.json").exists, what="the key is remembered")
        database.execute("INSERT INTO t VALUES (1, 'one')")
        database.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code); UPDATE t SET id = 2")
        capture.caught_up()
        wait_for(lambda: events(folder), what="the event is told")
    assert captured(folder) == truth.transactions()
    assert [t.changes[0].key for t in captured(folder)] == [("1",), ("one",)]
    assert [event["reason"] for event in events(folder)] == ["key_changed"]


def events(folder: Path) -> list[dict[str, str]]:
    with closing(open_reader(folder)) as reader:
        found = [raw for header, record in log_records(reader) if header.kind == Kind.SCHEMA
                 for raw in raw_changes(header, record)]  # fmt: skip
    return [told["reseed"] for told in (json.loads(raw.after or b"{}") for raw in found) if "reseed" in told]


def test_under_full_rows_have_the_key_that_was_told_until_the_event_that_tells_another(database, folder):
    database.execute("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL); ALTER TABLE t REPLICA IDENTITY FULL")
    with capturing(database.dsn, folder) as capture:
        capture.caught_up()
        wait_for((folder / "catalog.json").exists, what="the key is remembered")
    database.execute("INSERT INTO t VALUES (1, 'one')")  # read after the key changed
    database.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)")
    database.execute("INSERT INTO t VALUES (2, 'two')")
    with capturing(database.dsn, folder) as capture:
        wait_for(lambda: events(folder), what="the event is told")
        database.execute("INSERT INTO t VALUES (3, 'three')")
        capture.caught_up()
    assert [t.changes[0].key for t in captured(folder)] == [("1",), ("2",), ("three",)]
    assert [event["reason"] for event in events(folder)] == ["key_changed"]


def test_under_full_a_row_without_a_value_in_todays_key_has_none(database, folder):
    database.execute("CREATE TABLE t (id int, a text); ALTER TABLE t REPLICA IDENTITY FULL")
    with capturing(database.dsn, folder):
        pass
    (folder / "catalog.json").unlink(missing_ok=True)  # nothing is remembered: the key is today's
    database.execute("INSERT INTO t VALUES (1, 'a'), (NULL, 'b'), (2, 'c')")
    database.execute(
        "UPDATE t SET id = 3 WHERE id IS NULL; DELETE FROM t WHERE id = 1; ALTER TABLE t ADD PRIMARY KEY (id)"
    )
    database.execute("INSERT INTO t VALUES (4, 'd')")
    with capturing(database.dsn, folder) as capture:
        capture.caught_up()
    rows, changed, last = (t.changes for t in captured(folder))
    assert [c.after["a"] for c in rows] == ["a", "b", "c"]
    assert [c.key for c in rows] == [("1",), None, None]
    assert [c.key for c in changed] == [None, None]
    assert [c.key for c in last] == [("4",)]


def test_a_type_that_came_back_with_its_extension_has_its_name_and_another_number(own_pg_server, folder):
    server = own_pg_server(contrib=True)
    with fresh_database(server) as database:
        database.execute("CREATE EXTENSION hstore; CREATE TABLE t (id int PRIMARY KEY, h hstore, hs hstore[])")
        with capturing(database.dsn, folder) as capture:
            database.execute("INSERT INTO t VALUES (1, 'a=>1', '{\"b=>2\"}')")
            database.execute("DROP EXTENSION hstore CASCADE; CREATE EXTENSION hstore")
            database.execute(
                "ALTER TABLE t ADD h hstore, ADD hs hstore[]; INSERT INTO t VALUES (2, 'c=>3', '{\"d=>4\"}')"
            )
            database.execute("UPDATE t SET h = 'e=>5', hs = NULL")
            capture.caught_up()
            types = [{c.name: (c.type_name, c.type_oid) for c in s.columns} for s in capture.log.schemas.all()]
        assert_source_is_the_folded_log(database, folder, "t")
    with_hstore = [t["h"] for t in types if "h" in t]
    assert {name for name, _ in with_hstore} == {"public.hstore"}
    assert len({oid for _, oid in with_hstore}) == 2


def test_columns_and_filters_that_change_in_mid_stream_hold_from_their_commit_on(database, oracle, folder):
    if version(database) < 150_000:
        pytest.skip("column lists and row filters came with 15")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text); CREATE PUBLICATION walbus FOR TABLE t")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 'a', 'b')")
        writer = database.connect(autocommit=False)
        writer.execute("INSERT INTO t VALUES (2, 'a', 'b')")
        database.execute("ALTER PUBLICATION walbus SET TABLE t (id, b) WHERE (id < 100)")
        writer.execute("INSERT INTO t VALUES (3, 'a', 'b')")
        writer.commit()
        database.execute("INSERT INTO t VALUES (4, 'a', 'b'), (101, 'a', 'b')")
        database.execute("UPDATE t SET id = 102 WHERE id = 4; UPDATE t SET id = 5 WHERE id = 101")
        database.execute("ALTER PUBLICATION walbus SET TABLE t; UPDATE t SET b = 'x'")
        capture.caught_up()
    assert captured(folder) == truth.transactions()


def test_generated_columns_are_sent_as_the_version_sends_them(database, oracle, folder):
    stored = version(database) >= 180_000
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED)")
    if stored:
        database.execute("ALTER TABLE t ADD v int GENERATED ALWAYS AS (n * 3) VIRTUAL")
        database.execute("CREATE PUBLICATION walbus FOR TABLE t WITH (publish_generated_columns = stored)")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        database.execute("INSERT INTO t VALUES (1, 5)")
        database.execute("UPDATE t SET n = 6")
        capture.caught_up()
    assert captured(folder) == truth.transactions()
    assert captured(folder)[0].changes[0].after == {"id": "1", "n": "5", **({"d": "10"} if stored else {})}


def test_a_database_in_another_encoding_gives_utf8(pg_server, folder):
    with fresh_database(pg_server, encoding="LATIN1") as database:
        database.execute('CREATE TABLE "grüße" (id int PRIMARY KEY, "größe" text)')
        with capturing(database.dsn, folder) as capture:
            database.execute("INSERT INTO \"grüße\" VALUES (1, 'Ærøskøbing ÿ')")
            capture.caught_up()
            assert [s.table for s in capture.log.schemas.all()] == ["public.grüße"]
    assert captured(folder)[0].changes[0].after == {"id": "1", "größe": "Ærøskøbing ÿ"}


def test_a_new_table_is_in_the_log_as_soon_as_the_catalog_was_looked_at(database, folder, monkeypatch):
    """The chores, which are done once a second, are not waited for: here there is none but the first."""
    monkeypatch.setattr("walbus.capture.loop.CHORE_SECONDS", 3600.0)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with capturing(database.dsn, folder), closing(open_reader(folder)) as reader:
        wait_for(lambda: [s.name for s in reader.schemas.all()] == ["t"], what="the log knows the table of before")
        database.execute("CREATE TABLE later (id int PRIMARY KEY)")
        wait_for(lambda: [s.name for s in reader.schemas.all()] == ["t", "later"], what="the log knows the new one")
