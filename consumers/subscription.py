"""One consumer's subscription: what its session reads, as deliveries; its commits; the callbacks' run over both."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from walbus.consumers.arrow import record_batches
from walbus.consumers.callback_loop import CallbackLoop, drive
from walbus.consumers.callbacks import STOP, Callbacks, Failures
from walbus.consumers.checkpoint import Checkpoint, Following, last_done_of
from walbus.consumers.checkpoint_store import CheckpointStore
from walbus.consumers.dead_letters import FILE_NAME, DeadLetters
from walbus.consumers.deliveries import Batches, Delivered, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.reporting import Reporter
from walbus.consumers.session import Session
from walbus.consumers.steps import Advance, Asked, Deliver, Discard, Output, Sweep
from walbus.errors import UsageError, WalbusError
from walbus.events import Window, time_of
from walbus.position import Position
from walbus.records import Kind

#: Seconds between two checkpoints that are stored only because the log moved on without anything for the consumer.
IDLE_COMMIT_SECONDS = 1.0

#: Seconds between two checkpoints of callbacks while windows come without a pause.
CHECKPOINT_SECONDS = 0.5

_POLL_SECONDS = 0.5


class Subscription:
    """An endless iterator of deliveries, in order; closing it (or its bus) ends it.

    Made by `Bus.subscribe`. Belongs to one thread; any other may close it.
    """

    def __init__(
        self,
        session: Session,
        store: CheckpointStore,
        reporter: Reporter,
        folder: Path,
        on_phase: Callable[[PhaseEvent], object] | None = None,
    ) -> None:
        self._session = session
        self._on_phase = on_phase
        self._store = store
        self._reporter = reporter
        self._folder = folder
        self._clock = clock = session.clock
        self._closed = threading.Event()
        self._stopping = threading.Event()
        self._stored = session.checkpoint
        self._told: deque[PhaseEvent | Discard] | None = None  # kept for `run` alone
        self._wanted = False  # whether somebody waits for a commit
        self._delivered = 0  # number of the newest delivery
        self._committed = 0  # number of the newest one that was committed
        self._idle: Checkpoint | None = None  # holds once everything delivered is committed; not stored yet
        self._stored_at = clock.monotonic()

    @property
    def phase(self) -> str:
        """`starting`, `listing`, `snapshot`, `delta`, `catchup` or `online`."""
        return self._session.phase

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is read at present; None while something is."""
        return self._session.waiting_for

    @property
    def name(self) -> str:
        """The consumer's."""
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
        """Whether it was stopped or closed."""
        return self._stopping.is_set() or self._closed.is_set()

    def __iter__(self) -> Iterator[Delivery]:
        while not self.ended:
            delivery = self.next(_POLL_SECONDS)
            if delivery is not None:
                yield delivery

    def next(self, timeout: float) -> Delivery | None:
        """The next delivery; None if there was none within about `timeout` seconds, or if it is closed meanwhile.

        Raises:
            WalbusError: reading can go on only after an operator's act. What may come right by itself is waited for.
            UsageError: the subscription was closed before.
        """
        if self._closed.is_set():
            raise closed()
        deadline = self._clock.monotonic() + timeout
        while True:
            output = self._polled(max(0.0, deadline - self._clock.monotonic()))
            if self._closed.is_set():
                self._session.close()  # what it has opened since
                return None
            match output:
                case Deliver(window, _, checkpoint):
                    return self._deliver(window, checkpoint, None)
                case Sweep(checkpoint=checkpoint) as sweep:
                    return self._deliver(_EMPTY, checkpoint, sweep)
                case Advance(checkpoint):
                    self._idle = checkpoint
                    if self._stored is None and isinstance(checkpoint, Following) and not self._delivered:
                        self._store_idle(at_once=True)  # `latest` is where it was when it was asked for first
                case Asked(position):
                    self._reporter.asked(position)
                    self._stored_at, self._wanted = float("-inf"), True
                case PhaseEvent() | Discard() as event:
                    self._tell(event)
                case None:
                    pass
            self._store_idle()
            self._reporter.doing(self._session.phase, self._session.waiting_for)
            if self._clock.monotonic() >= deadline:
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
        while not self._closed.is_set():
            first = self.next(_POLL_SECONDS)
            if first is None:
                continue
            gathered, count, deadline = [first], len(first), self._clock.monotonic() + seconds
            failure: WalbusError | None = None
            while failure is None and count < rows and (left := deadline - self._clock.monotonic()) > 0:
                try:
                    delivery = self.next(left)
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
        self._session = self._session.rewound(self._stored)
        self._idle, self._committed = None, self._delivered

    def stop(self) -> None:
        """Ends the loop behind the delivery that it has; any thread, or a signal's handler, may ask for it.

        `run` then commits what is whole, and returns.
        """
        self._stopping.set()

    def close(self) -> None:
        """Ends the subscription; the last commit stands."""
        self._stopping.set()
        self._closed.set()
        self._session.close()
        self._reporter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _tell(self, event: PhaseEvent | Discard) -> None:
        if self._told is not None:
            self._told.append(event)
        if self._on_phase is not None and isinstance(event, PhaseEvent):
            self._on_phase(event)

    def _deliver(self, window: Window, checkpoint: Checkpoint | None, sweep: Sweep | None) -> Delivery:
        self._idle = None
        self._delivered += 1
        return Delivery(window, self._session.read_in, sweep, self._delivered, checkpoint, self._commit)

    def _commit(self, number: int, checkpoint: Checkpoint | None) -> None:
        """A delivery was committed (`Delivery.commit`)."""
        if number > self._committed and checkpoint is not None:
            self._save(checkpoint)
            self._committed = number

    def _store_idle(self, *, at_once: bool = False) -> None:
        due = at_once or self._clock.monotonic() - self._stored_at >= IDLE_COMMIT_SECONDS
        if self._idle is not None and due and self._committed == self._delivered:
            self._save(self._idle)
            self._idle = None

    def _save(self, checkpoint: Checkpoint) -> None:
        self._store.save(checkpoint)
        self._stored, self._wanted = checkpoint, False
        self._stored_at = self._clock.monotonic()
        self._reporter.durable(checkpoint)


