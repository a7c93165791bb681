"""Statements that change rows without events, on real servers: each is noticed, named, and told at the right place."""

from __future__ import annotations

import errno
from contextlib import closing

import pytest

from support.capturing import CaptureThread, captured, capturing, file_log, source_of
from support.reseed_events import look_quickly, remembered, reseeds, sentinel, told, wait_remembered
from support.waiting import wait_for
from walbus.capture import CATALOG_FILE
from walbus.capture.catalog import _read_publication as read_publication
from walbus.capture.catalog import read_state
from walbus.capture.slot import create_slot
from walbus.errors import SourceGap


@pytest.fixture
def folder(open_folder):
    return open_folder / "relay"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    look_quickly(monkeypatch)


def make_tables(database):
    database.execute("CREATE TABLE sentinel (id int PRIMARY KEY)")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a text, n int, at timestamp)")
    database.execute("CREATE TABLE thin (id int PRIMARY KEY, n int)")
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b mood)")
    database.execute("CREATE DOMAIN pairs AS pair[]")
    database.execute("CREATE TABLE typed (id int PRIMARY KEY, m mood[], p pairs, i int, v varchar(10), c cidr)")
    database.execute("INSERT INTO t SELECT g, 'a', g, now() FROM generate_series(1, 5) g")
    database.execute("INSERT INTO thin SELECT g, g FROM generate_series(1, 5) g")
    database.execute("INSERT INTO typed VALUES (1, '{sad}', '{\"(1,sad)\"}', -1, 'v', '10.1.2.3/32')")


ALTERING = [
    ("ALTER TABLE t ADD b int DEFAULT 7", "public.t", "column_added"),
    ("ALTER TABLE t ADD c timestamptz DEFAULT now(); ALTER TABLE t ALTER c DROP DEFAULT", "public.t", "column_added"),
    ("ALTER TABLE t ADD d float8 DEFAULT random()", "public.t", "rewritten"),
    ("ALTER TABLE t ADD e int GENERATED ALWAYS AS IDENTITY", "public.t", "rewritten"),
    ("ALTER TABLE t ALTER n TYPE int USING n + 1", "public.t", "rewritten"),
    ("ALTER TABLE thin ALTER n TYPE int USING n + 1", "public.thin", "rewritten"),
    ("ALTER TABLE t ALTER n TYPE bigint", "public.t", "rewritten"),
    ("SET TimeZone = 'UTC'; ALTER TABLE t ALTER at TYPE timestamptz", "public.t", "retyped"),
    ("ALTER TABLE typed ALTER c TYPE inet", "public.typed", "retyped"),
    ("ALTER TABLE typed ALTER i TYPE oid", "public.typed", "retyped"),
    ("ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'", "public.typed", "type_changed"),
    ("ALTER TYPE pair ADD ATTRIBUTE c int", "public.typed", "type_changed"),
    ("ALTER TYPE pair DROP ATTRIBUTE c", "public.typed", "type_changed"),
    ("ALTER TABLE thin DROP CONSTRAINT thin_pkey, ADD PRIMARY KEY (n)", "public.thin", "key_changed"),
    ("ALTER TABLE t DROP a; ALTER TABLE t ADD a text", "public.t", "name_taken"),
    ("ALTER TABLE t RENAME b TO x; ALTER TABLE t RENAME n TO b; ALTER TABLE t RENAME x TO n", "public.t", "name_taken"),
    ("ALTER TABLE t REPLICA IDENTITY NOTHING", "public.t", "key_changed"),
    ("ALTER PUBLICATION walbus DROP TABLE thin; ALTER PUBLICATION walbus ADD TABLE thin", "public.thin", "republished"),
    ("DROP TABLE thin", "public.thin", "dropped"),
]  # fmt: skip


def test_every_statement_that_changes_rows_of_a_table_without_events_is_told(database, oracle, folder):
    make_tables(database)
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        wait_remembered(folder, "typed")
        for number, (statement, table, reason) in enumerate(ALTERING, 1):
            database.execute(statement)
            assert told(folder, 1) if number == 1 else True
            wait_for(lambda number=number: len(reseeds(folder)) >= number, 60, what=statement)
            assert reseeds(folder)[number - 1 :] == [(table, reason)], statement
        capture.caught_up()
    assert truth.transactions() == []  # PostgreSQL said nothing of any
    assert captured(folder) == []


