"""Capture that catches up under a step policy of the test's, into a log whose process may die at any call."""

from __future__ import annotations

from contextlib import suppress

from support.capturing import CaptureThread, source_of
from support.memory_log import MemoryLog
from support.waiting import wait_for
from walbus.capture.service import Capture
from walbus.capture.steps import Backlog, Step, StepPolicy, Stream

ACTIVE = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walbus'"


class Killed(BaseException):
    """The process is gone: nothing that it would still have done happens."""


class MortalLog(MemoryLog):
    """A log whose process dies at one of its calls: before it, or right after it."""

    fuse = 1 << 60

    def append(self, piece):
        self._burn()
        super().append(piece)
        self._burn()

    def sync(self):
        self._burn()
        bounds = super().sync()
        self._burn()
        return bounds

    def _burn(self):
        self.fuse -= 1
        if self.fuse <= 0:
            raise Killed

    def close(self):
        """Nobody is left to sync it."""

    def reborn(self, fuse):
        log = MortalLog(list(self.durable), self.schemas)
        log.fuse = fuse
        return log


class RandomSteps(StepPolicy):
    """Steps to arbitrary bytes, and turns to the stream at any time, once there were enough short ones to judge by."""

    ENOUGH = 6

    def __init__(self, dice):
        super().__init__(1)
        self._dice = dice
        self.steps = 0

    def is_far_behind(self, backlog):
        return self.steps < self.ENOUGH or self._dice.random() < 0.9

    def next(self, backlog: Backlog) -> Step | Stream:
        enough = self.steps >= self.ENOUGH
        if backlog.left == 0 or (enough and self._dice.random() < 0.03):
            return Stream("the tail is near")
        self.steps += 1
        longest = self._dice.choice((3, 300, 30_000, 300_000) if enough else (3, 300))
        return Step(min(backlog.end, backlog.confirmed + self._dice.randrange(1, longest)))


class OneStep(StepPolicy):
    """One step over everything."""

    def is_far_behind(self, backlog):
        return True

    def next(self, backlog):
        return Step(backlog.end) if backlog.left else Stream("the tail is near")


class Stepping(CaptureThread):
    """`Capture` in a thread, with a step policy of the test's."""

    def __init__(self, source, log, policy, status_path=None, pauses=None, standbys=None):
        self._policy = policy
        self._standbys = standbys
        self._pauses = pauses
        super().__init__(source, log, status_path)

    def _capture(self, spool_dir):
        try:
            Capture(
                self.source,
                self.log,
                spool_dir=spool_dir,
                stop=self._stop,
                status_path=self.status_path,
                catalog_path=None,
                standbys=self._standbys,
                step_policy=lambda size: self._policy or StepPolicy(size),
                step_pauses=self._pauses,
            ).run()
        except BaseException as error:  # the test looks at it
            self.error = error

    @property
    def alive(self):
        return self._thread.is_alive()


def begin(database, log, **options):
    """Publication, slot and the log's first record; the slot then stands still."""
    capture = CaptureThread(source_of(database.dsn, **options), log)
    capture.streaming()
    capture.stop()
    wait_for(lambda: not database.value(ACTIVE), what="the slot is free")


def live(database, log, policy, *, done):
    """One process of capture, until its fuse has burnt down or there is no more to do."""
    capture = Stepping(source_of(database.dsn), log, policy)
    wait_for(lambda: not capture.alive or done(), 240)
    with suppress(Killed):
        capture.stop()


def wait_for_log(capture, lsn):
    """Until the log holds everything that commits before an LSN; then capture is stopped."""
    capture.durable_to(lsn, 180)
    capture.stop()
