"""All of Walbus on one database: `walbus run` as a process, told by its files, and checked at rest.

with WholeSystem(folder, database.dsn, sinks=("sqlite",)) as system:
    system.start()
    system.wait_until_streaming()
    ...                                     # workload, faults
    system.wait_until_at_rest(database.insert_lsn())
    lines = system.tail()
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support import plain_http
from support.compare import assert_sinks_equal
from support.database import Database
from support.log_view import log_transactions
from support.oracle import Oracle, OracleTransaction
from support.processes import alive
from support.waiting import wait_for
from support.walbus_command import Running, walbus, write_config
from walbus.demo.postgres import free_port
from walbus.lsn import format_lsn
from walbus.position import Position, parse_position
from walbus.relay import open_reader
from walbus.status import read_status

Section = Mapping[str, object]


class WholeSystem:
    """`walbus run` and what it keeps.

    Args:
        folder: for everything.
        dsn: of the source.
        consumers: `[consumer.NAME]` sections by name. `check` knows `cache` (SQLite) and `search` (tantivy) with
            their default paths, and any Redis.
        sections: further sections, or keys of those that are made here.
    """

    def __init__(self, folder: Path, dsn: str, consumers: Mapping[str, Section], **sections: Section) -> None:
        self.data_dir = folder / "data"
        self.relay_url = f"http://127.0.0.1:{free_port()}"
        self.bootstrap_url = f"http://127.0.0.1:{free_port()}"
        self.consumers = list(consumers)
        self._redis_url = next((str(c["url"]) for c in consumers.values() if c["sink"] == "redis"), None)
        self._log_path = folder / "walbus.log"
        made: dict[str, dict[str, object]] = {
            "source": {"dsn": dsn},
            "relay": {"listen": self.relay_url.removeprefix("http://")},
            "bootstrap": {"listen": self.bootstrap_url.removeprefix("http://")},
        }
        for name, section in sections.items():
            made.setdefault(name, {}).update(section)
        made |= {f"consumer.{name}": dict(section) for name, section in consumers.items()}
        self.config = write_config(folder / "walbus.toml", made, self.data_dir)
        self._running: Running | None = None
        self._late: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"last lines of walbus run:\n{self.log()[-6000:]}")
        pids = [pid for pid in map(self.pid, self.children()) if pid]
        for running in (self._running, *self._late):
            if running is not None:
                running.process.kill()
                running.stop()
        wait_for(lambda: not any(map(alive, pids)), what="no room outlives the supervisor")  # nor the database

    def start(self) -> None:
        """Starts `walbus run`."""
        self._running = Running("run", "-c", str(self.config), log=self._log_path)

    def add_consumer(self, name: str, sink: str) -> None:
        """Starts a consumer that was not there from the beginning, by itself."""
        with self.config.open("a") as file:
            file.write(f'[consumer.{name}]\nsink = "{sink}"\n')
        self.consumers.append(name)
        self._late.append(Running("consume", name, "-c", str(self.config), log=self._log_path))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        assert self._running is not None
        return self._running.stop(number)

    def kill_supervisor(self) -> None:
        """SIGKILL to `walbus run`; returns when its rooms are gone too."""
        assert self._running is not None
        pids = [pid for pid in map(self.pid, self.children()) if pid]
        self._running.process.kill()
        self._running.stop()
        wait_for(lambda: not any(map(alive, pids)), 30, what="no room outlives the supervisor")
        (self.data_dir / "status" / "supervisor.json").unlink(missing_ok=True)  # the next one tells of its own rooms

    def log(self) -> str:
        """What it said."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def alive(self) -> bool:
        """Whether `walbus run` runs."""
        return self._running is not None and self._running.process.poll() is None

    def children(self) -> dict[str, dict[str, Any]]:
        """What the supervisor tells of each process."""
        status = read_status(self.data_dir / "status" / "supervisor.json") or {}
        children: dict[str, dict[str, Any]] = status.get("children", {})
        return children

    def pid(self, name: str) -> int | None:
        """A room's process number, while it runs."""
        return self.children().get(name, {}).get("pid")

    def kill(self, name: str) -> bool:
        """SIGKILL to a room; False if it does not run at this moment."""
        pid = self.pid(name)
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def status(self, name: str) -> dict[str, Any]:
        """A room's status file."""
        return read_status(self.data_dir / "status" / f"{name}.json") or {}

    def info(self) -> dict[str, Any]:
        """The relay's `/v1/info`."""
        document: dict[str, Any] = plain_http.get(f"{self.relay_url}/v1/info").json()
        return document

    def wait_until_streaming(self, deadline: float = 120.0) -> None:
        """Waits until capture streams and the relay serves the log."""
        wait_for(
            lambda: self._checked_alive() and self.status("capture").get("state") == "streaming" and self.info()["end"],
            deadline,
            what="walbus run streams",
        )

    def wait_until_at_rest(self, database: Database, deadline: float = 120.0) -> None:
        """Waits until everything committed so far is in the log and in every sink; nothing else may write meanwhile.

        A last transaction tells that the log is complete; it changes the table `marker` (`make_marker`).
        """
        database.execute("UPDATE marker SET n = n + 1")
        lsn = database.insert_lsn()  # behind the commit: up to a place before it the log may be complete without it
        wait_for(lambda: self._checked_alive() and self.end().commit_lsn >= lsn, deadline, what="the log is complete")
        end = self.end()
        for name in self.consumers:
            wait_for(
                lambda name=name: self._checked_alive() and self._arrived(name, end),
                deadline,
                what=f"consumer {name} reaches {end}",
                every=0.1,
            )

    def _arrived(self, consumer: str, end: Position) -> bool:
        status = self.status(f"consumer-{consumer}")
        return status["phase"] == "online" and parse_position(status["last_done"]) >= end

    def end(self) -> Position:
        """The log's end."""
        return parse_position(self.info()["end"])

    def tail(self, *arguments: str) -> list[dict[str, Any]]:
        """The changes that `walbus tail` prints from the earliest to the latest."""
        options = ("--from", "earliest", "--until", "latest", "--format", "json", *arguments)
        ended = walbus("tail", *options, "-c", str(self.config), deadline=120)
        assert ended.code == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def check(self, database: Database, truth: Oracle) -> None:
        """At rest: the log and `walbus tail` equal what a second slot saw, and every sink equals the source."""
        expected = truth.transactions()
        with closing(open_reader(self.data_dir / "relay")) as reader:
            assert [one for one in log_transactions(reader) if one.xid] == expected
        check_tail([line for line in row_changes(self.tail()) if not line.get("net")], expected)
        folders = {name: self.data_dir / "consumers" / name for name in self.consumers}
        cache, search = folders.get("cache"), folders.get("search")
        assert_sinks_equal(
            database.dsn,
            cache=cache and cache / "cache.sqlite",
            search=search and search / "index",
            redis_url=self._redis_url,
        )

    def _checked_alive(self) -> bool:
        assert self.alive(), f"walbus run ended:\n{self.log()[-6000:]}"
        return True