def test_what_is_rewritten_between_the_slot_and_the_first_look_is_told(database, folder, monkeypatch):
    make_tables(database)

    def make_slot(*arguments):
        confirmed = create_slot(*arguments)
        database.execute("UPDATE t SET n = 5; ALTER TABLE t ALTER n TYPE int USING n + 1")
        return confirmed

    monkeypatch.setattr("walbus.capture.service.create_slot", make_slot)
    with capturing(database.dsn, folder):
        assert told(folder, 1) == [("public.t", "rewritten")]


#: They give a table another file: one look for these and a column that came behind them must take that for a default.
MOVED = [
    "ANALYZE",
    "VACUUM",
    "VACUUM FREEZE",
    "VACUUM FULL t",
    "VACUUM FULL thin",
    "CLUSTER t USING t_pkey",
]
ORDINARY = [
    "INSERT INTO t (id) VALUES (99)",
    "TRUNCATE thin",
    "CREATE INDEX ON t (n)",
    "DROP INDEX t_n_idx",
    "GRANT SELECT ON t TO PUBLIC",
    "ALTER TABLE t ALTER a SET STATISTICS 200",
    "ALTER TABLE t ALTER a SET STORAGE EXTERNAL",
    "ALTER TABLE t ADD b int",
    "ALTER TABLE t DROP b",
    "ALTER TABLE t RENAME n TO m",
    "ALTER TABLE thin RENAME TO thinner",
    "CREATE SCHEMA other; ALTER TABLE thinner SET SCHEMA other",
    "ALTER TABLE typed ALTER v TYPE varchar(20)",
    "ALTER TABLE typed ALTER v TYPE text",
    "ALTER TYPE mood ADD VALUE 'glad'",
    "ALTER TYPE pair RENAME ATTRIBUTE a TO x",
    "ALTER TABLE t REPLICA IDENTITY FULL",
    "ALTER TABLE t REPLICA IDENTITY DEFAULT",
    "ALTER TABLE t SET (fillfactor = 50)",
    "CREATE TEMP TABLE scratch (id int)",
    "CREATE VIEW v AS SELECT 1",
    "COMMENT ON TABLE t IS 'x'",
]


def test_ordinary_work_tells_nothing(database, folder):
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
        for number, statements in enumerate((MOVED, ORDINARY, ("VACUUM FULL t", "VACUUM FULL typed"))):
            for statement in statements:
                database.execute(statement)
            assert sentinel(database, folder, number) == []


def test_what_is_altered_while_capture_is_down_is_told_at_its_start(database, folder):
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
    database.execute("INSERT INTO t (id) VALUES (50)")
    database.execute("ALTER TABLE t ALTER n TYPE int USING n + 1")
    database.execute("VACUUM FULL thin; ")
    database.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'")
    database.execute("INSERT INTO t (id) VALUES (51)")
    with capturing(database.dsn, folder) as capture:
        assert told(folder, 2) == [("public.t", "rewritten"), ("public.typed", "type_changed")]
        capture.caught_up()
        wait_remembered(folder, "bad")
    events = reseeds(folder)
    with capturing(database.dsn, folder) as capture:
        assert sentinel(database, folder, 1, len(events)) == []
    assert len(captured(folder)) == 2


def test_a_column_that_takes_the_name_of_an_earlier_one_is_told_however_long_that_is_gone(database, folder):
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
        database.execute("ALTER TABLE t DROP a; ALTER TABLE thin RENAME n TO m")
        assert sentinel(database, folder, 1) == []
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 2, 1) == []
        database.execute("ALTER TABLE thin RENAME m TO n; ALTER TABLE t ADD a text")
        assert sentinel(database, folder, 3, 2) == [("public.t", "name_taken")]


