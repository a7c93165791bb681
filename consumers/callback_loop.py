"""Calls a consumer's callbacks in their order; what is retried, parked, skipped, rolled back. Pure.

The loop is a generator of steps, each a function and its arguments: whoever drives it calls that, and sends back what
it gave or throws in what it raised. So threads and asyncio have one loop, and two drivers of a few lines.

A change that is refused is tried again where it stands. Whatever else raises (a window's start or end, a checkpoint, or
the place where that is stored) rolls back: the subscription is rewound to its stored checkpoint, and what was taken
since comes again. `ChangesRefused` does so too, and names the changes that are at fault: they are not handed over
again, but treated by the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import structlog

from walbus.consumers.callbacks import AsyncCallbacks, Callbacks, ChangesRefused, Failures
from walbus.consumers.dead_letters import DeadLetter, DeadLetters, Held, held_by, touches
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.errors import CallbackFailed, CheckpointTaken
from walbus.events import Change, Window
from walbus.position import Position
from walbus.records import Op

_log = structlog.get_logger(__name__)

_IDLE_SECONDS = 0.5  # that one reading waits
_LINGER_SECONDS = 0.02  # without anything new, behind which what was taken is committed
_LOOK_SECONDS = 1.0  # between two looks for letters that are to be tried again

Step: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
Steps: TypeAlias = Generator[Step, Any, None]


class Feed(Protocol):
    """A subscription, as the loop sees it."""

    @property
    def name(self) -> str:
        """The consumer's."""

    @property
    def log_id(self) -> str:
        """Of the log that is read."""

    @property
    def stored(self) -> Position:
        """Everything up to here is committed."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be taken."""

    @property
    def stopped(self) -> bool:
        """Whether somebody ended it, so that what would come is not taken any more."""

    @property
    def has_uncommitted(self) -> bool:
        """Whether something was delivered, to whomever, and not committed."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for what was taken to be committed."""

    def told(self) -> PhaseEvent | Discard | None:
        """What the reading told before the delivery that came last; None once all is taken."""

    def again(self, window: Window) -> Delivered:
        """A window that was put aside, as it is handed over."""

    def wait_stopped(self, seconds: float) -> None:
        """Waits until no more is to be taken, or for so long."""


