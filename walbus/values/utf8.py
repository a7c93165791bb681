r"""Texts that are not UTF-8, which neither Avro nor JSON can hold.

PostgreSQL checks what comes in, so that a database in UTF-8 has no such text, with one exception: until version 14 the
type `"char"` (one byte, of any value) prints its byte as it is, and a cast spreads it to other types. From version 15
on it prints bytes above 0x7F as `\ooo`, three octal digits; here every byte that is not UTF-8 becomes that. A row is
therefore never unreadable, and a plain `"char"` is what later versions print of it.
"""

from __future__ import annotations

import re

_UNDECODED = re.compile("[\udc80-\udcff]")


def checked(text: bytes) -> bytes:
    """The text itself.

    Raises:
        UnicodeDecodeError: (a ValueError) it is not UTF-8.
    """
    if not text.isascii():
        text.decode()
    return text


def legible(text: bytes) -> bytes:
    r"""The text, with each byte that is not UTF-8 as `\ooo`."""
    if text.isascii():
        return text
    return _UNDECODED.sub(
        lambda match: f"\\{ord(match[0]) - 0xDC00:03o}", text.decode(errors="surrogateescape")
    ).encode()