def make_parts(database):
    database.execute("CREATE TABLE sentinel (id int PRIMARY KEY)")
    database.execute("CREATE TABLE parts (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    database.execute("CREATE TABLE p2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
    database.execute("INSERT INTO parts VALUES (1, 'one'), (11, 'eleven')")


ATTACH = "ALTER TABLE parts ATTACH PARTITION lone FOR VALUES FROM (20) TO (30)"

#: With publish_via_partition_root: what must be told of `parts`; None for nothing.
ROOT = [
    ("CREATE TABLE p4 PARTITION OF parts FOR VALUES FROM (40) TO (50)", None),
    ("INSERT INTO parts VALUES (41, 'x')", None),
    (f"CREATE TABLE lone (id int PRIMARY KEY, a text); INSERT INTO lone VALUES (21, 'x'); {ATTACH}", "partitions"),
    ("ALTER TABLE parts DETACH PARTITION lone", "partitions"),
    ("BEGIN; CREATE TABLE q (LIKE parts INCLUDING ALL); INSERT INTO q VALUES (61); "
     "ALTER TABLE parts ATTACH PARTITION q FOR VALUES FROM (60) TO (70); COMMIT", "partitions"),
    ("ALTER TABLE parts DETACH PARTITION q; UPDATE q SET a = 'y'; "
     "ALTER TABLE parts ATTACH PARTITION q FOR VALUES FROM (60) TO (70)", "partitions"),
    ("ALTER TABLE q SET UNLOGGED; INSERT INTO q VALUES (62); ALTER TABLE q SET LOGGED", "rewritten"),
    ("TRUNCATE p1", "file_replaced"),
    ("ALTER TABLE parts ADD d int DEFAULT 5", "column_added"),
    ("ALTER TABLE parts ALTER d TYPE int USING d + 1", "rewritten"),
    ("DROP TABLE p2", "partitions"),
]  # fmt: skip


def test_what_happens_to_partitions_is_told_of_the_root_that_they_are_published_as(database, oracle, folder):
    make_parts(database)
    database.execute("CREATE PUBLICATION walbus FOR TABLE parts, sentinel WITH (publish_via_partition_root)")
    with capturing(database.dsn, folder, tables=("public.parts", "public.sentinel")) as capture:
        truth = oracle()
        wait_remembered(folder, '"parts"')
        for number, (statement, reason) in enumerate(ROOT):
            before = len(reseeds(folder))
            database.execute(statement)
            found = sentinel(database, folder, number, before)
            assert found == ([("public.parts", reason)] if reason else []), statement
        capture.caught_up()
    assert captured(folder) == truth.transactions()


def test_partitions_that_are_published_as_themselves_come_and_go_by_name(database, oracle, folder):
    make_parts(database)
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        wait_remembered(folder, '"p2"')
        for number, (statement, expected) in enumerate([
            ("CREATE TABLE p3 PARTITION OF parts FOR VALUES FROM (30) TO (40); INSERT INTO parts VALUES (31)", []),
            ("CREATE TABLE lone (id int PRIMARY KEY, a text)", [("public.lone", "published")]),
            ("INSERT INTO lone VALUES (21, 'x')", []),
            (ATTACH, []),
            ("UPDATE parts SET a = 'y' WHERE id = 21", []),
            ("ALTER TABLE parts DETACH PARTITION lone", []),
            ("ALTER TABLE parts DETACH PARTITION p3", [("public.p3", "republished")]),
            ("DROP TABLE p2", [("public.p2", "dropped")]),
            ("VACUUM FULL p1", []),
            ("TRUNCATE p1", []),
        ]):  # fmt: skip
            before = len(reseeds(folder))
            database.execute(statement)
            assert sentinel(database, folder, number, before) == expected, statement
        capture.caught_up()
    assert captured(folder) == truth.transactions()


def test_a_partition_that_is_detached_in_the_middle_of_a_look_is_told_once(database, folder, monkeypatch):
    detaching = []

    def read_late(session, publication):  # behind the completion of the publication
        if detaching:
            database.execute(detaching.pop())
        return read_state(session, publication)

    monkeypatch.setattr("walbus.capture.watch.read_state", read_late)
    make_parts(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, '"p2"')
        assert sentinel(database, folder, 0) == []
        detaching.append("ALTER TABLE parts DETACH PARTITION p2")
        database.execute("ALTER TABLE sentinel ADD looked int")  # a look that had begun may see this, and not detach
        wait_for(lambda: not detaching, what="a look detaches")
        assert sentinel(database, folder, 1) == [("public.p2", "republished")]
        before = len(reseeds(folder))
        assert sentinel(database, folder, 2, before) == []


def test_a_partition_that_came_and_was_detached_before_anything_was_told_is_told(database, folder, monkeypatch):
    make_parts(database)
    with capturing(database.dsn, folder) as capture:
        wait_remembered(folder, '"p2"')
        with monkeypatch.context() as lagging:
            lagging.setattr("walbus.capture.noticed.Noticed.announce", lambda *_: None)
            database.execute("ALTER TABLE sentinel ADD waits int DEFAULT 1")
            wait_for(lambda: "waits" in str(capture.log.schemas.all()), 60, what="there is something to tell")
            database.execute("CREATE TABLE p3 PARTITION OF parts FOR VALUES FROM (30) TO (40)")
            wait_for(lambda: "p3" in [s.name for s in capture.log.schemas.all()], 60, what="the partition is known")
            database.execute("ALTER TABLE parts DETACH PARTITION p3")
            entry = "SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'p3'::regclass"
            wait_for(lambda: capture.error or database.value(entry), 60, what="it has an entry of its own")
        assert sentinel(database, folder, 1) == [("public.p3", "published")]


def test_partitions_whose_root_left_the_publication_for_a_while_are_told(database, folder):
    make_parts(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, '"p2"')
    database.execute("ALTER PUBLICATION walbus DROP TABLE parts; INSERT INTO parts VALUES (2, 'unseen')")
    database.execute("ALTER PUBLICATION walbus ADD TABLE parts")
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 1) == [("public.p1", "republished"), ("public.p2", "republished")]


