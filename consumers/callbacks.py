"""Callbacks: a consumer as an object that is called, in this order.

    on_start
      on_bootstrap_start                         a snapshot, or deltas, are about to be read
        on_window_start … on_window_end          their rows, in windows as below
        on_sweep                                 behind a table's last snapshot row
      on_bootstrap_end                           what was read, and the log that belongs to it, have come
      on_window_start                            a transaction
        on_change … on_change                    its changes, in commit order
      on_window_end
      on_checkpoint                              make durable what was taken; then the checkpoint is stored
      on_rollback                                forget what was taken since the last checkpoint: it comes again
    on_error                                     something of the above raised, or reading cannot go on
    on_stop

Each does nothing by default. A very large transaction comes in pieces between one start and one end. What was
taken before a checkpoint comes again after a crash, so a window may come twice, never out of order for one key.

`Subscription.run` drives `Callbacks`, `AsyncSubscription.run` an `AsyncCallbacks`; `Failures` says what becomes of a
change that goes on being refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from walbus.consumers.backoff import Backoff
from walbus.consumers.deliveries import Delivered
from walbus.consumers.steps import Sweep
from walbus.errors import UsageError
from walbus.events import Change
from walbus.position import Position

Policy: TypeAlias = Literal["stop", "skip", "dead-letter"]


class Callbacks:
    """What a consumer does; override what concerns yours. All are called by the thread that runs the subscription."""

    def on_start(self) -> None:
        """Nothing has been read yet."""

    def on_bootstrap_start(self) -> None:
        """What the bootstrap server gives comes next, where the log does not hold what is needed."""

    def on_bootstrap_end(self) -> None:
        """Rows are consistent with each other from here on."""

    def on_window_start(self, window: Delivered) -> None:
        """A window's first change comes next."""

    def on_change(self, change: Change, window: Delivered) -> None:
        """One change of a window. What it raises is tried again, and then treated as `Failures` says."""

    def on_sweep(self, sweep: Sweep) -> None:
        """Rows of a table that its snapshot did not bring, with a seq of at most `sweep.seq`, are gone."""

    def on_window_end(self, window: Delivered) -> None:
        """All changes of a window have come."""

    def on_checkpoint(self, position: Position) -> None:
        """Makes durable all that came up to a position; blocks until it is."""

    def on_rollback(self, position: Position) -> None:
        """Forgets what came behind a position, that of the last checkpoint.

        It comes again, or the run ends, or the consumer itself went elsewhere in the middle of a transaction (`seek`).
        """

    def on_error(self, error: Exception, change: Change | None) -> None:
        """Something raised; `change` is the one that was refused. To raise here ends the run at once."""

    def on_stop(self) -> None:
        """Nothing is called any more."""


class AsyncCallbacks:
    """`Callbacks` for asyncio: the same, awaited by the task that runs the subscription."""

    async def on_start(self) -> None:
        """As `Callbacks.on_start`."""

    async def on_bootstrap_start(self) -> None:
        """As `Callbacks.on_bootstrap_start`."""

    async def on_bootstrap_end(self) -> None:
        """As `Callbacks.on_bootstrap_end`."""

    async def on_window_start(self, window: Delivered) -> None:
        """As `Callbacks.on_window_start`."""

    async def on_change(self, change: Change, window: Delivered) -> None:
        """As `Callbacks.on_change`."""

    async def on_sweep(self, sweep: Sweep) -> None:
        """As `Callbacks.on_sweep`."""

    async def on_window_end(self, window: Delivered) -> None:
        """As `Callbacks.on_window_end`."""

    async def on_checkpoint(self, position: Position) -> None:
        """As `Callbacks.on_checkpoint`."""

    async def on_rollback(self, position: Position) -> None:
        """As `Callbacks.on_rollback`."""

    async def on_error(self, error: Exception, change: Change | None) -> None:
        """As `Callbacks.on_error`."""

    async def on_stop(self) -> None:
        """As `Callbacks.on_stop`."""


class ChangesRefused(Exception):  # noqa: N818  # what it tells, as the house's own
    """Raised by a callback to say which changes are at fault: the policy decides on those, without another try.

    So code that gathers changes and writes them in `on_window_end` or `on_checkpoint` has one poison row parked or
    skipped, while the others come again.

    Args:
        changes: of those that came since the last checkpoint.
    """

    def __init__(self, *changes: Change) -> None:
        super().__init__(f"{len(changes)} changes are refused")
        self.changes: Sequence[Change] = changes


@dataclass(frozen=True)
class Failures:
    """What becomes of what callbacks refuse.

    Attributes:
        policy: of a change that was refused `attempts` times: `stop` ends the run with CallbackFailed, `skip` leaves it
            out and says so in the log, `dead-letter` parks it, and later changes of its key behind it.
        attempts: how often a change is tried, or a window whose other callbacks raise; those always stop at the end.
        first_pause, longest_pause: seconds between attempts; they double, with jitter.
        dead_letters, dead_letter_bytes: at most so many are parked; then the run stops.
    """

    policy: Policy = "stop"
    attempts: int = 5
    first_pause: float = 0.1
    longest_pause: float = 10.0
    dead_letters: int = 10_000
    dead_letter_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        """Raises UsageError for what makes no sense; names it."""
        if self.policy not in get_args(Policy):
            raise UsageError(f"{self.policy!r} is no policy", where="policy", mend=f"use {', '.join(get_args(Policy))}")
        for name in ("attempts", "dead_letters", "dead_letter_bytes"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"{getattr(self, name)!r} is too few", where=name, mend="give a number from 1 on")
        if not 0 <= self.first_pause <= self.longest_pause:
            mend = "give seconds, the longest not below the first"
            raise UsageError("the pauses make no sense", where="first_pause, longest_pause", mend=mend)

    def backoff(self) -> Backoff:
        """The pauses of one series of attempts."""
        return Backoff(self.first_pause, self.longest_pause)


#: To stop at the first change that is refused five times.
STOP = Failures()