def closed() -> UsageError:
    """The error for a subscription that is asked for more behind its end."""
    return UsageError("the subscription is closed", mend="subscribe again: it goes on behind the last commit")


class CalledFeed:
    """A subscription while callbacks are called for it, and the dead letters under their policy.

    Raises:
        UsageError: it is run already.
        StoreDamaged: the file of dead letters is none.
    """

    def __init__(self, subscription: Subscription, failures: Failures) -> None:
        if subscription._told is not None:
            raise UsageError("the subscription is run already", mend="run one set of callbacks for each subscription")
        self._subscription = subscription
        self.letters: DeadLetters | None = None
        if failures.policy == "dead-letter":
            limits = {"limit": failures.dead_letters, "limit_bytes": failures.dead_letter_bytes}
            path = subscription._folder / FILE_NAME
            self.letters = DeadLetters(path, **limits, wall=subscription._clock.wall)
        subscription._told = deque()

    @property
    def name(self) -> str:
        """The consumer's."""
        return self._subscription.name

    @property
    def log_id(self) -> str:
        """Of the log that is read."""
        return self._subscription.log_id

    @property
    def stored(self) -> Position:
        """Everything up to here is committed."""
        return self._subscription.stored

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be taken."""
        return self._subscription.ended

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for what was delivered to be committed."""
        return self._subscription._wanted

    def next(self, timeout: float) -> Delivery | None:
        """The next delivery; None once the subscription is closed too."""
        return None if self.ended else self._subscription.next(timeout)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  # whatever it is
        """Calls what blocks, at once; the asyncio twin has it called by a thread."""
        return function(*arguments)

    def told(self) -> PhaseEvent | Discard | None:
        """What was told before the delivery that came last; None once all is taken."""
        return self._subscription._told.popleft() if self._subscription._told else None

    def again(self, window: Window) -> Delivered:
        """A window that was put aside, as it is handed over; its phase is `dead-letter`."""
        return Delivered(window, "dead-letter", None)

    def rewind(self) -> None:
        """Goes back to the stored checkpoint."""
        self._subscription.rewind()

    def wait_stopped(self, seconds: float) -> None:
        """Waits until the subscription is stopped or closed, or for so long."""
        self._subscription._stopping.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._subscription._told = None
        if self.letters is not None:
            self.letters.close()


_EMPTY = Window(
    kind=Kind.SNAPSHOT,
    changes=(),
    xid=0,
    commit_lsn=0,
    commit_time=time_of(0),
    last=Position(0, 0, 0),
    last_seq=0,
    begins=True,
    ends=True,
)
