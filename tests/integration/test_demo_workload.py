"""The shop's workload on a real server."""

from __future__ import annotations

import random
from itertools import islice

import psycopg
import pytest

from support.waiting import wait_for
from walbus.demo.load import ShopLoad, perform
from walbus.demo.shop_schema import TABLES
from walbus.demo.workload import Shop

pytestmark = pytest.mark.one_version


def test_equal_seeds_give_equal_work():
    shops = [Shop(random.Random(5), 1, 2) for _ in range(2)]
    first, second = [(list(s.opening(400)), list(islice(s.work(), 500))) for s in shops]
    assert repr(first) == repr(second)  # NaN differs from itself


def test_every_statement_of_the_shop_finds_its_rows(database):
    """A statement that touches nothing would mean that the shop lost track of what was rolled back."""
    ShopLoad(database.dsn, rate=100, seed=3).prepare(0)
    shop = Shop(random.Random(9))
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for work in islice(shop.work(), 600):
            connection.execute("BEGIN")
            for statement in work.statements:
                cursor = connection.execute(statement.sql, statement.parameters)
                assert cursor.rowcount != 0 or "SAVEPOINT" in statement.sql or "ANY" in statement.sql, statement.sql
            connection.execute("COMMIT" if work.commits else "ROLLBACK")


def test_sessions_work_side_by_side_without_a_deadlock_and_every_kind_of_change_occurs(database, oracle):
    load = ShopLoad(database.dsn, rate=400, seed=1)
    load.prepare(2000)
    database.execute("CREATE PUBLICATION walbus FOR ALL TABLES")
    truth = oracle("walbus")
    load.start()
    wait_for(lambda: load.transactions > 600, 60)
    load.stop()
    changes = [change for transaction in truth.transactions() for change in transaction.changes]
    assert {change.op for change in changes} == {"insert", "update", "delete"}
    assert any(change.old_key for change in changes)
    assert any(change.unchanged for change in changes)
    assert any(change.unchanged and change.old_key for change in changes)
    assert all(database.value(f"SELECT count(*) FROM {table}") > 50 for table in TABLES)


def test_a_long_review_is_stored_out_of_line(database):
    shop = Shop(random.Random(2))
    ShopLoad(database.dsn, rate=1, seed=0).prepare(0)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for work in islice(shop.work(), 200):
            perform(connection, work)
    toast = database.value("SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'reviews'")
    assert toast > 8192
