"""What a consumer reads from: where it has the log, and where it has rows that the log does not give it.

Errors mean what those of a server mean (`walbus.consumers.transport`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from walbus.consumer_reports import ConsumerReport
from walbus.consumers.checkpoint import Point
from walbus.consumers.record_stream import RecordStream
from walbus.consumers.transport import NOTHING_MORE, RelayInfo, TableList
from walbus.position import Position
from walbus.schema import TableSchema


class RowsPeer(Protocol):
    """Where a consumer has rows from that the log does not give it: a bootstrap server, or table topics."""

    @property
    def url(self) -> str:
        """Its address."""

    def tables(self) -> TableList:
        """The tables that it has rows of."""

    def snapshot(
        self, table: str, after_key: bytes | None, narrowing: Mapping[str, str] = NOTHING_MORE
    ) -> RecordStream:
        """The table's rows in key order, behind a key."""

    def delta(self, table: str, since: Point, narrowing: Mapping[str, str] = NOTHING_MORE) -> RecordStream:
        """What became of the table's keys that changed behind a seq; PositionTrimmed if it would not be complete."""

    def delta_cost(self, table: str, since: Point) -> int | None:
        """How many changes a delta has at most; None if there is none, or none yet."""

    def stream(
        self, after: Position, log_id: str, tables: tuple[str, ...], name: str, narrowing: Mapping[str, str]
    ) -> RecordStream:
        """The log behind a position, with whole rows; RequestRefused where it does not complete changes."""

    def complete_from(self, log_id: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> Position:
        """Behind which position `stream` can be had; RequestRefused where it cannot."""

    def close(self) -> None:
        """Closes its connections."""


class LogPeer(Protocol):
    """Where a consumer has its log from: a relay, or the cluster that holds it."""

    @property
    def url(self) -> str:
        """Its address."""

    def info(self, place: Point | None = None) -> RelayInfo:
        """What it holds, with how far the log goes on behind a consumer's place, if one is given and that is known."""

    def schema(self, schema_id: int) -> TableSchema:
        """A layout; NotReady where it does not have it yet."""

    def schemas(self) -> list[TableSchema]:
        """Every layout that the log has."""

    def stream(
        self,
        after: Position,
        log_id: str,
        tables: tuple[str, ...],
        name: str,
        narrowing: Mapping[str, str] = NOTHING_MORE,
    ) -> RecordStream:
        """The log behind a position, without an end; `narrowing` is further parameters of `/v1/stream`."""

    def stream_from(self, place: str, tables: tuple[str, ...], narrowing: Mapping[str, str]) -> RecordStream:
        """The log from a place (as `/v1/stream` takes it) to its end."""

    def bootstrap(self, url: str) -> RowsPeer:
        """The bootstrap at an address."""

    def report(self, name: str, report: ConsumerReport) -> None:
        """Tells where a consumer is, if anybody is to know."""

    def forget(self, name: str) -> None:
        """Tells that a consumer will not come again."""

    def wait(self, name: str, seconds: float, goal: dict[str, str]) -> tuple[bool, dict[str, Any]]:
        """Whether a consumer got to an `lsn` or a `position` in time, and its place."""

    def twin(self) -> LogPeer:
        """Another one to the same place, for another thread."""

    def close(self) -> None:
        """Closes its connections."""
