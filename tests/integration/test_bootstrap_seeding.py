"""Seeding on a real PostgreSQL: at quiescence the store is the source, whatever happened meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import plain_http
from support.bootstrap_rig import ITEMS, BootstrapRig, long_text, statement_running
from support.database import Database, fresh_database, held_commits, hold_commits, is_busy, release_commits, start_held
from support.waiting import wait_for
from walbus.bootstrap.catalog import key_operators, other_sessions


def fill_items(database: Database, rows: int, *, long: bool = False) -> None:
    database.execute(ITEMS)
    text = "repeat(lpad(i::text, 32, '0'), 90)" if long else "i::text"
    database.execute(f"INSERT INTO public.items SELECT i, i, {text} FROM generate_series(1, {rows}) i")


def test_a_table_that_has_rows_is_seeded_and_then_followed(database: Database, tmp_path: Path) -> None:
    fill_items(database, 5000)
    with BootstrapRig(tmp_path, database, chunk_rows=1000) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("UPDATE public.items SET plain = -1 WHERE id <= 10")
        database.execute("UPDATE public.items SET id = id + 100000 WHERE id BETWEEN 11 AND 20")
        database.execute("DELETE FROM public.items WHERE id BETWEEN 21 AND 30")
        database.execute("INSERT INTO public.items VALUES (0, 0, NULL)")
        rig.assert_equals_source("public.items")
        database.execute("TRUNCATE public.items")
        database.execute("INSERT INTO public.items VALUES (1, 1, 'after')")
        rig.assert_equals_source("public.items")


def test_an_empty_table_is_consistent_and_has_no_rows(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.items")
        assert rig.rows("public.items") == {}


def test_a_table_published_later_is_seeded_when_it_is_noticed(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute(  # at once, since capture adds what it sees
            "CREATE TABLE public.later (k text PRIMARY KEY, v int);"
            "INSERT INTO public.later SELECT 'k' || i, i FROM generate_series(1, 100) i;"
            "ALTER PUBLICATION walbus ADD TABLE public.later"
        )
        wait_for(lambda: "public.later" in rig.tables(), 60, what="the table is noticed")
        rig.assert_equals_source("public.later")


def test_a_table_that_leaves_the_publication_and_comes_back_is_seeded_again(database: Database, tmp_path: Path) -> None:
    fill_items(database, 100)
    database.execute("CREATE TABLE public.other (id int PRIMARY KEY)")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items", "public.other")
        database.execute(  # at once, since capture ends where it sees that a table was taken out
            "ALTER PUBLICATION walbus DROP TABLE public.items;"
            "DELETE FROM public.items WHERE id <= 50;"  # nobody hears of it
            "ALTER PUBLICATION walbus ADD TABLE public.items"
        )
        wait_for(lambda: rig.log().count("seeding_starts") >= 3, 60, what="it is seeded again")
        rig.assert_equals_source("public.items")


def test_long_texts_that_updates_do_not_carry_are_never_lost(database: Database, tmp_path: Path) -> None:
    """Every row is updated while the table is seeded slowly, and no update carries the long text."""
    fill_items(database, 400, long=True)
    with BootstrapRig(tmp_path, database, chunk_rows=20, max_rows_per_second=200) as rig:
        rig.start()
        wait_for(lambda: rig.tables()["public.items"]["rows"] > 50, 60, what="some rows are there")
        database.execute("UPDATE public.items SET plain = plain + 1")
        database.execute("UPDATE public.items SET id = id + 1000 WHERE id % 2 = 0")
        rig.assert_equals_source("public.items")
        database.execute("UPDATE public.items SET plain = plain + 1")
        rig.assert_equals_source("public.items")
        assert all(len(row["big"] or "") == len(long_text(0)) for row in rig.rows("public.items").values())


def test_no_row_hides_from_a_seeding_whose_file_is_replaced(database: Database, tmp_path: Path) -> None:
    fill_items(database, 4000)
    database.execute("DELETE FROM public.items WHERE id % 2 = 0")  # VACUUM FULL moves the others to the front
    with BootstrapRig(tmp_path, database, chunk_rows=200, max_rows_per_second=400) as rig:
        rig.start()
        wait_for(lambda: rig.tables()["public.items"]["rows"] > 200, 60, what="some rows are there")
        database.execute("VACUUM FULL public.items")
        rig.assert_equals_source("public.items")
        assert "its file was replaced" in rig.log()


def test_a_layout_that_changes_is_seeded_again(database: Database, tmp_path: Path) -> None:
    fill_items(database, 500)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("ALTER TABLE public.items ADD COLUMN more int DEFAULT 7")
        wait_for(lambda: rig.tables()["public.items"]["generation"] == 2, 60, what="another generation")
        rig.assert_equals_source("public.items")


def test_what_cannot_be_seeded_is_refused_by_name_with_the_reason(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    database.execute("CREATE TABLE public.keyless (a int); ALTER TABLE public.keyless REPLICA IDENTITY FULL")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        rig.wait_state("public.keyless", "refused")
        assert "no key" in rig.tables()["public.keyless"]["reason"]
        refused = plain_http.get(f"{rig.url}/v1/snapshot?table=public.keyless")
        assert refused.status_code == 409
        database.execute("ALTER PUBLICATION walbus SET (publish = 'insert, update')")
        rig.wait_state("public.items", "refused")
        assert "delete, truncate" in rig.tables()["public.items"]["reason"]


def test_a_row_filter_holds_for_rows_and_events(database: Database, tmp_path: Path) -> None:
    database.needs(15, "row filters of a publication")
    fill_items(database, 100)
    database.execute("CREATE PUBLICATION walbus FOR TABLE public.items WHERE (id > 50)")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        assert len(rig.rows("public.items")) == 50
        database.execute("DELETE FROM public.items WHERE id IN (1, 60)")
        rig.wait_applied()
        assert len(rig.rows("public.items")) == 49


def test_a_row_that_comes_past_a_filter_without_its_long_value_is_read_again_by_whatever_key(
    own_pg_server: Any, tmp_path: Path
) -> None:
    """Types of extensions have operators of their own, which no session without a search_path finds by itself."""
    with fresh_database(own_pg_server(contrib=True)) as database:
        database.needs(15, "row filters of a publication")
        database.execute('CREATE SCHEMA "E x"; CREATE EXTENSION ltree SCHEMA "E x"; CREATE EXTENSION citext')
        database.execute('CREATE TABLE t (id int, l "E x".ltree, c citext, big text, PRIMARY KEY (id, l, c))')
        database.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
        database.execute("INSERT INTO t SELECT -i, 'a.b', 'X' || i, repeat('x', 4000) FROM generate_series(1, 9) i")
        database.execute("CREATE PUBLICATION walbus FOR TABLE t WHERE (id > 0)")
        oid = database.value("SELECT 't'::regclass::oid::int8")
        with database.connect() as session:
            assert key_operators(session, oid) == {"l": ("E x", "="), "c": ("public", "=")}
        with BootstrapRig(tmp_path, database) as rig:
            rig.start()
            rig.wait_consistent("public.t")
            for turn in (1, 2):
                database.execute("UPDATE t SET id = -id WHERE id = %s", [-turn])
                rig.wait_applied()
                wait_for(lambda turn=turn: rig.log().count("table_consistent") == 1 + turn, what="it is read again")
            rig.wait_consistent("public.t")
            assert sorted(len(row["big"] or "") for row in rig.rows("public.t").values()) == [4000, 4000]
            assert "source_refused" not in rig.log()


def test_a_commit_that_is_logged_but_not_visible_is_neither_lost_nor_stale(
    own_pg_server, open_folder: Path, tmp_path: Path
) -> None:
    """A synchronous standby that does not exist holds every commit between WAL and visibility."""
    server = own_pg_server()
    with server.connect() as admin:
        admin.execute("CREATE DATABASE held")
    database = Database(server, "held")
    try:
        fill_items(database, 1000)
        with BootstrapRig(tmp_path, database, chunk_rows=100) as rig:
            rig.start_capture()
            wait_for(lambda: database.value("SELECT count(*) FROM pg_replication_slots WHERE active") == 1, 60)
            held = [hold_commits(database, "UPDATE public.items SET plain = plain WHERE id = 1000")]
            held += [start_held(database, f"UPDATE public.items SET plain = -{n} WHERE id = {n}") for n in range(1, 6)]
            held.append(start_held(database, "UPDATE public.items SET id = 5000 WHERE id = 500"))
            held.append(start_held(database, "DELETE FROM public.items WHERE id = 600"))
            wait_for(lambda: held_commits(database) == len(held), 60, what="the commits are held")
            rig.start_bootstrap()
            wait_for(lambda: "public.items" in rig.tables(), 60, what="the seeding begins")
            assert rig.tables()["public.items"]["state"] == "seeding"
            late = start_held(database, "UPDATE public.items SET plain = -7 WHERE id = 7")
            release_commits(database)
            for session in [*held, late]:
                wait_for(lambda session=session: not is_busy(session), what="its commit is visible")
                session.close()
            rig.assert_equals_source("public.items")
    finally:
        database.close()


def test_nothing_of_the_source_is_scanned_once_seeding_is_over(database: Database, tmp_path: Path) -> None:
    database.needs(15, "counting reads at once (pg_stat_force_next_flush)")
    fill_items(database, 2000)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        before = wait_for(lambda: scans(database) if scans(database)[0] else None, 60, what="the seeding's own scan")
        database.execute("INSERT INTO public.items VALUES (100000, 1, 'x')")
        rig.wait_applied()
        for _ in range(3):
            assert len(rig.rows("public.items")) == 2001
        assert scans(database) == before


def scans(database: Database) -> tuple[int, int]:
    with database.connect() as fresh:
        fresh.execute("SELECT pg_stat_force_next_flush()")
        row = fresh.execute("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'items'").fetchone()
    assert row is not None
    return row


def test_a_snapshot_goes_on_behind_any_key(database: Database, tmp_path: Path) -> None:
    fill_items(database, 3000)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        keys = [change.key for _, changes in rig.records("public.items") for change in changes]
        assert keys == sorted(keys) and len(keys) == 3000
        for place in (0, 1, 1499, 2998, 2999):
            key = keys[place]
            assert key is not None
            rest = [c.key for _, changes in rig.records("public.items", after_key=key.hex()) for c in changes]
            assert rest == keys[place + 1 :]


def test_requests_that_make_no_sense_are_refused_with_the_mend(database: Database, tmp_path: Path) -> None:
    database.execute(ITEMS)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        for query, status in {
            "": 400,
            "table=public.nothing": 404,
            "table=public.items&after_key=xyz": 400,
            "table=public.items&format=xml": 400,
            "table=public.items&color=red": 400,
        }.items():
            response = plain_http.get(f"{rig.url}/v1/snapshot?{query}")
            assert (response.status_code, "error" in response.json()) == (status, True), query
        assert plain_http.get(f"{rig.url}/healthz").status_code == 200
        assert plain_http.get(f"{rig.url}/readyz").status_code == 200
        assert "walbus_bootstrap_rows" in plain_http.get(f"{rig.url}/metrics").text
        lines = plain_http.get(f"{rig.url}/v1/snapshot?table=public.items&format=json").text
        assert "snapshot_end" in lines


def test_no_chunk_begins_while_too_many_others_run_statements_and_walbus_is_no_other(
    database: Database, tmp_path: Path
) -> None:
    fill_items(database, 500)
    with (
        statement_running(database, "walbus-capture"),
        BootstrapRig(tmp_path, database, max_active_sessions=0) as rig,
    ):
        with statement_running(database, "an application"):
            rig.start()
            wait_for(lambda: any(told.get("held") for told in rig.seeding()), 60, what="the table is held back")
            wait_for(lambda: rig.tables()["public.items"]["state"] == "seeding", 60, what="the tables are told")
        rig.assert_equals_source("public.items")


def test_sessions_that_a_role_is_not_shown_are_known_to_be_hidden(database: Database) -> None:
    role = f"plain_{database.name}"
    with statement_running(database, "an application"):
        database.execute(f"CREATE ROLE {role}")
        try:
            session = database.connect()
            assert other_sessions(session).active >= 1
            assert other_sessions(session).hidden == 0
            session.execute(f"SET ROLE {role}".encode())
            assert other_sessions(session).active == 0
            assert other_sessions(session).hidden >= 1
        finally:
            database.execute(f"DROP ROLE {role}")