def test_partitions_that_were_filled_before_their_root_was_published_are_told(database, folder):
    database.execute("CREATE TABLE sentinel (id int PRIMARY KEY)")
    with capturing(database.dsn, folder):
        wait_remembered(folder, "sentinel")
        make = "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)"
        part = "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)"
        database.execute(f"BEGIN; {make}; {part}; INSERT INTO parts VALUES (1); COMMIT")
        assert told(folder, 1) == [("public.p1", "published")]


def test_partitions_below_one_that_was_detached_and_attached_again_are_told(database, folder):
    make_parts(database)
    limits = "FOR VALUES FROM (20) TO (30)"
    database.execute(f"CREATE TABLE sub PARTITION OF parts {limits} PARTITION BY RANGE (id)")
    database.execute(f"CREATE TABLE leaf PARTITION OF sub {limits}")
    with capturing(database.dsn, folder):
        wait_remembered(folder, '"leaf"')
        detach, attach = "ALTER TABLE parts DETACH PARTITION sub", f"ALTER TABLE parts ATTACH PARTITION sub {limits}"
        database.execute(f"BEGIN; {detach}; INSERT INTO sub VALUES (21, 'unseen'); {attach}; COMMIT")
        assert sentinel(database, folder, 1) == [("public.leaf", "republished")]
        database.execute("CREATE TABLE twig PARTITION OF sub DEFAULT; INSERT INTO parts VALUES (22, 'seen')")
        assert sentinel(database, folder, 2, 2) == []


def test_a_default_that_vacuum_full_wrote_into_the_rows_is_told(database, folder):
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
    for table in ("t", "thin"):
        database.execute(f"ALTER TABLE {table} ADD late int DEFAULT 7")
        database.execute(f"VACUUM FULL {table}")
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 1) == [("public.t", "column_added"), ("public.thin", "rewritten")]


def test_a_table_that_is_older_than_its_schemas_entry_is_told(database, folder):
    database.needs(15, "publications of schemas")
    database.execute("CREATE SCHEMA other; CREATE TABLE sentinel (id int PRIMARY KEY)")
    with capturing(database.dsn, folder):
        wait_remembered(folder, "sentinel")
    database.execute("CREATE TABLE other.late (id int PRIMARY KEY); INSERT INTO other.late VALUES (1)")
    database.execute("ALTER PUBLICATION walbus ADD TABLES IN SCHEMA other")
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 1) == [("other.late", "published")]
        database.execute("CREATE TABLE other.born (id int PRIMARY KEY); INSERT INTO other.born VALUES (1)")
        assert sentinel(database, folder, 2, 2) == []


def test_changes_of_the_publication_are_told_of_the_tables_that_they_concern(database, folder):
    make_tables(database)
    lists = int(database.value("SHOW server_version_num")) >= 150_000
    generated = int(database.value("SHOW server_version_num")) >= 180_000
    database.execute("ALTER TABLE thin ADD double int GENERATED ALWAYS AS (n * 2) STORED")
    every = [("public.t", "publication"), ("public.thin", "publication"), ("public.typed", "publication")]
    statements = [
        ("ALTER PUBLICATION walbus SET (publish = 'insert')", every),
        ("ALTER PUBLICATION walbus SET (publish = 'insert, update, delete, truncate')", every),
        ("ALTER PUBLICATION walbus SET (publish_via_partition_root = true)", every),
        (f"ALTER PUBLICATION walbus OWNER TO {owner(database)}", []),
    ]
    if lists:
        statements += [
            (
                "ALTER PUBLICATION walbus SET TABLE sentinel, typed, thin, t WHERE (id < 3)",
                [("public.t", "row_filter")],
            ),
            ("ALTER PUBLICATION walbus SET TABLE sentinel, typed, thin, t", [("public.t", "row_filter")]),
            ("ALTER PUBLICATION walbus SET TABLE sentinel, typed, thin, t (id, n)", [("public.t", "republished")]),
            ("ALTER PUBLICATION walbus SET TABLE sentinel, typed, thin, t", [("public.t", "columns_published")]),
        ]
    if generated:
        statements += [
            (
                "ALTER PUBLICATION walbus SET (publish_generated_columns = stored)",
                [("public.thin", "columns_published")],
            ),
        ]
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
        for number, (statement, expected) in enumerate(statements):
            before = len(reseeds(folder))
            database.execute(statement)
            assert sentinel(database, folder, number, before) == expected, statement


