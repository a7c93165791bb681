r"""Rows of `COPY (SELECT lsn, data …) TO STDOUT (FORMAT binary)`: frames in, pgoutput messages out. No I/O.

A COPY sends one frame a row. The file header comes before the first row, in the same frame; a frame of its own, two
bytes long, ends the rows:

    header   "PGCOPY\n\377\r\n\0"  flags i32  length of the extension i32  extension
    row      number of fields i16 = 2   length i32 = 8   lsn u64   length i32   data
    trailer  -1 i16

Nothing is copied: a message is told by its offset in the frame that holds it. Most rows never come here, since the
native core takes them from libpq (`Envelope.COPY_ROW`).
"""

from __future__ import annotations

from struct import Struct

from walbus.errors import ProtocolError

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER = Struct(">11sii")
_ROW = Struct(">hiQi")
_TRAILER = b"\xff\xff"

#: Bytes of a row before its data.
ROW_HEADER = _ROW.size


class CopyRows:
    """The rows of one COPY.

    Attributes:
        ended: the trailer has come.
    """

    def __init__(self) -> None:
        self.ended = False
        self._begun = False

    def data_at(self, frame: bytes) -> int:
        """Where the data of a frame's row begins (it goes to the frame's end); 0 if the frame has no row.

        Raises:
            ProtocolError: the frame is not what such a COPY sends.
        """
        at = 0 if self._begun else self._header(frame)
        if len(frame) - at >= ROW_HEADER and not self.ended:
            fields, lsn_size, _, size = _ROW.unpack_from(frame, at)
            if fields == 2 and lsn_size == 8 and size == len(frame) - at - ROW_HEADER:
                return at + ROW_HEADER
        elif frame[at:] == _TRAILER and not self.ended:
            self.ended = True
            return 0
        elif at and len(frame) == at:  # the header alone
            return 0
        raise ProtocolError(f"a frame of {len(frame)} bytes that is no row", where=f"COPY, offset {at}")

    def _header(self, frame: bytes) -> int:
        """The length of the file header, which begins the first frame."""
        if len(frame) < _HEADER.size:
            raise ProtocolError("the header is cut short", where="COPY, offset 0")
        signature, flags, extension = _HEADER.unpack_from(frame)
        if signature != _SIGNATURE or flags & ~0xFFFF or not 0 <= extension <= len(frame) - _HEADER.size:
            raise ProtocolError("a header of another format", where="COPY, offset 0")
        self._begun = True
        return _HEADER.size + int(extension)
