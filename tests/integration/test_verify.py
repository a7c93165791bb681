"""`walbus verify` names what is wrong and nothing else, under load too, and `--repair` mends it by the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.bootstrap_rig import ITEMS, BootstrapRig, Writers
from support.database import Database, fresh_database, hold_commits, release_commits, start_held
from support.net_log import net_changes, told
from support.waiting import wait_for
from support.walbus_command import walbus
from walbus.bootstrap.entry import Entry, FromEvent, pack_entry, unpack_entry
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet, space_of
from walbus.bootstrap.verify_requests import VerifyFolder
from walbus.keys import encode_key
from walbus.relay import open_reader
from walbus.status import write_status
from walbus.values import row_encoder, row_texts


def verify(rig: BootstrapRig, *arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
    ended = walbus("verify", "--json", *arguments, "-c", str(rig.config), deadline=110)
    assert ended.code == code, (ended.code, ended.stdout, ended.stderr)
    return {one["table"]: one for one in json.loads(ended.stdout)["tables"]}


KEY_7 = encode_key([b"7"], [23])
Damage = Callable[[dict[bytes, Entry]], dict[bytes, Entry | None]]


def damage(rig: BootstrapRig, how: Damage, *tables: str) -> None:
    """Changes entries of tables in the store while its bootstrap is away."""
    told = rig.tables()
    assert rig.bootstrap is not None
    rig.bootstrap.stop()
    store = RocksStore(rig.data_dir / "bootstrap")
    for table in tables:
        space = space_of(told[table]["oid"], told[table]["generation"])
        changed = how({key: unpack_entry(value, {}) for key, value in store.entries(space)})
        store.write(WriteSet(entries={key: None if one is None else pack_entry(one) for key, one in changed.items()}))
    store.close()
    rig.start_bootstrap()
    rig.wait_consistent(*tables)


def other_row(rig: BootstrapRig, entry: Entry, *texts: str | None) -> Entry:
    """An entry with some of its columns' texts replaced (None keeps one)."""
    with closing(open_reader(rig.data_dir / "relay")) as reader:
        schema = reader.schemas.get(entry.schema_id)
    assert entry.row is not None
    kept = row_texts(schema, entry.row)
    mixed = [old if new is None else new for old, new in zip(kept, texts, strict=True)]
    row = row_encoder(schema).encode([None if text is None else text.encode() for text in mixed])
    return Entry(entry.seq, entry.schema_id, row, FromEvent(0))


TYPES = """
CREATE TABLE public.ints (a int, b bigint, n numeric, PRIMARY KEY (a, b));
CREATE TABLE public.texts (k text PRIMARY KEY, v char(5), f boolean);
CREATE TABLE public.uuids (k uuid PRIMARY KEY, v inet);
CREATE TABLE public.numbers (k numeric PRIMARY KEY, v jsonb);
CREATE TABLE public.times (k timestamptz PRIMARY KEY, v float8[]);
CREATE TABLE public.chars (k char(4) PRIMARY KEY, v bytea);
INSERT INTO public.ints SELECT i % 7 - 3, i - 500, i / 7.0 FROM generate_series(1, 1000) i;
INSERT INTO public.texts SELECT chr(200 + i % 300) || i || CASE i % 3 WHEN 0 THEN 'Z' WHEN 1 THEN 'a' ELSE ' ' END,
    CASE WHEN i % 5 > 0 THEN i::text END, i % 2 = 0 FROM generate_series(1, 1000) i;
INSERT INTO public.uuids SELECT md5(i::text)::uuid, '10.0.0.0/8'::inet + i FROM generate_series(1, 1000) i;
INSERT INTO public.numbers SELECT i - 500.50, '{"a": [1, null]}' FROM generate_series(1, 1000) i;
INSERT INTO public.times SELECT '1999-12-31 23:59:59.5+00'::timestamptz + i * interval '0.7 s', ARRAY[i / 3.0, 'NaN']
    FROM generate_series(1, 1000) i;
INSERT INTO public.chars SELECT i::text, decode(md5(i::text), 'hex') FROM generate_series(1, 999) i;
CREATE TYPE pair AS (a int, b text);
CREATE TABLE public.pairs (k int PRIMARY KEY, v pair, x "char");
INSERT INTO public.pairs VALUES (1, NULL, 'a'), (2, ROW(NULL, NULL), NULL), (3, ROW(1, 'a,"b'), ' ');
"""


