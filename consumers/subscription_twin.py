"""What every other face of a subscription says and does as the subscription itself: its twin for asyncio, its feed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from walbus.position import Position

if TYPE_CHECKING:
    from walbus.consumers.subscription import Subscription


class SubscriptionTwin:
    """Passes on what never blocks."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def phase(self) -> str:
        """`starting`, `listing`, `snapshot`, `delta`, `catchup` or `online`."""
        return self._subscription.phase

    @property
    def waiting_for(self) -> str | None:
        """Why nothing is read at present; None while something is."""
        return self._subscription.waiting_for

    @property
    def paused(self) -> bool:
        """Whether `pause` was called, and `resume` has not been since."""
        return self._subscription.paused

    @property
    def name(self) -> str:
        """The consumer's."""
        return self._subscription.name

    @property
    def log_id(self) -> str:
        """Of the log that is read; empty before the relay has answered."""
        return self._subscription.log_id

    @property
    def stored(self) -> Position:
        """Everything up to here is committed."""
        return self._subscription.stored

    @property
    def ended(self) -> bool:
        """Whether it was stopped or closed, or has come to `until`."""
        return self._subscription.ended

    @property
    def stopped(self) -> bool:
        """Whether it was stopped or closed."""
        return self._subscription.stopped

    @property
    def has_uncommitted(self) -> bool:
        """Whether something was delivered that was not committed."""
        return self._subscription.has_uncommitted

    def pause(self) -> None:
        """Has nothing read until `resume`, as `Subscription.pause` does."""
        self._subscription.pause()

    def resume(self) -> None:
        """Ends `pause`."""
        self._subscription.resume()

    def stop(self) -> None:
        """Ends the loop behind the window that it has, as `Subscription.stop` does."""
        self._subscription.stop()
