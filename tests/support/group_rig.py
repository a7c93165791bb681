"""Members of one group as processes, the log that they read, and what they say that they did.

group.source.write()                 rows for all parts
first = group.member("first")        a process; see `support.group_process`
group.wait(lambda: group.is_shared_by(1), 60, what="it has all parts")
group.are_whole()                    every row was handled, and no two members had one part at a time
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from support import group_process
from support.kafka_log import KafkaEngine, patiently
from support.relay_log import FileEngine, table_schema
from support.relay_server import rows_of
from support.waiting import wait_for

PARTS = 4


class Row(NamedTuple):
    part: str
    token: int
    seq: int
    id: int


class Source:
    """A log of rows, each in a transaction of its own."""

    def __init__(self, engine: FileEngine | KafkaEngine) -> None:
        self.engine = engine
        self._writer = self._opened()
        self._schema, _ = self._writer.schemas.register(table_schema("orders", 1))
        self.count = 0

    def _opened(self) -> Any:
        """A cluster that has only just begun, or lost a broker, lets nobody write for a while."""
        return wait_for(self.engine.open_writer, 120, what="the log takes a writer", every=0.5)

    def begin_anew(self) -> None:
        """With another writer, behind what was written."""
        self.engine.kill(self._writer)
        self._writer = self._opened()

    def write(self, count: int = 20) -> None:
        for _ in range(count):
            self.count += 1
            row = rows_of(self._schema, self.count * 16, range(self.count, self.count + 1))
            patiently(lambda row=row: self._writer.append(row))
        patiently(self._writer.sync)


class Process:
    """A member; its files and what it says are in `folder`."""

    def __init__(self, url: str, folder: Path, name: str, lease: float) -> None:
        self.name, self.folder = name, folder
        self._says = (folder / f"{name}.says").open("ab")
        arguments = [url, str(folder), name, str(PARTS), str(lease)]
        environment = {**os.environ, "PYTHONPATH": str(Path(group_process.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, group_process.__file__, *arguments], stdout=self._says, stderr=self._says, env=environment
        )

    @property
    def says(self) -> str:
        return (self.folder / f"{self.name}.says").read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def hold(self) -> None:
        """Has each of its parts stand still in the middle of the window that it gets next."""
        (self.folder / f"{self.name}.hold").touch()

    def holds(self) -> int:
        """How many of its parts stand still so."""
        return len(list(self.folder.glob(f"{self.name}.*.holding")))

    def let_go(self) -> None:
        (self.folder / f"{self.name}.hold").unlink()

    def end(self) -> int:
        self.send(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._says.close()


class Group(ABC):
    """Members of one group.

    Args:
        folder: for the files of all.
        engine: of the log.
        lease: of members that begin from now on, in seconds.
    """

    def __init__(self, folder: Path, engine: FileEngine | KafkaEngine, lease: float) -> None:
        self.folder, self.lease = folder, lease
        self.source = Source(engine)
        self.made: list[Process] = []

    @property
    @abstractmethod
    def url(self) -> str:
        """Where members read."""

    @abstractmethod
    def held(self) -> dict[str, list[int]]:
        """The parts of each member, by the word of who hands them out."""

    def member(self, name: str) -> Process:
        self.made.append(Process(self.url, self.folder, name, self.lease))
        return self.made[-1]

    def is_shared_by(self, count: int) -> bool:
        """Whether so many members have all parts, equally many each."""
        return sorted(map(len, self.held().values())) == [PARTS // count] * count

    def rows(self, name: str | None = None) -> list[Row]:
        found = []
        for process in self.made:
            path = self.folder / f"{process.name}.taken"
            if name in (None, process.name) and path.exists():
                lines = [line.split() for line in whole_lines(path)]
                found += [Row(one[1], int(one[2]), int(one[3]), int(one[4])) for one in lines if one[0] == "row"]
        return found

    def commits(self) -> list[tuple[str, int, int]]:
        lines = [line.split() for path in self.folder.glob("*.taken") for line in whole_lines(path)]
        return sorted((one[1], int(one[2]), int(one[3])) for one in lines if one[0] == "committed")

    def all_are_there(self) -> bool:
        return {row.id for row in self.rows()} == set(range(1, self.source.count + 1))

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Waits; what members said stands in the failure."""
        try:
            wait_for(condition, seconds, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def are_whole(self) -> None:
        """Waits until every row is with somebody; then no two members have had one part at a time."""
        self.wait(self.all_are_there, 60, what="every row to be handled")
        firsts: dict[tuple[str, int], int] = {}
        for row in self.rows():
            at = row.part, row.token
            firsts[at] = min(row.seq, firsts.get(at, row.seq))
        for part, token, seq in self.commits():
            later = [first for (other, after), first in firsts.items() if other == part and after > token]
            assert all(seq < first for first in later), "who had the part later went on behind the last commit"

    def told(self) -> str:
        return "\n".join(f"--- {process.name}\n{process.says[-3000:]}" for process in self.made)

    def close(self) -> None:
        for process in self.made:
            process.close()
        self.close_server()
        self.source.engine.close()

    @abstractmethod
    def close_server(self) -> None:
        """Ends what only this group has, behind its members."""


def whole_lines(path: Path) -> list[str]:
    """Those of a file that is written to."""
    return path.read_text().rpartition("\n")[0].splitlines()
