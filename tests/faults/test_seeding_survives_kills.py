"""Fault 35: seeding races with live changes, and its process is killed."""

from __future__ import annotations

import random
import time
from pathlib import Path

from support.bootstrap_rig import ITEMS, BootstrapRig, Writers
from support.database import Database
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.status import read_status


def test_a_store_seeded_under_writers_and_kills_equals_the_source(database: Database, tmp_path: Path) -> None:
    seed = announced_seed("seeding under writers")
    choose = random.Random(seed)
    database.execute(ITEMS)
    database.execute(
        "INSERT INTO public.items SELECT i, i, repeat(lpad(i::text, 32, '0'), 90) FROM generate_series(0, 1900) i"
    )
    with BootstrapRig(tmp_path, database, chunk_rows=20, max_rows_per_second=1000) as rig:
        rig.start()
        with Writers(database, seed, truncates=1) as writers:
            for _ in range(5):
                before = writers.transactions
                wait_for(lambda mark=before: writers.transactions > mark + 50, 30, what="the writers go on")
                wait_for(rig.tables, 30, what="the bootstrap serves")
                pause_until = time.monotonic() + choose.uniform(0, 1.5)
                wait_for(lambda until=pause_until: time.monotonic() > until, 10)
                rig.kill_bootstrap()
                rig.start_bootstrap()
            wait_for(lambda: writers.transactions > 500, 60, what="the writers have done something")
        rig.assert_equals_source("public.items", deadline=90)


def test_a_killed_seeding_goes_on_with_the_chunks_that_are_left(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, i::text FROM generate_series(1, 8000) i")
    database.execute("ANALYZE public.items")
    with BootstrapRig(tmp_path, database, chunk_rows=100, max_rows_per_second=1000) as rig:
        rig.start()
        status = rig.data_dir / "status" / "bootstrap.json"

        def chunks_done() -> int:
            table = (read_status(status) or {})["tables"][0]
            return int(table["chunks_done"])

        done = wait_for(lambda: chunks_done() if chunks_done() >= 5 else 0, 60, what="some chunks are done")
        rig.kill_bootstrap()
        before = rig.log().count("seeding_planned")
        status.unlink()
        rig.start_bootstrap()
        assert wait_for(chunks_done, 30, what="it seeds again") >= done
        rig.assert_equals_source("public.items")
        assert rig.log().count("seeding_planned") == before == 1
        assert rig.tables()["public.items"]["generation"] == 1


def test_a_log_that_was_begun_anew_is_noticed_and_everything_is_seeded_again(
    database: Database, tmp_path: Path
) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, i::text FROM generate_series(1, 100) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        log_id = rig.document()["log_id"]
        rig.kill_bootstrap()
        rig.stop_capture()
        (rig.data_dir / "relay").rename(rig.data_dir / "old-relay")
        database.execute("SELECT pg_drop_replication_slot('walbus')")
        database.execute("DELETE FROM public.items WHERE id <= 50")
        rig.start()
        wait_for(lambda: rig.document()["log_id"] != log_id, 30, what="it follows the new log")
        rig.assert_equals_source("public.items")
        assert "log_replaced" in rig.log()
