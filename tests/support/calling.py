"""Callbacks that write down what they are told, and a run of them in a thread, by either client.

calls = Recorder(refuse=lambda change: change.key == {"id": 2})
with calling(way, relay.url, tmp_path, calls, Failures("skip")) as run:      # way: "threads" or "asyncio"
    wait_for(lambda: 3 in calls.ids)
run.error          # what the run raised, behind the block
calls.run          # the run, for what a Recorder does when it is called
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import walbus
from support.waiting import wait_for
from walbus.consumers import AsyncCallbacks, Callbacks, Delivered, Failures, Sweep
from walbus.events import Change
from walbus.position import Position
from walbus.records import Op

_ROWS = (Op.INSERT, Op.UPDATE, Op.DELETE)


class Recorder(Callbacks):
    """Writes down every call; raises what `refuse` says of a change, or what `raising` says of another callback."""

    def __init__(self, refuse: Callable[[Change], object] = lambda _: False) -> None:
        self.refuse = refuse
        self.raising: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []
        self._rows: tuple[list[Change], list[Change]] = [], []  # durable, and taken since; another thread reads both
        self.errors: list[tuple[Exception, Change | None]] = []
        self.rolled_back: list[Position] = []
        self.phases: set[str] = set()
        self.run: Run

    @property
    def durable(self) -> list[Change]:
        """The rows up to the last checkpoint."""
        return self._rows[0]

    @property
    def taken(self) -> list[Change]:
        """The rows since the last checkpoint."""
        return self._rows[1]

    @property
    def ids(self) -> list[object]:
        """Of the rows that were taken and not rolled back, in order."""
        durable, taken = self._rows
        return [(change.key or {}).get("id") for change in (*durable, *taken)]

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.raising:
            self.raising[name]()

    def on_start(self) -> None:
        self._called("start")

    def on_bootstrap_start(self) -> None:
        self._called("bootstrap_start")

    def on_bootstrap_end(self) -> None:
        self._called("bootstrap_end")

    def on_window_start(self, window: Delivered) -> None:
        self.phases.add(window.phase)
        self._called("window_start")

    def on_change(self, change: Change, window: Delivered) -> None:
        if change.op not in _ROWS:
            return
        self._called("change")
        if self.refuse(change):
            raise ValueError("a row that is refused")
        self.taken.append(change)

    def on_sweep(self, sweep: Sweep) -> None:
        self._called("sweep")

    def on_window_end(self, window: Delivered) -> None:
        self._called("window_end")

    def on_checkpoint(self, position: Position) -> None:
        self._called("checkpoint")
        self._rows = [*self.durable, *self.taken], []

    def on_rollback(self, position: Position) -> None:
        self.rolled_back.append(position)
        self._rows = self.durable, []
        self._called("rollback")

    def on_error(self, error: Exception, change: Change | None) -> None:
        self.errors.append((error, change))
        self._called("error")

    def on_stop(self) -> None:
        self._called("stop")


def awaited(calls: Callbacks) -> AsyncCallbacks:
    """The same consumer for asyncio."""

    def made(name: str) -> Callable[..., Any]:
        async def call(_: object, *arguments: Any) -> None:
            await asyncio.sleep(0)
            getattr(calls, name)(*arguments)

        return call

    names = [name for name in dir(AsyncCallbacks) if name.startswith("on_")]
    return type("Awaited", (AsyncCallbacks,), {name: made(name) for name in names})()


class Run:
    """A run in a thread."""

    def __init__(self, way: str, url: str, folder: Path, calls: Callbacks, failures: Failures, options: Any) -> None:
        self._url, self._folder, self._calls, self._failures, self._options = url, folder, calls, failures, options
        self.error: BaseException | None = None
        self.subscription: Any = None
        self._thread = threading.Thread(target=self._run, args=(self._threads if way == "threads" else self._asyncio,))

    def start(self) -> None:
        self._thread.start()

    def ended(self) -> BaseException | None:
        """Waits until it ends by itself."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error

    def stop(self) -> BaseException | None:
        wait_for(lambda: self.subscription is not None or not self._thread.is_alive(), what="it subscribes, or ends")
        if self.subscription is not None:
            self.subscription.stop()
        return self.ended()

    def _run(self, target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            self.error = error

    def _arguments(self) -> dict[str, Any]:
        return {"name": "caller", "start": "earliest"} | self._options

    def _threads(self) -> None:
        with walbus.connect(self._url, folder=self._folder) as bus:
            self.subscription = bus.subscribe("public.*", **self._arguments())
            self.subscription.run(self._calls, self._failures, checkpoint_seconds=0.05)

    def _asyncio(self) -> None:
        async def run() -> None:
            async with walbus.aconnect(self._url, folder=self._folder) as bus:
                self.subscription = bus.subscribe("public.*", **self._arguments())
                await self.subscription.run(awaited(self._calls), self._failures, checkpoint_seconds=0.05)

        asyncio.run(run())


@contextmanager
def calling(
    way: str, url: str, folder: Path, calls: Callbacks, failures: Failures | None = None, **options: Any
) -> Iterator[Run]:
    run = Run(way, url, folder, calls, failures or Failures(attempts=3, first_pause=0.01, longest_pause=0.02), options)
    if isinstance(calls, Recorder):
        calls.run = run
    run.start()
    try:
        yield run
    finally:
        run.stop()
