"""A bootstrap that is killed while a consumer reads its snapshot: the consumer goes on in the middle, and is right.

The rows change meanwhile, those that were read already and those that were not: the rest comes as of a later state, and
the log is replayed from the earlier one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import walbus as library
from support.compare import assert_rows_equal, assert_sinks_equal
from support.database import Database
from support.tcp_proxy import TcpProxy
from support.waiting import wait_for
from support.whole_system import WholeSystem, make_marker, standing_still
from walbus.consumers import Subscription
from walbus.consumers.checkpoint import Checkpoint, Snapshotting, load_checkpoint
from walbus.consumers.deliveries import Delivery
from walbus.events import Change
from walbus.records import Kind, Op

pytestmark = pytest.mark.one_version

#: 64 MB, more than lies in sockets and queues when the server dies; each note is stored out of line.
ROWS, NOTE = 20_000, "repeat(md5(n::text), 100)"

#: Bytes of an answer with rows behind which nothing more comes, until its server is killed.
PART = 16 << 20


@pytest.fixture
def source(database: Database) -> Database:
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, state text, note text)")
    database.execute("ALTER TABLE items ALTER note SET STORAGE EXTERNAL")
    database.execute(f"INSERT INTO items SELECT n, 'first', {NOTE} FROM generate_series(1, {ROWS}) n")
    make_marker(database)
    return database


def a_system(
    folder: Path, database: Database, bootstrap: dict[str, object] | None = None, **consumers: dict[str, object]
) -> WholeSystem:
    source = {"slot": f"s_{database.name}"}
    return WholeSystem(folder, database.dsn, consumers, source=source, bootstrap=bootstrap or {})


def change_all_over(database: Database, number: int) -> None:
    """Changes before and behind any place in the table; most do not send the notes."""
    step = 50 + number
    database.execute("UPDATE items SET state = %s WHERE id %% %s = 0", [f"round {number}", step])
    database.execute("DELETE FROM items WHERE id %% %s = 1", [step])
    database.execute(
        f"INSERT INTO items SELECT n, 'new', {NOTE} FROM generate_series(%s::int, %s) n",
        [ROWS + number * 100 + 1, ROWS + number * 100 + 100],
    )


@pytest.mark.parametrize("moves", [False, True], ids=["", "with rows that move"])
def test_a_sink_resumes_in_the_middle_of_a_snapshot_whose_server_was_killed(
    source: Database, open_folder: Path, moves: bool
) -> None:
    with TcpProxy(0) as proxy, a_system(open_folder, source, by_way_of(proxy), cache={"sink": "sqlite"}) as system:
        proxy.target = int(system.bootstrap_url.rpartition(":")[2])
        replica = system.data_dir / "consumers" / "cache" / "cache.sqlite"
        system.start()
        system.wait_until_streaming()
        stuck = 0
        for number in (0, 1):
            wait_for(
                lambda n=number, stuck=stuck: reads_after(system, n) and proxy.cuts > stuck and amid_snapshot(replica),
                90,
                what="rows are read",
            )
            with standing_still(system, "consumer-cache"):
                assert amid_snapshot(replica), f"the snapshot was over after {number} kills"
                change_all_over(source, number)
                if moves:  # into the part that was read, without their notes
                    source.execute("UPDATE items SET id = -id WHERE id BETWEEN %s AND %s", [ROWS - 100, ROWS])
                wait_for(lambda: system.kill("bootstrap"), 60, what="the bootstrap runs, to be killed")
                if number == 1:
                    proxy.stream_bytes, proxy.again = None, 0
                proxy.reset()
                stuck = proxy.cuts
        system.wait_until_at_rest(source)
        assert_sinks_equal(source.dsn, cache=replica)
        assert ("consumer.rows_incomplete" in system.log()) == moves
        if not moves:
            assert ROWS * 0.9 < system.status("consumer-cache")["snapshot_rows"] < ROWS * 1.1, "no row was read twice"
        assert system.children()["consumer-cache"]["restarts"] == 0
        assert system.children()["bootstrap"]["restarts"] == 2
        assert system.stop() == 0


def by_way_of(proxy: TcpProxy) -> dict[str, object]:
    """Has consumers read from the bootstrap through a proxy, in which the items' rows get stuck in the middle.

    However slow the machine is, the snapshot is not over when the test looks: who reads waits fifteen seconds for more.
    """
    proxy.starts, proxy.stalls, proxy.stream_bytes, proxy.again = b"table=public.items", True, PART, 1000
    return {"url": f"http://127.0.0.1:{proxy.port}"}


def reads_after(system: WholeSystem, kills: int) -> bool:
    """Whether the consumer reads again after so many kills."""
    parts = system.log().split("died; it will be started again")
    return len(parts) == kills + 1 and "event=consumer.reading" in parts[-1]


def amid_snapshot(replica: Path) -> bool:
    """Whether some of the items' rows are committed, and not all."""
    match checkpoint_of(replica):
        case Snapshotting(tables=tables):
            return any(t.table == "public.items" and t.after_key is not None and not t.done for t in tables)
    return False


