"""A transaction that waits in the spool, and what its messages say before they are decoded. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING

from walbus.capture.told import Subject
from walbus.errors import ProtocolError

if TYPE_CHECKING:
    from walbus.capture.spool import OpenSpool

_TRUNCATE = ord("T")
_TABLE = Struct(">I")


@dataclass(slots=True)
class Pending:
    """A transaction in the spool.

    Attributes:
        xid: of the top-level transaction, 32 bits.
        spool: its messages.
        aborted: xids of its subtransactions that were rolled back, as they are sent.
        origin: its Origin message; empty if it has none.
        layouts: what the connection told inside it.
        messages: whether a transactional message was streamed.
        doubt: why it cannot be replayed, and must be had unstreamed; empty if it can.
    """

    xid: int
    spool: OpenSpool
    aborted: set[bytes] = field(default_factory=set)
    origin: bytes = b""
    layouts: set[Subject] = field(default_factory=set)
    messages: bool = False
    doubt: str = ""


def tables_of(data: bytes, offset: int) -> list[int]:
    """The tables of a row change or of a TRUNCATE.

    Raises:
        ProtocolError: the message is cut short.
    """
    try:
        if data[offset] != _TRUNCATE:
            return [_TABLE.unpack_from(data, offset + 1)[0]]
        (count,) = _TABLE.unpack_from(data, offset + 1)
        return [oid for (oid,) in _TABLE.iter_unpack(data[offset + 6 : offset + 6 + 4 * count])]
    except struct_error:
        raise ProtocolError("the message is cut short", where=f"message {chr(data[offset])!r}, offset 1") from None
