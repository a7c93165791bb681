"""When a room's process stops.

SIGTERM and SIGINT are blocked in every thread and taken by one that waits for them, since a handler that sets a
`threading.Event` can meet the event's own lock half held and never return. The first signal asks the room to stop;
a second one ends the process at once, which loses nothing: every room survives SIGKILL.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

from walbus.cli.lifeline import STOPPING


def stop_event() -> threading.Event:
    """An event that is set when this process should stop; call once, before any thread is started."""
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=_await_signals, args=(stop,), name="signals", daemon=True).start()
    return stop


def _await_signals(stop: threading.Event) -> NoReturn:
    signal.sigwait(STOPPING)
    stop.set()
    number = signal.sigwait(STOPPING)
    os._exit(128 + number)
