"""Complete changes on a real source: the same history as a table of REPLICA IDENTITY FULL tells, without its identity.

Two tables get the same statements. One has the default identity and TOASTed values that updates leave alone; the other
one is FULL, and what the relay streams of it is the truth.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

import walbus
from support import plain_http
from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.seed import announced_seed
from support.serving_relay import ServingRelay
from support.waiting import wait_for
from support.walbus_command import walbus as run
from walbus.consumers import MemoryCheckpointStore, Subscription
from walbus.errors import RequestRefused
from walbus.events import Change
from walbus.records import Kind, Op
from walbus.relay import open_reader

pytestmark = pytest.mark.one_version

TABLE, TRUTH = "public.docs", "public.docs_full"
ROWS = 12


@pytest.fixture
def rig(database: Database, open_folder: Path) -> Iterator[BootstrapRig]:
    for name in ("docs", "docs_full"):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, kind text, body text, note text)")
        database.execute(f"ALTER TABLE {name} ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL")
    database.execute("ALTER TABLE docs_full REPLICA IDENTITY FULL")
    database.execute("CREATE TABLE others (id int PRIMARY KEY)")
    with BootstrapRig(open_folder, database, complete=["public.docs", "public.docs_full"]) as rig:
        rig.start()
        rig.wait_consistent(TABLE, TRUTH)
        yield rig


@pytest.fixture
def relay(rig: BootstrapRig) -> Iterator[ServingRelay]:
    with ServingRelay(rig.data_dir / "relay") as relay:
        yield relay


def long_text(choose: random.Random) -> str:
    return choose.randbytes(5000).hex()


class Writer:
    """The same random transactions on both tables."""

    def __init__(self, database: Database, seed: int) -> None:
        self._choose = random.Random(seed)
        self._connection = database.connect()
        self._ids: list[int] = []
        self._next = 1

    def write(self, transactions: int) -> None:
        for _ in range(transactions):
            with self._connection.transaction():
                for _ in range(self._choose.randint(1, 5)):
                    self._change()

    def close(self) -> None:
        self._connection.close()

    def _change(self) -> None:
        choose, ids = self._choose, self._ids
        if len(ids) < ROWS:
            row = (
                self._next,
                f"k{self._next}",
                long_text(choose),
                long_text(choose) if choose.random() < 0.7 else None,
            )
            ids.append(self._next)
            self._next += 1
            self._execute("INSERT INTO {} VALUES (%s, %s, %s, %s)", row)
            return
        one = choose.choice(ids)
        kind = choose.randrange(20)
        if kind == 0:
            self._execute("TRUNCATE {}", ())
            ids.clear()
        elif kind <= 4:
            self._execute("DELETE FROM {} WHERE id = %s", (one,))
            ids.remove(one)
        elif kind <= 8:
            ids[ids.index(one)] = self._next
            self._execute("UPDATE {} SET id = %s WHERE id = %s", (self._next, one))
            self._next += 1
        elif kind <= 12:
            self._execute("UPDATE {} SET body = %s WHERE id = %s", (long_text(choose), one))
        else:
            self._execute("UPDATE {} SET kind = %s WHERE id = %s", (f"k{choose.random()}", one))

    def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        for table in ("docs", "docs_full"):
            self._connection.execute(statement.format(table), values)


@pytest.fixture
def writer(rig: BootstrapRig, database: Database) -> Iterator[Writer]:
    writer = Writer(database, announced_seed("the transactions"))
    yield writer
    writer.close()


def changes_of(subscription: Subscription, marker: int, table: str) -> list[Change]:
    """The changes of a table in the log, up to an `end_marker`."""
    found: list[Change] = []

    def all_there() -> bool:
        delivery = subscription.next(0.5)
        if delivery is None:
            return False
        if delivery.kind is Kind.TRANSACTION:
            found.extend(change for change in delivery if change.table == table)
        delivery.commit()
        return has_marker(found, marker)

    wait_for(all_there, 60, what="all changes", every=0)
    return found


def told(change: Change) -> tuple[Any, ...]:
    return change.op, change.key, change.old_key, change.before, change.after, change.unchanged


def place(change: Change) -> tuple[Any, ...]:
    return change.position, change.seq, change.op, change.key, change.old_key


def end_marker(database: Database) -> int:
    """The id of a last row of both tables, so that a stream of either gets behind all other changes."""
    with database.connect() as connection, connection.transaction():
        marker = -random.randrange(1, 1 << 30)
        for table in ("docs", "docs_full"):
            connection.execute(f"INSERT INTO {table} VALUES (%s, 'end', NULL, NULL)", (marker,))
    return marker


def has_marker(changes: Iterable[Change], marker: int) -> bool:
    return any(change.key == {"id": marker} for change in changes)


def subscribed(bus: Any, table: str, name: str, **more: Any) -> Subscription:
    store = more.pop("checkpoints", None) or MemoryCheckpointStore()
    subscription: Subscription = bus.subscribe(table, name=name, start="earliest", checkpoints=store, **more)
    return subscription


def test_it_tells_what_a_full_identity_tells_across_kills_and_to_those_that_resume(
    rig: BootstrapRig, relay: ServingRelay, database: Database, writer: Writer
) -> None:
    resuming = MemoryCheckpointStore()
    with walbus.connect(relay.url, bootstrap=rig.url) as bus:
        writer.write(40)
        marker = end_marker(database)
        with subscribed(bus, TABLE, "resumes", complete=True, checkpoints=resuming) as subscription:
            first = changes_of(subscription, marker, TABLE)
        writer.write(20)
        rig.kill_bootstrap()
        writer.write(20)
        rig.start_bootstrap()
        writer.write(20)
        marker = end_marker(database)
        rest = changes_of(subscribed(bus, TABLE, "resumes", complete=True, checkpoints=resuming), marker, TABLE)
        late = changes_of(subscribed(bus, TABLE, "late", complete=True), marker, TABLE)
        again = changes_of(subscribed(bus, TABLE, "again", complete=True), marker, TABLE)
        truth = changes_of(subscribed(bus, TRUTH, "truth"), marker, TRUTH)
        plain = changes_of(subscribed(bus, TABLE, "plain"), marker, TABLE)
    assert {change.op for change in late} >= {Op.INSERT, Op.UPDATE, Op.DELETE}
    assert any(change.unchanged for change in plain)
    assert [told(change)[1:] for change in late if not change.complete] == []
    assert list(map(told, late)) == list(map(told, truth))
    assert list(map(told, first + rest)) == list(map(told, late)) == list(map(told, again))
    assert list(map(place, late)) == list(map(place, plain))


async def _read(url: str, bootstrap: str, marker: int) -> list[Change]:
    found: list[Change] = []
    async with walbus.aconnect(url, bootstrap=bootstrap) as bus:
        store = MemoryCheckpointStore()
        async for window in bus.subscribe(TABLE, name="async", start="earliest", checkpoints=store, complete=True):
            found.extend(change for change in window if change.op is Op.UPDATE)
            if has_marker(window, marker):
                return found
    return found


def test_lines_filters_and_the_async_client_have_whole_rows_too(
    rig: BootstrapRig, relay: ServingRelay, database: Database
) -> None:
    choose = random.Random(1)
    body = long_text(choose)
    database.execute("INSERT INTO docs VALUES (1, 'a', %s, NULL), (2, 'a', 'short', NULL)", (body,))
    database.execute("UPDATE docs SET kind = 'b' WHERE id = 1")
    database.execute("DELETE FROM docs WHERE id = 1")
    marker = end_marker(database)
    rig.wait_applied()
    assert [(c.before, c.after) for c in asyncio.run(_read(relay.url, rig.url, marker))] == [
        ({"id": 1, "kind": "a", "body": body, "note": None}, {"id": 1, "kind": "b", "body": body, "note": None})
    ]
    params = {"complete": "true", "from": "earliest", "until": "latest", "format": "json", "tables": TABLE}
    lines = lines_of(rig.url, {**params, "ops": "update,delete", "columns": "public.docs(id,kind)"})
    rows = [line for line in lines if line["op"] in ("update", "delete")]
    assert [(line["op"], line["before"], line.get("after")) for line in rows] == [
        ("update", {"id": 1, "kind": "a"}, {"id": 1, "kind": "b"}),
        ("delete", {"id": 1, "kind": "b"}, None),
    ]
    parts = [lines_of(rig.url, {**params, "ops": "update,delete", "partition": f"{part}/2"}) for part in (0, 1)]
    whole = [line for part in parts for line in part if line["op"] in ("update", "delete")]
    assert [line["before"]["body"] for line in whole] == [body, body]


def test_a_bounded_tail_prints_whole_rows_up_to_its_bound(rig: BootstrapRig, database: Database) -> None:
    """Its bound is the log's end, which the bootstrap need not have applied yet."""
    body = long_text(random.Random(2))
    with ServingRelay(rig.data_dir / "relay", bootstrap_url=rig.url) as relay:
        database.execute("INSERT INTO docs VALUES (1, 'a', %s, NULL)", (body,))
        for number in range(300):
            database.execute("UPDATE docs SET kind = %s WHERE id = 1", (f"k{number}",))
        until = database.insert_lsn()
        log = open_reader(rig.data_dir / "relay")
        wait_for(lambda: log.bounds().end.commit_lsn >= until, 60, what="the log has everything")
        log.close()
        printed = run("tail", TABLE, "--complete", "--from", "earliest", "--until", "latest", "--url", relay.url)
        assert printed.code == 0, printed.stderr
        lines = [json.loads(line) for line in printed.stdout.splitlines()]
        updates = [line for line in lines if line["op"] == "update"]
        assert [line["after"]["kind"] for line in updates] == [f"k{number}" for number in range(300)]
        assert {line["before"]["body"] for line in updates} == {line["after"]["body"] for line in updates} == {body}
        refused = run("tail", "public.others", "--complete", "--until", "latest", "--url", relay.url)
        assert refused.code != 0
        assert "not completed" in refused.one_line()


