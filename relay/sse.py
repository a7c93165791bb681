r"""Records as server-sent events, for browsers: the JSON lines, each in an event of its own. No I/O.

    id: 1:16/B374D848:4@0123…          position ("last done") and log; the browser sends it back as Last-Event-ID
    event: commit                      none for changes of rows and for messages, which `onmessage` gets
    data: {"op":"commit",…}

A page whose connection broke misses nothing: the stream goes on behind the last id, in the middle of a transaction if
need be, with a `begin` that says `"continues":true` and where. The last change of a transaction has no id of its own,
lest its `commit` be missed, so it may come again behind such a begin. A page that keeps its own checkpoint keeps the id
of a `commit` or `heartbeat` event, which stand between transactions.

A stream that has nothing to say sends a comment, or, when it has looked at more of the log than it has told, a
`heartbeat` event with the new position; between a `begin` and its `commit` always a comment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from walbus.jsonlines import Line, LineRenderer, encode_line
from walbus.position import Position
from walbus.records import Flag, Kind, RecordHeader
from walbus.schema import TableSchema

#: Sent first: how long a browser waits before it connects again, in milliseconds.
PREAMBLE: Final = b"retry: 1000\n\n"

_COMMENT: Final = b": alive\n\n"
_NAMED: Final = frozenset(("begin", "commit", "heartbeat", "schema", "epoch"))


class EventRenderer(LineRenderer):
    """Renders the records of one stream, in their order.

    Args:
        schemas, after, columns: as of `LineRenderer`.
        log_id: of the log.
    """

    def __init__(  # what a stream's lines depend on, and its log
        self,
        schemas: Callable[[int], TableSchema],
        *,
        after: Position,
        columns: Callable[[TableSchema], frozenset[str] | None],
        log_id: str,
    ) -> None:
        super().__init__(schemas, after=after, columns=columns)
        self._log_id = log_id
        self._told = ""  # the position of the last event
        self._shown = after  # the client has seen everything up to here, or nothing of it was for it

    def render(self, header: RecordHeader, record: bytes) -> bytes:
        """The events of one record; empty where it holds nothing for this stream.

        Raises:
            DamagedRecord: the record's body makes no sense.
        """
        if header.kind == Kind.PROGRESS and header.last < self._shown:  # the place before a window that was begun
            return _COMMENT
        self._shown = header.last
        unsaid = str(header.last) if header.flags & Flag.END else None
        return b"".join([self._event(line, unsaid) for line in self.lines(header, record)])

    def _event(self, line: Line, unsaid: str | None) -> bytes:
        """One line's event; a change at the position `unsaid` gets no id."""
        position, op = str(line["position"]), line["op"]
        if op == "heartbeat" and position == self._told:
            return _COMMENT
        if op in _NAMED:
            head = f"id: {position}@{self._log_id}\nevent: {op}\n"
        elif position == unsaid:
            return b"data: " + encode_line(line) + b"\n\n"
        else:
            head = f"id: {position}@{self._log_id}\n"
        self._told = position
        return head.encode() + b"data: " + encode_line(line) + b"\n\n"
