"""Tables that the log says must be seeded again: at quiescence the store is the source all the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from support.bootstrap_rig import BootstrapRig, statement_running
from support.database import Database
from support.waiting import wait_for

#: Rows of which a block holds few, so that a seeding has many chunks.
WIDE = "CREATE TABLE public.t (id int PRIMARY KEY, n int, wide text DEFAULT repeat('x', 500))"


def generation(rig: BootstrapRig, table: str) -> int:
    return int(rig.tables()[table]["generation"])


def test_rows_that_a_statement_changed_without_events_are_seeded_again(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int, m mood)")
    database.execute("INSERT INTO public.t SELECT i, i, 'sad' FROM generate_series(1, 500) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        for statement in (
            "ALTER TABLE public.t ALTER n TYPE int USING n + 1",  # the catalog's description stays the same
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'",
            "ALTER TABLE public.t ADD d int DEFAULT 7",
        ):
            before = generation(rig, "public.t")
            database.execute(statement)
            wait_for(lambda before=before: generation(rig, "public.t") > before, 60, what="it is seeded again")
            rig.assert_equals_source("public.t")


@pytest.mark.long
def test_what_was_altered_while_nobody_looked_is_seeded_again(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 500) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        catalog = rig.data_dir / "relay" / "catalog.json"
        wait_for(catalog.exists, what="the catalog is remembered")
        rig.kill_bootstrap()
        rig.stop_capture()
        database.execute("ALTER TABLE public.t ALTER n TYPE int USING n + 1")
        database.execute("UPDATE public.t SET n = 0 WHERE id <= 10")
        before_capture = catalog.read_bytes()
        rig.start_capture()
        wait_for(lambda: catalog.read_bytes() != before_capture, 60, what="the event is told")
        rig.start_bootstrap()
        wait_for(lambda: generation(rig, "public.t") == 2, 60, what="it is seeded again")
        rig.assert_equals_source("public.t")


@pytest.mark.long
def test_a_transaction_that_began_before_its_table_was_published_is_seeded(database: Database, tmp_path: Path) -> None:
    """PostgreSQL decodes a change with the publication as it was when the change was written, and not at the commit."""
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.t")
        writer = database.connect(autocommit=False)
        database.execute("CREATE SCHEMA hidden; CREATE TABLE hidden.late (id int PRIMARY KEY)")
        writer.execute("INSERT INTO hidden.late VALUES (1)")
        database.execute("ALTER PUBLICATION walbus ADD TABLE hidden.late")
        wait_for(lambda: "hidden.late" in rig.tables(), 60, what="it is noticed")
        writer.execute("INSERT INTO hidden.late VALUES (2)")
        database.execute("INSERT INTO hidden.late VALUES (3)")
        with suppress(AssertionError):
            rig.wait_consistent("hidden.late", deadline=6)
        assert rig.tables()["hidden.late"]["state"] == "seeding"  # it waits for the writer
        writer.commit()
        rig.assert_equals_source("hidden.late")


def test_a_table_is_served_without_a_gap_while_it_is_seeded_again(database: Database, tmp_path: Path) -> None:
    database.execute(WIDE)
    database.execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 600) i")
    with BootstrapRig(tmp_path, database, chunk_rows=50, max_rows_per_second=300, max_active_sessions=0) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        with statement_running(database, "an application"):
            database.execute("ALTER TABLE public.t ADD d int DEFAULT 7")
            wait_for(lambda: any(told.get("held") for told in rig.seeding()), 60, what="it is to be seeded again")
            database.execute("UPDATE public.t SET n = -1 WHERE id <= 5")
            database.execute("DELETE FROM public.t WHERE id = 600")
            rig.wait_applied()
            stale = rig.snapshot("public.t")
            assert (stale.status_code, stale.headers["Walbus-Stale"]) == (200, "yes")
            assert rig.tables()["public.t"]["stale"]
            rows = rig.rows("public.t").values()
        assert len(rows) == 599 and [row["n"] for row in rows].count("-1") == 5
        assert {row.get("d", "not yet") for row in rows} == {"7", "not yet"}  # what was written since has the column
        answers = set()

        def switched() -> bool:
            answers.add(rig.snapshot("public.t").status_code)
            return generation(rig, "public.t") == 2

        wait_for(switched, 60, what="the new generation is served")
        assert answers == {200}
        assert "Walbus-Stale" not in rig.snapshot("public.t").headers
        rig.assert_equals_source("public.t")


def test_a_kill_in_the_middle_of_a_reseeding_leaves_the_old_generation_served(
    database: Database, tmp_path: Path
) -> None:
    database.execute(WIDE)
    database.execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 600) i")
    with BootstrapRig(tmp_path, database, chunk_rows=50, max_rows_per_second=100, max_active_sessions=0) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        database.execute("ALTER TABLE public.t ALTER n TYPE int USING n + 1")
        wait_for(lambda: any(told.get("rows_read") for told in rig.seeding()), 60, what="some rows are read again")
        rig.kill_bootstrap()
        database.execute("UPDATE public.t SET n = 0 WHERE id <= 10")
        with statement_running(database, "an application"):
            rig.start_bootstrap()
            wait_for(lambda: rig.snapshot("public.t").status_code == 200, 60, what="it serves")
            assert generation(rig, "public.t") == 1
        wait_for(lambda: generation(rig, "public.t") == 2, 60, what="the new generation is served")
        assert rig.log().count("seeding_planned") == 2
        rig.assert_equals_source("public.t")


def test_a_table_with_another_key_is_not_served_under_the_old_one(database: Database, tmp_path: Path) -> None:
    database.execute(WIDE)
    database.execute("INSERT INTO public.t SELECT i, -i FROM generate_series(1, 500) i")
    with BootstrapRig(tmp_path, database, max_active_sessions=0) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        with statement_running(database, "an application"):
            database.execute("ALTER TABLE public.t ADD UNIQUE (n), DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n)")
            wait_for(lambda: generation(rig, "public.t") > 1, 60, what="it is to be seeded again")
            assert rig.snapshot("public.t").status_code == 503
        rig.assert_equals_source("public.t")


def test_a_table_whose_key_is_dropped_is_refused_and_the_others_go_on(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    database.execute("CREATE TABLE public.other (id int PRIMARY KEY)")
    database.execute("INSERT INTO public.t SELECT i FROM generate_series(1, 100) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t", "public.other")
        database.execute("ALTER TABLE public.t DROP CONSTRAINT t_pkey")
        database.execute("INSERT INTO public.t VALUES (101)")  # before anybody has looked at the catalog
        database.execute("INSERT INTO public.other VALUES (1)")
        rig.wait_state("public.t", "refused")
        rig.assert_equals_source("public.other")
        database.execute("ALTER TABLE public.t ADD PRIMARY KEY (id)")
        rig.assert_equals_source("public.t", "public.other")


def test_a_renamed_table_is_served_under_its_new_name_alone(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    database.execute("INSERT INTO public.t SELECT i FROM generate_series(1, 100) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        database.execute("ALTER TABLE public.t RENAME TO u")
        database.execute("INSERT INTO public.u VALUES (0)")
        wait_for(lambda: "public.u" in rig.tables(), 60, what="the name is noticed")
        rig.assert_equals_source("public.u")
        assert rig.snapshot("public.t").status_code == 404


@pytest.mark.parametrize("seeding", [False, True], ids=["consistent", "seeding"])
@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM FULL public.t",
        "ALTER TABLE public.t ADD d int DEFAULT 7",
        "ALTER TABLE public.t ADD d timestamptz DEFAULT clock_timestamp()",
        "ALTER TABLE public.t ALTER n TYPE int USING n + 1",
        "ALTER TABLE public.t DROP COLUMN n",
        "ALTER TABLE public.t REPLICA IDENTITY FULL",
        "TRUNCATE public.t",
    ],
    ids=["vacuum-full", "constant-default", "volatile-default", "alter-type", "drop-column", "identity", "truncate"],
)
@pytest.mark.long
def test_a_statement_that_changes_rows_without_events_leaves_no_difference(
    database: Database, tmp_path: Path, statement: str, seeding: bool
) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int, m int, wide text DEFAULT repeat('x', 300))")
    database.execute("INSERT INTO public.t SELECT i, i, i FROM generate_series(1, 1200) i")
    database.execute("DELETE FROM public.t WHERE id <= 300")  # VACUUM FULL moves the others to the front
    options: dict[str, object] = {"chunk_rows": 50, "max_rows_per_second": 150} if seeding else {}
    with BootstrapRig(tmp_path, database, **options) as rig:
        rig.start()
        if seeding:
            wait_for(lambda: any(told.get("rows_read") for told in rig.seeding()), 60, what="some rows are there")
        else:
            rig.wait_consistent("public.t")
        database.execute("UPDATE public.t SET m = -1 WHERE id % 9 = 0")
        database.execute(statement)
        database.execute("UPDATE public.t SET m = m + 1 WHERE id % 10 = 0")
        database.execute("INSERT INTO public.t (id, m) VALUES (0, 0)")
        rig.assert_settles("public.t")
