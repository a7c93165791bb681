"""How fast clients read the store while the applier is behind: it goes first, for what they get grows older meanwhile.

Reading at full speed takes a core, of which the applier's threads and RocksDB's want more than one. So while there is
more in the log than one batch, one reader takes a third of a core, and all of them less than half of one: behind each
piece that took the processor for some time, its reader rests for twice that, times the number of those who read. Nobody
rests once the applier is at the log's end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_REST = 2.0  #: times what reading took of the processor
_LONGEST_REST = 1.0  #: seconds; a client must see that something still comes


class ReadingPace:
    """Of all readers of one store; for one event loop.

    Args:
        behind: whether the applier is.
    """

    def __init__(self, behind: Callable[[], bool]) -> None:
        self._behind = behind
        self._readers = 0

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Somebody reads."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def read(self, piece: Callable[[], T]) -> T:
        """Reads a piece in a thread, and rests if it is time to."""
        result, spent = await asyncio.to_thread(_timed, piece)
        if self._behind():
            await asyncio.sleep(self.rest(spent))
        return result

    def rest(self, spent: float) -> float:
        """Seconds to rest behind a piece that took the processor for `spent` seconds, while the applier is behind."""
        return min(_LONGEST_REST, _REST * spent * self._readers)


def _timed(piece: Callable[[], T]) -> tuple[T, float]:
    begun = time.thread_time()
    return piece(), time.thread_time() - begun
