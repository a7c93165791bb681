"""Threads of one process that live and end together."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_JOIN_SECONDS = 8.0


class Threads:
    """Threads that end together: an error of one stops all, and is told by `end`."""

    def __init__(self) -> None:
        self.over = threading.Event()  #: set once one of them has ended, or is to end
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, name: str, run: Callable[[], None]) -> None:
        """Runs something until it returns."""

        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # told by `end`
                self._errors.append(error)
            finally:
                self.over.set()

        thread = threading.Thread(target=guarded, name=f"walbus-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> BaseException | None:
        """Ends all; the first error of any."""
        self.over.set()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                log.error("thread_does_not_end", thread=thread.name)
        return self._errors[0] if self._errors else None
