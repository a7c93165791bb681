"""A sink whose process is killed at any system call between a row and its checkpoint: the next one loses nothing.

Some calls are drawn; `-m exhaustive` takes each of them. Of the kafka sink `test_kafka_sink_faults` takes each step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from support.killed_sink import Killed, bare, points
from support.model_source import ITEMS
from support.redis_caches import cached, caching
from support.sinks_under_test import SinkUnderTest, of_kind
from support.webhook_receiver import SECRET, Receiver
from walbus.consumers.checkpoint import last_done_of
from walbus.consumers.sinks import SinkPlace

pytestmark = [pytest.mark.one_version, pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")]

#: The call that rows and checkpoint go out by.
CALLS = {
    "sqlite": "pwrite64",
    "postgres": "sendto",
    "tantivy": "write",
    "redis-hash": "sendto",
    "redis-json": "sendto",
    "redis-string": "sendto",
    "redis-expiring": "sendto",
    "redis-pointer": "sendto",
    "cluster-hash": "sendto",
    "opensearch": "sendto",
    "elasticsearch": "sendto",
}
CACHES = {"redis": "sendto", "cluster": "sendto"}
TRANSACTIONAL = ("sqlite", "postgres", "tantivy")
WITH_COLUMNS_OF_THEIR_OWN = ("redis-string",)  # a text has those of its template


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "count"), [param for kind in CALLS for param in points(kind)])
def test_a_sink_that_is_killed_at_any_call_is_gone_on_with(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    under_test = of_kind(kind, tmp_path, request.getfixturevalue)
    killed = Killed(under_test, count)
    at = {
        position: {id: one.row for id, one in state.get(ITEMS, {}).items()}
        for position, _, state in killed.source.history
    }
    for nth in killed.calls:
        killed.at(CALLS[kind], nth)
        with closing(under_test.open()) as sink:
            done = last_done_of(sink.checkpoint())
        if kind in TRANSACTIONAL:
            assert bare(under_test.rows(), more=False) == bare(at[done], more=False), f"call {nth}"
    killed.at_the_end()
    more = kind not in WITH_COLUMNS_OF_THEIR_OWN
    assert bare(under_test.rows(), more=more) == killed.rows(more=more)


def caches_of(kind: str, fixture: Callable[[str], Any], stack: ExitStack) -> tuple[str, Any]:
    """Address of a server or a cluster, and a client of it for texts."""
    if kind == "redis":
        url = fixture("redis_url")
        return url, stack.enter_context(redis.Redis.from_url(url, decode_responses=True))
    cluster = fixture("redis_cluster")
    return cluster.url, stack.enter_context(cluster.client())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "count"), [param for kind in CACHES for param in points(kind)])
def test_no_stale_value_is_cached_behind_one_that_was_killed_at_any_call(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Programs fill their cache whenever no consumer runs; what a checkpoint tells of is forgotten when it is there."""
    with ExitStack() as stack:
        url, client = caches_of(kind, request.getfixturevalue, stack)
        under_test = caching(tmp_path, url)
        killed = Killed(under_test, count)
        at = {position: state.get(ITEMS, {}) for position, _, state in killed.source.history}
        for nth in [*killed.calls, None]:
            killed.at_the_end() if nth is None else killed.at(CACHES[kind], nth)
            with closing(under_test.open()) as sink:
                stored = sink.checkpoint()
            rows = {f"{ITEMS}:{id}": repr(one.row) for id, one in at[last_done_of(stored)].items()}
            there = {key: client.get(key) for key in cached(client)}
            assert there.items() <= rows.items() or stored is None, f"behind call {nth}"
            for key, row in rows.items():
                client.set(key, row)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("call", "count"), [param for call in ("fsync", "rename") for param in points(call)])
def test_whoever_takes_webhooks_has_the_rows_behind_one_that_was_killed_at_any_call(
    call: str, count: int, tmp_path: Path
) -> None:
    with closing(Receiver()) as receiver:
        options = {"url": receiver.url, "secret": SECRET, "allow_private": True, "changes": 5}
        place = SinkPlace("test", tmp_path, ("public.*",))
        killed = Killed(SinkUnderTest("webhook", options, place, receiver.rows), count)
        for nth in killed.calls:
            killed.at(call, nth)
        killed.at_the_end()
        logged = [(change["seq"], change["op"]) for change in receiver.changes() if "xid" in change]
        assert logged == sorted(set(logged)), "a change of the log came twice, or behind a later one"
        assert bare(receiver.rows(ITEMS), more=False) == killed.rows(more=False)
        assert receiver.forged == 0
