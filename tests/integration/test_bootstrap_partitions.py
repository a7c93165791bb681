"""Partitioned tables that are published as their root: one table, read partition by partition."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.waiting import wait_for

ROOT = """
CREATE TABLE public.p (
    id int, region text, n int, wide text DEFAULT repeat('x', 300), PRIMARY KEY (id, region)
) PARTITION BY LIST (region);
CREATE TABLE public.p_eu PARTITION OF public.p FOR VALUES IN ('eu');
CREATE TABLE public.p_us PARTITION OF public.p FOR VALUES IN ('us') PARTITION BY RANGE (id);
CREATE TABLE public.p_us_low PARTITION OF public.p_us FOR VALUES FROM (0) TO (500);
CREATE TABLE public.p_us_high PARTITION OF public.p_us FOR VALUES FROM (500) TO (1000000);
CREATE PUBLICATION walbus FOR TABLE public.p WITH (publish_via_partition_root = true);
INSERT INTO public.p SELECT i, CASE WHEN i % 3 = 0 THEN 'eu' ELSE 'us' END, i FROM generate_series(1, 1200) i;
"""


def test_all_its_partitions_are_one_table(database: Database, tmp_path: Path) -> None:
    database.execute(ROOT)
    with BootstrapRig(tmp_path, database, chunk_rows=100) as rig:
        rig.start()
        rig.assert_equals_source("public.p")
        assert set(rig.tables()) == {"public.p"}
        database.execute("UPDATE public.p SET n = -1 WHERE id < 20")
        database.execute("UPDATE public.p SET region = 'us' WHERE id = 3")  # to another partition
        database.execute("UPDATE public.p SET id = 2000 WHERE id = 4")
        database.execute("DELETE FROM public.p WHERE id BETWEEN 30 AND 60")
        rig.assert_equals_source("public.p")
        database.execute("TRUNCATE public.p")
        database.execute("INSERT INTO public.p VALUES (1, 'eu', 1)")
        rig.assert_equals_source("public.p")


def test_rows_that_move_between_partitions_while_they_are_read_are_neither_lost_nor_doubled(
    database: Database, tmp_path: Path
) -> None:
    database.execute(ROOT)
    with BootstrapRig(tmp_path, database, chunk_rows=50, max_rows_per_second=500) as rig:
        rig.start()
        wait_for(lambda: any(told.get("rows_read") for told in rig.seeding()), 60, what="some rows are there")
        database.execute("UPDATE public.p SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END")
        database.execute("UPDATE public.p SET id = id + 5000 WHERE id % 5 = 0")
        database.execute("DELETE FROM public.p WHERE id % 7 = 0")
        rig.assert_equals_source("public.p")
        assert rig.tables()["public.p"]["generation"] == 1


@pytest.mark.parametrize("seeding", [False, True], ids=["consistent", "seeding"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.p_more (id int NOT NULL, region text NOT NULL, n int, wide text); "
        "INSERT INTO public.p_more VALUES (1, 'asia', 1), (2, 'asia', 2); "
        "ALTER TABLE public.p ATTACH PARTITION public.p_more FOR VALUES IN ('asia')",
        "ALTER TABLE public.p DETACH PARTITION public.p_eu",
        "DROP TABLE public.p_us_high",
        "TRUNCATE public.p_us_low",
        "VACUUM FULL public.p_us_low",
        "ALTER TABLE public.p ADD d int DEFAULT 7",
        "ALTER TABLE public.p ALTER n TYPE bigint USING n + 1",
    ],
    ids=["attach", "detach", "drop", "truncate", "vacuum-full", "add-column", "alter-type"],
)
@pytest.mark.long
def test_a_statement_that_changes_rows_without_events_leaves_no_difference(
    database: Database, tmp_path: Path, statement: str, seeding: bool
) -> None:
    database.execute(ROOT)
    options: dict[str, object] = {"chunk_rows": 50, "max_rows_per_second": 600} if seeding else {}
    with BootstrapRig(tmp_path, database, **options) as rig:
        rig.start()
        if seeding:
            wait_for(lambda: any(told.get("rows_read") for told in rig.seeding()), 60, what="some rows are there")
        else:
            rig.wait_consistent("public.p")
        for part in statement.split("; "):
            database.execute(part)
        database.execute("UPDATE public.p SET n = n + 1 WHERE id % 10 = 0")
        rig.assert_settles("public.p")


def test_a_statement_that_alters_the_root_is_never_ended_by_a_deadlock_with_a_chunk(
    database: Database, tmp_path: Path
) -> None:
    database.execute(ROOT)
    waiting = (  # so long that PostgreSQL has looked for a deadlock and found none: the next to look is who alters
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted"
        " AND a.application_name = 'walbus-bootstrap' AND clock_timestamp() - l.waitstart > interval '1.3 s'"
    )
    with BootstrapRig(tmp_path, database, chunk_rows=20, max_rows_per_second=200) as rig:
        rig.start()
        wait_for(lambda: any(told.get("rows_read") for told in rig.seeding()), 60, what="some rows are there")
        with database.connect(autocommit=False) as altering:
            altering.execute("LOCK TABLE ONLY public.p IN ACCESS EXCLUSIVE MODE")
            wait_for(lambda: database.value(waiting) >= 2, 60, what="a chunk waits, not the poll alone", every=0.02)
            for leaf in ("p_eu", "p_us_low", "p_us_high"):  # as ALTER TABLE does, from the root down
                altering.execute(f"LOCK TABLE public.{leaf} IN ACCESS EXCLUSIVE MODE".encode())
        rig.assert_equals_source("public.p")


def test_a_partition_that_lies_elsewhere_is_refused_with_the_reason(database: Database, tmp_path: Path) -> None:
    database.execute(ROOT)
    database.execute("CREATE FOREIGN DATA WRAPPER far; CREATE SERVER elsewhere FOREIGN DATA WRAPPER far")
    database.execute("ALTER TABLE public.p DROP CONSTRAINT p_pkey")
    database.execute("CREATE FOREIGN TABLE public.p_far PARTITION OF public.p FOR VALUES IN ('far') SERVER elsewhere")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_state("public.p", "refused")
        wait_for(lambda: "public.p_far" in rig.tables()["public.p"]["reason"], what="the reason, whenever it is listed")
