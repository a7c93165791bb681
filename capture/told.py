"""The layouts and types that a connection told: the newest ones, and those that were passed on last. Pure.

The server tells a layout once for all transactions that are sent whole, and once more for each one that is streamed.
What it told inside a streamed transaction counts for all others from that one's commit on. The order of arrival is then
the order of the layouts, because a layout does not change under a transaction that writes the table; but replays feed
older ones behind newer ones (`walbus.capture.intake`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct

from walbus.capture.messages import Relation, decode
from walbus.errors import ProtocolError

#: Kinds of messages that tell a layout or a type.
TELLING_KINDS = frozenset(b"RY")

_OID = Struct(">I")

#: Kind byte and OID, as they begin the message.
Subject = bytes


def subject_of(message: bytes) -> Subject:
    """What a Relation or Type message of protocol 1 is about."""
    return message[:5]


def layout_of_table(table: int) -> Subject:
    """The layout of a table, by its OID."""
    return b"R" + _OID.pack(table)


class ToldLayouts:
    """What one connection told.

    Args:
        feed: takes a message of protocol 1 into the assembler.
    """

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self._newest: dict[Subject, bytes] = {}
        self._fed: dict[Subject, bytes] = {}

    def clear(self) -> None:
        """A new connection tells everything again."""
        self._newest.clear()
        self._fed.clear()

    def arrived(self, message: bytes) -> None:
        """The server told a layout or a type, inside a block or not."""
        self._newest[subject_of(message)] = message

    def feed(self, message: bytes) -> None:
        """Passes a layout or a type on."""
        self._feed(message)
        self._fed[subject_of(message)] = message

    def feed_newest(self, subjects: Iterable[Subject]) -> None:
        """Passes the newest ones of these on again, where an older one was passed on last; types first."""
        for subject in sorted(subjects, reverse=True):
            newest = self._newest.get(subject)
            if newest is not None and self._fed.get(subject) != newest:
                self.feed(newest)

    def needed_by(self, table: int) -> list[bytes]:
        """The newest types and the newest layout of a table, in the order in which they are told.

        Raises:
            ProtocolError: the connection has not told it.
        """
        layout = self._newest.get(layout_of_table(table))
        relation = decode(layout) if layout is not None else None
        if layout is None or not isinstance(relation, Relation):
            raise ProtocolError("a change came before the layout of its table", where=f"table {table}")
        subjects = {b"Y" + _OID.pack(column.type_oid): None for column in relation.columns}
        return [self._newest[subject] for subject in subjects if subject in self._newest] + [layout]
