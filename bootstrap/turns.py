"""A lock that threads get in the order in which they asked for it.

`threading.Lock` goes to whoever happens to run when it is free, and that is mostly the thread which has just freed it:
a loop that lets go of it for a moment between two long pieces of work keeps all others out for as long as it has work.
The applier is such a loop while the log is ahead. Here the lock is handed over: who frees it gives it to the first of
those who wait, and has to wait its turn for the next time.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Self


class TurnLock:
    """A reentrant lock; `with lock:`."""

    def __init__(self) -> None:
        self._guard = threading.Lock()  # of what follows; held for a few steps alone
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        with self._guard:
            return len(self._waiting)

    def __enter__(self) -> Self:
        """Waits for its turn."""
        me = threading.get_ident()
        with self._guard:
            if self._owner is None:
                self._owner = me
            if self._owner == me:
                self._depth += 1
                return self
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((me, turn))
        turn.acquire()  # whoever frees the lock has made it ours
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hands it to the first who waits."""
        with self._guard:
            self._depth -= 1
            if self._depth:
                return
            self._owner = None
            if self._waiting:
                self._owner, turn = self._waiting.popleft()
                self._depth = 1
                turn.release()
