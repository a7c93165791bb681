"""Changes and bytes by table in /metrics, counted from the relay's start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.relay_log import SOURCE, FileEngine, table_schema, transaction
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from walbus.relay.cursor import FileCursor
from walbus.relay.table_tally import OTHERS, TableTally

pytestmark = pytest.mark.one_version


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    with closing(FileEngine(tmp_path / "log")) as engine:
        yield engine


def figures(relay: ServingRelay) -> dict[str, float]:
    lines = [line for line in relay.get("/metrics").decode().splitlines() if line.startswith("walbus_log_table_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_what_comes_into_the_log_is_counted_by_table(engine):
    writer = engine.open_writer(SOURCE)
    writer.schemas.register(table_schema("orders", 1))
    writer.schemas.register(table_schema("items", 2))
    writer.append(transaction(0x10, 5, table=1))
    writer.sync()
    with ServingRelay(engine.folder) as relay:
        wait_for(relay.server_counts, what="counting to begin")
        assert figures(relay) == {}  # what was there before is not counted
        writer.append(transaction(0x20, 3, table=1, size=100))
        writer.append(transaction(0x30, 2, table=2, size=10))
        writer.append(transaction(0x40, 1, table=77, size=0))
        writer.sync()
        wait_for(lambda: len(figures(relay)) == 6, what="the counts")
        assert figures(relay) == {
            'walbus_log_table_changes_total{table="public.orders"}': 3,
            'walbus_log_table_changes_total{table="public.items"}': 2,
            f'walbus_log_table_changes_total{{table="{OTHERS}"}}': 1,
            'walbus_log_table_bytes_total{table="public.orders"}': 3 * (48 + 8 + 100),
            'walbus_log_table_bytes_total{table="public.items"}': 2 * (48 + 8 + 10),
            f'walbus_log_table_bytes_total{{table="{OTHERS}"}}': 48 + 8,
        }


def test_tables_beyond_five_hundred_are_one_figure(engine):
    writer = engine.open_writer(SOURCE)
    for n in range(1, 521):
        writer.schemas.register(table_schema(f"t{n}", n))
    writer.sync()
    tally = TableTally(engine.open_reader())
    for n in range(1, 521):
        writer.append(transaction(n * 16, 1 if n <= 20 else 2, table=n))
    writer.sync()
    assert not tally.step()
    tally.close()
    changes = tally.figures()["walbus_log_table_changes_total"]
    assert len(changes) == 501
    assert changes[OTHERS] == 20  # those with the fewest


def test_a_log_whose_retention_was_faster_is_counted_on_from_its_end(engine, capsys):
    engine.retention_bytes = 64 << 10
    writer = engine.open_writer(SOURCE)
    writer.schemas.register(table_schema("orders", 1))
    writer.append(transaction(0x10, 1, table=1))
    writer.sync()
    tally = TableTally(engine.open_reader())
    for n in range(2, 400):
        writer.append(transaction(n * 16, 1, table=1, size=2000))
        writer.sync()
        writer.trim(2e9)
    while tally.step():
        pass
    assert capsys.readouterr().out.count("relay_counts_have_a_gap") == 1
    writer.append(transaction(0x10000, 1, table=1))
    writer.sync()
    assert not tally.step()
    assert tally.figures()["walbus_log_table_changes_total"]["public.orders"] >= 1
    tally.close()


def test_what_counts_is_closed_behind_a_count_that_is_under_way(engine, monkeypatch):
    engine.open_writer(SOURCE).sync()
    tally = TableTally(engine.open_reader())
    count, closing = TableTally._read, threading.Thread(target=tally.close)
    open_behind_it = []

    def meanwhile(counted: TableTally, cursor: FileCursor) -> bool:
        closing.start()
        closing.join(0.5)  # which it does only where closing does not wait
        open_behind_it.append(counted._cursor)
        return count(counted, cursor)

    monkeypatch.setattr(TableTally, "_read", meanwhile)
    assert not tally.step()
    closing.join(60)
    assert not closing.is_alive()
    assert open_behind_it != [None]
    assert tally._cursor is None
