"""Fault 6 for the bootstrap store: a full disk stops applying and says so; it serves, and goes on once it has room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import plain_http
from support.bootstrap_rig import ITEMS, BootstrapRig
from support.database import Database
from support.net_log import rows_told, told
from support.small_disk import small_disk
from support.waiting import wait_for
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.store import WriteSet, space_of
from walbus.errors import StoreFull
from walbus.status import read_status

pytestmark = pytest.mark.one_version

SPACE = space_of(16384, 1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", megabytes=24) as folder:
        yield folder


def fill_up(folder: Path) -> Path:
    """A file that takes what room there is, now and at each further call."""
    path = folder / "ballast"
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(64 << 10)):
            pass
    return path


def test_a_full_disk_is_told_and_nothing_that_was_written_is_lost(disk: Path) -> None:
    store = RocksStore(disk / "store")
    written = 0
    with pytest.raises(StoreFull):
        while True:
            entries: dict[bytes, bytes | None] = {SPACE + b"%08d" % written: os.urandom(100_000)}
            store.write(WriteSet(entries=entries, documents={"applied": b"%d" % written}))
            written += 1
    with pytest.raises(StoreFull):
        store.prepare([(SPACE + b"%d" % number, os.urandom(1_000_000)) for number in range(9)])
    assert len(list(store.view().entries(SPACE))) == written
    store.close()
    subprocess.run(["mount", "-o", "remount,size=96m", disk], check=True)
    again = RocksStore(disk / "store")
    assert int(again.document("applied") or 0) == written - 1
    assert len(list(again.view().entries(SPACE))) == written
    again.close()


def test_a_bootstrap_on_a_full_disk_waits_serves_and_goes_on(database: Database, tmp_path: Path, disk: Path) -> None:
    database.execute(ITEMS)
    database.execute("INSERT INTO public.items SELECT i, i, md5(i::text) FROM generate_series(1, 500) i")
    with BootstrapRig(tmp_path, database, dir=str(disk / "store")) as rig:
        rig.start()
        rig.assert_equals_source("public.items")
        ballast = fill_up(disk)
        database.execute(
            "INSERT INTO public.items SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(501, 2000) i"
        )
        status = rig.data_dir / "status" / "bootstrap.json"

        def state() -> object:
            return (read_status(status) or {}).get("state")

        wait_for(lambda: fill_up(disk) and state() == "disk_full", 60, what="the status tells of a full disk")
        assert (read_status(status) or {})["walbus_bootstrap_disk_full"] == 1
        assert len(rig.rows("public.items")) == 500
        assert "walbus_bootstrap_disk_full 1.0" in plain_http.get(f"{rig.url}/metrics").text
        ballast.unlink()
        rig.assert_equals_source("public.items")
        wait_for(lambda: state() is None, 60, what="the status says nothing of it any more")
        assert rig.log().count("store_disk_full") >= 1
        assert rig.tables()["public.items"]["generation"] == 1


def test_a_net_difference_that_finds_no_room_is_told_once_there_is_some(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE public.t (id int PRIMARY KEY, wide text)")
    database.execute("INSERT INTO public.t SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i")
    with BootstrapRig(tmp_path, database) as rig:
        rig.start()
        rig.assert_equals_source("public.t")
        with small_disk(rig.data_dir / "relay" / "differences", megabytes=1) as disk:
            database.execute("ALTER TABLE public.t ADD d text DEFAULT repeat('y', 500)")
            wait_for(lambda: "difference_not_written" in rig.log(), 60, what="it is said that there is no room")
            wait_for(lambda: not list(disk.iterdir()), 60, what="nothing is left of it")
            database.execute("UPDATE public.t SET wide = 'z' WHERE id <= 10")
            rig.wait_applied()
            stale = rig.snapshot("public.t")
            assert (stale.status_code, stale.headers["Walbus-Stale"]) == (200, "yes")
            assert rig.tables()["public.t"]["generation"] == 1
            assert told(rig.data_dir / "relay") == []
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            wait_for(lambda: rig.tables()["public.t"]["generation"] == 2, 60, what="the new generation is served")
            rig.assert_equals_source("public.t")
            wait_for(lambda: len(told(rig.data_dir / "relay")) == 1, 60, what="the difference is in the log")
            database.execute("UPDATE public.t SET wide = 'end' WHERE id = 3000")
            rig.assert_equals_source("public.t")
            assert {row["d"] for row in rows_told(rig.data_dir / "relay", "public.t")} == {"y" * 500}
            assert len(rows_told(rig.data_dir / "relay", "public.t")) == 3000
