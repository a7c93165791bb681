"""What the callbacks' loop is driven by: its steps, the subscription that it reads, and how what blocks is called.

The loop is a generator of steps, each a function and its arguments: whoever drives it calls that, and sends back what
it gave or throws in what it raised. So threads and asyncio have one loop, and two drivers of a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from walbus.consumers.callbacks import Callbacks
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.deliveries import Delivered, Delivery
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.steps import Discard
from walbus.events import Change, Window
from walbus.position import Position

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
    def checkpoint(self) -> Checkpoint | None:
        """What is stored; None: nothing is yet."""

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

    def each(self, on_change: Callable[..., Any], changes: Sequence[Change], window: Delivered) -> Any:  # noqa: ANN401
        """Calls a consumer for one change after another: how many it took, and what it raised at the next one.

        A step for each would cost as much as a callback that does little.
        """

    def windows(self, calls: Any, delivery: Delivery, may_go_on: Callable[[], bool]) -> Any:  # noqa: ANN401
        """Hands over a whole window, and at once those that have come with it: `Handed`.

        Behind each window it is asked whether that may go on.
        """


class Handed(NamedTuple):
    """What became of whole windows that were handed over one behind the other.

    Attributes:
        whole: the last one that the consumer took; None: it took none.
        refused: the one in which it raised `error`; None: it took all.
        at: the number of the change that it was called for then; None: it was called for the window's start or end.
        error: what it raised.
    """

    whole: Delivery | None
    refused: Delivery | None = None
    at: int | None = None
    error: Exception | None = None


def hand_over(calls: Callbacks, delivery: Delivery, further: Callable[[], Delivery | None]) -> Handed:
    """Calls a consumer for a whole window, and for what `further` gives behind it, until that gives nothing."""
    on_start, on_change, on_end = calls.on_window_start, calls.on_change, calls.on_window_end
    whole: Delivery | None = None
    coming: Delivery | None = delivery
    while coming is not None:
        at: int | None = None
        try:
            on_start(coming)
            for at, change in enumerate(coming.window.changes):  # noqa: B007  # told where it raises
                on_change(change, coming)
            at = None
            on_end(coming)
        except Exception as error:  # whatever a consumer's code raises
            return Handed(whole, coming, at, error)
        whole, coming = coming, further()
    return Handed(whole)


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
