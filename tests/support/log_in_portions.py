"""A relay in this process that sends the log of a `ModelSource` in portions of any size, and breaks where it is told.

relay = PortionedRelay(source, sizes=[1, 700, 90], breaks=[3000])
session = Session(relay.as_relays(), subscribed, None, relay.clock)
relay.ended                      everything was sent and read
relay.at_end = subscription.stop     called whenever somebody waits behind the log's end
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, cast

from support.model_source import ModelSource
from walbus.consumers.addresses import Relays
from walbus.consumers.clock import Clock
from walbus.consumers.steps import LogSeen
from walbus.consumers.transport import RelayInfo
from walbus.errors import RelayUnavailable
from walbus.position import Position
from walbus.record_parser import RecordParser
from walbus.schema import TableSchema


class PortionedRelay:
    """A relay, as a session speaks with it. Time passes only where somebody waits.

    Args:
        source: the log.
        sizes: of the portions, in bytes, again and again.
        breaks: each stream breaks behind so many bytes; those behind the last one do not.
    """

    url = "portions"

    def __init__(self, source: ModelSource, sizes: Sequence[int], breaks: Sequence[int] = ()) -> None:
        self.source, self.ended = source, False
        self.at_end: Callable[[], object] = lambda: None
        self._sizes, self._breaks = cycle(sizes), list(breaks)
        self._now = 0.0
        self.clock = Clock(lambda: self._now, lambda: 1_800_000_000 + self._now, self._pass)

    def as_relays(self) -> Relays:
        return cast(Relays, self)

    def _pass(self, seconds: float) -> None:
        self._now += seconds

    def info(self, log_id: str, done: Position, seq: int = 0) -> RelayInfo:
        source = self.source
        return RelayInfo(LogSeen(source.log_id, source.trimmed, source.end, source.last_seq), None)

    def failed(self, error: BaseException) -> None:
        """It is asked again."""

    def schema(self, schema_id: int) -> TableSchema:
        return self.source.layouts[schema_id]

    def schemas(self) -> list[TableSchema]:
        return list(self.source.layouts.values())

    def stream(self, after: Position, *_: Any) -> _Portions:
        data = b"".join(record for _, record in self.source.after(after))
        return _Portions(self, data[: self._breaks.pop(0)] if self._breaks else data, self._sizes)


class _Portions:
    def __init__(self, relay: PortionedRelay, data: bytes, sizes: Any) -> None:
        self.headers: Mapping[str, str] = {}
        self._relay, self._data, self._sizes, self._at = relay, data, sizes, 0
        self._whole = not relay._breaks
        self.parser = RecordParser()

    def receive(self, timeout: float) -> None:
        if self._at >= len(self._data):
            if not self._whole:
                raise RelayUnavailable("the stream broke")
            self._relay.ended = True
            self._relay.at_end()
            self._relay.clock.pause(max(timeout, 0.001))
            return
        end = self._at + next(self._sizes)
        self.parser.feed(self._data[self._at : end])
        self._at = end

    def close(self) -> None:
        """Nothing is open."""
