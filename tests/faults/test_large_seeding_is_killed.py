"""Fault 35 at size: a table that is written to is seeded, its process is killed five times, and nothing differs.

Small by default; `pytest -m exhaustive` takes 20 million rows, or as many as WALBUS_SEED_ROWS says.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.seed import announced_seed
from support.waiting import wait_for

TABLE = "CREATE TABLE public.big (id bigint PRIMARY KEY, account int NOT NULL, note text NOT NULL)"
FILL = "INSERT INTO public.big SELECT i, i % 1000, md5(i::text) FROM generate_series({}, {}) i"


@contextmanager
def writer(database: Database, rows: int, seed: int) -> Iterator[list[int]]:
    """A session that changes, adds and removes rows all over the table; how many transactions it has made."""
    stop, made, errors = threading.Event(), [0], []

    def write() -> None:
        choose = random.Random(seed)
        try:
            with psycopg.connect(database.dsn, autocommit=True) as session:
                while not stop.is_set():
                    at = choose.randrange(rows)
                    with session.transaction():
                        session.execute("UPDATE public.big SET account = -%s WHERE id = %s", [at % 997, at])
                        session.execute("DELETE FROM public.big WHERE id = %s", [choose.randrange(rows)])
                        session.execute(
                            "INSERT INTO public.big VALUES (%s, 0, 'new') ON CONFLICT (id) DO UPDATE SET note = 'old'",
                            [choose.randrange(2 * rows)],
                        )
                        session.execute(
                            "UPDATE public.big SET id = -id WHERE id = %s AND id > 0"
                            " AND NOT EXISTS (SELECT FROM public.big WHERE id = -%s)",
                            [at := choose.randrange(rows), at],
                        )
                    made[0] += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


def seeded_under_kills(database: Database, folder: Path, rows: int, **options: object) -> None:
    database.execute(TABLE)
    for first in range(1, rows + 1, 1_000_000):
        database.execute(FILL.format(first, min(first + 999_999, rows)))
    database.execute("VACUUM (ANALYZE) public.big")
    deadline = 120 + rows / 5000
    with BootstrapRig(folder, database, **options) as rig:
        rig.start()

        def blocks_done() -> int:
            return sum(told.get("blocks_done", 0) for told in rig.seeding() if told["state"] == "seeding")

        with writer(database, rows, announced_seed("a large seeding")) as made:
            total = wait_for(
                lambda: next((told["blocks_total"] for told in rig.seeding() if "blocks_total" in told), 0),
                deadline,
                what="the blocks are counted",
            )
            for kill in range(1, 6):
                aim = total * kill / 7
                wait_for(lambda aim=aim: blocks_done() >= aim, deadline, what=f"{kill}/7 are read", every=0.02)
                rig.kill_bootstrap()
                rig.start_bootstrap()
                wait_for(rig.tables, 60, what="it serves")
            wait_for(lambda: made[0] > 100, deadline, what="the writer has done something")
        rig.wait_consistent("public.big", deadline=deadline)
        rig.wait_applied(deadline)
        assert rig.tables()["public.big"]["generation"] == 1
        assert rig.log().count("seeding_planned") == 1
        assert rig.ordered_differences("public.big", "id") == 0


@pytest.mark.long
def test_a_seeding_that_is_killed_five_times_under_a_writer_differs_in_nothing(
    database: Database, tmp_path: Path
) -> None:
    seeded_under_kills(database, tmp_path, 60_000, chunk_rows=1000, max_rows_per_second=3000)


@pytest.mark.long
@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_a_seeding_of_twenty_million_rows_that_is_killed_five_times_differs_in_nothing(
    database: Database, tmp_path: Path
) -> None:
    seeded_under_kills(database, tmp_path, int(os.environ.get("WALBUS_SEED_ROWS", "20000000")))
