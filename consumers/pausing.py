"""A consumer that an operator has paused: a file in its folder says so, over restarts, until it is gone.

The consumer looks for it about four times a second, between transactions. It commits what it has, closes its stream,
and goes on telling the relay and its status file that it is there, and paused. It goes on where it was; by
snapshot or delta if the log has been trimmed meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from walbus.consumers.clock import Clock
from walbus.errors import UsageError
from walbus.status import write_status

#: What a paused consumer is in its status file and at the relay.
PAUSED: Final = "paused"
_NAME: Final = "paused.json"
_LOOK_SECONDS: Final = 0.25


class Pause:
    """The pause of one consumer.

    Args:
        folder: for the consumer's own files.
        clock: time, for whoever looks again and again.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path = folder / _NAME
        self._clock = clock
        self._asked = False
        self._look_at = 0.0

    @property
    def name(self) -> str:
        """Of the consumer, as `walbus consumers resume` takes it."""
        return self._path.parent.name

    @property
    def is_asked(self) -> bool:
        """Whether it is to be paused, as of the last quarter of a second."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._asked = self._path.exists()
        return self._asked

    def ask(self) -> None:
        """Has it pause.

        Raises:
            UsageError: its folder cannot be written.
        """
        try:
            write_status(self._path, {"since": time.time()})
        except OSError as error:
            raise self._refused(error) from None

    def end(self) -> bool:
        """Has it go on; False if it was not paused.

        Raises:
            UsageError: its folder cannot be written.
        """
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refused(error) from None
        return True

    def _refused(self, error: OSError) -> UsageError:
        mend = "run this as the user, and on the machine, of `walbus consume`"
        return UsageError(f"its folder cannot be written: {error.strerror}", where=str(self._path.parent), mend=mend)
