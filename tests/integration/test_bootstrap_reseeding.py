"""Tables that the log says must be seeded again: at quiescence the store is the source all the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.waiting import wait_for


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
            wait_for(lambda before=before: generation(rig, "public.t") > before, 20, what="it is seeded again")
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
        wait_for(lambda: catalog.read_bytes() != before_capture, 20, what="the event is told")
        rig.start_bootstrap()
        wait_for(lambda: generation(rig, "public.t") == 2, 20, what="it is seeded again")
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
        wait_for(lambda: "hidden.late" in rig.tables(), 20, what="it is noticed")
        writer.execute("INSERT INTO hidden.late VALUES (2)")
        database.execute("INSERT INTO hidden.late VALUES (3)")
        with suppress(AssertionError):
            rig.wait_consistent("hidden.late", deadline=6)
        assert rig.tables()["hidden.late"]["state"] == "seeding"  # it waits for the writer
        writer.commit()
        rig.assert_equals_source("hidden.late")
