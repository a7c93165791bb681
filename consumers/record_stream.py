"""Records that come from a server, read by a thread of its own into a bounded queue.

So the reader can wait with a deadline, and network and sink work at the same time; a slow sink fills the queue, then
the sockets, and the server's writes stand still.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import closing, suppress

import httpx

from walbus.errors import RelayUnavailable, WalbusError
from walbus.http_peer import shut_down
from walbus.record_parser import RecordParser
from walbus.records import RecordHeader

#: Chunks (of at most 64 KiB) that wait for the reader of an answer.
QUEUED_CHUNKS = 64


class StreamEnded(RelayUnavailable):
    """The server ended the stream, behind its last record."""


class RecordStream(ABC):
    """Records that come. `records` and `close` belong to one thread; reading is done by another.

    Args:
        where: they come from, for errors.
        headers: what was said before them.
        queued: chunks that wait at most.
    """

    def __init__(self, where: str, headers: Mapping[str, str], queued: int = QUEUED_CHUNKS) -> None:
        self.headers = headers
        self._where = where
        #: What has come, and was not taken yet.
        self.parser = RecordParser()
        self._chunks: queue.Queue[bytes | WalbusError] = queue.Queue(queued)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"walbus-stream {where}", daemon=True)
        self._thread.start()

    @abstractmethod
    def _came(self) -> Generator[bytes, None, None]:
        """What comes, on the reading thread; it frees all behind the last one.

        Raises:
            RelayUnavailable: it broke.
            WalbusError: what came cannot be.
        """

    @abstractmethod
    def _stop_waiting(self) -> None:
        """Makes the reading thread wait for nothing more; on any thread."""

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
        if isinstance(chunk, WalbusError):
            raise chunk
        self.parser.feed(chunk)

    def close(self) -> None:
        """Ends the stream. The reading thread may be blocked, and is therefore told first."""
        self._closed.set()
        self._stop_waiting()
        while self._thread.is_alive():
            _drain(self._chunks)
            self._thread.join(0.05)

    def _read(self) -> None:
        ended: WalbusError = StreamEnded("the stream ended", where=self._where)
        try:
            with closing(self._came()) as came:
                for chunk in came:
                    self._chunks.put(chunk)
                    if self._closed.is_set():
                        break
        except WalbusError as error:
            ended = error
        finally:
            self._chunks.put(ended)


class HttpStream(RecordStream):
    """The records of one answer of a server."""

    def __init__(self, response: httpx.Response, where: str) -> None:
        self._response = response
        super().__init__(where, response.headers)

    def _came(self) -> Generator[bytes, None, None]:
        try:
            yield from self._response.iter_raw()
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise RelayUnavailable(f"the stream broke ({type(error).__name__})", where=self._where) from None
        finally:
            with suppress(httpx.HTTPError, httpx.StreamError, OSError):  # whatever it is, the stream has ended
                self._response.close()

    def _stop_waiting(self) -> None:
        shut_down(self._response)  # the thread may be blocked in the socket


def _drain(chunks: queue.Queue[bytes | WalbusError]) -> None:
    try:
        while True:
            chunks.get_nowait()
    except queue.Empty:
        return
