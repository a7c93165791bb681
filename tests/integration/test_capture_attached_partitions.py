"""ATTACH on real servers: a partition that brought no rows costs no reseed, and one that may have brought some does."""

from __future__ import annotations

import threading
from contextlib import closing, suppress

import psycopg
import pytest

from support.capturing import captured, capturing
from support.folding import assert_root_folds_to_source
from support.reseed_events import look_quickly, sentinel, wait_remembered
from support.waiting import wait_for

TABLES = ("public.parts", "public.sentinel")


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    look_quickly(monkeypatch)


def make_root(database, publication="FOR TABLE parts, sentinel WITH (publish_via_partition_root)"):
    database.execute("CREATE TABLE sentinel (id int PRIMARY KEY)")
    database.execute("CREATE TABLE parts (id int PRIMARY KEY, a text DEFAULT 'x', CHECK (id >= 0))"
                     " PARTITION BY RANGE (id)")  # fmt: skip
    database.execute("CREATE INDEX ON parts (id, a) WHERE length(a) < 9; COMMENT ON COLUMN parts.a IS 'a word'")
    database.execute("CREATE TABLE rest PARTITION OF parts DEFAULT")
    database.execute(f"CREATE PUBLICATION walbus {publication}")


LIKE = "CREATE TABLE q (LIKE parts INCLUDING ALL)"
ATTACH = "ALTER TABLE parts ATTACH PARTITION q FOR VALUES FROM (20) TO (30)"
ROW, DIRECT = "INSERT INTO parts VALUES (21)", "INSERT INTO q VALUES (22)"


def one(*statements: str) -> list[str]:
    """One transaction."""
    return ["BEGIN; " + "; ".join(statements) + "; COMMIT"]


#: As the functions of pg_partman do: all in one block that handles exceptions, hence in a subtransaction.
BLOCK = "DO $$ BEGIN {} EXCEPTION WHEN division_by_zero THEN RAISE; END $$"

BROUGHT_NOTHING = {
    "made and attached": [LIKE, ATTACH],
    "made and attached in one transaction": one(LIKE, ATTACH),
    "made and attached in a subtransaction": [BLOCK.format(f"{LIKE}; {ATTACH};")],
    "rows flow in at once": [*one(LIKE, ATTACH), ROW, DIRECT, "UPDATE parts SET a = 'y' WHERE id = 21"],
    "rows flow in with it": one(LIKE, ATTACH, ROW, DIRECT),
    "rows flow in from a savepoint": one(LIKE, ATTACH, "SAVEPOINT s", ROW, "RELEASE s", DIRECT),
    "rows of the default partition are moved": [
        "INSERT INTO parts VALUES (21, 'one'), (22, 'two')",
        *one("CREATE TEMP TABLE held (LIKE parts) ON COMMIT DROP",
             "WITH gone AS (DELETE FROM parts WHERE id BETWEEN 20 AND 29 RETURNING *) INSERT INTO held TABLE gone",
             BLOCK.format(f"{LIKE}; {ATTACH};"),
             "INSERT INTO parts TABLE held"),
    ],
    "it was emptied before": one(LIKE, DIRECT, "DELETE FROM q", ATTACH),
    "it was truncated in the transaction that made it": one(LIKE, DIRECT, "TRUNCATE q", ATTACH),
    "a row came and went": [*one(LIKE, ATTACH), ROW, "DELETE FROM parts WHERE id = 21"],
    "a partitioned table without rows": [
        *one("CREATE TABLE q (LIKE parts INCLUDING ALL) PARTITION BY RANGE (id)",
             "CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (20) TO (25)",
             ATTACH),
        "CREATE TABLE q2 (LIKE parts INCLUDING ALL); ALTER TABLE q ATTACH PARTITION q2 FOR VALUES FROM (25) TO (30)",
    ],
    "indexes and a trigger came along": one(
        LIKE, "CREATE INDEX ON q (id, a)", "ALTER TABLE q ALTER a SET STATISTICS 10", ATTACH, ROW),
    "its name needs quotes": ['CREATE TABLE "q ""Q" (LIKE parts INCLUDING ALL)', ATTACH.replace(" q ", ' "q ""Q" ')],
}  # fmt: skip


@pytest.mark.parametrize("statements", BROUGHT_NOTHING.values(), ids=BROUGHT_NOTHING)
def test_a_partition_that_brought_no_rows_costs_no_reseed(database, oracle, folder, statements):
    database.needs(15, "forgetting that a table was not published before its ATTACH")
    make_root(database)
    with capturing(database.dsn, folder, tables=TABLES):
        truth = oracle()
        wait_remembered(folder, '"parts"')
    for statement in statements:  # nobody looks in between
        database.execute(statement)
    with capturing(database.dsn, folder, tables=TABLES) as capture:
        assert sentinel(database, folder, 1) == []
        database.execute("INSERT INTO parts VALUES (29, 'later')")
        capture.caught_up()
    assert captured(folder) == truth.transactions()
    assert_root_folds_to_source(folder, database.dsn, "parts")


