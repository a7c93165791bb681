"""The writer's lease: who may write the log, decided without trusting a lock alone.

A writer holds the lock of its control file (`flock`, freed by the kernel when the process dies) and raises a counter
in it, its heartbeat. A process that was stopped keeps its lock but not its heartbeat. So a contender

    1. looks at each control file: no lock held means dead; a heartbeat that moves means alive (`LogBusy`); one that
       stands still for the lease's time, by the contender's own clock, means stopped;
    2. makes the control file of the next writer epoch, locked before it has its name (the name is the claim: only one
       contender gets it);
    3. marks the older control files as superseded, which fences their owners (`walbus.relay.control`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from walbus.errors import Fenced, LogBusy, LogFull
from walbus.relay.control import CONTROL_SIZE, ControlFile, control_epochs, control_path
from walbus.relay.fs import Files, passing_name, sync_folder, write_at
from walbus.relay.manifest import manifest_epochs

_log = structlog.get_logger(__name__)

#: Heartbeats in the time of a lease.
_BEATS = 20


@dataclass(frozen=True)
class Clock:
    """Time, as the log sees it; tests pass their own.

    Attributes:
        now: Unix seconds, for seqs and the time of sealing.
        monotonic: seconds that never step.
        pause: sleeps for some seconds.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


class Lease:
    """The right to write, once claimed.

    Args:
        folder: of the log.
        writer_epoch: what was claimed.
        control: the control file of that epoch, locked.
        seconds: the lease's time.
    """

    def __init__(self, folder: Path, writer_epoch: int, control: ControlFile, seconds: float) -> None:
        self.writer_epoch = writer_epoch
        self.control = control
        self.seconds = seconds
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"walbus-lease-{writer_epoch}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Looks whether another writer took over.

        Raises:
            Fenced: it did.
        """
        successor = self.control.superseded_by()
        if successor:
            raise Fenced(
                f"writer epoch {self.writer_epoch} was taken over by writer epoch {successor}",
                where=str(self._folder),
                mend="let this process end; the other one carries on",
            )

    def release(self) -> None:
        """Gives the lock up; the control file stays, and says where the log ends."""
        self._stop.set()
        self._thread.join()
        self.control.close()

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self.seconds / _BEATS):
            count += 1
            with contextlib.suppress(OSError, LogFull):  # an error of the disk shows in the writer's own calls
                self.control.beat(count)


def claim(folder: Path, files: Files, seconds: float, clock: Clock) -> Lease:
    """Becomes the log's writer.

    Raises:
        LogBusy: another process is.
    """
    rivals = control_epochs(folder)
    for epoch in rivals:
        _await_end(folder, files, epoch, seconds, clock)
    epoch = max([*rivals, *manifest_epochs(folder)], default=0) + 1
    control = _make_control(folder, files, epoch)
    try:
        for older in rivals:
            _supersede(folder, files, older, epoch)
    except BaseException:
        control.close()
        raise
    return Lease(folder, epoch, control, seconds)


def _await_end(folder: Path, files: Files, epoch: int, seconds: float, clock: Clock) -> None:
    """Returns once the owner of a control file is known to be dead or stopped."""
    try:
        fd = files.open(control_path(folder, epoch))
    except FileNotFoundError:
        raise _busy(folder) from None  # its successor has just removed it
    control = ControlFile(files, fd)
    try:
        deadline = clock.monotonic() + seconds
        first = control.state().heartbeat
        while not _lock(fd, fcntl.LOCK_SH):
            if control.state().heartbeat != first:
                raise _busy(folder)
            if clock.monotonic() >= deadline:
                _log.warning("log_lease_expired", folder=str(folder), writer_epoch=epoch, seconds=seconds)
                return
            clock.pause(seconds / _BEATS)
    finally:
        control.close()


def _busy(folder: Path) -> LogBusy:
    return LogBusy("another process writes this log", where=str(folder), mend="stop it, or wait until it has ended")


def _lock(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _make_control(folder: Path, files: Files, epoch: int) -> ControlFile:
    """Makes and locks the control file, and only then gives it its name."""
    temporary = passing_name(control_path(folder, epoch))
    fd = files.create(temporary)
    try:
        write_at(files, fd, bytes(CONTROL_SIZE), 0)
        _lock(fd, fcntl.LOCK_EX)
        files.fsync(fd)
        files.link(temporary, control_path(folder, epoch))
        sync_folder(files, folder)
    except FileExistsError:
        files.close(fd)
        raise _busy(folder) from None
    except BaseException:
        files.close(fd)
        raise
    finally:
        files.unlink(temporary)
    return ControlFile(files, fd)


def _supersede(folder: Path, files: Files, older: int, epoch: int) -> None:
    try:
        control = ControlFile(files, files.open(control_path(folder, older)))
    except FileNotFoundError:
        return
    try:
        control.supersede(epoch)
        control.sync()
    finally:
        control.close()