def owner(database) -> str:
    name = f"owner_{database.name}"
    database.execute(f"CREATE ROLE {name} SUPERUSER")
    return name


def test_under_for_all_tables_a_table_is_captured_from_birth_and_unlogged_ones_are_told(database, oracle, folder):
    make_tables(database)
    database.execute("CREATE PUBLICATION walbus FOR ALL TABLES")
    with capturing(database.dsn, folder) as capture:
        truth = oracle()
        wait_remembered(folder, "typed")
        for number, (statement, expected) in enumerate([
            ("CREATE TABLE born (id int PRIMARY KEY, a text); INSERT INTO born VALUES (1)", []),
            ("ALTER TABLE born SET UNLOGGED", [("public.born", "unpublished")]),
            ("INSERT INTO born VALUES (2)", []),
            ("ALTER TABLE born SET LOGGED", [("public.born", "published")]),
            ("ALTER TABLE born SET UNLOGGED; INSERT INTO born VALUES (3); ALTER TABLE born SET LOGGED",
             [("public.born", "rewritten")]),
            ("VACUUM FULL born", []),
            ("CREATE UNLOGGED TABLE late (id int PRIMARY KEY)", []),
            ("ALTER TABLE late SET LOGGED", [("public.late", "published")]),
        ]):  # fmt: skip
            before = len(reseeds(folder))
            database.execute(statement)
            assert sentinel(database, folder, number, before) == expected, statement
        capture.caught_up()
    assert captured(folder) == truth.transactions()


def test_tables_of_a_published_schema_come_and_go_with_it(database, folder):
    if int(database.value("SHOW server_version_num")) < 150_000:
        pytest.skip("publications of schemas came with 15")
    make_tables(database)
    database.execute("CREATE SCHEMA other; CREATE PUBLICATION walbus FOR TABLES IN SCHEMA public")
    with capturing(database.dsn, folder, tables=("public.*", "other.*")):
        wait_remembered(folder, "typed")
        for number, (statement, expected) in enumerate([
            ("CREATE TABLE born (id int PRIMARY KEY); INSERT INTO born VALUES (1)", []),
            ("ALTER TABLE born SET SCHEMA other", [("other.born", "republished")]),
            ("ALTER TABLE thin SET SCHEMA other; UPDATE other.thin SET n = 9; ALTER TABLE other.thin SET SCHEMA public",
             [("public.thin", "republished")]),
            ("ALTER TABLE thin RENAME TO thinner; ALTER TABLE t ALTER a SET STATISTICS 200", []),
        ]):  # fmt: skip
            before = len(reseeds(folder))
            database.execute(statement)
            assert sentinel(database, folder, number, before) == expected, statement


def test_a_look_neither_ends_nor_holds_up_a_transaction_that_alters_tables(database, folder):
    make_parts(database)
    database.execute("CREATE PUBLICATION walbus FOR TABLE parts, sentinel WITH (publish_via_partition_root)")
    with capturing(database.dsn, folder, tables=("public.parts", "public.sentinel")) as capture:
        wait_remembered(folder, '"parts"')
        altering = database.connect(autocommit=False)
        altering.execute("SET deadlock_timeout = '100ms'; SET lock_timeout = '5s'")
        for table in ("p2", "sentinel", "p1", "parts"):
            database.execute("CREATE TABLE IF NOT EXISTS noise (id int); DROP TABLE noise")  # something to look at
            altering.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)" if table != "parts" else "SELECT")
            altering.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        altering.execute("ALTER TABLE parts ADD d int DEFAULT 5")
        altering.commit()
        assert told(folder, 1) == [("public.parts", "column_added")]
        assert capture.error is None


