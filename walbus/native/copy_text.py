"""COPY's text format, read: one line of `COPY ... TO STDOUT` to the texts of its columns, and to key and row. Pure.

A value's text is what its type's output function gives, the same that pgoutput sends, so a row that was copied and a
row that was streamed encode to the same bytes.
"""

from __future__ import annotations

import re
from typing import cast

from walbus.errors import ProtocolError
from walbus.values import RowEncoder

_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\"}


def parse_line(line: bytes, columns: int) -> list[bytes | None]:
    r"""The texts of one line; None is NULL.

    Args:
        line: one row as the server sent it, with its newline.
        columns: how many there must be.

    Raises:
        ProtocolError: there are more or fewer, or an escape that COPY TO never writes.
    """
    if not line.endswith(b"\n"):
        raise ProtocolError("a row of COPY does not end with a newline")
    texts = line[:-1].split(b"\t")
    if len(texts) != columns:
        raise ProtocolError(f"a row of COPY has {len(texts)} columns instead of {columns}")
    if b"\\" in line:
        return [_unescape(text) for text in texts]
    return cast(list[bytes | None], texts)


def encoded_line(encoder: RowEncoder, line: bytes, columns: int) -> tuple[bytes, bytes]:
    """Memcomparable key and Avro row of one line.

    Raises:
        ProtocolError: as `parse_line`, or the key is NULL.
    """
    texts = parse_line(line, columns)
    key = encoder.key(texts)
    if key is None:
        raise ProtocolError("rows of a table without a key cannot be kept")
    return key, encoder.encode(texts)


def _unescape(text: bytes) -> bytes | None:
    if b"\\" not in text:
        return text
    if text == b"\\N":
        return None
    return _ESCAPE.sub(_replacement, text)


def _replacement(match: re.Match[bytes]) -> bytes:
    replacement = _ESCAPED.get(match[1])
    if replacement is None:
        raise ProtocolError("a row of COPY holds an unknown escape")
    return replacement
