"""What a sink offers that `walbus rebuild` can fill anew beside itself: a copy, and a swap of the two.

The copy is a sink with a checkpoint of its own. Its `swap` is its last commit, and replaces rows and checkpoint of the
live sink at once, whose writer waits meanwhile and then is told. What was replaced is kept until it is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.sinks.base import Sink, SinkPlace
from walbus.errors import SinkUnavailable


class SinkSwapped(SinkUnavailable):
    """A rebuilt copy has taken the sink's place: the caller rolls back, and goes on behind its `checkpoint()`."""


class SinkCopy(Sink, Protocol):
    """A sink that is filled beside the live one, has its own checkpoint, and takes the live one's place (`swap`).

    Attributes:
        shows_uncommitted: whether readers of the live one may see what its checkpoint does not tell yet.
    """

    shows_uncommitted: bool

    def furnish(self) -> None:
        """Gives its tables what others added to the live ones; when its rows are there, and as often as one likes.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def hold(self) -> Checkpoint | None:
        """The live checkpoint; nothing more is written to the live rows until this copy is swapped, or rolled back.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def swap(self, checkpoint: Checkpoint) -> None:
        """As `commit`, in one act with which the copy is the live sink, and the live one is kept beside it.

        Readers see either, whole, and never neither. Whoever writes the live one is told `SinkSwapped` instead. A live
        table of which the copy has none stays. Nothing has changed if it raises, but for a commit that was not
        answered: then `SinkCopies.kept` tells.

        Raises:
            SinkUnavailable, SinkRefused
        """


class SinkCopies(Protocol):
    """A live sink, which others may be writing, and what `walbus rebuild` has beside it."""

    def live(self) -> Checkpoint | None:
        """The live checkpoint, as of a moment ago.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def kept(self) -> bool:
        """Whether what a swapped copy has replaced is there yet.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def beside(self) -> SinkCopy:
        """The copy as it was left, or a new one, empty and without a checkpoint.

        Raises:
            SinkUnavailable
            SinkRefused: the live one has something that a swap would break; names it.
        """

    def discard(self) -> bool:
        """Drops the copy; False if there is none.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def drop_kept(self) -> bool:
        """Drops what the last swapped copy has replaced; False if there is nothing.

        Raises:
            SinkUnavailable, SinkRefused
        """

    def close(self) -> None:
        """Frees everything but the copy. Never raises."""


@runtime_checkable
class SwappableSinkType(Protocol):
    """A `SinkType` whose sinks can be rebuilt beside themselves."""

    def copies(self, options: Mapping[str, Any], place: SinkPlace) -> SinkCopies:
        """See `SinkType.open`, and `SinkCopies`."""
