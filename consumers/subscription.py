"""One consumer's subscription: what its session reads, as deliveries; its commits; the callbacks' run over both."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from walbus.consumers.arrow import record_batches
from walbus.consumers.callback_effects import drive
from walbus.consumers.callback_loop import CallbackLoop
from walbus.consumers.callbacks import STOP, Callbacks, Failures
from walbus.consumers.called_feed import CalledFeed
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, last_done_of
from walbus.consumers.checkpoint_store import CheckpointStore, OneReader
from walbus.consumers.deliveries import Batches, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.phases import behind_window
from walbus.consumers.places import Parsed, Place, Until, found_place, parse_place
from walbus.consumers.reporting import Reporter
from walbus.consumers.session import Session
from walbus.consumers.steps import Advance, Asked, Deliver, Discard, Output, Sweep
from walbus.consumers.typed_rows import TypedRows, typed_window
from walbus.consumers.windows import NO_ROWS
from walbus.errors import CheckpointUnavailable, Directive, UsageError, WalbusError, directive_of
from walbus.events import Window
from walbus.position import Position

_log = structlog.get_logger(__name__)

#: Seconds between two checkpoints that are stored only because the log moved on without anything for the consumer.
IDLE_COMMIT_SECONDS = 1.0

#: Seconds between two checkpoints of callbacks while windows come without a pause.
CHECKPOINT_SECONDS = 0.5

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 0.5  # between two attempts to find a place


@dataclass(frozen=True)
class Handing:
    """How what is read is handed over.

    Attributes:
        folder: the consumer's own, for its dead letters.
        on_phase: called with each PhaseEvent.
        rows: makes rows of classes.
        begin: the place where a consumer without a checkpoint begins; None for what its `start` says.
        until: where it ends.
    """

    folder: Path
    on_phase: Callable[[PhaseEvent], object] | None = None
    rows: TypedRows | None = None
    begin: Parsed | None = None
    until: Until | None = None


class Subscription:
    """An endless iterator of deliveries, in order; closing it (or its bus) ends it.

    Made by `Bus.subscribe`. Belongs to one thread; any other may close it.
    """

    def __init__(self, session: Session, store: CheckpointStore, reporter: Reporter, handing: Handing) -> None:
        self._session = session
        self._store = store
        self._held = store if isinstance(store, OneReader) else None  # to be released
        self._releasing = threading.Lock()
        self._reporter = reporter
        self._handing = handing
        self._clock = clock = session.clock
        self._closed = threading.Event()
        self._stopping = threading.Event()
        self._goes_on = threading.Event()  # it is not paused, or is to end
        self._goes_on.set()
        self._stored = session.checkpoint
        self._finished = self._is_end(self._stored)
        self._begin = handing.begin if session.checkpoint is None else None
        self._told: deque[PhaseEvent | Discard] | None = None  # kept for `run` alone
        self._wanted = False  # whether somebody waits for a commit
        self._delivered = 0  # number of the newest delivery
        self._committed = 0  # number of the newest one that was committed
        self._idle: Checkpoint | None = None  # holds once everything delivered is committed; not stored yet
        self._stored_at = clock.monotonic()
        self._runs_on = False  # whether nothing can end it within the session's run
        self._first: Checkpoint | None = None  # where it began, if that could not be stored yet

    @property
    def phase(self) -> str:
        """`starting`, `listing`, `snapshot`, `delta`, `catchup` or `online`."""
        return self._session.phase

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is read at present; None while something is."""
        return "paused" if self.paused else self._session.waiting_for

    @property
    def paused(self) -> bool:
        """Whether `pause` was called, and `resume` has not been since."""
        return not self._goes_on.is_set()

    @property
    def name(self) -> str:
        """The consumer's; that of one part of all keys ends with it, as in `orders.3-of-8`."""
        return self._session.subscribed.name

    @property
    def log_id(self) -> str:
        """Of the log that is read; empty before the relay has answered."""
        return self._session.log_id

    @property
    def stored(self) -> Position:
        """Everything up to here is committed."""
        return last_done_of(self._stored)

    @property
    def ended(self) -> bool:
        """Whether it was stopped or closed, or has come to `until`."""
        return self._finished or self.stopped

    @property
    def stopped(self) -> bool:
        """Whether it was stopped or closed."""
        return self._stopping.is_set() or self._closed.is_set()

    @property
    def has_uncommitted(self) -> bool:
        """Whether something was delivered that was not committed."""
        return self._committed != self._delivered

    def __iter__(self) -> Iterator[Delivery]:
        while not self.ended:
            delivery = self._next(_POLL_SECONDS)
            if delivery is not None:
                yield delivery

    def next(self, timeout: float) -> Delivery | None:
        """The next delivery; None if there was none within about `timeout` seconds, or if it is closed meanwhile.

        Raises:
            WalbusError: reading can go on only after an operator's act. What may come right by itself is waited for.
            PositionTrimmed: the log no longer holds the place of `from_`.
            UsageError: the subscription was closed before.
        """
        if self._closed.is_set():
            raise closed()
        return self._next(timeout)

    def _next(self, timeout: float) -> Delivery | None:
        """As `next`; None too if another thread has closed it since it was looked whether it goes on."""
        if (further := self._further()) is not None:
            return further
        deadline = self._clock.monotonic() + timeout
        if self._closed.is_set() or (self.paused and not self._rested(timeout)) or not self._begun(timeout):
            return None
        while not self._finished:
            self._look_for_end()
            output = self._polled(max(0.0, deadline - self._clock.monotonic()))
            if self._closed.is_set():
                self._session.close()  # what it has opened since
                return None
            if (delivery := self._handed(output)) is not None:
                run, until = self._session.run, self._handing.until
                self._runs_on = run is not None and (until is None or not until.may_end_in(run.checkpoint))
                return delivery
            self._store_idle()
            self._reporter.doing(self._session.phase, self._session.waiting_for)
            if self._clock.monotonic() >= deadline:
                return None
        self._store_idle(at_once=True)
        return None

    def _further(self) -> Delivery | None:
        """The next delivery if it is of the same run as the last one, and `_next` would give it at once."""
        if not self._runs_on or self._stopping.is_set() or not self._goes_on.is_set():
            return None
        run, window = self._session.run, self._session.further()
        if run is None or window is None:
            return None
        return self._made(window, run.checkpoint, run.marks, None, self._commit_in_run)

    def _handed(self, output: Output | PhaseEvent | None) -> Delivery | None:
        """What an output delivers; notes what it says otherwise."""
        until = self._handing.until
        match output:
            case Deliver(window) if until is not None and until.passed_by(window):
                self._finished = True
            case Deliver(window, marks, checkpoint):
                return self._deliver(window, checkpoint, marks, None)
            case Sweep(checkpoint=checkpoint, marks=marks) as sweep:
                return self._deliver(NO_ROWS, checkpoint, marks, sweep)
            case Advance(checkpoint):
                self._idle, self._finished = checkpoint, self._is_end(checkpoint)
                if self._stored is None and isinstance(checkpoint, Following) and not self._delivered:
                    self._first = self._first or checkpoint  # `latest` is where it was when it was asked for first
                    self._store_idle(at_once=True)
            case Asked(position):
                self._reporter.asked(position)
                self._stored_at, self._wanted = float("-inf"), True
            case PhaseEvent() | Discard():
                self._tell(output)
            case None:
                pass
        return None

    def _polled(self, timeout: float) -> Output | PhaseEvent | None:
        """What the session gives; what goes wrong because another thread closes it is no error."""
        try:
            return self._session.poll(timeout)
        except Exception:
            if not self._closed.is_set():
                raise
            return None

    def batches(self, *, rows: int = 65_536, seconds: float = 1.0) -> Iterator[Batches]:
        """The same windows as Arrow record batches: an endless iterator, as the subscription itself is.

        Args:
            rows: of windows that are put together, about.
            seconds: for which windows are waited for once there is one.

        Raises:
            UsageError: pyarrow is not installed.
            WalbusError: as `next`.
        """
        while not self.ended:
            first = self._next(_POLL_SECONDS)
            if first is None:
                continue
            gathered, count, deadline = [first], len(first), self._clock.monotonic() + seconds
            failure: WalbusError | None = None
            while failure is None and not self.ended and count < rows:
                if (left := deadline - self._clock.monotonic()) <= 0:
                    break
                try:
                    delivery = self._next(left)
                except WalbusError as error:
                    failure, delivery = error, None  # told behind what came before it
                if delivery is not None:
                    gathered.append(delivery)
                    count += len(delivery)
            yield Batches(record_batches([delivery.window for delivery in gathered]), gathered)
            if failure is not None:
                raise failure

    def run(
        self, callbacks: Callbacks, failures: Failures = STOP, *, checkpoint_seconds: float = CHECKPOINT_SECONDS
    ) -> None:
        """Calls a consumer for what comes, until `stop` or `close`; see `walbus.consumers.callbacks` for the order.

        Args:
            callbacks: the consumer.
            failures: what becomes of what it refuses. Under `dead-letter` changes are parked in
                `dead-letters.sqlite` in the consumer's folder; see `walbus dead-letters`.
            checkpoint_seconds: between two checkpoints while windows come without a pause; behind the last window
                before a pause there always is one.

        Raises:
            CallbackFailed: a change was refused too often under `stop`, or a window under any policy.
            DeadLettersFull: more was to be parked than may be.
            WalbusError: as `next`.
            Exception: what `on_start`, `on_error`, `on_rollback`, `on_bootstrap_start` or `on_bootstrap_end` raised.
        """
        with CalledFeed(self, failures) as feed:
            monotonic = self._clock.monotonic
            drive(CallbackLoop(callbacks, feed, feed, failures, feed.letters, checkpoint_seconds, monotonic).steps())

    def rewind(self) -> None:
        """Goes back to the stored checkpoint: what was delivered since comes again, and its commits do nothing."""
        self._session = self._session.rewound(self._stored or self._first)
        self._idle, self._committed = None, self._delivered
        self._finished = self._is_end(self._stored)

    def seek(self, place: Place) -> None:
        """Goes to another place of the log, back or on, and stores that: commits of earlier deliveries do nothing.

        Args:
            place: of the first change that comes: a position, a time, `seq:N`, `earliest` or `latest`.

        Raises:
            UsageError: the place is none, or the consumer has not read its snapshot yet.
            PositionTrimmed: the log no longer holds it.
            PositionUnknown: it is behind the log's end.
            RelayUnavailable: the relay does not answer now.
        """
        parsed = parse_place(place, "place", self._clock)
        stored = self._stored
        if stored is not None and not isinstance(stored, Following):
            raise UsageError("the consumer reads its snapshot", where=self.name, mend="seek once it is online")
        self._go(self._found(parsed, stored))
        self._begin = None

    def pause(self) -> None:
        """Has nothing read until `resume`, and no connection kept; any thread may ask for it.

        What has been delivered can be committed meanwhile.
        """
        if not self.ended:
            self._goes_on.clear()

    def resume(self) -> None:
        """Ends `pause`: it goes on behind the window that was delivered last."""
        self._goes_on.set()

    def stop(self) -> None:
        """Ends the loop behind the delivery that it has; any thread, or a signal's handler, may ask for it.

        `run` then commits what is whole, and returns.
        """
        self._stopping.set()
        self._goes_on.set()

    def close(self) -> None:
        """Ends the subscription; the last commit stands."""
        self._closed.set()
        self._stopping.set()
        self._goes_on.set()
        self._session.close()
        self._reporter.close()
        with self._releasing:
            held, self._held = self._held, None
        if held is not None:
            held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _begun(self, timeout: float) -> bool:
        """Goes to the place of `from_`, if it is still to begin there; False if that was not to be had yet."""
        place = self._begin
        if place is None:
            return True
        try:
            self._go(self._found(place, None))
        except (WalbusError, OSError) as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            self._reporter.doing("starting", str(error))
            self._stopping.wait(min(timeout, _RETRY_SECONDS))
            return False
        self._begin = None
        return True

    def _found(self, place: Parsed, before: Following | None) -> Following:
        asked = self._session.subscribed
        found = found_place(self._session.relay, place, asked.tables, asked.narrowing.of_stream(), before)
        return replace(found, part=asked.part)

    def _go(self, checkpoint: Following) -> None:
        """Stores a checkpoint that is not where what was delivered ends, and goes on there."""
        self._save(checkpoint)
        self._reporter.begin(checkpoint)
        self.rewind()

    def _rested(self, timeout: float) -> bool:
        """While it is paused, nothing is connected; whether it goes on within `timeout` seconds."""
        self._session.rest()
        self._reporter.doing(self._session.phase, "paused")
        self._store_idle()
        return self._goes_on.wait(timeout) and not self._closed.is_set()

    def _is_end(self, checkpoint: Checkpoint | None) -> bool:
        until = self._handing.until
        return until is not None and until.reached_at(checkpoint)

    def _look_for_end(self) -> None:
        until = self._handing.until
        if until is None or not until.needs_end(self._clock.wall()):
            return
        try:
            log = self._session.relay.info(self._session.log_id, self.stored).log
        except (WalbusError, OSError) as error:
            if directive_of(error) is not Directive.RETRY:
                raise
        else:
            until.log_ended_at(log.end)
            self._finished = self._is_end(self._idle or self._stored)

    def _tell(self, event: PhaseEvent | Discard) -> None:
        if self._told is not None:
            self._told.append(event)
        if self._handing.on_phase is not None and isinstance(event, PhaseEvent):
            self._handing.on_phase(event)

    def _deliver(self, window: Window, checkpoint: Checkpoint | None, marks: Marks, sweep: Sweep | None) -> Delivery:
        self._idle = None
        self._finished = self._is_end(checkpoint)
        return self._made(window, checkpoint, marks, sweep, self._commit)

    def _made(
        self, window: Window, checkpoint: Checkpoint | None, marks: Marks, sweep: Sweep | None,
        commit: Callable[[Delivery], object],
    ) -> Delivery:  # fmt: skip
        self._delivered += 1
        if self._handing.rows is not None:
            window = typed_window(window, self._handing.rows)
        phase, number = self._session.read_in, self._delivered
        return Delivery(window, phase, sweep, marks.generation, number, checkpoint, commit)

    def _commit(self, delivery: Delivery) -> None:
        """A delivery was committed (`Delivery.commit`)."""
        self._commit_at(delivery._number, delivery._checkpoint)

    def _commit_in_run(self, delivery: Delivery) -> None:
        """A delivery was committed whose checkpoint was not made with it: most are never committed by themselves."""
        run = delivery._checkpoint
        if not isinstance(run, Following):  # behind the run's last window, it would tell too much of this one
            raise TypeError(f"a run ends at a checkpoint of {type(run).__name__}")
        self._commit_at(delivery._number, behind_window(run, delivery.window))

    def _commit_at(self, number: int, checkpoint: Checkpoint | None) -> None:
        if number > self._committed and checkpoint is not None:
            self._save(checkpoint)
            self._committed = number

    def _store_idle(self, *, at_once: bool = False) -> None:
        due = at_once or self._clock.monotonic() - self._stored_at >= IDLE_COMMIT_SECONDS
        if self._idle is None or not due or self._committed != self._delivered:
            return
        try:
            self._save(self._idle)
            self._idle = None
        except CheckpointUnavailable as error:  # nobody asked for it: it is tried again in a while
            self._stored_at = self._clock.monotonic()
            _log.warning("consumer.checkpoint_waits", consumer=self.name, reason=str(error))

    def _save(self, checkpoint: Checkpoint) -> None:
        self._store.save(checkpoint)
        self._stored, self._wanted = checkpoint, False
        self._stored_at = self._clock.monotonic()
        self._reporter.durable(checkpoint)


def closed() -> UsageError:
    """The error for a subscription that is asked for more behind its end."""
    return UsageError("the subscription is closed", mend="subscribe again: it goes on behind the last commit")
