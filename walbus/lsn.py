"""Log sequence numbers: PostgreSQL's 64-bit byte positions in the write-ahead log.

An LSN is an `int` inside Walbus and the text form `16/B374D848` outside it (SQL, JSON, log lines). Zero is
PostgreSQL's own "invalid" and is never the place of a commit.
"""

from __future__ import annotations

import re
from typing import NewType

from walbus.errors import InvalidText

Lsn = NewType("Lsn", int)

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


def parse_lsn(text: str) -> Lsn:
    """The LSN written as `XXXXXXXX/XXXXXXXX` in hexadecimal.

    Raises:
        InvalidText: the text has another form.
    """
    match = _TEXT.match(text)
    if match is None:
        raise InvalidText(f"{text!r} is not an LSN", mend="write it as in 16/B374D848")
    return Lsn(int(match[1], 16) << 32 | int(match[2], 16))


def format_lsn(lsn: int) -> str:
    """PostgreSQL's text form: two hexadecimal halves without leading zeros."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def record_end(lsn: int) -> int:
    """Where the WAL ends that lies before an LSN which `pg_current_wal_insert_lsn()` gave.

    That function says where the next record's bytes begin. Behind a record that ends with its page, that is after the
    next page's header, which nothing but another record would write: an idle source never gets there, and tells that it
    has sent everything at the page's beginning. A header is 24 bytes long, and 40 at the beginning of a segment; no
    commit record is as short as the first, and none begins at a segment's beginning.
    """
    if lsn % _PAGE == _SHORT_HEADER:
        return lsn - _SHORT_HEADER
    return lsn - _LONG_HEADER if lsn % _SMALLEST_SEGMENT == _LONG_HEADER else lsn


_PAGE, _SMALLEST_SEGMENT = 8192, 1 << 20
_SHORT_HEADER, _LONG_HEADER = 24, 40
