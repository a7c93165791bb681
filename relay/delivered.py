"""A log of whatever engine, as far as a stream of it (`walbus.relay.delivery`) has to do with it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from walbus.log import Bounds, SchemaRegistry
from walbus.position import Position
from walbus.records import RecordHeader


class DeliveredCursor(Protocol):
    """A place in a log; see `walbus.log.LogCursor`."""

    @property
    def found(self) -> RecordHeader | None:
        """Of the record that will be read next, if that is known already; where it is not, none is under way here."""

    def read(self, max_bytes: int) -> list[bytes]:
        """The next whole records."""

    def read_bytes(self, max_bytes: int) -> tuple[bytes, RecordHeader] | None:
        """The next whole records as one block, and the last one's header; None at the end."""

    def close(self) -> None:
        """Frees it."""


_C_co = TypeVar("_C_co", bound=DeliveredCursor, covariant=True)


class DeliveredLog(Protocol[_C_co]):
    """A log on whatever engine; see `walbus.log.LogReader`."""

    @property
    def schemas(self) -> SchemaRegistry:
        """Its layouts."""

    def bounds(self) -> Bounds:
        """What is durable now."""

    def cursor(self, after: Position) -> _C_co:
        """A cursor behind a "last done" position."""
