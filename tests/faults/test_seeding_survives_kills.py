"""Fault 35: seeding races with live changes, and its process is killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from support.bootstrap_rig import ITEMS, BootstrapRig, Writers
from support.database import Database
from support.seed import announced_seed
from support.waiting import wait_for
from walbus.demo.postgres import EmbeddedPostgres
from walbus.relay import open_reader
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
                wait_for(lambda mark=before: writers.transactions > mark + 50, 60, what="the writers go on")
                wait_for(rig.tables, 60, what="the bootstrap serves")
                pause_until = time.monotonic() + choose.uniform(0, 1.5)
                wait_for(lambda until=pause_until: time.monotonic() > until)
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
        assert wait_for(chunks_done, 60, what="it seeds again") >= done
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
        database.drop_slot("walbus")
        database.execute("DELETE FROM public.items WHERE id <= 50")
        rig.start()
        wait_for(lambda: rig.document()["log_id"] != log_id, 60, what="it follows the new log")
        rig.assert_equals_source("public.items")
        assert "log_replaced" in rig.log()


def test_a_source_that_goes_away_while_it_is_seeded_is_waited_for(
    own_pg_server: Callable[..., EmbeddedPostgres], tmp_path: Path
) -> None:
    server = own_pg_server()
    with server.connect() as admin:
        admin.execute("CREATE DATABASE away")
    database = Database(server, "away")
    try:
        database.execute(ITEMS)
        database.execute("INSERT INTO public.items SELECT i, i, i::text FROM generate_series(1, 8000) i")
        database.execute("ANALYZE public.items")
        with BootstrapRig(tmp_path, database, chunk_rows=100, max_rows_per_second=1500) as rig:
            rig.start()
            wait_for(lambda: rig.tables()["public.items"]["rows"] > 500, 60, what="some rows are there")
            database.close()
            server.stop("immediate")
            wait_for(lambda: "source_refused" in rig.log(), 60, what="the bootstrap notices")
            assert rig.tables()["public.items"]["state"] == "seeding"
            server.start()
            database.execute("DELETE FROM public.items WHERE id % 7 = 0")
            rig.assert_equals_source("public.items", deadline=90)
            assert rig.tables()["public.items"]["generation"] == 1
    finally:
        database.close()


def test_a_store_that_the_log_has_left_behind_is_seeded_again(database: Database, tmp_path: Path) -> None:
    """Its hold was removed while it was away, so the log was trimmed past it."""
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, i::text FROM generate_series(1, 100) i")
    relay: dict[str, object] = {"segment_bytes": 65536, "retention_bytes": 65536}
    with BootstrapRig(tmp_path, database, relay) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        hold = rig.data_dir / "relay" / "holds" / "bootstrap.json"
        wait_for(hold.exists, 60, what="the hold is there")
        rig.kill_bootstrap()
        hold.unlink()
        database.execute("DELETE FROM public.items WHERE id <= 50")
        before = open_reader(rig.data_dir / "relay")
        applied = before.bounds().end

        def trimmed() -> bool:
            database.execute("UPDATE public.items SET plain = plain + 1, big = repeat('x', 1000)")
            return before.bounds().trimmed > applied

        wait_for(trimmed, 60, what="the log is trimmed", every=0.2)
        before.close()
        rig.start_bootstrap()
        wait_for(lambda: "log_left_behind" in rig.log(), 60, what="the bootstrap notices")
        rig.assert_equals_source("public.items")
