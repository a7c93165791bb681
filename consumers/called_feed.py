"""A subscription as the callbacks' loop sees it, while they are called for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from walbus.consumers.callbacks import Failures
from walbus.consumers.dead_letters import FILE_NAME, DeadLetters
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.consumers.subscription_twin import SubscriptionTwin
from walbus.consumers.typed_rows import typed_window
from walbus.errors import UsageError
from walbus.events import Window

if TYPE_CHECKING:
    from walbus.consumers.subscription import Subscription


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
            limits = {"limit": failures.dead_letters, "limit_bytes": failures.dead_letter_bytes}
            path = subscription._handing.folder / FILE_NAME
            self.letters = DeadLetters(path, **limits, wall=subscription._clock.wall)
        subscription._told = deque()

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
