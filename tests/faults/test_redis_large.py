"""What a Redis sink has in memory at once, however large a transaction, a row or a table is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, ModelSource, column, insert, items_layout, truncate, update
from support.sink_writing import MARKS, fill, following, windows
from support.sinks_under_test import SinkUnderTest, redis_under_test
from walbus.consumers.sinks import redis as redis_sink
from walbus.consumers.sinks.redis_stored import RedisRows

pytestmark = pytest.mark.one_version

_LONG = 400_000  # signs of a value
_LONG_ROWS = 400  # of which all are 160 MB


@pytest.fixture
def under_test(redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, "hash")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes went together, each time."""
    counts: list[int] = []
    sends = RedisRows.send

    def counted(rows: RedisRows, gathered: Sequence[Any], *rest: Any) -> None:
        counts.append(len(gathered))
        sends(rows, gathered, *rest)

    monkeypatch.setattr(RedisRows, "send", counted)
    return counts


def test_a_truncate_of_a_large_table_is_sent_in_parts(
    under_test: SinkUnderTest, source: ModelSource, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server closes a connection that sends it a gigabyte at once."""
    source.commit([insert(ITEMS, n) for n in range(1000)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
        monkeypatch.setattr(redis_sink, "_GATHERED", 100)
        sent.clear()
        done = source.end
        source.commit([truncate(ITEMS), insert(ITEMS, 5)])
        fill(sink, source, done)
    assert sum(sent) >= 1000
    assert max(sent) <= 100
    assert under_test.rows() == source.rows()


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fails if more bytes than so many are allocated at any moment."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        assert tracemalloc.get_traced_memory()[1] - before < size
    finally:
        tracemalloc.stop()


def long_rows(client: redis.Redis, under_test: SinkUnderTest, source: ModelSource) -> None:
    """Rows are there whose `body` is long, as if they had been written so."""
    source.commit([insert(ITEMS, n, "a", None) for n in range(_LONG_ROWS)])
    with closing(under_test.open()) as sink:
        fill(sink, source)
    for n in range(_LONG_ROWS):
        client.hset(f"{ITEMS}:{n}", "body", "x" * _LONG)


def test_values_that_a_transaction_leaves_out_are_not_held_all_at_once(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    """The log has a few bytes of each row, and what it leaves out is read from the sink: once more on a replay."""
    long_rows(client, under_test, source)
    done = source.end
    source.commit([update(ITEMS, n, name="b") for n in range(_LONG_ROWS)])
    given = windows(source, done)
    with closing(under_test.open()) as sink:
        sink.checkpoint()
        with at_most(120 << 20):
            sink.write(given, MARKS)
            sink.rollback()
            sink.checkpoint()
            sink.write(given, MARKS)
            sink.commit(following(source))
    assert set(client.hmget(f"{ITEMS}:{_LONG_ROWS - 1}", "name")) == {"b"}
    assert {client.hstrlen(f"{ITEMS}:{n}", "body") for n in range(_LONG_ROWS)} == {_LONG}


def test_rows_are_brought_to_another_layout_some_at_a_time(
    under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    long_rows(client, under_test, source)
    done = source.end
    columns = (column("id", 23, "int4", in_key=True), column("title"), column("body"))
    source.add_layout(items_layout("things", *columns))
    given = windows(source, done)
    with closing(under_test.open()) as sink:
        sink.checkpoint()
        with at_most(120 << 20):
            sink.write(given, MARKS)
            sink.commit(following(source))
    assert client.keys(f"{ITEMS}:*") == []
    assert client.hgetall("public.things:7").keys() == {"_walbus", "id", "title", "body"}
    assert len(client.keys("public.things:*")) == _LONG_ROWS
