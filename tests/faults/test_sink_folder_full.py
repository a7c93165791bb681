"""A full disk under what a sink keeps on this machine: the consumer waits for room, and goes on where it was."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from support.model_source import ITEMS, ModelSource, insert
from support.sink_writing import MARKS, following, windows
from support.small_disk import small_disk
from walbus.consumers.sinks import Sink, SinkPlace, open_sink
from walbus.consumers.sinks.stdout import StdoutSink
from walbus.errors import SinkUnavailable

MAKES = ("webhook", "stdout")


class _Takes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def opens(tmp_path: Path) -> Iterator[Callable[[str, Path], Sink]]:
    """Opens a sink whose folder is on a disk."""
    receiver = HTTPServer(("127.0.0.1", 0), _Takes)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    lines = os.open(tmp_path / "lines", os.O_RDWR | os.O_CREAT)

    def opened(kind: str, disk: Path) -> Sink:
        if kind == "stdout":
            return StdoutSink(lines, disk / "stdout.json")
        secret = f"whsec_{base64.b64encode(bytes(32)).decode()}"
        options = {"url": f"http://127.0.0.1:{receiver.server_port}", "secret": secret, "allow_private": True}
        return open_sink(kind, options, SinkPlace("hook", disk, ("public.*",)))

    yield opened
    os.close(lines)
    receiver.shutdown()
    receiver.server_close()


@pytest.mark.parametrize("kind", MAKES)
def test_a_full_disk_is_waited_for(
    opens: Callable[[str, Path], Sink], source: ModelSource, tmp_path: Path, kind: str
) -> None:
    source.commit([insert(ITEMS, 1)])
    with small_disk(tmp_path / "disk", megabytes=1) as disk, closing(opens(kind, disk)) as sink:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        sink.write(windows(source), MARKS)
        with pytest.raises(SinkUnavailable, match="is full"):
            sink.commit(following(source))
        sink.rollback()
        ballast.unlink()
        assert sink.checkpoint() is None
        sink.write(windows(source), MARKS)
        sink.commit(following(source))
        assert sink.checkpoint() == following(source)
