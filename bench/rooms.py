"""All rooms of Walbus as `walbus run` starts them, on a benchmark's source, with one consumer: SQLite, or another."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from measured import peak_memory
from source import Source
from walbus.status import read_status

_CONFIG = """
data_dir = {data_dir}
[source]
dsn = {dsn}
slot = "walbus"
tables = ["public.*"]
[relay]
listen = "127.0.0.1:{relay}"
[bootstrap]
listen = "127.0.0.1:{bootstrap}"
[consumer.cache]
{sink}
start = "{start}"
[log]
level = "warning"
"""


class Rooms:
    """The processes of one configuration.

    Attributes:
        cache: the SQLite file that the consumer keeps, unless it has another sink.
        relay_url, bootstrap_url: addresses of the servers.
    """

    def __init__(self, source: Source, folder: Path, start: str, sink: Mapping[str, str] | None) -> None:
        folder.mkdir()
        self.cache = folder / "cache.db"
        self._data = folder / "data"
        self._log = folder / "log"
        config = folder / "walbus.toml"
        relay, bootstrap = _free_ports()
        self.relay_url, self.bootstrap_url = f"http://127.0.0.1:{relay}", f"http://127.0.0.1:{bootstrap}"
        strings = {"data_dir": json.dumps(str(self._data)), "dsn": json.dumps(source.dsn)}
        keeps = sink or {"sink": "sqlite", "path": str(self.cache)}
        told = "\n".join(f"{name} = {json.dumps(text)}" for name, text in keeps.items())
        config.write_text(_CONFIG.format(relay=relay, bootstrap=bootstrap, start=start, sink=told, **strings))
        self._command = [sys.executable, "-P", "-m", "walbus", "run", "-c", str(config)]
        self.start()

    def start(self) -> None:
        """Starts all of them; again, once they are stopped."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def relay_folder(self) -> Path:
        """Folder of the log."""
        return self._data / "relay"

    def status(self, name: str) -> dict[str, object]:
        """The status file of a room; empty while there is none."""
        return read_status(self._data / "status" / f"{name}.json") or {}

    def peaks(self) -> dict[str, int]:
        """Largest resident memory of each process so far, in bytes, by its name."""
        children = self.status("supervisor").get("children", {})
        if not isinstance(children, dict):
            raise TypeError("the supervisor's status has no children")
        return {name: peak_memory(child["pid"]) for name, child in children.items() if child["pid"]}

    def wait(self, done: Callable[[], bool], deadline: float) -> float:
        """Waits for a condition; the seconds that it took.

        Raises:
            RuntimeError: `walbus run` ended, or the deadline passed.
        """
        begin = time.perf_counter()
        while not done():
            if self._process.poll() is not None or time.perf_counter() - begin > deadline:
                raise RuntimeError(f"the rooms did not get there:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        return time.perf_counter() - begin

    def stop(self) -> None:
        """Stops all of them in order."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()  # its rooms end with it


@contextmanager
def open_rooms(source: Source, folder: Path, *, start: str, sink: Mapping[str, str] | None = None) -> Iterator[Rooms]:
    """The rooms, stopped in the end whatever happens; their slot is dropped.

    Args:
        source: whose tables they take.
        folder: made for all of their files.
        start: where the consumer begins: `snapshot`, `earliest` or `latest`.
        sink: the consumer's `sink` and its options; a SQLite file without it.
    """
    rooms = Rooms(source, folder, start, sink)
    try:
        yield rooms
    finally:
        rooms.stop()
        _drop_slot_when_free(source)


def _drop_slot_when_free(source: Source) -> None:
    end = time.monotonic() + 30
    while source.streams("walbus") and time.monotonic() < end:
        time.sleep(0.02)
    source.drop_slot("walbus")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
