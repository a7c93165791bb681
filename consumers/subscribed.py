"""What a consumer asks for, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from walbus.consumers.checkpoint import Part
from walbus.consumers.narrowing import WHOLE, Narrowing
from walbus.consumers.steps import Start


@dataclass(frozen=True)
class Subscribed:
    """What a consumer reads.

    Attributes:
        name: the consumer's, its part of all keys included; the relay shows it.
        tables: patterns, see `walbus.consumers.tables`.
        start: where it begins without a checkpoint.
        bootstrap: address of the bootstrap server; None for the one that the relay names.
        delta_above: changes of the log that are still to be read from which on deltas are weighed against them; None:
            the log is followed as long as it holds the position.
        narrowing: the part of the tables' changes.
        complete: whether the log's changes are read with whole rows, from the bootstrap server.
        token: under which a member of a group has the part; 0: it is not leased.
    """

    name: str
    tables: tuple[str, ...]
    start: Start
    bootstrap: str | None = None
    delta_above: int | None = None
    narrowing: Narrowing = WHOLE
    complete: bool = False
    token: int = 0

    @property
    def part(self) -> Part | None:
        """Of all keys; None: all."""
        return None if self.narrowing.partition is None else Part(self.narrowing.partition, self.token)
