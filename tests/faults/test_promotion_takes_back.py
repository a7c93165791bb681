"""Fault 13 with net differences: a failover loses a statement that changed rows without events, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from support.compare import assert_sinks_equal
from support.database import Database
from support.net_log import told
from support.pair import Pair
from support.standby import standby_of
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.walbus_command import walbus
from support.whole_system import WholeSystem, make_marker
from walbus.demo.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def pair(own_pg_server: Callable[..., EmbeddedPostgres], open_folder: Path) -> Iterator[Pair]:
    primary = own_pg_server()
    with standby_of(primary, open_folder / "standby") as standby, TcpProxy(primary.port) as proxy:
        yield Pair(primary, standby, proxy, open_folder / "relay")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE t ALTER a TYPE text USING a || '!'",  # the catalog's description stays the same
        "ALTER TABLE t ADD d int DEFAULT 7",
    ],
)
@pytest.mark.parametrize("told_first", [True, False])
def test_what_a_lost_statement_did_to_rows_is_taken_back_everywhere(
    pair: Pair, open_folder: Path, statement: str, told_first: bool
) -> None:
    folder = open_folder / "system"
    folder.mkdir()
    pair.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    database = Database(pair.primary, "postgres")
    database.dsn = pair.dsn
    make_marker(database)
    with closing(database), WholeSystem(folder, pair.dsn, {"cache": {"sink": "sqlite"}}) as system:

        def equal() -> bool:
            assert_sinks_equal(pair.dsn, cache=system.data_dir / "consumers" / "cache" / "cache.sqlite")
            return True

        system.start()
        system.wait_until_streaming()
        pair.oracle()
        pair.fill(0, 20)
        system.wait_until_at_rest(database)
        wait_for(equal, 60, what="the replica is filled", every=0.2)
        with psycopg.connect(pair.dsn) as open_over_it:  # slots begin from where it runs: they take a snapshot along
            open_over_it.execute("SELECT pg_current_xact_id()")
            for _ in range(3):
                pair.execute("CHECKPOINT")
                system.wait_until_at_rest(database)
            pair.carry_slots()
        pair.standby.stop()
        pair.execute(statement)
        pair.execute("UPDATE t SET a = 'lost' WHERE id = 3")
        pair.execute("DELETE FROM t WHERE id = 4")
        if told_first:
            wait_for(lambda: told(system.data_dir / "relay"), 60, what="the difference is in the log", every=0.2)
            wait_for(equal, 60, what="the replica has followed", every=0.2)
        else:
            system.wait_until_at_rest(database)
        pair.primary.kill()
        pair.standby.start()
        pair.go_over()
        database.close()
        pair.fill(100, 120)
        system.wait_until_at_rest(database)
        wait_for(equal, 60, what="the replica has lost what the source has lost", every=0.5)
        ended = walbus("verify", "-c", str(system.config))
        assert ended.code == 0, ended.stdout + ended.stderr
        wait_for(equal, 60, what="and nothing changes that any more", every=0.5)