def test_what_is_altered_while_the_catalog_is_read_is_told_by_the_next_look(database, folder, monkeypatch):
    make_tables(database)
    altered = []

    def read_and_alter(session, publication):
        state = read_state(session, publication)
        if any(table.name == "anything" for table in state.tables.values()) and not altered:
            altered.append(database.execute("ALTER TABLE t ADD late int DEFAULT 1"))
        return state

    monkeypatch.setattr("walbus.capture.watch.read_state", read_and_alter)
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 0) == []
        database.execute("CREATE TABLE anything (id int PRIMARY KEY)")
        assert told(folder, 3)[1:] == [("public.anything", "published"), ("public.t", "column_added")]


def test_a_table_that_is_dropped_while_the_catalog_is_read_is_told_as_dropped(database, folder, monkeypatch):
    """The publication's functions see more than the snapshot that holds pg_class."""
    make_tables(database)
    dropped = []

    def read_and_drop(session, publication):
        found = read_publication(session, publication)
        if '"s0"' in remembered(folder) and not dropped:
            dropped.append(database.execute("DROP TABLE thin"))
        return found

    monkeypatch.setattr("walbus.capture.catalog._read_publication", read_and_drop)
    with capturing(database.dsn, folder):
        assert sentinel(database, folder, 0) == []
        database.execute("CREATE TABLE anything (id int PRIMARY KEY)")
        assert ("public.thin", "dropped") in told(folder, 3)[1:]


def test_a_table_that_comes_into_the_publication_while_the_catalog_is_read_is_told_once(database, folder, monkeypatch):
    make_tables(database)
    database.execute("CREATE PUBLICATION walbus FOR ALL TABLES; CREATE UNLOGGED TABLE late (id int PRIMARY KEY)")
    logged = []

    def read_and_log(session, publication):
        found = read_publication(session, publication)
        if "typed" in remembered(folder) and not logged:
            logged.append(database.execute("ALTER TABLE late SET LOGGED"))
        return found

    monkeypatch.setattr("walbus.capture.catalog._read_publication", read_and_log)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
        assert sentinel(database, folder, 0, 0) == [("public.late", "published")]
        assert sentinel(database, folder, 1, len(reseeds(folder))) == []


def test_an_event_that_was_told_and_not_remembered_is_told_again(database, folder):
    """The process died in between."""
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
        before = (folder / CATALOG_FILE).read_bytes()
        database.execute("ALTER TABLE t ADD late int DEFAULT 1")
        wait_remembered(folder, "late")
    (folder / CATALOG_FILE).write_bytes(before)
    with capturing(database.dsn, folder):
        assert told(folder, 2) == [("public.t", "column_added")] * 2
        wait_remembered(folder, "late")


def test_a_disk_without_room_for_the_memory_is_waited_for(database, folder, monkeypatch, capsys):
    make_tables(database)

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with capturing(database.dsn, folder) as capture:
        wait_remembered(folder, "typed")
        with monkeypatch.context() as disk:
            disk.setattr("walbus.capture.remembered.replace_file", full)
            database.execute("ALTER TABLE t ADD late int DEFAULT 1")
            assert told(folder, 1) == [("public.t", "column_added")]
            database.execute("INSERT INTO t (id) VALUES (7)")
            capture.caught_up()
        wait_remembered(folder, "late")
    assert reseeds(folder) == [("public.t", "column_added")]
    assert capsys.readouterr().out.count("catalog.not_remembered") <= 1


def test_a_publication_that_was_made_again_while_nobody_looked_is_a_gap(database, folder):
    make_tables(database)
    with capturing(database.dsn, folder):
        wait_remembered(folder, "typed")
    database.execute("DROP PUBLICATION walbus; CREATE PUBLICATION walbus FOR TABLE sentinel, t, thin, typed")
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        error = CaptureThread(source, log, catalog_path=folder / CATALOG_FILE).ended()
    assert isinstance(error, SourceGap)
    assert "dropped and made again" in error.what


def test_a_publication_that_was_made_again_between_two_looks_is_a_gap_at_every_start_from_then_on(database, folder):
    make_tables(database)
    source = source_of(database.dsn)
    with closing(file_log(folder, source)) as log:
        capture = CaptureThread(source, log, catalog_path=folder / CATALOG_FILE)
        capture.streaming()
        wait_remembered(folder, "typed")
        database.execute("DROP PUBLICATION walbus; CREATE PUBLICATION walbus FOR TABLE sentinel, t, thin, typed")
        assert isinstance(capture.ended(), SourceGap)
        error = CaptureThread(source, log, catalog_path=folder / CATALOG_FILE).ended()
    assert isinstance(error, SourceGap)
    assert "dropped and made again" in error.what
