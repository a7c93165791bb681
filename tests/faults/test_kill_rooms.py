"""Fault 1: every process is killed in turn, at random moments, under load; at rest it is as if nothing had been.

The log equals what a second slot saw, transaction by transaction; `walbus tail` prints each change of it once, in
commit order; every sink equals its source table, value by value.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from support.database import Database
from support.oracle import Oracle
from support.seed import announced_seed
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker
from walbus.demo.load import ShopLoad

SUPERVISOR = "supervisor"


@pytest.fixture
def shop(database: Database) -> Iterator[ShopLoad]:
    load = ShopLoad(database.dsn, rate=120, seed=announced_seed("the shop"))
    load.prepare(600)
    make_marker(database)
    yield load
    load.stop()


@pytest.fixture
def system(database: Database, redis_url: str, open_folder: Path) -> Iterator[WholeSystem]:
    sinks = {
        "cache": {"sink": "sqlite"},
        "search": {"sink": "tantivy"},
        "redis": {"sink": "redis", "url": redis_url},
    }
    source = {"slot": f"s_{database.name}"}
    with WholeSystem(open_folder, database.dsn, sinks, source=source, bootstrap={"chunk_rows": 100}) as running:
        yield running


@pytest.mark.parametrize("kills", [6, pytest.param(24, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_killed_processes_lose_repeat_and_reorder_nothing(
    database: Database, oracle: Callable[..., Oracle], shop: ShopLoad, system: WholeSystem, kills: int
) -> None:
    rng = random.Random(announced_seed("the kills"))
    system.start()
    system.wait_until_streaming()
    truth = oracle("walbus")
    shop.start()
    for victim in victims(system, kills, rng):
        wait_a_random_moment(rng)
        kill(system, victim)
    shop.stop()
    system.wait_until_at_rest(database)
    system.check(database, truth)
    assert system.stop() == 0


def victims(system: WholeSystem, kills: int, rng: random.Random) -> list[str]:
    """Whom to kill, in turn: each process as often as any other, in random order."""
    names = [*system.children(), SUPERVISOR]
    turns = chain.from_iterable(rng.sample(names, len(names)) for _ in repeat(None))
    return [next(turns) for _ in range(kills)]


def wait_a_random_moment(rng: random.Random) -> None:
    """The moment of a kill is the test's input, not something that it waits for."""
    time.sleep(rng.uniform(0.05, 1.2))


def kill(system: WholeSystem, victim: str) -> None:
    if victim == SUPERVISOR:
        system.kill_supervisor()
        system.start()
        wait_for(system.children, 60, what="walbus run is back")
    else:
        wait_for(lambda: system.kill(victim), 60, what=f"{victim} runs, to be killed")