@contextmanager
def standing_still(system: WholeSystem, room: str) -> Iterator[None]:
    """A room's process is stopped (SIGSTOP) meanwhile."""
    pid = system.pid(room)
    assert pid is not None, f"{room} does not run"
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def make_marker(database: Database) -> None:
    """Makes the table whose change tells that everything before it has arrived."""
    database.execute("CREATE TABLE marker (id int PRIMARY KEY, n int NOT NULL)")
    database.execute("INSERT INTO marker VALUES (1, 0)")


def check_tail(lines: list[dict[str, Any]], expected: list[OracleTransaction]) -> None:
    """Each change once, in commit order, under its position and with increasing seqs."""
    wanted = [
        (f"1:{format_lsn(transaction.commit_lsn)}:{ordinal}", change.op, change.key)
        for transaction in expected
        for ordinal, change in enumerate(transaction.changes, 1)
    ]
    assert [(line["position"], line["op"], _key_of(line)) for line in lines] == wanted
    assert all(first["seq"] < second["seq"] for first, second in pairwise(lines))


def _key_of(line: dict[str, Any]) -> tuple[str, ...] | None:
    return tuple(str(value) for value in line["key"].values()) if "key" in line else None


def row_changes(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those lines of a tail that are changes of rows and tables."""
    return [line for line in lines if line["op"] in {"insert", "update", "delete", "truncate"}]
