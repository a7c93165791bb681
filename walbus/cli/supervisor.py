"""What a supervisor decides: when each child is started, started again, and stopped. Pure; time is an argument.

A child that dies of a signal, of an error that may pass, or of a bug is started again after an exponential back-off
with jitter, which begins anew once the child ran for `healthy_after` seconds. One that says that only an operator can
help (exit codes 1, 2 and 3) is not. If it is essential, or its configuration is wrong, the supervisor stops everything
and passes that code on; else the others go on without it, and the code is passed on when they end: a consumer that
refuses a row must not stop capture, or the slot would grow on the source.

Stopping goes by stages, readers before what they read: consumers, bootstrap, relay, capture. A stage begins when
every earlier one is gone, or when the time for those has passed; whatever still lives at `kill_after` is killed.

    WAITING --start--> RUNNING --exit--> WAITING (back-off)
       |                  |
       +----- stop -------+---> GONE (left for good)
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from walbus.cli.failures import TRY_AGAIN

#: Exit codes by which a child says that starting it again cannot help.
PERMANENT: Final = frozenset({1, 2, 3})

#: The one of them that says "usage or configuration": nothing runs half-configured.
_CONFIGURATION: Final = 2

#: How a child may end that was asked to while it still started, or while what it reads was away.
_ASKED_TO: Final = frozenset({TRY_AGAIN, -signal.SIGTERM})


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running.

    Attributes:
        name: unique; the prefix of its log lines.
        arguments: of the `walbus` command.
        stage: children of a lower stage are stopped before those of a higher one.
        essential: whether the others are pointless without it.
    """

    name: str
    arguments: tuple[str, ...]
    stage: int
    essential: bool = True

    def ends_all(self, code: int) -> bool:
        """Whether a permanent end of this child with this code ends the others too."""
        return self.essential or code == _CONFIGURATION


@dataclass(frozen=True, slots=True)
class Start:
    """Start this child now; answer with `started`."""

    child: Child


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask this child to stop (SIGTERM)."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End this child (SIGKILL)."""

    name: str


Action = Start | Terminate | Kill


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of everything.

    Attributes:
        first_delay, longest_delay: of the back-off, which doubles.
        healthy_after: a run of this length makes the next failure count as the first.
        stage_time: what stopping grants each stage before the next one is stopped too.
        kill_after: from the wish to stop until SIGKILL; the whole stop is promised within 10 seconds.
    """

    first_delay: float = 0.25
    longest_delay: float = 30.0
    healthy_after: float = 20.0
    stage_time: float = 2.0
    kill_after: float = 8.5


class Phase(enum.Enum):
    """Where a child is."""

    WAITING = "waiting"  #: to be started
    RUNNING = "running"
    GONE = "gone"  #: never started again


@dataclass(slots=True)
class Progress:
    """What the supervisor knows of one child.

    Attributes:
        phase: see the table above.
        since: when it was started, or is to be started.
        failures: deaths in a row without a healthy run between them.
        restarts: how often it was started again, in all.
        terminated, killed: what it was sent while stopping.
    """

    child: Child
    phase: Phase = Phase.WAITING
    since: float = 0.0
    failures: int = 0
    restarts: int = 0
    terminated: bool = field(default=False)
    killed: bool = field(default=False)


class Supervisor:
    """The decisions over a set of children.

    Args:
        children: in the order in which they are started.
        jitter: gives a number in [0, 1) for each delay.
        timing: seconds of everything.
    """

    def __init__(self, children: Sequence[Child], jitter: Callable[[], float], timing: Timing | None = None) -> None:
        self._progress = {child.name: Progress(child) for child in children}
        self._jitter = jitter
        self._timing = timing or Timing()
        self._stopping_since: float | None = None
        self._code = 0

    @property
    def progress(self) -> Sequence[Progress]:
        """Every child's state."""
        return list(self._progress.values())

    @property
    def stopping(self) -> bool:
        """Whether everything is to end."""
        return self._stopping_since is not None

    @property
    def done(self) -> bool:
        """Whether everything has ended."""
        return all(one.phase is Phase.GONE for one in self._progress.values())

    @property
    def exit_code(self) -> int:
        """What to exit with once `done`."""
        return self._code

    def started(self, name: str, now: float) -> None:
        """A child runs."""
        one = self._progress[name]
        one.phase, one.since = Phase.RUNNING, now

    def exited(self, name: str, code: int, now: float) -> float | None:
        """A child is gone; the seconds until it is started again, None if it never is.

        Args:
            name: of the child.
            code: its exit code, or the negative number of the signal that it died of.
            now: seconds.
        """
        one = self._progress[name]
        if self.stopping or code in PERMANENT:
            one.phase = Phase.GONE
            self._code = self._code or _passed_on(code, one)
            if one.child.ends_all(code):
                self.stop(now)
            return None
        one.failures = 1 if now - one.since >= self._timing.healthy_after else one.failures + 1
        one.restarts += 1
        delay = self._delay(one.failures)
        one.phase, one.since = Phase.WAITING, now + delay
        return delay

    def stop(self, now: float) -> None:
        """Everything is to end; a second call changes nothing."""
        if self._stopping_since is None:
            self._stopping_since = now
        for one in self._progress.values():
            if one.phase is Phase.WAITING:
                one.phase = Phase.GONE

    def actions(self, now: float) -> list[Action]:
        """What is to be done now; each is given once."""
        if self._stopping_since is None:
            return [Start(one.child) for one in self._progress.values() if _due(one, now)]
        stopped_for = now - self._stopping_since
        running = [one for one in self._progress.values() if one.phase is Phase.RUNNING]
        if stopped_for >= self._timing.kill_after:
            return [_kill(one) for one in running if not one.killed]
        return [_terminate(one) for one in self._stage_due(running, stopped_for) if not one.terminated]

    def wake_at(self, now: float) -> float | None:
        """When, from now on, `actions` may have something new although nothing happened; None if never."""
        if self._stopping_since is None:
            waiting = [one.since for one in self._progress.values() if one.phase is Phase.WAITING]
            return min(waiting, default=None)
        stages = {one.child.stage for one in self._progress.values()}
        times = [self._timing.stage_time * number for number in range(1, len(stages))] + [self._timing.kill_after]
        return min((at for time in times if (at := self._stopping_since + time) > now), default=None)

    def _stage_due(self, running: Sequence[Progress], stopped_for: float) -> list[Progress]:
        stages = sorted({one.child.stage for one in self._progress.values()})
        allowed = stages[: 1 + int(stopped_for / self._timing.stage_time)]
        lowest = min((one.child.stage for one in running), default=stages[0])
        return [one for one in running if one.child.stage in allowed or one.child.stage == lowest]

    def _delay(self, failures: int) -> float:
        timing = self._timing
        whole = min(timing.longest_delay, timing.first_delay * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + 0.5 * self._jitter())


def _due(one: Progress, now: float) -> bool:
    return one.phase is Phase.WAITING and one.since <= now


def _terminate(one: Progress) -> Terminate:
    one.terminated = True
    return Terminate(one.child.name)


def _kill(one: Progress) -> Kill:
    one.killed = True
    return Kill(one.child.name)


def _passed_on(code: int, one: Progress) -> int:
    """The supervisor's exit code for a child's: 0 for one that ended because it was asked to."""
    if code == 0 or (one.terminated and code in _ASKED_TO):
        return 0
    return code if code in PERMANENT else 1
