"""`run_consumer` in a thread of the test.

with consumer(relay, under_test) as running:
    equal(under_test, relay)         # waits until the sink equals the source
    followed(running, under_test, relay, update(ITEMS, 1, name="x"))     # ... and has its checkpoint
    running.status()                 # the status file
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.model_source import Edit, ModelSource
from support.scripted_relay import ScriptedRelay
from support.sinks_under_test import SinkUnderTest
from support.waiting import wait_for
from walbus.config import ConsumerConfig
from walbus.consumers import run_consumer
from walbus.errors import WalbusError
from walbus.status import read_status


class RunningConsumer:
    """`run_consumer` in a thread; `stop` gives what it raised."""

    def __init__(self, relay: ScriptedRelay, kind: str, options: dict[str, Any], folder: Path) -> None:
        self.status_path = folder / "consumer-test.json"
        self.status_path.unlink(missing_ok=True)  # what an earlier one told is not this one's
        self._stop = threading.Event()
        self._error: WalbusError | None = None
        config = ConsumerConfig(sink=kind, **{"tables": ("public.*",), **options})
        self._thread = threading.Thread(target=self._run, args=(config, relay.url, folder))
        self._thread.start()

    def _run(self, config: ConsumerConfig, url: str, folder: Path) -> None:
        try:
            run_consumer("test", config, relay_url=url, folder=folder, status_path=self.status_path, stop=self._stop)
        except WalbusError as error:
            self._error = error

    def status(self) -> dict[str, Any]:
        return read_status(self.status_path) or {}

    def ended(self) -> WalbusError | None:
        """Waits until it ends by itself."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._error

    def stop(self) -> WalbusError | None:
        self._stop.set()
        return self.ended()


@contextmanager
def consumer(relay: ScriptedRelay, under_test: SinkUnderTest, **options: Any) -> Iterator[RunningConsumer]:
    running = RunningConsumer(relay, under_test.name, {**under_test.options, **options}, under_test.place.folder)
    try:
        yield running
    finally:
        error = running.stop()
    assert error is None


def equal(under_test: SinkUnderTest, relay: ScriptedRelay) -> None:
    wait_for(lambda: under_test.rows() == relay.source.rows(), 60, what="the sink equals the source")


def stored(running: RunningConsumer, source: ModelSource) -> None:
    """Waits until a checkpoint behind all of the source's log is stored."""
    last_done = str(source.end)
    wait_for(lambda: running.status().get("last_done") == last_done, 60, what="its checkpoint is stored")


def followed(running: RunningConsumer, under_test: SinkUnderTest, relay: ScriptedRelay, *edits: Edit) -> None:
    """Commits something, and waits until the sink has it and its checkpoint.

    Rows of a snapshot may be seen before the checkpoint at its end is stored; who stops then reads it on.
    """
    relay.source.commit(edits)
    equal(under_test, relay)
    stored(running, relay.source)