def lines_of(url: str, params: dict[str, str]) -> list[dict[str, Any]]:
    response = plain_http.get(f"{url}/v1/stream", params=params)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_what_can_never_be_complete_is_refused_by_name(rig: BootstrapRig, relay: ServingRelay) -> None:
    def refused(url: str, **params: str) -> tuple[int, str | None, str]:
        response = plain_http.get(f"{url}/v1/stream", params=params)
        document = response.json()
        return response.status_code, document["where"], document["error"]

    for tables in ("public.others", "public.*", "*.*"):
        status, where, error = refused(rig.url, complete="true", tables=tables, until="latest")
        assert (status, where) == (400, "tables")
        assert "public.others" in error
    assert refused(rig.url, complete="true", tables="public.nowhere")[:2] == (400, "tables")
    assert refused(rig.url)[:2] == refused(rig.url, complete="false")[:2] == (400, "complete")
    assert refused(relay.url, complete="true", tables=TABLE)[:2] == (400, "complete")
    assert refused(rig.url, complete="yes", tables=TABLE)[:2] == (400, "complete")
    with (
        walbus.connect(relay.url, bootstrap=rig.url) as bus,
        subscribed(bus, "public.others", "others", complete=True) as subscription,
        pytest.raises(RequestRefused, match="not completed"),
    ):
        subscription.next(60)