class Effects(Protocol):
    """How what blocks is called: at once, or by another thread."""

    def next(self, timeout: float) -> Any:  # noqa: ANN401  # an awaitable or not
        """The next delivery."""

    def rewind(self) -> Any:  # noqa: ANN401
        """Goes back to the stored checkpoint."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        """What a function gives."""


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
    _look_at: float = field(default=0.0, init=False)
    _at_fault: dict[_AtFault, Exception] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._rollbacks = self.failures.backoff()

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
            while not (yield from self._come_to_its_end()):
                pass
            yield from self._finish()
        except _Ended:
            yield from self._abandon()
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, CallbackFailed):
                yield self.calls.on_error, (error, None)
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
        return True

    def _turn(self) -> Steps:
        """What comes next, and what is due behind it."""
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
        if self.letters is not None and not self._open and self.monotonic() >= self._look_at:
            yield from self._try_letters(self.letters)

    def _tell(self, told: PhaseEvent | Discard) -> Steps:
        match told:
            case Discard():
                self._open = False
                yield from self._abandon()
            case PhaseEvent("bootstrap_begins"):
                yield self.calls.on_bootstrap_start, ()
            case PhaseEvent("bootstrap_ends"):
                yield self.calls.on_bootstrap_end, ()
            case _:
                pass

    # One window

    def _take(self, delivery: Delivery) -> Steps:
        if delivery.begins and not delivery.ends and self._whole is not None:
            yield from self._checkpoint()  # so that a rollback concerns the large transaction alone
        if not self._taken:
            self._taken, self._since = True, self.monotonic()
        calls = self.calls
        if delivery.begins:
            yield from self._undoing(calls.on_window_start, delivery)
            self._open = True
        on_change = calls.on_change
        careful = self.letters is not None or bool(self._at_fault)
        for change in delivery.changes:
            if careful and (yield from self._set_aside(change, delivery)):
                continue
            try:
                yield on_change, (change, delivery)
            except Exception as error:  # whatever a consumer's code raises
                taken = yield from self._refused(change, delivery, error)
            else:
                taken = True
            if taken and careful and change.raw.op == Op.TRUNCATE:
                yield from self._truncated(change)
        if delivery.sweep is not None:
            yield from self._undoing(calls.on_sweep, delivery.sweep)
        if delivery.ends:
            yield from self._undoing(calls.on_window_end, delivery)
            self._open, self._whole = False, delivery

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
            yield self.calls.on_error, (error, None)
            raise self._failed("the last checkpoint failed", str(self.feed.stored)) from error

    # What goes wrong

    def _abandon(self) -> Steps:
        taken, self._taken, self._whole, self._open = self._taken, False, None, False
        if taken:
            yield self.calls.on_rollback, (self.feed.stored,)

    def _roll_back(self, error: Exception) -> Steps:
        if isinstance(error, CheckpointTaken):
            raise error
        yield self.calls.on_error, (error, None)
        yield from self._abandon()
        if isinstance(error, ChangesRefused):
            self._blame(error)
        else:
            if self._rollbacks.attempts + 1 >= self.failures.attempts:
                what = f"a window was refused {self.failures.attempts} times ({type(error).__name__})"
                raise self._failed(what, f"behind {self.feed.stored}") from error
            yield from self._pause(self._rollbacks.next_delay())
        yield self.effects.rewind, ()

    def _blame(self, error: ChangesRefused) -> None:
        found = {_fault_of(change): error for change in error.changes}
        if self.failures.policy == "stop" or not found or found.keys() <= self._at_fault.keys():
            first = error.changes[0] if error.changes else None
            where = f"behind {self.feed.stored}" if first is None else _place_of(first)
            raise self._failed("changes were refused", where) from error
        self._at_fault |= found

    def _refused(self, change: Change, delivery: Delivered, error: Exception) -> Generator[Step, Any, bool]:
        """Tries a change again, as often as it may be; then the policy decides. Whether it was taken."""
        backoff = self.failures.backoff()
        attempts = 1
        while True:
            if isinstance(error, ChangesRefused) and {_fault_of(one) for one in error.changes} != {_fault_of(change)}:
                raise _Undone from error
            yield self.calls.on_error, (error, change)
            if isinstance(error, ChangesRefused) or attempts >= self.failures.attempts:
                break
            yield from self._pause(backoff.next_delay())
            try:
                yield self.calls.on_change, (change, delivery)
            except Exception as again:
                error, attempts = again, attempts + 1
            else:
                return True
        yield from self._give_up(change, delivery, error, attempts)
        return False

    def _give_up(self, change: Change, delivery: Delivered, error: Exception, attempts: int) -> Steps:
        told = {"consumer": self.feed.name, "table": change.table, "position": str(change.position)}
        if self.letters is not None:
            log_id = self.feed.log_id
            yield self.effects.call, (self.letters.park, change, delivery.window, log_id, error, attempts)
            _log.warning("consumer.change_parked", **told, error=type(error).__name__, attempts=attempts)
        elif self.failures.policy == "skip":
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

    # Dead letters

    def _set_aside(self, change: Change, delivery: Delivered) -> Generator[Step, Any, bool]:
        """Whether a change is not to be handed over: it is known to be at fault, or waits behind a letter."""
        fault = self._at_fault.get(_fault_of(change)) if self._at_fault else None
        letters, log_id = self.letters, self.feed.log_id
        if letters is not None and letters.holds(change):
            behind: bool = yield self.effects.call, (letters.park_behind, change, delivery.window, log_id)
            if behind:
                return True
        if fault is None:
            return False
        yield from self._give_up(change, delivery, fault, 1)
        return True

    def _truncated(self, change: Change) -> Steps:
        if self.letters is not None:
            void: int = yield self.effects.call, (self.letters.truncated, change.raw.table)
            if void:
                _log.warning("consumer.letters_void", consumer=self.feed.name, table=change.table, letters=void)

    def _try_letters(self, letters: DeadLetters) -> Steps:
        """Hands over again what an operator asked for, each letter as a window of its own, in order by key."""
        asked: list[DeadLetter] = yield self.effects.call, (letters.asked,)
        self._look_at = self.monotonic() + _LOOK_SECONDS
        if not asked:
            return
        yield from self._checkpoint()
        failed: set[Held] = set()
        for letter in asked:
            error: Exception | None = None
            if not touches(letter.change, failed):
                try:
                    yield from self._hand_over(letter)
                except Exception as raised:
                    error = raised
                    yield self.calls.on_error, (error, letter.change)
                    yield self.calls.on_rollback, (self.feed.stored,)
                else:
                    yield self.effects.call, (letters.resolved, letter)
                    continue
            failed.update(held_by(letter.change))
            yield self.effects.call, (letters.failed_again, letter, error)

    def _hand_over(self, letter: DeadLetter) -> Steps:
        window = self.feed.again(letter.window)
        yield self.calls.on_window_start, (window,)
        yield self.calls.on_change, (window.changes[0], window)
        yield self.calls.on_window_end, (window,)
        yield self.calls.on_checkpoint, (self.feed.stored,)


def drive(steps: Steps) -> None:
    """Takes the steps in this thread."""
    try:
        call, arguments = next(steps)
        while True:
            try:
                given = call(*arguments)
            except BaseException as error:
                call, arguments = steps.throw(error)
            else:
                call, arguments = steps.send(given)
    except StopIteration:
        pass


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
