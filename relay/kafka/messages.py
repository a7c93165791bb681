"""From records to messages: blocks of whole records, and oversized records in parts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from walbus.relay.kafka.mark import REFERENCE, Mark, pack_range
from walbus.relay.sequence import Place


class Message(NamedTuple):
    """What is sent: a value under its mark."""

    value: bytes
    mark: Mark


class Records(NamedTuple):
    """Records that lie side by side, as they were packed, with what is known before and behind them."""

    data: bytes
    before: Place
    behind: Place


class Blocks:
    """Gathers whole records into messages.

    Every message begins where no transaction is under way, or in the midst of one that began a message of its own: so
    the log can be cut in front of any transaction that has several.

    Args:
        block_bytes: from how many bytes on a block is a message.
        limit: bytes that a message has at most; a record that is larger goes in parts.
        attempt: that all messages are of; 0 in the log itself.
    """

    def __init__(self, block_bytes: int, limit: int, attempt: int = 0) -> None:
        self._block_bytes, self._limit = block_bytes, limit
        self.attempt = attempt  #: which try at a transaction the messages are of
        self.large = 0  #: offset in TOPIC.large from which on it may be needed, for the marks
        self._data: list[bytes] = []
        self._size = 0
        self._before: Place | None = None
        self._behind: Place | None = None
        self._whole = True

    def add(self, transaction: Sequence[Records]) -> Iterator[Message]:
        """Takes the records of a whole transaction, or of a run; gives the messages that became full."""
        if len(transaction) > 1 and self._size + sum(len(one.data) for one in transaction) >= self._block_bytes:
            yield from self.flush()
        for i, one in enumerate(transaction):
            yield from self.add_piece(one, whole=i == 0)

    def add_piece(self, records: Records, *, whole: bool) -> Iterator[Message]:
        """Takes records; gives the messages that became full.

        Args:
            records: the next ones.
            whole: whether no transaction is under way before them.
        """
        if self._data and self._size + len(records.data) > self._limit:
            yield from self.flush()
        if len(records.data) > self._limit:
            yield from self._parts(records, whole=whole)
            return
        if self._before is None:
            self._before, self._whole = records.before, whole
        self._data.append(records.data)
        self._size += len(records.data)
        self._behind = records.behind
        if self._size >= self._block_bytes:
            yield from self.flush()

    def flush(self) -> Iterator[Message]:
        """Gives what was gathered as a message, if there is anything."""
        if self._before is not None and self._behind is not None:
            mark = Mark(self._before, self._behind, self._whole, attempt=self.attempt, large=self.large)
            yield Message(b"".join(self._data), mark)
        self._data, self._size, self._before, self._behind = [], 0, None, None

    def _parts(self, records: Records, *, whole: bool) -> Iterator[Message]:
        pieces = [records.data[i : i + self._limit] for i in range(0, len(records.data), self._limit)]
        mark = Mark(records.before, records.behind, whole, parts=len(pieces), attempt=self.attempt, large=self.large)
        for i, piece in enumerate(pieces):
            yield Message(piece, mark._replace(part=i))


def reference(before: Place, behind: Place, first: int, end: int, attempt: int) -> Message:
    """What stands in the log for a transaction whose records lie in TOPIC.large from one offset up to another."""
    return Message(pack_range(first, end), Mark(before, behind, form=REFERENCE, attempt=attempt, large=first))
