"""The records of one answer, read by a thread of its own into a bounded queue.

So the reader can wait with a deadline, and network and sink work at the same time; a slow sink fills the queue, then
the sockets, and the server's writes stand still.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from contextlib import suppress

import httpx

from walbus.errors import RelayUnavailable
from walbus.http_peer import shut_down
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader

#: Chunks (of at most 64 KiB) that wait for the reader of a stream.
QUEUED_CHUNKS = 64


class StreamEnded(RelayUnavailable):
    """The server ended the stream, behind its last record."""


class RecordStream:
    """The records of one answer. `records` and `close` belong to one thread; reading is done by another."""

    def __init__(self, response: httpx.Response, where: str) -> None:
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._where = where
        #: What has come, and was not taken yet.
        self.parser = RecordParser()
        self._chunks: queue.Queue[bytes | RelayUnavailable] = queue.Queue(QUEUED_CHUNKS)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"walbus-stream {where}", daemon=True)
        self._thread.start()

    def records(self, timeout: float) -> list[tuple[RecordHeader, bytes]]:
        """The next whole records; [] if none came within `timeout` seconds.

        Raises:
            RelayUnavailable: the stream has ended or broken, and everything before that was handed out.
            DamagedRecord: a checksum or a length is wrong.
        """
        self.receive(timeout)
        return list(self.parser.records())

    def receive(self, timeout: float) -> None:
        """Gives the parser what comes next, if that is within `timeout` seconds; what it has is to be taken before.

        Raises:
            RelayUnavailable: the stream has ended or broken.
        """
        try:
            chunk = self._chunks.get(timeout=timeout) if timeout > 0 else self._chunks.get_nowait()
        except queue.Empty:
            return
        if isinstance(chunk, RelayUnavailable):
            raise chunk
        self.parser.feed(chunk)

    def close(self) -> None:
        """Ends the stream. The reading thread may be blocked in the socket, which is therefore shut down first."""
        self._closed.set()
        shut_down(self._response)
        while self._thread.is_alive():
            _drain(self._chunks)
            self._thread.join(0.05)

    def _read(self) -> None:
        ended: RelayUnavailable = StreamEnded("the stream ended", where=self._where)
        try:
            for chunk in self._response.iter_raw():
                self._chunks.put(chunk)
                if self._closed.is_set():
                    break
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            ended = RelayUnavailable(f"the stream broke ({type(error).__name__})", where=self._where)
        finally:
            try:
                with suppress(httpx.HTTPError, httpx.StreamError, OSError):  # whatever it is, the stream has ended
                    self._response.close()
            finally:
                self._chunks.put(ended)


def _drain(chunks: queue.Queue[bytes | RelayUnavailable]) -> None:
    try:
        while True:
            chunks.get_nowait()
    except queue.Empty:
        return