def test_every_kind_of_key_is_compared_in_its_order(database: Database, tmp_path: Path) -> None:
    database.execute(TYPES)
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        names = ["ints", "texts", "uuids", "numbers", "times", "chars", "pairs"]
        rig.wait_consistent(*(f"public.{name}" for name in names))
        rig.wait_applied()
        found = verify(rig)
        assert {name: (one["state"], one["differing"], one["undecided"]) for name, one in found.items()} == {
            f"public.{name}": ("done", 0, 0) for name in names
        }
        assert sum(one["rows"] for one in found.values()) == 6002
        # A row of each but the last is changed behind everybody's back, and found by its key.
        damage(rig, lambda entries: {sorted(entries)[500]: None}, *(f"public.{name}" for name in names[:-1]))
        found = verify(rig, code=3)
        assert {name: one["differing"] for name, one in found.items()} == {
            f"public.{name}": int(name != "pairs") for name in names
        }
        assert all(key["kind"] == "missing" for one in found.values() for key in one["keys"])


def test_missing_extra_and_different_rows_are_named_and_mended_in_store_and_log(
    database: Database, tmp_path: Path
) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, 'x' FROM generate_series(1, 30000) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("UPDATE public.items SET big = 'y'")
        rig.wait_applied()

        def how(entries: dict[bytes, Entry]) -> dict[bytes, Entry | None]:
            keys = sorted(entries)
            extra = keys[-1][:-1] + b"\xff"
            return {
                keys[10]: None,
                keys[20_000]: other_row(rig, entries[keys[20_000]], None, "7", None),
                extra: other_row(rig, entries[keys[-1]], "30207", None, None),
            }

        damage(rig, how, "public.items")
        found = verify(rig, code=3)["public.items"]
        assert [(key["kind"], key["key"]["id"]) for key in found["keys"]] == [
            ("missing", 11), ("different", 20_001), ("extra", 30_207),
        ]  # fmt: skip
        assert net_changes(rig.data_dir / "relay") == []
        found = verify(rig, "--repair")["public.items"]
        assert (found["differing"], found["mended"]) == (3, 3)
        rig.assert_equals_source("public.items")
        assert sorted(net_changes(rig.data_dir / "relay")) == [
            ("delete", "public.items", ("30207",)),
            ("insert", "public.items", ("11",)),
            ("update", "public.items", ("20001",)),
        ]
        assert verify(rig)["public.items"]["differing"] == 0


@pytest.mark.long
def test_of_a_table_that_is_wrong_in_many_places_some_is_mended_at_a_time(database: Database, tmp_path: Path) -> None:
    """What is wrong is held in memory until it is mended, and that may be all of a table."""
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, 'x' FROM generate_series(1, 25000) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        damage(rig, lambda entries: dict.fromkeys(sorted(entries)[::2]), "public.items")
        found = verify(rig, "--repair")["public.items"]
        assert (found["differing"], found["mended"]) == (12_500, 12_500)
        folder = rig.data_dir / "relay"
        assert len(net_changes(folder)) == 12_500
        assert len(told(folder)) > 1
        rig.assert_equals_source("public.items")


