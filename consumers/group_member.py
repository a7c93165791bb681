"""A member of a group: asks for parts of all keys, and has each that it holds worked on by a thread.

    the thread of `run`    asks, again and again, and has what it is told come about:
        a part it got      a thread begins: the checkpoint is taken over, then `work` is called with a subscription
        one to give up     its subscription is stopped: `work` finishes and commits what it has, and returns
        one that is lost   its subscription is closed: nothing is handed on, and a commit is refused
    behind `work`          the lessor is told that the part is done with, and gives it to another member

The lessor is a relay, or the cluster that the log is read from (`walbus.consumers.lessors`). A member that cannot
reach it goes on until its leases run out, and then waits: the same holds may still be its own. One that was stopped in
the meantime finds out by the clock, or by the checkpoint that it cannot store. On `stop` all parts are finished first,
while they are held, and then the member leaves. `close` waits for that, and is refused to whatever the member itself
has called: it would wait for itself.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final, Generic, Protocol, TypeVar

import structlog

from walbus.consumers.backoff import Backoff
from walbus.consumers.checkpoint import Part
from walbus.consumers.clock import Clock
from walbus.consumers.group_membership import MARGIN, Membership
from walbus.consumers.lessors import Lessor
from walbus.consumers.part_lease import PartLease
from walbus.consumers.partitions import part_name
from walbus.errors import CheckpointTaken, Directive, UsageError, WalbusError, directive_of
from walbus.relay.group_leases import Hold
from walbus.relay.group_requests import MAX_LEASE, MAX_PARTS, MIN_LEASE

_log = structlog.get_logger(__name__)


class HeldPart(Protocol):
    """What works on a part: a subscription to it, or a consumer that fills a sink."""

    def stop(self) -> object:
        """Has it end behind what it has; any thread may ask for it."""

    def close(self) -> object:
        """Has it end at once: nothing of it is wanted any more; any thread may ask for it."""


Held = TypeVar("Held", bound=HeldPart)

#: The members that have called what runs now: by their threads, and by tasks that inherit it.
_within: ContextVar[tuple[object, ...]] = ContextVar("walbus_members", default=())

_HOST_LETTERS: Final = 32


@dataclass
class _Worked:
    """A part that is worked on."""

    lease: PartLease
    thread: threading.Thread | None = None
    held: HeldPart | None = None
    stopping: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    def begun(self, held: HeldPart) -> None:
        """What works on it is there; it may have been stopped or lost since it was asked for."""
        self.held = held
        if self.lease.lost:
            held.close()
        elif self.stopping:
            held.stop()

    def stop(self) -> None:
        """Has the work end behind what it has."""
        self.stopping = True
        if self.held is not None:
            self.held.stop()

    def lose(self) -> None:
        """Nothing is handed on any more, and no commit is taken."""
        self.lease.lose()
        self.stopping = True
        if self.held is not None:
            self.held.close()


class GroupMember(Generic[Held]):
    """One member of a group. Made by `Bus.join`, and by `run_consumer` for a sink.

    Args:
        name: of the group, which the parts' consumers begin with.
        parts: how many there are.
        lease_seconds: for how long a part is held without a word.
        lessor: whom it asks for parts.
        open_part: opens what works on a part under its lease; it is closed behind it.
        clock: time.
    """

    def __init__(  # noqa: PLR0913  # made in one place
        self,
        name: str,
        parts: int,
        lease_seconds: float,
        *,
        lessor: Lessor,
        open_part: Callable[[PartLease], AbstractContextManager[Held]],
        clock: Clock,
    ) -> None:
        self.name = name
        self._membership = Membership(parts, lease_seconds)
        self._lessor = lessor
        self._open_part, self._clock = open_part, clock
        self._member = _member_name()
        self._worked: dict[Hold, _Worked] = {}
        self._ask_at = float("-inf")
        self._backoff = Backoff(longest=max(0.2, lease_seconds * MARGIN))
        self._waiting_for: str | None = None
        self._stopping = False
        self._wakes: SimpleQueue[None] = SimpleQueue()  # which the handler of a signal may put into at any time
        self._has_news = threading.Event()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._running = threading.Lock()

    @property
    def member(self) -> str:
        """What this process is called in the group."""
        return self._member

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that it works on now, with their tokens."""
        return tuple(worked.lease.part for worked in list(self._worked.values()) if not worked.lease.lost)

    @property
    def waiting_for(self) -> str | None:
        """Why it is given nothing at present; None while whom it asks answers."""
        return self._waiting_for

    def run(self, work: Callable[[Held], object]) -> None:
        """Works on whatever parts it gets, until `stop`, or until `work` returns without having been asked to.

        Args:
            work: called with what `open_part` gave of a part, by a thread of its own; returns when that has ended.
                What it raises ends the run, but for the loss of a part.

        Raises:
            UsageError: it runs already, or did.
            RequestRefused: the group has another number of parts, or the access token may not be its member.
            UsageError, LogError: the same, of a group in Kafka.
            Exception: what `work` raised.
        """
        if not self._running.acquire(blocking=False):
            mend = "join again: a member that has left does not come back"
            raise UsageError("the member runs already, or has left", where=f"group {self.name}", mend=mend)
        try:
            self._lessor.begin(self._member, self._told_of_news)
            with self.within():
                while not self._stopping:
                    self._turn(work)
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._finish()
            self._over.set()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Has `run` finish what is under way, leave and return; any thread, or a signal's handler, may ask for it."""
        self._stopping = True
        self._wakes.put(None)

    def close(self) -> None:
        """Has it stop, and waits until it has left.

        Raises:
            UsageError: as `require_outside`.
        """
        self.require_outside()
        self.stop()
        if not self._running.acquire(blocking=False):
            self._over.wait()

    @contextmanager
    def within(self) -> Iterator[None]:
        """What runs in it was called by this member."""
        token = _within.set((*_within.get(), self))
        try:
            yield
        finally:
            _within.reset(token)

    def require_outside(self) -> None:
        """Sees to it that who asks may wait for the member's end.

        Raises:
            UsageError: the member has called it: a work, or the handler of a signal in the thread of `run`.
        """
        if self in _within.get():
            what = "what a member of a group has called cannot close it, nor its bus: it would wait for itself"
            raise UsageError(what, where=f"group {self.name}", mend="call stop() of the member, and return")

    def _turn(self, work: Callable[[Held], object]) -> None:
        if self._is_to_ask():
            self._ask()
        self._come_about(work)
        if not self._stopping:
            self._wait()
        self._reap()

    def _finish(self) -> None:
        """Ends all work while the parts are still held, and leaves."""
        for worked in list(self._worked.values()):
            worked.stop()
        while self._worked:
            if self._is_to_ask():
                self._renew_at_the_end()
            self._wait()
            self._reap()
        try:
            self._lessor.ask(self._membership.asked(leaves=True), self._membership.lease / 3)
        except (WalbusError, OSError) as error:
            _log.warning("group.not_left", group=self.name, member=self._member, reason=str(error))

    def _told_of_news(self) -> None:
        """Has it ask at once; called by any thread."""
        self._has_news.set()
        self._wakes.put(None)

    def _is_to_ask(self) -> bool:
        return self._has_news.is_set() or self._clock.boottime() >= self._ask_at

    def _wait(self) -> None:
        """Until the next request is due, a work has ended, or `stop` is called."""
        try:
            self._wakes.get(timeout=max(0.0, self._ask_at - self._clock.boottime()))
            while True:
                self._wakes.get_nowait()
        except Empty:
            return

    def _renew_at_the_end(self) -> None:
        try:
            self._ask()
        except (WalbusError, OSError) as error:
            self._ask_at = self._clock.boottime() + self._backoff.next_delay()
            _log.warning("group.waiting", group=self.name, member=self._member, reason=str(error))
        self._lose()

    # What is asked, and what comes of it

    def _ask(self) -> None:
        self._has_news.clear()
        asked_at = self._clock.boottime()
        try:
            told = self._lessor.ask(self._membership.asked(), self._membership.lease / 3)
        except (WalbusError, OSError) as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            self._ask_at = self._clock.boottime() + self._backoff.next_delay()
            if self._waiting_for != str(error):
                self._waiting_for = str(error)
                _log.warning("group.waiting", group=self.name, member=self._member, reason=str(error))
            return
        self._backoff.reset()
        if self._waiting_for is not None:
            self._waiting_for = None
            _log.info("group.answered", group=self.name, member=self._member)
        self._membership.told(told, asked_at)
        self._ask_at = asked_at + self._membership.pause

    def _come_about(self, work: Callable[[Held], object]) -> None:
        """Has what is worked on be what is held."""
        self._lose()
        for hold, worked in self._worked.items():
            if hold in self._membership.to_give_up and not worked.stopping:
                _log.info("group.part_given_up", consumer=worked.lease.name, token=hold.token)
                worked.stop()
        busy = {hold.part for hold in self._worked}  # one that is lost under an earlier token ends first
        for hold, until in self._membership.until.items():
            if hold.part not in busy:
                self._begin(hold, until, work)

    def _lose(self) -> None:
        for hold, worked in self._worked.items():
            until = self._membership.until.get(hold)
            if until is not None:
                worked.lease.renewed(until)
            elif not worked.lease.lost:
                _log.warning("group.part_lost", consumer=worked.lease.name, token=hold.token)
                worked.lose()

    def _begin(self, hold: Hold, until: float, work: Callable[[Held], object]) -> None:
        part = Part(f"{hold.part}/{self._membership.parts}", hold.token)
        name = part_name(self.name, part.partition)
        lease = PartLease(part, name, self._membership.lease * MARGIN, until, self._clock.boottime)
        self._worked[hold] = worked = _Worked(lease)
        if hold in self._membership.to_give_up:
            worked.over.set()  # it need not begin
            self._wakes.put(None)
            return
        _log.info("group.part_taken", consumer=name, token=hold.token)
        worked.thread = threading.Thread(target=self._do, args=(worked, work), name=name, daemon=True)
        worked.thread.start()

    def _reap(self) -> None:
        for hold, worked in list(self._worked.items()):
            if worked.over.is_set():
                if worked.thread is not None:
                    worked.thread.join()
                del self._worked[hold]
                self._membership.finished(hold)
                rest = self._membership.lease * MARGIN if worked.lease.lost else 0.0
                self._ask_at = min(self._ask_at, self._clock.boottime() + rest)

    # The thread of a part

    def _do(self, worked: _Worked, work: Callable[[Held], object]) -> None:
        try:
            with ExitStack() as opened:
                held = self._opened(worked, opened)
                if held is not None:
                    with self.within():
                        work(held)
            if not worked.stopping:
                self.stop()
        except BaseException as error:
            self._failed(worked, error)
        finally:
            worked.over.set()
            self._wakes.put(None)

    def _opened(self, worked: _Worked, stack: ExitStack) -> Held | None:
        """What works on a part, however long what it needs is away; None if it is not wanted any more."""
        backoff = Backoff(longest=1.0)
        while not worked.stopping:
            try:
                held = stack.enter_context(self._open_part(worked.lease))
            except (WalbusError, OSError) as error:
                if directive_of(error) is not Directive.RETRY:
                    raise
                _log.warning("group.part_waits", consumer=worked.lease.name, reason=str(error))
                self._clock.pause(backoff.next_delay())
            else:
                worked.begun(held)
                return held
        return None

    def _failed(self, worked: _Worked, error: BaseException) -> None:
        lost = worked.lease.lost and isinstance(error, WalbusError)  # it was closed under its hands
        if lost or isinstance(error, CheckpointTaken):
            worked.lease.lose()
            told = {"consumer": worked.lease.name, "token": worked.lease.part.token}
            _log.warning("group.commit_refused", **told, reason=str(error))
            return
        self._error = self._error or error
        self.stop()


def check_group(parts: int, lease_seconds: float) -> None:
    """Sees to it that a group may be so.

    Raises:
        UsageError: it may not.
    """
    if type(parts) is not int or not 1 <= parts <= MAX_PARTS:
        raise UsageError(f"{parts!r} is no number of parts", where="parts", mend=f"give one from 1 to {MAX_PARTS}")
    if not MIN_LEASE <= lease_seconds <= MAX_LEASE:
        mend = f"give {MIN_LEASE:g} to {MAX_LEASE:g} seconds"
        raise UsageError(f"{lease_seconds!r} is no length of a lease", where="lease_seconds", mend=mend)


def _member_name() -> str:
    """A name that no other process has, or will have."""
    host = "".join(
        letter for letter in socket.gethostname() if letter.isascii() and (letter.isalnum() or letter in "-_")
    )
    return f"m-{host[:_HOST_LETTERS]}-{secrets.token_hex(8)}"
