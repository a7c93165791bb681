"""When a room's process stops: signals, and the lifeline to its supervisor.

SIGTERM and SIGINT are blocked in every thread and taken by one that waits for them, since a handler that sets a
`threading.Event` can meet the event's own lock half held and never return. The first signal asks the room to stop;
a second one ends the process at once, which loses nothing: every room survives SIGKILL.

The lifeline is a pipe whose writing end only the supervisor holds. When it closes, the supervisor is dead, however
it died, and the room ends at once, so that no orphan holds the slot, the log's lock or a port.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import NoReturn

from walbus.cli.failures import LIFELINE

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_ORPHANED = 128 + signal.SIGKILL  # the exit code of a process that went down with its supervisor


def stop_event() -> threading.Event:
    """An event that is set when this process should stop; call once, before any thread is started."""
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    threading.Thread(target=_await_signals, args=(stop,), name="signals", daemon=True).start()
    lifeline = os.environ.pop(LIFELINE, None)
    if lifeline is not None:
        threading.Thread(target=_await_orphaning, args=(int(lifeline),), name="lifeline", daemon=True).start()
    return stop


def _await_signals(stop: threading.Event) -> NoReturn:
    signal.sigwait(_STOPPING)
    stop.set()
    number = signal.sigwait(_STOPPING)
    os._exit(128 + number)


def _await_orphaning(lifeline: int) -> NoReturn:
    while os.read(lifeline, 1):  # nothing is ever written; the end of file is the message
        pass
    os._exit(_ORPHANED)
