"""Very many followers of a live pgbench on one relay end with the digest of what a second slot saw."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.crowd import Crowd, digest_of
from support.database import Database
from support.log_view import log_transactions
from support.oracle import Oracle
from support.relay_log import read_records
from support.seed import announced_seed
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.pgbench import PgbenchLoad
from walbus.relay import open_reader


@pytest.mark.parametrize("followers", [100, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_all_followers_of_a_live_pgbench_end_with_the_digest_of_the_oracle(
    database: Database, oracle: Callable[..., Oracle], open_folder: Path, followers: int
) -> None:
    program, seed = database.server.program("pgbench"), announced_seed("pgbench") & 0xFFFF
    load = PgbenchLoad(program, database.dsn, rate=max(100, followers // 4), seed=seed)
    load.prepare(0)
    make_marker(database)
    with WholeSystem(open_folder, database.dsn, {}, bootstrap={"enabled": False}) as system:
        system.start()
        system.wait_until_streaming()
        truth = oracle("walbus")
        with Crowd([int(system.relay_url.rpartition(":")[2])], followers) as crowd:
            wait_for(lambda: crowd.error or crowd.connected == followers, 60, what="all followers are connected")
            load.start()
            done = max(500, 2 * followers)
            wait_for(lambda: database.value("SELECT count(*) FROM pgbench_history") >= done, 90, what="pgbench works")
            load.stop()
            system.wait_until_at_rest(database)
            crowd.at(system.end(), 150)
            found = crowd.digests()
            assert crowd.moved == 0  # nobody was let go
        with closing(open_reader(system.data_dir / "relay")) as reader:
            assert found == {digest_of(read_records(reader))}
            assert log_transactions(reader) == truth.transactions()
