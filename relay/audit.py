"""Audit lines for refusals, so bounded that a flood of them cannot fill a disk. Clock passed in.

The first refusals of each period are told one by one: why, whose token, from where, what for. What exceeds that is
counted, and told in one line when the period ends: how many of each reason, and from how many addresses. Nothing that a
client sent stands in a line but the name of a token that it really has; routes are the server's own patterns.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import structlog

_log = structlog.get_logger(__name__)

PERIOD_SECONDS = 10.0
LINES_A_PERIOD = 20
_ADDRESSES = 1000  # that are told apart in a period


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request, or a connection, that was turned away.

    Attributes:
        reason: one word or a few, from a small set: `token missing`, `too many connections`.
        address: the client's.
        route: method and pattern; empty if it did not come to that.
        token: the token's name; empty if it showed none that is known.
    """

    reason: str
    address: str
    route: str = ""
    token: str = ""


class Audit:
    """Writes the lines of one server."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()  #: refusals so far, by reason
        self._period_ends = 0.0
        self._told = 0
        self._untold: collections.Counter[str] = collections.Counter()
        self._addresses: set[str] = set()

    def note(self, refusal: Refusal, now: float) -> None:
        """Tells of a refusal, or counts it.

        Args:
            refusal: what was turned away.
            now: seconds of a monotonic clock.
        """
        self.counts[refusal.reason] += 1
        self.flush(now)
        if self._told < LINES_A_PERIOD:
            self._told += 1
            _log.warning(
                "access_refused",
                reason=refusal.reason,
                address=refusal.address,
                route=refusal.route or None,
                token_name=refusal.token or None,
            )
            return
        self._untold[refusal.reason] += 1
        if len(self._addresses) < _ADDRESSES:
            self._addresses.add(refusal.address)

    def flush(self, now: float) -> None:
        """Tells what was only counted, once its period is over; to be called now and then."""
        if now < self._period_ends:
            return
        if self._untold:
            _log.warning(
                "access_refused_more",
                count=self._untold.total(),
                **_fields(self._untold),
                addresses=len(self._addresses),
            )
        self._period_ends = now + PERIOD_SECONDS
        self._told = 0
        self._untold.clear()
        self._addresses.clear()


def _fields(counts: collections.Counter[str]) -> dict[str, int]:
    return {reason.replace(" ", "_"): count for reason, count in sorted(counts.items())}
