"""`walbus tail --from earliest --until latest --format json` against a second slot: every change of a run, once, whole.

The run has what makes order hard: sessions that commit in another order than they began, savepoints rolled back, a
transaction of many pieces, truncates, keys that change and texts that PostgreSQL does not send.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.database import Database
from support.oracle import Oracle, OracleChange
from support.seed import announced_seed
from support.waiting import wait_for
from support.whole_system import WholeSystem, check_tail, make_marker, row_changes

pytestmark = pytest.mark.one_version

SESSIONS, TRANSACTIONS, LARGE = 4, 150, 30_000


class Session(threading.Thread):
    """Commits random transactions on keys of its own; sometimes truncates a table of its own."""

    def __init__(self, dsn: str, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._number = number
        self._dice = random.Random(seed + number)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as connection:
                for _ in range(TRANSACTIONS):
                    self._transaction(connection)
                    connection.commit()
        except BaseException as error:
            self.error = error

    def _transaction(self, connection: psycopg.Connection) -> None:
        for _ in range(self._dice.randrange(1, 5)):
            if self._dice.random() < 0.2:
                with connection.transaction(force_rollback=True):
                    self._change(connection)
            with connection.transaction():
                self._change(connection)
        if self._dice.random() < 0.03:
            connection.execute(f"TRUNCATE own_{self._number}")

    def _change(self, connection: psycopg.Connection) -> None:
        key = self._number * 1000 + self._dice.randrange(100)
        match self._dice.randrange(5):
            case 0:
                connection.execute("DELETE FROM items WHERE id = %s", [key])
            case 1:
                connection.execute("UPDATE items SET n = n + 1 WHERE id = %s", [key])
            case 2:
                moved = "UPDATE items SET id = id + 500 WHERE id = %s AND NOT EXISTS (SELECT FROM items WHERE id = %s)"
                connection.execute(moved, [key, key + 500])
            case 3:
                connection.execute(f"INSERT INTO own_{self._number} (note) VALUES ('quote \" and \\ and ünï')")
            case _:
                insert = "INSERT INTO items VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET note = excluded.note"
                connection.execute(insert, [key, self._dice.choice([None, 7]), "x" * self._dice.choice([0, 9, 5000])])


def test_a_bounded_tail_prints_every_change_of_a_run_once_in_commit_order(
    database: Database, oracle: Callable[..., Oracle], open_folder: Path
) -> None:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, n int, note text)")
    database.execute("ALTER TABLE items ALTER note SET STORAGE EXTERNAL")
    for number in range(SESSIONS):
        database.execute(f"CREATE TABLE own_{number} (id serial PRIMARY KEY, note text)")
    make_marker(database)
    with WholeSystem(open_folder, database.dsn, {}, source={"slot": f"s_{database.name}"}) as system:
        system.start()
        system.wait_until_streaming()
        truth = oracle("walbus")
        sessions = [Session(database.dsn, number, announced_seed("the sessions")) for number in range(SESSIONS)]
        for session in sessions:
            session.start()
        database.execute(f"INSERT INTO items SELECT n, n, 'large' FROM generate_series(100001, 100000 + {LARGE}) n")
        wait_for(lambda: system.info()["last_seq"], 60, what="something is in the log")
        meanwhile = row_changes(system.tail())
        for session in sessions:
            session.join(120)
            assert not session.is_alive()
            if session.error is not None:
                raise session.error
        system.wait_until_at_rest(database)
        printed = row_changes(system.tail())
        expected = truth.transactions()
        check_tail(printed, expected)
        changes = [change for transaction in expected for change in transaction.changes]
        assert [row_of(line) for line in printed] == [expected_row(change) for change in changes]
        assert len(changes) > LARGE + SESSIONS * TRANSACTIONS
        assert printed[: len(meanwhile)] == meanwhile, "a tail while the log grows ends between two transactions"
        assert not meanwhile or printed[len(meanwhile)]["xid"] != meanwhile[-1]["xid"]
        assert system.stop() == 0


def row_of(line: dict[str, Any]) -> tuple[object, ...]:
    after = line.get("after")
    texts = after and {name: None if value is None else str(value) for name, value in after.items()}
    return texts, frozenset(line.get("unchanged", ())), _texts(line.get("old_key"))


def expected_row(change: OracleChange) -> tuple[object, ...]:
    return change.after, change.unchanged, change.old_key


def _texts(key: dict[str, Any] | None) -> tuple[str, ...] | None:
    return None if key is None else tuple(str(value) for value in key.values())
