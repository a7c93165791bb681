"""Where a tail is in the log, and which of the relay's JSON lines it prints. Pure.

The beginnings and ends of transactions and the heartbeats only move the place on; they are no changes. A line at or
before the place was printed by an earlier connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from walbus.errors import InvalidText, ProtocolError
from walbus.position import Position, parse_position

_MARKS = frozenset({"begin", "commit", "heartbeat"})
_AT_THE_SAME_PLACE = frozenset({"schema", "epoch"})  # they stand at the position of the change before them

#: How far this machine's clock and the source's are taken to differ.
CLOCKS_AGREE = timedelta(seconds=2)

#: A position, a time, or one of the words `earliest` and `latest`.
Bound = Position | datetime | str


@dataclass(frozen=True, slots=True)
class TailRequest:
    """What to print.

    Attributes:
        tables: patterns; empty for all.
        start: the first change.
        until: the last one, inclusive; None follows.
        complete: whether with whole rows, from the bootstrap server.
    """

    tables: tuple[str, ...]
    start: Bound
    until: Bound | None
    complete: bool = False


@dataclass(slots=True)
class Place:
    """Where the tail is.

    Attributes:
        log_id: the log that the positions belong to.
        start: what the first request asks for.
        until: the bound as a position; None follows (perhaps up to `before`).
        before: changes committed later than this are not printed, and end the tail; None for no such bound.
        end: the log's end when the tail began.
        last_done: the position that was dealt with last; None before the first.
        ended: whether a bound was met.
    """

    log_id: str
    start: Bound
    until: Position | None
    before: datetime | None
    end: Position
    last_done: Position | None = None
    ended: bool = False

    @property
    def follows(self) -> bool:
        """Whether the log's end is to be waited at: nothing but a bound that was already written is sure to come."""
        return self.until is None or self.until > self.end

    def take(self, batch: list[bytes], now: datetime) -> list[bytes]:
        """The changes of a batch of lines that are to be printed; moves on behind them."""
        return [line for line in batch if self._is_next(line, now)]

    @property
    def done(self) -> bool:
        """Whether nothing more is to be read."""
        return self.ended or (self.until is not None and self.last_done is not None and self.last_done >= self.until)

    def _is_next(self, line: bytes, now: datetime) -> bool:
        head = _read_head(line)
        if self.ended or self._too_late(head, now):
            self.ended = True
            return False
        if not head.position:
            return head.op not in _MARKS
        position = parse_position(head.position)
        if self.until is not None and position > self.until:  # the relay sends the bound's transaction whole
            self.ended = True
            return False
        repeated = self.last_done is not None and position <= self.last_done and head.op not in _AT_THE_SAME_PLACE
        if self.last_done is None or position > self.last_done:
            self.last_done = position
        return head.op not in _MARKS and not repeated

    def _too_late(self, head: _Head, now: datetime) -> bool:
        if self.before is None:
            return False
        if head.op == "heartbeat":
            return now > self.before + CLOCKS_AGREE
        return head.commit_time is not None and head.commit_time > self.before


class _Head(msgspec.Struct):
    """What is needed of a line to know its place."""

    op: str
    position: str = ""
    commit_time: datetime | None = None


def parse_bound(text: str, option: str, *, words: tuple[str, ...]) -> Bound:
    """What an option names.

    Raises:
        InvalidText: neither a word, nor a position, nor a time.
    """
    if text in words:
        return text
    try:
        return parse_position(text)
    except InvalidText:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        mend = f"write a position as in 1:16/B374D848:4, a time as in 2026-11-23T15:00:00Z, or {' or '.join(words)}"
        raise InvalidText(f"{text!r} is neither a position nor a time", where=option, mend=mend) from None
    return time if time.tzinfo else time.astimezone()  # without a zone: this machine's


def whole_lines(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines of each chunk, without newline; an unfinished last line is dropped, since it never came whole."""
    partial = b""
    for chunk in chunks:
        *lines, partial = (partial + chunk).split(b"\n")
        yield [line for line in lines if line]


def _read_head(line: bytes) -> _Head:
    try:
        return msgspec.json.decode(line, type=_Head)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the relay sent a line that is not JSON: {error}") from None
