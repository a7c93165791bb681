"""A subscription as the callbacks' loop sees it, while they are called for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import structlog

from walbus.consumers.callback_effects import Handed, hand_over
from walbus.consumers.callbacks import Callbacks, Failures
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.checkpoint_fence import FencedCheckpointStore
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.letter_file import FILE_NAME
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.consumers.subscription_twin import SubscriptionTwin
from walbus.consumers.typed_rows import typed_window
from walbus.errors import UsageError
from walbus.events import Change, Window

if TYPE_CHECKING:
    from walbus.consumers.subscription import Subscription

_log = structlog.get_logger(__name__)


class CalledFeed(SubscriptionTwin):
    """A subscription while callbacks are called for it, and the dead letters under their policy.

    Raises:
        UsageError: it is run already.
        StoreDamaged: the file of dead letters is none.
    """

    def __init__(self, subscription: Subscription, failures: Failures) -> None:
        if subscription._told is not None:
            raise UsageError("the subscription is run already", mend="run one set of callbacks for each subscription")
        super().__init__(subscription)
        self.letters: DeadLetters | None = None
        if failures.policy == "dead-letter":
            path, most_bytes = subscription._handing.folder / FILE_NAME, failures.dead_letter_bytes
            wall = subscription._clock.wall
            self.letters = DeadLetters(path, limit=failures.dead_letters, limit_bytes=most_bytes, wall=wall)
            store = subscription._store
            if isinstance(store, FencedCheckpointStore) and not store.stays_here:
                _log.warning("consumer.letters_stay_here", consumer=self.name, file=str(path))
        subscription._told = deque()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What is stored; None: nothing is yet."""
        return self._subscription._stored

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for what was delivered to be committed."""
        return self._subscription._wanted

    def next(self, timeout: float) -> Delivery | None:
        """The next delivery; None once the subscription is closed too."""
        return None if self.ended else self._subscription._next(timeout)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401  # whatever it is
        """Calls what blocks, at once; the asyncio twin has it called by a thread."""
        return function(*arguments)

    def each(
        self, on_change: Callable[..., Any], changes: Sequence[Change], window: Delivered
    ) -> tuple[int, Exception | None]:
        """Calls a consumer for one change after another: how many it took, and what it raised at the next one."""
        taken = 0
        try:
            for change in changes:
                on_change(change, window)
                taken += 1
        except Exception as error:  # whatever a consumer's code raises
            return taken, error
        return taken, None

    def windows(self, calls: Callbacks, delivery: Delivery, may_go_on: Callable[[], bool]) -> Handed:
        """Hands over a whole window, and those of its run that come behind it while that may go on."""
        further = self._subscription._further
        return hand_over(calls, delivery, lambda: further() if may_go_on() else None)

    def told(self) -> PhaseEvent | Discard | None:
        """What was told before the delivery that came last; None once all is taken."""
        return self._subscription._told.popleft() if self._subscription._told else None

    def again(self, window: Window) -> Delivered:
        """A window that was put aside, as it is handed over; its phase is `dead-letter`."""
        rows = self._subscription._handing.rows
        return Delivered(window if rows is None else typed_window(window, rows), "dead-letter", None)

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
