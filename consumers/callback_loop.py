"""Calls a consumer's callbacks in their order; what is retried, skipped, rolled back. Pure.

The loop is a generator of steps (`callback_effects`), and what it does with dead letters are pieces of it
(`letter_steps`).

A change that is refused is tried again where it stands. Whatever else raises (a window's start or end, a checkpoint, or
the place where that is stored) rolls back: the subscription is rewound to its stored checkpoint, and what was taken
since comes again. `ChangesRefused` does so too, and names the changes that are at fault: they are not handed over
again, but treated by the policy.

A transaction whose rest will not come is rolled back as well: its log was replaced, or the consumer itself went to
another place (`seek`) in the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from walbus.consumers.callback_effects import Effects, Feed, Handed, Step, Steps
from walbus.consumers.callbacks import AsyncCallbacks, Callbacks, ChangesRefused, Failures
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.deliveries import Delivery
from walbus.consumers.letter_steps import LetterSteps
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.errors import CallbackFailed, CheckpointTaken, DeadLettersFull
from walbus.events import Change
from walbus.position import ORIGIN, Position

_log = structlog.get_logger(__name__)

_IDLE_SECONDS = 0.5  # that one reading waits
_LINGER_SECONDS = 0.02  # without anything new, behind which what was taken is committed


class _AtFault(NamedTuple):
    """A change that was named by ChangesRefused; it comes again as another object, a snapshot's of another state."""

    relation: int
    key: bytes | Position
    seq: int


class _Undone(Exception):  # noqa: N818  # no error: it ends a window
    """What was taken since the last checkpoint is to come again; `__cause__` says why."""


class _Ended(Exception):  # noqa: N818  # no error: it ends the run
    """The run was ended between two attempts."""


