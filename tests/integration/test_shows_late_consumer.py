"""The issue's late consumer: added when the relay no longer holds the start, it asks the source for nothing.

Everything real: `walbus run` captures 100 000 changes and trims its log; then two consumers are added, a SQLite replica
by its section in walbus.toml and the README's five lines. Both get all rows through the bootstrap, and follow live.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import plain_http
from support.compare import assert_rows_equal, assert_sinks_equal
from support.database import Database
from support.waiting import wait_for
from support.walbus_command import walbus
from support.whole_system import WholeSystem, make_marker, row_changes
from walbus.lsn import format_lsn
from walbus.position import parse_position
from walbus.records import Op

pytestmark = pytest.mark.one_version

FIVE_LINES = re.search(
    r"## Five lines\n+```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL
)

#: Orders that are there before Walbus is; the others come through the log.
SEEDED = 10_000
#: Orders and articles when the late consumers come.
ROWS = SEEDED + 50_000 - 6_000 + 14_000 + 500
SMALL_RELAY = {"segment_bytes": 256 << 10, "retention_bytes": 1 << 20}


class _UserLeft(BaseException):
    """Ends the five lines as Ctrl-C would. A KeyboardInterrupt out of `exec` makes Python end the whole process by
    SIGINT when it exits, whoever caught it: all tests passed, and `make test` failed."""


class FiveLines:
    """The README's program in a thread, word for word but for the address; `print` is the user's code.

    Attributes:
        orders: the rows by id, as the printed changes leave them.
        printed: changes so far.
    """

    def __init__(self) -> None:
        self.orders: dict[int, dict[str, Any]] = {}
        self.printed = 0
        self._last = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread()

    def start(self, relay_url: str, *, last: int) -> None:
        """Runs until an order is printed, which it leaves uncommitted."""
        assert FIVE_LINES is not None
        program = FIVE_LINES[1].replace("http://127.0.0.1:7070", relay_url)
        assert relay_url in program
        self.printed, self._last = 0, last
        self._thread = threading.Thread(target=self._run, args=(program,), daemon=True)
        self._thread.start()

    def ended(self) -> None:
        """Waits until the last order was printed."""
        self._thread.join(120)
        assert not self._thread.is_alive(), f"the five lines printed {self.printed} changes, and not the last one"
        if self._error is not None:
            raise self._error

    def _run(self, program: str) -> None:
        try:
            exec(program, {"print": self._print})
        except _UserLeft:
            return
        except BaseException as error:
            self._error = error

    def _print(self, op: str, key: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        if key is None:
            return  # an event of a layout
        self.printed += 1
        if op == Op.DELETE.name:
            self.orders.pop(key["id"], None)
        else:
            assert after is not None
            self.orders[key["id"]] = dict(after)
        if key["id"] == self._last:
            raise _UserLeft


@pytest.fixture
def in_folder(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The five lines keep their checkpoint below the current folder."""
    monkeypatch.chdir(open_folder)
    return open_folder


@pytest.fixture
def source(database: Database) -> Iterator[Database]:
    """Two tables, without autovacuum, whose looks at a table are not Walbus's."""
    quiet = "WITH (autovacuum_enabled = off)"
    database.execute(f"CREATE TABLE orders (id bigint PRIMARY KEY, item text, price numeric(10,2)) {quiet}")
    database.execute(f"CREATE TABLE articles (id int PRIMARY KEY, title text, body text) {quiet}")
    database.execute("ALTER TABLE articles ALTER body SET STORAGE EXTERNAL")
    database.execute("INSERT INTO orders SELECT n, 'item ' || n, n / 100.0 FROM generate_series(1, %s) n", [SEEDED])
    make_marker(database)
    yield database


def change_many_rows(database: Database) -> int:
    """101 100 changes; where the 14 000 small transactions at their end begin.

    The articles' texts are out of line, and updates do not send them.
    """
    for statement in (
        "INSERT INTO orders SELECT n, 'item ' || n, n / 100.0 FROM generate_series(10001, 60000) n",
        "UPDATE orders SET price = price + 1 WHERE id % 2 = 0",
        "DELETE FROM orders WHERE id % 10 = 3",
        "INSERT INTO articles SELECT n, 'title', repeat(n::text, 800) FROM generate_series(1, 500) n",
        "UPDATE articles SET title = 'title ' || id",
        "UPDATE articles SET id = id + 1000 WHERE id % 5 = 0",
    ):
        database.execute(statement)
    small = database.insert_lsn()
    insert = "INSERT INTO orders VALUES (100000 + i, 'small', i)"
    database.execute(f"DO $$ BEGIN FOR i IN 1..14000 LOOP {insert}; COMMIT; END LOOP; END $$")
    return small


def a_system(folder: Path, database: Database, **consumers: dict[str, object]) -> WholeSystem:
    return WholeSystem(folder, database.dsn, consumers, source={"slot": f"s_{database.name}"}, relay=SMALL_RELAY)


