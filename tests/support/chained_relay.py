"""A relay that copies another one, in threads: its copying, its server, and readers of what it has.

copy = ChainedRelay(tmp_path / "b", [relay.port], name="b")
copy.has(writer.bounds().end)
assert copy.records() == records_of(relay.engine.folder)
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from support.relay_log import read_records
from support.waiting import wait_for
from walbus.config import RelayConfig
from walbus.credentials import ANONYMOUS, Credentials
from walbus.position import Position, parse_position
from walbus.relay import open_reader, serve_relay
from walbus.relay.chain_service import serve_chained
from walbus.status import read_status


def records_of(folder: Path) -> list[bytes]:
    """All durable records of a log."""
    with closing(open_reader(folder)) as reader:
        return read_records(reader, reader.bounds().trimmed)


class ChainedRelay:
    """`walbus relay` with an upstream.

    Args:
        folder: for log and status files.
        upstream: ports on this machine, or URLs.
        name: under which it copies.
        credentials: what it shows to the upstream.
        log: folder of its log; None for one in `folder`.
        options: of `[relay]`.

    Attributes:
        log: folder of its log.
        port: of its server, once it listens.
        error: what ended it by itself.
    """

    def __init__(
        self,
        folder: Path,
        upstream: Sequence[int | str],
        *,
        name: str = "relay",
        credentials: Credentials = ANONYMOUS,
        log: Path | None = None,
        **options: Any,
    ) -> None:
        self.log = log or folder / "log"
        self._credentials = credentials
        self.status_dir = folder / "status"
        self.status_dir.mkdir(parents=True, exist_ok=True)
        self.config = RelayConfig(
            upstream=tuple(one if isinstance(one, str) else f"http://127.0.0.1:{one}" for one in upstream),
            name=name,
            **{"listen": "127.0.0.1:0", "segment_bytes": 64 << 10, "retention_hours": 1e6, **options},
        )
        self.port = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self) -> None:
        serve = partial(
            serve_relay, self.log, self.config, bootstrap_url=None, status_dir=self.status_dir, stop=self._stop,
            on_listening=self._listening,
        )  # fmt: skip
        try:
            serve_chained(
                self.log, self.config, self._credentials, status_dir=self.status_dir, stop=self._stop, serve=serve
            )
        except BaseException as error:  # the test looks at it
            self.error = error
        finally:
            self._ready.set()

    def _listening(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def end(self) -> Position:
        """How far the copy is durable."""
        with closing(open_reader(self.log)) as reader:
            return reader.bounds().end

    def has(self, position: Position, deadline: float = 60) -> None:
        """Waits until the copy is durable up to a position."""
        wait_for(lambda: self.error is not None or self.end() >= position, deadline, what=f"the copy has {position}")
        if self.error is not None:
            raise self.error

    def records(self) -> list[bytes]:
        """All durable records of the copy."""
        return records_of(self.log)

    def status(self) -> dict[str, Any]:
        """Its status file."""
        return read_status(self.status_dir / "upstream.json") or {}

    def json(self, path: str) -> dict[str, Any]:
        """What its server says."""
        return json_of(self.port, path)

    def served_end(self) -> Position:
        """The end that clients see."""
        return parse_position(self.json("/v1/info")["end"])

    def ended(self, deadline: float = 60) -> BaseException:
        """Waits until it has ended by itself; why."""
        wait_for(lambda: not self._thread.is_alive(), deadline, what="the relay ends by itself")
        assert self.error is not None
        return self.error

    def stop(self) -> None:
        """Ends it; raises what ended it before."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the chained relay does not end"
        if self.error is not None:
            raise self.error


def json_of(port: int, path: str) -> dict[str, Any]:
    """A JSON document of a server on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        document: dict[str, Any] = json.loads(connection.getresponse().read())
        return document
    finally:
        connection.close()