@pytest.mark.parametrize(
    "publication",
    ["FOR ALL TABLES WITH (publish_via_partition_root)",
     "FOR TABLES IN SCHEMA public WITH (publish_via_partition_root)",
     "FOR TABLE parts, sentinel WITH (publish_via_partition_root)"],
)  # fmt: skip
def test_partitions_that_come_under_writers_cost_no_reseed_and_lose_no_row(database, folder, publication):
    database.needs(15, "publications of schemas, and forgetting that a table was not published before its ATTACH")
    make_root(database, publication)
    done = threading.Event()

    def write() -> None:
        with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
            while not done.is_set():
                session.execute("INSERT INTO parts SELECT coalesce(max(id), 0) + 1 FROM parts")

    with capturing(database.dsn, folder, tables=TABLES) as capture:
        wait_remembered(folder, '"parts"')
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(5):
                database.execute(
                    f"BEGIN; LOCK TABLE parts; CREATE TABLE q{number} (LIKE parts INCLUDING ALL);"
                    f"DO $$ DECLARE low int := (SELECT coalesce(max(id), 0) + 1 FROM parts); BEGIN"
                    f" EXECUTE format('ALTER TABLE parts ATTACH PARTITION q{number} FOR VALUES FROM (%s) TO (%s)',"
                    f" low, low + 20); END $$; COMMIT"
                )
                assert sentinel(database, folder, number) == []
                filled = f"SELECT count(*) = 20 FROM q{number}"  # the next one begins behind it
                wait_for(lambda filled=filled: database.value(filled), what="the writer fills the partition")
        finally:
            done.set()
            writer.join()
        capture.caught_up()
    assert_root_folds_to_source(folder, database.dsn, "parts")
    assert database.value("SELECT count(*) FROM parts WHERE tableoid::regclass <> 'rest'::regclass") > 0


FREEZE = "COPY q FROM PROGRAM 'echo 22,y' (FORMAT csv, FREEZE)"
AS = ("CREATE TABLE q AS SELECT 22 AS id, 'x'::text AS a",
      "ALTER TABLE q ADD PRIMARY KEY (id), ADD CONSTRAINT parts_id_check CHECK (id >= 0)")  # fmt: skip

DETACH = "ALTER TABLE parts DETACH PARTITION q"
PARTITIONED = ("CREATE TABLE q (LIKE parts INCLUDING ALL) PARTITION BY RANGE (id)",
               "CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (20) TO (30)")  # fmt: skip

PERHAPS_BROUGHT_ROWS = {
    "rows": [LIKE, DIRECT, ATTACH],
    "rows in one transaction": one(LIKE, DIRECT, ATTACH),
    "rows beside later ones": one(LIKE, DIRECT, ATTACH, ROW),
    "rows in a savepoint": one(LIKE, "SAVEPOINT s", DIRECT, "RELEASE s", ATTACH),
    "rows in a block": [BLOCK.format(f"{LIKE}; BEGIN {DIRECT}; EXCEPTION WHEN division_by_zero THEN END; {ATTACH};")],
    "rows of CREATE TABLE AS": one(*AS, ATTACH),
    "frozen rows": one(LIKE, FREEZE, ATTACH),
    "frozen rows and VACUUM": [*one(LIKE, FREEZE, ATTACH), "VACUUM FREEZE q"],
    "rows that another transaction could have written first": [LIKE, ATTACH, ROW],
    "a deletion that was rolled back hides the row's number": [
        *one(LIKE, DIRECT, ATTACH), "BEGIN; DELETE FROM parts; ROLLBACK"
    ],
    "and VACUUM hides the deletion": [
        *one(LIKE, DIRECT, ATTACH), "BEGIN; DELETE FROM parts; ROLLBACK", "VACUUM FREEZE q"
    ],
    "an updated row whose value out of line was not sent": [
        "ALTER TABLE parts ALTER a SET STORAGE EXTERNAL",
        *one(LIKE, "INSERT INTO q VALUES (22, repeat('long', 3000))", ATTACH),
        "UPDATE parts SET id = 23",
    ],
    "rows that were cut off later": [*one(LIKE, ATTACH), ROW, "TRUNCATE q"],
    "another file from before": [LIKE, DIRECT, "TRUNCATE q", ATTACH],
    "a table that sends nothing": ["CREATE UNLOGGED TABLE q (LIKE parts INCLUDING ALL)", ATTACH, ROW],
    "rows below a partitioned table": [
        "CREATE TABLE q (LIKE parts INCLUDING ALL) PARTITION BY RANGE (id)",
        *one("CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (20) TO (30)", "INSERT INTO q VALUES (22)"),
        ATTACH,
    ],
    "rows that went while it was detached": [LIKE, ATTACH, ROW, DETACH, "DELETE FROM q", ATTACH],
    "rows that VACUUM cut off while it was detached": [LIKE, ATTACH, ROW, DETACH, "DELETE FROM q", "VACUUM q", ATTACH],
    "rows that went from below while it was detached": [
        *PARTITIONED, ATTACH, ROW, DETACH, "DELETE FROM q", ATTACH],
    "a partition that went from below while it was detached": [
        *PARTITIONED, ATTACH, ROW, DETACH, "DROP TABLE q1", ATTACH],
    "it was detached and attached again": [*one(LIKE, ATTACH), "ALTER TABLE parts DETACH PARTITION q", DIRECT, ATTACH],
}  # fmt: skip