@dataclass
class CallbackLoop:
    """One run.

    Attributes:
        calls: the consumer.
        feed: its subscription.
        effects: how what blocks is called.
        failures: what becomes of what it refuses.
        letters: where changes are parked, under that policy.
        seconds: between two checkpoints while windows come without a pause.
        monotonic: gives seconds.
    """

    calls: Callbacks | AsyncCallbacks
    feed: Feed
    effects: Effects
    failures: Failures
    letters: DeadLetters | None
    seconds: float
    monotonic: Callable[[], float]
    _open: bool = field(default=False, init=False)  # whether a transaction has begun to come and has not ended
    _taken: bool = field(default=False, init=False)  # whether anything came since the last checkpoint
    _whole: Delivery | None = field(default=None, init=False)  # the last window that is whole and not committed
    _since: float = field(default=0.0, init=False)  # when the first one that is not committed came
    _behind: Position = field(default=ORIGIN, init=False)  # what was taken came behind this
    _reported: Exception | None = field(default=None, init=False)  # the error that the consumer was told last
    _at_fault: dict[_AtFault, Exception] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._rollbacks = self.failures.backoff()
        told = self.calls, self.feed, self.effects, self._report, self.monotonic
        self._letters = None if self.letters is None else LetterSteps(self.letters, *told)

    def steps(self) -> Steps:
        """The whole run.

        Raises:
            CallbackFailed: a change, or a window, was refused too often.
            WalbusError: as `Subscription.next`, or DeadLettersFull.
        """
        try:
            yield self.calls.on_start, ()
            if self.feed.has_uncommitted:
                yield self.effects.rewind, ()
            yield from self._settle()
            while not (yield from self._come_to_its_end()):
                pass
            yield from self._finish()
        except _Ended:
            yield from self._abandon()
        except BaseException as error:
            try:
                if isinstance(error, Exception) and not self._knows(error):
                    yield from self._report(error, None)
            finally:
                yield from self._abandon()
            raise
        finally:
            yield self.calls.on_stop, ()

    def _come_to_its_end(self) -> Generator[Step, Any, bool]:
        """Goes on until nothing more is to come; False if that was undone."""
        try:
            while not self.feed.ended:
                yield from self._turn()
            if not self.feed.stopped and not self._open:
                yield from self._checkpoint()
        except _Undone as undone:
            yield from self._roll_back(_cause(undone))
            return False
        except DeadLettersFull as full:
            yield from self._make_room(full)
            return False
        return True

    def _turn(self) -> Steps:
        """What comes next, and what is due before and behind it."""
        if self._letters is not None and not self._open and self._letters.due:
            yield from self._try_letters(self._letters)
        pending = self._whole is not None and not self._open
        delivery: Delivery | None = yield self.effects.next, (_LINGER_SECONDS if pending else _IDLE_SECONDS,)
        while (told := self.feed.told()) is not None:
            yield from self._tell(told)
        if delivery is not None:
            yield from self._take(delivery)
        if self._open or self._whole is None:
            due = False
        else:
            due = delivery is None or self.feed.wanted or self.monotonic() - self._since >= self.seconds
        if due:
            yield from self._checkpoint()

    def _tell(self, told: PhaseEvent | Discard) -> Steps:
        match told:
            case Discard():
                yield from self._abandon()
                yield from self._settle()
            case PhaseEvent("bootstrap_begins"):
                yield from self._abandon_open()
                yield self.calls.on_bootstrap_start, ()
            case PhaseEvent("bootstrap_ends"):
                yield self.calls.on_bootstrap_end, ()
            case _:
                pass

    # One window

    def _take(self, delivery: Delivery) -> Steps:
        if delivery.begins:
            yield from self._abandon_open()
            if not delivery.ends and self._whole is not None:
                yield from self._checkpoint()  # so that a rollback concerns the large transaction alone
        if not self._taken:
            self._taken, self._since, self._behind = True, self.monotonic(), self.feed.stored
        if self._letters is not None:
            self._letters.layouts_of(delivery)
        if delivery.begins and delivery.ends and delivery.sweep is None and not self._knows_changes:
            yield from self._take_whole(delivery)
            return
        if delivery.begins:
            yield from self._undoing(self.calls.on_window_start, delivery)
            self._open = True
        yield from self._take_rest(delivery, 0)

    def _take_whole(self, delivery: Delivery) -> Steps:
        """Hands a window over in one step, and with it those of its run that come before the next checkpoint."""
        handed: Handed = yield self.effects.windows, (self.calls, delivery, self._may_go_on)
        if handed.whole is not None:
            self._whole = handed.whole
        if handed.refused is None or handed.error is None:
            return
        if handed.at is None:
            raise _Undone from handed.error
        self._open = True
        yield from self._refused(handed.refused.changes[handed.at], handed.refused, handed.error)
        yield from self._take_rest(handed.refused, handed.at + 1)

    def _may_go_on(self) -> bool:
        """Whether nothing is due between two windows."""
        looks = self._letters is not None and self._letters.due
        return not looks and not self.feed.wanted and self.monotonic() - self._since < self.seconds

    def _take_rest(self, delivery: Delivery, at: int) -> Steps:
        """Hands over the changes of a window from one on, and its end."""
        yield from self._take_changes(delivery, at)
        if delivery.sweep is not None:
            yield from self._undoing(self.calls.on_sweep, delivery.sweep)
            if self._letters is not None:
                yield from self._letters.swept(delivery.sweep)
        if delivery.ends:
            yield from self._undoing(self.calls.on_window_end, delivery)
            self._open, self._whole = False, delivery

    @property
    def _knows_changes(self) -> bool:
        """Whether changes may have to wait behind a letter, or be known to be at fault: each is looked at."""
        return bool(self._at_fault) or (self._letters is not None and self._letters.waiting)

    def _take_changes(self, delivery: Delivery, at: int) -> Steps:
        """Hands changes over, from one on, those of which nothing is known all at once."""
        changes, taken = delivery.changes, 0
        error: Exception | None
        while at < len(changes):
            if self._knows_changes:
                yield from self._take_change(changes[at], delivery)
                at += 1
                continue
            rest = changes[at:] if at else changes
            taken, error = yield self.effects.each, (self.calls.on_change, rest, delivery)
            at += taken
            if error is not None:
                yield from self._refused(changes[at], delivery, error)
                at += 1

    def _take_change(self, change: Change, delivery: Delivery) -> Steps:
        """One change that may have to wait behind a letter, or be known to be at fault."""
        fault, letters = self._at_fault.get(_fault_of(change)), self._letters
        if letters is not None and (yield from letters.park_behind(change, delivery)):
            return
        if fault is not None:
            yield from self._give_up(change, delivery, fault, 1)
            return
        try:
            yield self.calls.on_change, (change, delivery)
        except Exception as error:  # whatever a consumer's code raises
            yield from self._refused(change, delivery, error)
        else:
            yield from self._dealt_with(change)

    def _dealt_with(self, change: Change) -> Steps:
        if self._letters is not None:
            yield from self._letters.taken(change)

    def _undoing(self, call: Callable[..., Any], *arguments: object) -> Steps:
        """A callback whose failure rolls back."""
        try:
            yield call, arguments
        except Exception as error:
            raise _Undone from error

    def _checkpoint(self) -> Steps:
        whole = self._whole
        if whole is None:
            return
        yield from self._undoing(self.calls.on_checkpoint, whole.last)
        yield from self._undoing(self.effects.call, whole.commit)
        if self._letters is not None:
            yield from self._letters.committed()
        self._whole, self._taken = None, self._open
        self._rollbacks.reset()
        self._at_fault.clear()

    def _finish(self) -> Steps:
        """Commits what is whole. A failure ends the run: what was taken comes again when it is run anew."""
        if self._open:
            yield from self._abandon()
            return
        try:
            yield from self._checkpoint()
        except _Undone as undone:
            error = _cause(undone)
            yield from self._report(error, None)
            raise self._failed("the last checkpoint failed", str(self.feed.stored)) from error

    # What goes wrong

    def _report(self, error: Exception, change: Change | None) -> Steps:
        """Tells the consumer of an error."""
        self._reported = error
        try:
            yield self.calls.on_error, (error, change)
        except Exception as raised:
            self._reported = raised
            raise

    def _knows(self, error: Exception) -> bool:
        """Whether an error that ends the run is known to the consumer: it raised that itself, or was told its cause."""
        return error is self._reported or isinstance(error, CallbackFailed)

    def _abandon(self) -> Steps:
        taken, self._taken, self._whole, self._open = self._taken, False, None, False
        if taken:
            yield self.calls.on_rollback, (self._behind,)

    def _abandon_open(self) -> Steps:
        """A transaction that has begun has no rest: the consumer was sent elsewhere since."""
        if self._open:
            yield from self._abandon()
            yield from self._settle()

    def _settle(self) -> Steps:
        """What was not committed comes again, and so do TRUNCATEs that would have made letters void."""
        if self._letters is not None:
            yield from self._letters.settle()

    def _roll_back(self, error: Exception) -> Steps:
        if isinstance(error, CheckpointTaken):
            raise error
        yield from self._report(error, None)
        yield from self._abandon()
        if isinstance(error, ChangesRefused):
            self._blame(error)
        else:
            if self._rollbacks.attempts + 1 >= self.failures.attempts:
                what = f"a window was refused {self.failures.attempts} times ({type(error).__name__})"
                raise self._failed(what, f"behind {self.feed.stored}") from error
            yield from self._pause(self._rollbacks.next_delay())
        yield self.effects.rewind, ()
        yield from self._settle()

    def _blame(self, error: ChangesRefused) -> None:
        found = {_fault_of(change): error for change in error.changes}
        if self.failures.policy == "stop" or not found or found.keys() <= self._at_fault.keys():
            first = error.changes[0] if error.changes else None
            where = f"behind {self.feed.stored}" if first is None else _place_of(first)
            raise self._failed("changes were refused", where) from error
        self._at_fault |= found

    def _make_room(self, full: DeadLettersFull) -> Steps:
        """Tries the letters that an operator asked for; what was taken comes again, if that has made room."""
        yield from self._report(full, None)
        yield from self._abandon()
        if self._letters is None or not (yield from self._try_letters(self._letters)):
            raise full
        yield self.effects.rewind, ()
        yield from self._settle()

    def _refused(self, change: Change, delivery: Delivery, error: Exception) -> Steps:
        """Tries a change again, as often as it may be; then the policy decides."""
        backoff = self.failures.backoff()
        attempts = 1
        while True:
            if isinstance(error, ChangesRefused) and {_fault_of(one) for one in error.changes} != {_fault_of(change)}:
                raise _Undone from error
            yield from self._report(error, change)
            if isinstance(error, ChangesRefused) or attempts >= self.failures.attempts:
                break
            yield from self._pause(backoff.next_delay())
            try:
                yield self.calls.on_change, (change, delivery)
            except Exception as again:
                error, attempts = again, attempts + 1
            else:
                yield from self._dealt_with(change)
                return
        yield from self._give_up(change, delivery, error, attempts)

    def _give_up(self, change: Change, delivery: Delivery, error: Exception, attempts: int) -> Steps:
        if self._letters is not None:
            yield from self._letters.park(change, delivery, error, attempts)
        elif self.failures.policy == "skip":
            told = {"consumer": self.feed.name, "table": change.table, "position": str(change.position)}
            _log.warning("consumer.change_skipped", **told, error=type(error).__name__, attempts=attempts)
        else:
            what = f"a change was refused {attempts} times ({type(error).__name__})"
            raise self._failed(what, _place_of(change)) from error

    def _pause(self, seconds: float) -> Steps:
        yield self.effects.call, (self.feed.wait_stopped, seconds)
        if self.feed.stopped:
            raise _Ended

    def _failed(self, what: str, where: str) -> CallbackFailed:
        mend = "mend the code that raised it, or choose the policy skip or dead-letter"
        return CallbackFailed(what, where=where, mend=mend)

    def _try_letters(self, letters: LetterSteps) -> Generator[Step, Any, int]:
        """Hands over again what an operator asked for; how many letters were dealt with."""
        asked = yield from letters.asked()
        if not asked:
            return 0
        yield from self._checkpoint()
        return (yield from letters.hand_over(asked))


def _cause(undone: _Undone) -> Exception:
    cause = undone.__cause__
    if not isinstance(cause, Exception):
        raise TypeError("a rollback has a cause") from undone
    return cause


def _fault_of(change: Change) -> _AtFault:
    key = change.raw.key
    return _AtFault(change.raw.table, change.position if key is None else key, change.seq)


def _place_of(change: Change) -> str:
    return f"{change.table or 'no table'} at {change.position}"