def test_a_consumer_added_when_the_start_is_trimmed_gets_all_rows_without_a_read_of_the_source(
    source: Database, in_folder: Path
) -> None:
    source.needs(15, "counting reads at once (pg_stat_force_next_flush)")
    with a_system(in_folder, source) as system:
        start = change_and_trim(source, system)
        check_that_the_start_is_gone(system, start)
        assert system.stop() == 0
    before = reads_of_tables(source)
    assert before["orders"] > (0, 0, 0, 0), "reads are counted"

    five_lines = FiveLines()
    with a_system(in_folder, source, cache={"sink": "sqlite"}) as system:
        system.start()
        system.wait_until_streaming()
        five_lines.start(system.relay_url, last=300_000)
        source.execute("INSERT INTO orders SELECT n, 'live', 1 FROM generate_series(200001, 201000) n")
        wait_for(lambda: five_lines.printed > ROWS - 500, 120, what="the snapshot is printed")
        source.execute("INSERT INTO orders VALUES (300000, 'last', 0)")
        five_lines.ended()
        system.wait_until_at_rest(source)
        assert system.status("consumer-cache")["snapshot_rows"] >= ROWS
        assert system.stop() == 0
    assert reads_of_tables(source) == before
    check_that_both_equal_the_source(source, system, five_lines)

    with a_system(in_folder, source, cache={"sink": "sqlite"}) as system:
        system.start()
        system.wait_until_streaming()
        five_lines.start(system.relay_url, last=0)
        source.execute("UPDATE orders SET item = 'changed' WHERE id BETWEEN 200001 AND 200500")
        source.execute("DELETE FROM orders WHERE id BETWEEN 200900 AND 299999")
        source.execute("UPDATE articles SET id = -id, title = 'turned'")
        source.execute("ALTER TABLE orders ADD note text")
        source.execute("UPDATE orders SET note = 'noted' WHERE id BETWEEN 10000 AND 10100")
        source.execute("INSERT INTO orders VALUES (0, 'last', 0)")
        five_lines.ended()
        assert five_lines.printed < 1_000, "a later call goes on behind the last commit"
        system.wait_until_at_rest(source)
        assert system.status("consumer-cache")["snapshot_rows"] == 0
        check_that_both_equal_the_source(source, system, five_lines)
        assert system.stop() == 0
        assert "Traceback" not in system.log()


def change_and_trim(database: Database, system: WholeSystem) -> int:
    """Makes the changes; the LSN that they began at, once the relay holds none but small transactions of the end."""
    system.start()
    system.wait_until_streaming()
    wait_for(lambda: set(states(system).values()) == {"consistent"}, 120, what="the tables are seeded", every=0.1)
    start = database.insert_lsn()
    small = change_many_rows(database)
    system.wait_until_at_rest(database)
    wait_for(lambda: trimmed_lsn(system) > small, 60, what="the relay has trimmed the start", every=0.1)
    return start


def states(system: WholeSystem) -> dict[str, str]:
    document = plain_http.get(f"{system.info()['bootstrap']}/v1/tables").raise_for_status().json()
    return {table["table"]: table["state"] for table in document["tables"]}


def trimmed_lsn(system: WholeSystem) -> int:
    return parse_position(system.info()["trimmed"]).commit_lsn


def check_that_the_start_is_gone(system: WholeSystem, start: int) -> None:
    """410 where one asks for what is trimmed, with the way out of it; `earliest` is what is left."""
    info = system.info()
    for place in ({"after": "0:0/0:0"}, {"after": f"1:{format_lsn(start)}:0"}, {"from": f"1:{format_lsn(start)}:1"}):
        asked = {**place, "follow": "false"}
        answer = plain_http.get(f"{system.relay_url}/v1/stream", params=asked)
        assert answer.status_code == 410, place
        told = answer.json()
        assert (told["bootstrap"], told["log_id"]) == (info["bootstrap"], info["log_id"])
        before, then, now = (parse_position(one["trimmed"]) for one in (info, told, system.info()))
        assert before <= then <= now  # the bootstrap may just have let go of more
        assert told["error"]
        assert told["mend"]
    first = row_changes(system.tail())[0]
    assert parse_position(first["position"]) > parse_position(info["trimmed"])
    ended = walbus("tail", "--from", f"1:{format_lsn(start)}:1", "--until", "latest", "-c", str(system.config))
    assert ended.code == 1
    assert "no longer" in ended.one_line()


def reads_of_tables(database: Database) -> dict[str, tuple[int, ...]]:
    """What PostgreSQL counted of reads, by table, once every session but ours has ended and so told its counts."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wait_for(lambda: database.value(others) == 0, 60, what="the sessions of Walbus have ended")
    database.execute("SELECT pg_stat_force_next_flush()")
    rows = database.execute(
        "SELECT relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch FROM pg_stat_user_tables"
        " WHERE relname IN ('orders', 'articles')"
    )
    return {name: tuple(counts) for name, *counts in rows}


def check_that_both_equal_the_source(database: Database, system: WholeSystem, five_lines: FiveLines) -> None:
    assert_sinks_equal(database.dsn, cache=system.data_dir / "consumers" / "cache" / "cache.sqlite")
    attributes = database.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0")
    columns = dict.fromkeys(name for (name,) in attributes)  # a row printed before a column was added lacks it
    rows = [columns | row | {"price": str(row["price"])} for row in five_lines.orders.values()]
    assert_rows_equal("the five lines", database.dsn, {"public.orders": rows})
