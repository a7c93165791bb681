"""The lifeline of a supervised process: a pipe whose writing end only the supervisor holds.

When it closes, the supervisor is dead, however it died, and the process ends at once, so that no orphan holds the slot,
the log's lock or a port. It is watched from before the imports of the command line on: on a busy machine they take
seconds, and what starts in the meantime must not meet an orphan that wakes up.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final, NoReturn

#: The environment variable with the file descriptor that ties a process to its supervisor.
LIFELINE: Final = "WALBUS_LIFELINE"

#: Signals that ask a process to stop; a thread of its own waits for them (`walbus.cli.stopping`).
STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

_ORPHANED = 128 + signal.SIGKILL  # the exit code of a process that went down with its supervisor


def is_supervised() -> bool:
    """Whether `walbus run` started this process."""
    return LIFELINE in os.environ


def hold_lifeline() -> None:
    """Ends this process when its supervisor is dead; does nothing where there is none. Call once."""
    if not is_supervised():
        return
    descriptor = int(os.environ[LIFELINE])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # the thread must never be the one that takes a signal
    threading.Thread(target=_await_orphaning, args=(descriptor,), name="lifeline", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await_orphaning(lifeline: int) -> NoReturn:
    while os.read(lifeline, 1):  # nothing is ever written; the end of file is the message
        pass
    os._exit(_ORPHANED)