@pytest.mark.long
def test_under_load_nothing_is_named_that_is_right_and_everything_that_is_wrong(
    database: Database, tmp_path: Path
) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, repeat('x', 3000) FROM generate_series(0, 1999, 2) i")
    database.execute("INSERT INTO public.items SELECT i, i, 'x' FROM generate_series(10000, 30000) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.items")
        database.execute("UPDATE public.items SET plain = plain + 1")
        rig.wait_applied()
        with Writers(database, 11, count=2):
            for _ in range(2):
                assert verify(rig)["public.items"]["differing"] == 0

            def how(entries: dict[bytes, Entry]) -> dict[bytes, Entry | None]:
                return dict.fromkeys(sorted(entries)[-5000::1000])

            damage(rig, how, "public.items")
            found = verify(rig, code=3)["public.items"]
            assert found["differing"] == 5
            found = verify(rig, "--repair")["public.items"]
            assert (found["differing"], found["mended"]) == (5, 5)
            assert verify(rig)["public.items"]["differing"] == 0
        rig.assert_equals_source("public.items")


def test_a_commit_that_is_not_visible_yet_is_not_called_a_difference(own_pg_server: Any, tmp_path: Path) -> None:
    """Committed in the WAL and in the log, and held back for a synchronous standby that is not there."""
    server = own_pg_server(max_wal_senders="8")
    with fresh_database(server) as database:
        database.execute("CREATE TABLE public.t (id int PRIMARY KEY, n int)")
        database.execute("INSERT INTO public.t SELECT i, 0 FROM generate_series(1, 100) i")
        with BootstrapRig(tmp_path, database) as rig:
            rig.start_capture()
            rig.start_bootstrap({"walbus.bootstrap.judging._JUDGING_SECONDS": 2.0})
            rig.wait_consistent("public.t")
            hold_commits(database, "UPDATE public.t SET n = 0 WHERE id = 99")
            start_held(database, "UPDATE public.t SET n = 1 WHERE id = 7")
            try:
                wait_for(lambda: rig.rows("public.t")[KEY_7]["n"] == "1", 60, what="the store has it")
                assert database.value("SELECT n FROM public.t WHERE id = 7") == 0
                found = verify(rig, code=3)["public.t"]
                assert (found["differing"], found["undecided"]) == (0, 1)
            finally:
                release_commits(database)
            assert verify(rig)["public.t"]["undecided"] == 0


def test_tables_that_cannot_be_compared_are_named_with_the_reason(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    database.execute("CREATE TABLE public.keyless (id int)")
    database.execute("ALTER TABLE public.keyless REPLICA IDENTITY FULL")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.wait_consistent("public.t")
        wait_for(lambda: "public.keyless" in rig.tables(), what="both are known")
        assert verify(rig, code=0)["public.keyless"]["state"] == "skipped"
        asked = ("--table", "public.keyless", "--table", "public.nowhere", "--table", "public.t")
        found = verify(rig, *asked, code=3)
        assert {name: one["state"] for name, one in found.items()} == {
            "public.keyless": "skipped", "public.nowhere": "skipped", "public.t": "done",
        }  # fmt: skip
        assert "no key" in found["public.keyless"]["reason"]


def test_a_comparison_whose_bootstrap_was_killed_is_begun_again_by_the_next_one(
    database: Database, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    with BootstrapRig(tmp_path, database) as rig:
        folder = VerifyFolder(rig.data_dir / "verify")
        request = folder.ask([], repair=False)
        write_status(rig.data_dir / "verify" / f"{request}.status.json", {"state": "running", "tables": []})
        rig.start_capture()
        wait_for(lambda: open_reader(rig.data_dir / "relay").close() is None, 60, what="there is a log")
        rig.start_bootstrap()
        wait_for(lambda: (folder.status(request) or {}).get("state") == "done", 60, what="somebody deals with it")


def test_without_a_bootstrap_that_answers_it_says_so(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    rig = BootstrapRig(tmp_path, database)
    ended = walbus("verify", "-c", str(rig.config), constants={"walbus.cli.verify._ANSWER_SECONDS": 0.5})
    assert ended.code == 1
    assert "no bootstrap answers" in ended.one_line()
    assert list((rig.data_dir / "verify").iterdir()) == []
