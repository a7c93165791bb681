"""One thread that waits for the log's durable end, for all streams of the server."""

from __future__ import annotations

import asyncio
import threading

import structlog

from walbus.errors import WalbusError
from walbus.position import ORIGIN
from walbus.relay.reader import FileLogReader

_log = structlog.get_logger(__name__)

_TURN_SECONDS = 0.5  # how long the thread takes to notice that it is to end


class Tail:
    """Wakes the streams of one event loop when the end has moved.

    Args:
        reader: the log.
    """

    def __init__(self, reader: FileLogReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="walbus-tail", daemon=True)
        self._thread.start()

    def moved(self) -> asyncio.Event:
        """An event that is set when the end moves from now on. Take it before looking at the log."""
        return self._moved

    async def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    def _watch(self) -> None:
        seen = ORIGIN
        while not self._stop.is_set():
            try:
                if self._reader.wait(seen, _TURN_SECONDS):
                    seen = self._reader.bounds().end
                    self._loop.call_soon_threadsafe(self.wake)
            except (OSError, WalbusError) as error:  # streams meet it themselves, in their own reads
                _log.error("relay_cannot_follow", error=str(error))
                self._stop.wait(_TURN_SECONDS)

    def wake(self) -> None:
        """Lets every stream look again."""
        self._moved.set()
        self._moved = asyncio.Event()
