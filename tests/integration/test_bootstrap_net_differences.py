"""What separates two generations of a table reaches the log before the newer one is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bootstrap_rig import ITEMS, BootstrapRig, Writers
from support.database import Database
from support.net_log import assert_log_tells, net_changes, told
from support.waiting import wait_for
from walbus.position import parse_position


def log_of(rig: BootstrapRig) -> Path:
    return rig.data_dir / "relay"


def test_rows_that_a_statement_changed_without_events_come_by_the_log(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad')")
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int, m mood)")
    database.execute("INSERT INTO public.t SELECT i, i, CASE WHEN i < 4 THEN 'sad' ELSE 'glad' END::mood FROM"
                     " generate_series(1, 200) i")  # fmt: skip
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        database.execute("UPDATE public.t SET n = 0")  # now the log has every row
        database.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'bad'")
        wait_for(lambda: len(told(log_of(rig))) == 1, 60, what="the difference is in the log")
        rig.assert_equals_source("public.t")
        assert net_changes(log_of(rig)) == [("update", "public.t", (str(n),)) for n in (1, 2, 3)]
        assert_log_tells(log_of(rig), database, "public.t")
        database.execute("ALTER TABLE public.t ADD d int DEFAULT 7")
        wait_for(lambda: len(told(log_of(rig))) == 2, 60, what="the second difference is in the log")
        rig.assert_equals_source("public.t")
        assert_log_tells(log_of(rig), database, "public.t")
        first, second = told(log_of(rig))
        assert parse_position(first["folds_from"]) < parse_position(second["folds_from"])
        assert second["folds_from"] == rig.tables()["public.t"]["folds_from"]
        assert first["since"] == second["since"] == rig.tables()["public.t"]["net_since"]


def test_a_column_that_is_added_empty_gives_no_difference(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 200) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        database.execute("ALTER TABLE public.t ADD d int")
        wait_for(lambda: len(told(log_of(rig))) == 1, 60, what="it is told that nothing is different")
        rig.assert_equals_source("public.t")
        assert net_changes(log_of(rig)) == []


@pytest.mark.long
def test_under_load_the_log_tells_the_source_behind_every_reseeding(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, repeat('x', 3000) FROM generate_series(0, 1999, 2) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("UPDATE public.items SET big = repeat('y', 3000)")
        with Writers(database, 7, truncates=1):
            for number, statement in enumerate(
                (
                    "ALTER TABLE public.items ALTER plain TYPE int USING plain + 1",
                    "ALTER TABLE public.items ADD d int DEFAULT 7",
                    "ALTER TABLE public.items ALTER big TYPE text USING reverse(big)",
                ),
                1,
            ):
                database.execute(statement)
                wait_for(
                    lambda number=number: len(told(log_of(rig))) >= number,
                    60,
                    what=f"difference {number} is in the log",
                )
        rig.assert_equals_source("public.items")
        assert_log_tells(log_of(rig), database, "public.items")


def test_a_damaged_difference_is_refused_and_the_table_seeded_again(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO public.t SELECT i, i FROM generate_series(1, 200) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        before = rig.tables()["public.t"]
        folder = log_of(rig) / "differences"
        folder.mkdir(exist_ok=True)
        (folder / f"{1:020d}-{before['oid']}.difference").write_bytes(b"WALBUSDF and nothing else")
        wait_for(lambda: rig.tables()["public.t"]["generation"] > before["generation"], 60, what="it is seeded again")
        rig.assert_equals_source("public.t")
        since = parse_position(before["net_since"])
        wait_for(lambda: parse_position(rig.tables()["public.t"]["net_since"]) > since, what="the chain begins anew")
        assert "its net difference was refused" in rig.log()
