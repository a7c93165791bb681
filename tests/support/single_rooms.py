"""All of Walbus on one database, each room started by itself: for tests in which none ends before they say so.

Starting them again, stopping them in order and passing on what they say is the business of `walbus run`, which
`WholeSystem` has. Here a room that ends by itself fails the test, and a start takes a tenth (`support.started_copy`).
"""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

from support.walbus_command import Running
from support.whole_system import Section, WholeSystem
from walbus.cli.run import children_of
from walbus.config import load_settings


class SingleRooms(WholeSystem):
    """As `WholeSystem`, without a supervisor."""

    def __init__(self, *arguments: Any, **sections: Section) -> None:
        self._rooms: dict[str, Running] = {}
        super().__init__(*arguments, **sections)

    def start(self) -> None:
        """Starts every room of the configuration."""
        children = children_of(load_settings(self.config), self.config)
        self._rooms = {child.name: Running(*child.arguments, log=self._log_path) for child in children}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stops them by a signal, readers before what they read; the highest exit code."""
        codes = [room.stop(number) for room in reversed(self._rooms.values())]
        self._rooms = {}
        return max(codes)

    def alive(self) -> bool:
        """Whether all of them run."""
        return bool(self._rooms) and all(room.process.poll() is None for room in self._rooms.values())

    def children(self) -> dict[str, dict[str, Any]]:
        """As the supervisor would tell of them."""
        return {name: {"pid": room.process.pid, "restarts": 0} for name, room in self._rooms.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for room in self._rooms.values():
            room.process.kill()
            room.process.wait()
        super().__exit__(kind, error, trace)