def checkpoint_of(replica: Path) -> Checkpoint | None:
    with closing(sqlite3.connect(f"file:{replica}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT checkpoint FROM _walbus_checkpoint").fetchone()
    return load_checkpoint(row[0]) if row else None


class Reader:
    """A program that keeps the items as the library gives them.

    Attributes:
        items: rows by id.
        read: ids of the snapshot's rows, in the order in which they came.
    """

    def __init__(self) -> None:
        self.items: dict[int, dict[str, Any]] = {}
        self.read: list[int] = []
        self._seqs: dict[int, int] = {}

    def take(self, delivery: Delivery) -> None:
        """As the library's documentation asks: of two changes of a key, the one with the larger seq counts."""
        for change in delivery:
            if change.key is not None:
                self._apply(change.key["id"], change)
        if delivery.kind == Kind.SNAPSHOT:
            self.read += [change.key["id"] for change in delivery if change.key is not None]
        delivery.commit()

    def _apply(self, key: int, change: Change) -> None:
        if change.seq <= self._seqs.get(key, -1):
            return
        self._seqs[key] = change.seq
        if change.op is Op.DELETE:
            self.items.pop(key, None)
        else:
            self.items[key] = {**self.items.get(key, {}), **(change.after or {})}


def test_a_subscription_reads_each_row_of_a_snapshot_once_however_often_server_and_reader_end(
    source: Database, open_folder: Path
) -> None:
    reader = Reader()
    with a_system(open_folder, source) as system:
        system.start()
        system.wait_until_streaming()
        for number in range(1, 4):
            with library.connect(system.relay_url, folder=open_folder / "checkpoints") as bus:
                subscription = bus.subscribe("public.items", name="reader")
                read_on(reader, subscription, lambda number=number: len(reader.read) > (2 * number - 1) * ROWS // 8)
                change_all_over(source, 2 * number - 1)
                assert system.kill("bootstrap")
                read_on(reader, subscription, lambda number=number: len(reader.read) > 2 * number * ROWS // 8)
                assert subscription.phase == "snapshot"
            change_all_over(source, 2 * number)
        source.execute("INSERT INTO items VALUES (0, 'last', '')")
        with library.connect(system.relay_url, folder=open_folder / "checkpoints") as bus:
            read_on(reader, bus.subscribe("public.items", name="reader"), lambda: 0 in reader.items)
        assert reader.read == sorted(set(reader.read)), "each row once, in the order of the keys"
        assert len(reader.read) > ROWS * 0.8
        assert_rows_equal("the reader", source.dsn, {"public.items": reader.items.values()})
        assert system.children()["bootstrap"]["restarts"] == 3
        assert system.stop() == 0


def read_on(reader: Reader, subscription: Subscription, enough: Callable[[], bool]) -> None:
    """Reads until there is enough; fails when nothing comes for a long time."""

    def one() -> bool:
        delivery = subscription.next(1.0)
        if delivery is not None:
            reader.take(delivery)
        return delivery is not None

    while not enough():
        wait_for(one, 60, what="the next window")
