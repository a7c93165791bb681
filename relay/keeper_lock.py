"""Which of several relays on one log keeps its consumers and its holds: `consumers.json` has one writer.

Two relays may serve one folder, on two addresses. Each knows the consumers that report to it, and each would write its
own over the other's. So the file belongs to whoever holds a lock beside it. The other one serves, and says that what it
is told is forgotten at its end; it takes the file over when the first one has ended. The lock ends with its process.

So it is with the holds for required standbys: whom retention waits for is the keeper's to say, lest a relay that knows
of no standby lets go what another one's standbys have not copied.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)

_NAME = "consumers.lock"


class KeeperLock:
    """The lock of one relay.

    Args:
        folder: of the log.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._fd: int | None = None
        self._ours = False
        self._keeper: str | None = None  # process that has it, where that is not this one

    @property
    def ours(self) -> bool:
        """Whether this relay keeps the consumers."""
        return self._ours

    @property
    def problem(self) -> str | None:
        """What people should know; None if all is well."""
        if self._keeper is None:
            return None
        return (
            f"another relay, process {self._keeper}, keeps the consumers of this log: this one forgets them at its end"
        )

    def take(self) -> bool:
        """Tries to become the keeper; whether this relay is it now. Tells once that another one is."""
        if self._ours:
            return True
        fd = -1
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._tell(os.pread(fd, 64, 0).decode(errors="replace").strip() or "unknown")
            os.close(fd)
            return False
        except OSError as error:  # no lock can be had in this folder, so none can be in the way
            _log.warning("relay_keeps_consumers_without_lock", file=str(self._path), why=error.strerror)
            if fd >= 0:
                os.close(fd)
        else:
            self._fd = fd
            self._note_process(fd)
        if self._keeper is not None:
            _log.info("relay_keeps_consumers_now", file=str(self._path))
        self._ours, self._keeper = True, None
        return True

    def release(self) -> None:
        """Lets another relay be the keeper."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._ours = None, False

    @staticmethod
    def _note_process(fd: int) -> None:
        """For whoever finds the lock taken; a full disk has no room for it, and needs none."""
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            return

    def _tell(self, keeper: str) -> None:
        if self._keeper is None:
            _log.error(
                "relay_consumers_kept_by_another",
                file=str(self._path),
                process=keeper,
                note="consumers that report here are forgotten when this relay ends",
                mend="have one relay for each log's folder; a second one can follow the first (relay.upstream)",
            )
        self._keeper = keeper