@pytest.mark.parametrize("statements", PERHAPS_BROUGHT_ROWS.values(), ids=PERHAPS_BROUGHT_ROWS)
def test_a_partition_that_may_have_brought_rows_is_told(database, folder, statements):
    make_root(database)
    assert told_of(database, folder, statements) == [("public.parts", "partitions")]


def test_an_updated_row_is_told_where_updates_are_not_published(database, folder):
    make_root(database, "FOR TABLE parts, sentinel WITH (publish_via_partition_root, publish = 'insert')")
    statements = [*one(LIKE, DIRECT, ATTACH), "UPDATE parts SET a = 'y'"]
    assert told_of(database, folder, statements) == [("public.parts", "partitions")]


def test_a_row_whose_number_vacuum_is_just_hiding_is_told(database, folder):
    make_root(database)
    with capturing(database.dsn, folder, tables=TABLES):
        wait_remembered(folder, '"parts"')
    attach = ATTACH.replace("(30)", "(30000)")
    many = "INSERT INTO parts SELECT g FROM generate_series(23, 20000) g"
    for statement in [*one(LIKE, DIRECT, attach), many, "BEGIN; DELETE FROM parts WHERE id = 22; ROLLBACK"]:
        database.execute(statement)
    with closing(psycopg.connect(database.dsn, autocommit=True)) as session:
        session.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")  # milliseconds at each page

        def vacuum() -> None:
            with suppress(psycopg.errors.QueryCanceled):
                session.execute("VACUUM (FREEZE) q")

        vacuuming = threading.Thread(target=vacuum)
        vacuuming.start()
        try:
            hidden = "SELECT xmax::text = '0' FROM q WHERE id = 22"
            wait_for(lambda: database.value(hidden), 60, what="the deletion is hidden")
            with capturing(database.dsn, folder, tables=TABLES):
                assert sentinel(database, folder, 1) == [("public.parts", "partitions")]
        finally:
            session.cancel()
            vacuuming.join()


def told_of(database, folder, statements, **options) -> list[tuple[str, str]]:
    """What a capture tells that was away during the statements."""
    with capturing(database.dsn, folder, tables=TABLES):
        wait_remembered(folder, '"parts"')
    for statement in statements:
        database.execute(statement)
    with capturing(options.get("dsn", database.dsn), folder, tables=TABLES):
        return sentinel(database, folder, 1)


def test_postgresql_14_is_not_trusted_with_any(database, folder):
    if database.major > 14:
        pytest.skip("newer ones are")
    make_root(database)
    assert told_of(database, folder, one(LIKE, ATTACH)) == [("public.parts", "partitions")]


def test_a_table_that_is_too_large_to_be_looked_through_is_told(database, folder, monkeypatch):
    monkeypatch.setattr("walbus.capture.attached.LOOKED_THROUGH", 8192)
    make_root(database)
    many = "INSERT INTO parts SELECT 20 + g % 10, repeat('x', 1000) FROM generate_series(0, 9) g"
    assert told_of(database, folder, [*one(LIKE, ATTACH), many]) == [("public.parts", "partitions")]


@pytest.mark.parametrize(("rows", "told"), [([], []), ([ROW], [("public.parts", "partitions")])])
def test_rows_that_the_role_may_not_read_are_told_and_none_are_not(database, folder, rows, told):
    database.needs(15, "forgetting that a table was not published before its ATTACH")
    make_root(database)
    role = f"reader_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'")
    try:
        dsn = f"postgresql://{role}:x@127.0.0.1:{database.server.port}/{database.name}"
        assert told_of(database, folder, [*one(LIKE, ATTACH), *rows], dsn=dsn) == told
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
