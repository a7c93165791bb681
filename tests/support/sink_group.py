"""Several `walbus consume orders` on one log, each as on a machine of its own: a group that fills one sink.

with SinkGroup(folder, system, database, {"sink": "postgres", "dsn": …, "into": "{schema}_{partition}"}) as group:
    one, other = group.member("one"), group.member("other")
    group.wait_until_shared_by(2)
    one.send(signal.SIGSTOP)
    group.wait_until_done()             # all parts have what is committed at the source by now
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

import walbus
from support import plain_http
from support.database import Database
from support.waiting import wait_for
from support.walbus_command import Ended, Running, write_config
from support.walbus_command import walbus as run_walbus
from support.whole_system import WholeSystem, make_marker
from walbus.status import read_status

NAME = "orders"


def with_items(database: Database) -> Database:
    """The source, with 500 rows and the table that tells that everything has arrived."""
    database.execute("CREATE TABLE items (id int PRIMARY KEY, note text)")
    database.execute("INSERT INTO items SELECT n, 'first' FROM generate_series(1, 500) n")
    make_marker(database)
    return database


class Member:
    """One process of the group, with a folder of its own."""

    def __init__(self, folder: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
        folder.mkdir()
        self.data_dir = folder / "data"
        self.status_path = self.data_dir / "status" / f"consumer-{NAME}.json"
        self.config = write_config(folder / "walbus.toml", {"source": {"dsn": ""}, **sections}, self.data_dir)
        self.running = Running("consume", NAME, "-c", str(self.config), log=folder / "consume.log")

    @property
    def says(self) -> str:
        """Its log."""
        return self.running.log()

    def status(self) -> dict[str, Any]:
        """What its status file tells."""
        return read_status(self.status_path) or {}

    def command(self, *arguments: str) -> Ended:
        """A command of walbus on its machine."""
        return run_walbus(*arguments, "-c", str(self.config))

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.running.process.send_signal(number)

    def ends(self) -> bool:
        """Whether it has ended."""
        return self.running.process.poll() is not None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        return self.running.stop(number)


class SinkGroup:
    """The members; those that run are killed at the end.

    Args:
        folder: for everything.
        system: capture, relay and bootstrap.
        database: the source.
        section: of the consumer; `parts`, `lease_seconds` and `tables` have a default here.
    """

    def __init__(self, folder: Path, system: WholeSystem, database: Database, section: Mapping[str, object]) -> None:
        self._folder, self._system, self._database = folder, system, database
        self.section = {"parts": 4, "lease_seconds": 3.0, "tables": ["public.*"], **section}
        self.parts = int(str(self.section["parts"]))
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, member in enumerate(self.members):
            if error is not None:
                print(f"last lines of member {number}:\n{member.says[-4000:]}")
            member.running.process.kill()
            member.running.stop()

    def member(self, name: str) -> Member:
        """One more."""
        self.members.append(Member(self._folder / name, self.sections()))
        return self.members[-1]

    def sections(self) -> dict[str, dict[str, object]]:
        """Of a member's configuration."""
        relay: dict[str, object] = {"listen": self._system.relay_url.removeprefix("http://")}
        return {"relay": relay, f"consumer.{NAME}": dict(self.section)}

    def names(self) -> list[str]:
        """Of the parts' consumers."""
        return [f"{NAME}.{part}-of-{self.parts}" for part in range(self.parts)]

    def told(self) -> dict[str, Any]:
        """The group, as the relay tells it."""
        answer = plain_http.get(f"{self._system.relay_url}/v1/groups/{NAME}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return {"members": [], "parts": []}
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    def held(self) -> dict[str, list[int]]:
        """The parts of each member."""
        return {one["name"]: one["parts"] for one in self.told()["members"]}

    def tokens(self) -> list[int]:
        """The token of each part."""
        return [part["token"] for part in self.told()["parts"]]

    def holder_of(self, part: int) -> Member | None:
        """The member that has a part."""
        names = [name for name, parts in self.held().items() if part in parts]
        return next((one for one in self.members if names and one.status().get("member") == names[0]), None)

    def wait_until_shared_by(self, count: int, deadline: float = 90.0) -> None:
        """Until so many members have all parts, about equally many each."""

        def is_shared() -> bool:
            held = self.held()
            counts = [len(parts) for parts in held.values() if parts]
            return len(counts) == count and sum(counts) == self.parts and max(counts) - min(counts) <= 1

        wait_for(is_shared, deadline, what=f"{count} members share the parts", every=0.1)

    def wait_until_done(self, deadline: float = 120.0) -> None:
        """Until each part has durably done what the source had committed when this was called."""
        self._database.execute("UPDATE marker SET n = n + 1")
        lsn = self._database.insert_lsn()  # behind the commit
        with walbus.connect(self._system.relay_url) as bus:
            for name in self.names():
                wait_for(lambda name=name: bus.wait_for(name, lsn, 5), deadline, what=f"{name} has done it", every=0.1)