def test_a_follower_gets_a_change_as_soon_as_it_is_applied(
    rig: BootstrapRig, relay: ServingRelay, database: Database
) -> None:
    database.execute("INSERT INTO docs VALUES (1, 'a', 'b', NULL)")
    rig.wait_applied()  # a consumer that is online with what was there before has the row still to come
    with walbus.connect(relay.url, bootstrap=rig.url) as bus:
        store = MemoryCheckpointStore()
        with bus.subscribe(TABLE, name="live", checkpoints=store, complete=True) as subscription:
            wait_for(
                lambda: (subscription.next(0.2), subscription.phase == "online")[1], 60, what="the consumer is online"
            )
            for number in range(5):
                database.execute("UPDATE docs SET kind = %s WHERE id = 1", (f"k{number}",))
                seen: list[Change] = []
                wait_for(
                    lambda seen=seen: (seen.extend(subscription.next(1) or ()), bool(seen))[1],
                    60,
                    what="the change",
                    every=0,
                )
                assert [(c.before or {}).get("kind") for c in seen] == [f"k{number - 1}" if number else "a"]


def test_it_begins_where_it_is_switched_on_and_a_consumer_from_before_reads_a_delta(
    database: Database, open_folder: Path
) -> None:
    database.execute("CREATE TABLE docs (id int PRIMARY KEY, kind text)")
    with BootstrapRig(open_folder, database) as rig:
        rig.start()
        rig.wait_consistent(TABLE)
        with ServingRelay(rig.data_dir / "relay") as relay, walbus.connect(relay.url, bootstrap=rig.url) as bus:
            database.execute("INSERT INTO docs VALUES (1, 'a'), (2, 'a')")
            database.execute("UPDATE docs SET kind = 'b'")
            rig.wait_applied()
            assert rig.document()["complete_since"] is None
            store = MemoryCheckpointStore()
            with bus.subscribe(TABLE, name="docs", start="earliest", checkpoints=store) as plain:
                delivery = plain.next(60)
                assert delivery is not None
                delivery.commit()
            config = rig.config.read_text().replace("[bootstrap]", '[bootstrap]\ncomplete = ["public.*"]')
            rig.kill_bootstrap()
            rig.config.write_text(config)
            rig.start_bootstrap()
            wait_for(lambda: answers(rig), 60, what="the bootstrap serves", every=0.1)
            since = wait_for(lambda: rig.document()["complete_since"], what="the log is followed again")
            for early in ({"after": "1:0/1:0"}, {"from": "2020-01-01T00:00:00Z"}):
                asked = {"complete": "true", "tables": TABLE, **early}
                response = plain_http.get(f"{rig.url}/v1/stream", params=asked)
                assert (response.status_code, response.json()["trimmed"]) == (410, since)
            database.execute("UPDATE docs SET kind = 'c' WHERE id = 2")
            with bus.subscribe(TABLE, name="docs", checkpoints=store, complete=True) as complete:
                kinds: list[Kind] = []
                seen: list[Change] = []

                def changed() -> bool:
                    delivery = complete.next(1)
                    if delivery is not None:
                        kinds.append(delivery.kind)
                        seen.extend(c for c in delivery if c.op is Op.UPDATE)
                    return bool(seen) or (Kind.DELTA in kinds and complete.phase == "online")

                wait_for(changed, 60, what="the delta, and what follows", every=0)
                database.execute("UPDATE docs SET kind = 'd' WHERE id = 1")
                wait_for(
                    lambda: changed() and bool(seen) and seen[-1].after == {"id": 1, "kind": "d"},
                    60,
                    what="it",
                    every=0,
                )
            assert Kind.DELTA in kinds
            assert seen[-1].before == {"id": 1, "kind": "b"}


def answers(rig: BootstrapRig) -> bool:
    try:
        return bool(rig.document())
    except (httpx.HTTPError, psycopg.Error):
        return False
