"""Up to where the slot may be confirmed: what the log holds durably, and every required standby with it.

A standby relay that takes over goes on from the slot. So whatever it does not hold must still be had from the slot, and
nothing may be confirmed that it has not reported as durable. While one is away, confirming stands still: the source
keeps the WAL, as it does while capture itself is down.

A slot that has been confirmed further, before the standby was required, is left where it is: a confirmation of 0 means
nothing to PostgreSQL, and a lower one would move some of its versions backwards. Nor does it go back where a standby
does, whose copy began anew: by a slot that went back nobody could tell any more that such a copy lacks commits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import structlog

from walbus.log import StandbyBound

logger = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.02  # between two looks at the standbys' reports


class Confirming:
    """The bound of one capture process, through all of its connections.

    Args:
        standbys: gives what the required standbys hold; None where none is required.
        monotonic: seconds that never step back.
    """

    def __init__(self, standbys: Callable[[], StandbyBound] | None, monotonic: Callable[[], float]) -> None:
        self._standbys = standbys
        self._monotonic = monotonic
        self._held = StandbyBound(0, ())
        self._looked = -math.inf
        self._slot = 0
        self._said: tuple[str, ...] = ()

    @property
    def away(self) -> tuple[str, ...]:
        """Names of required standbys that do not report, by the last look."""
        return self._held.away

    def begin(self, confirmed: int) -> None:
        """A connection begins: the slot is confirmed up to here."""
        self._slot = confirmed
        self._looked = -math.inf  # what was held may be of an epoch that has ended since

    def bound(self, durable: int) -> int:
        """What may be confirmed of what the log holds durably (LSNs); 0 if nothing that was not confirmed before."""
        if self._standbys is None:
            return durable
        if self._monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = self._monotonic()
            self._held = self._standbys()
            self._say()
        allowed = min(durable, self._held.lsn)
        if allowed < self._slot:
            return 0
        self._slot = allowed
        return allowed

    def _say(self) -> None:
        if self._held.away == self._said:
            return
        if self._held.away:
            logger.error(
                "standbys.away",
                standbys=list(self._held.away),
                note="confirming stands still, and the source keeps its WAL, until they are back",
                mend="start them, or take their names out of relay.required_standbys",
            )
        else:
            logger.info("standbys.back")
        self._said = self._held.away
