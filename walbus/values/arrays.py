"""PostgreSQL's text form of arrays: `{1,NULL,"a b"}`.

Only what Avro can hold is taken apart: one dimension, lower bound 1. Everything else, and everything that is not
spelt exactly as `array_out` spells it, is refused with ValueError, so that its text is kept as it is.

An element is quoted when it is empty, spells NULL in any case, or has a brace, comma, quote, backslash or ASCII
white space in it; inside quotes a backslash stands before quotes and backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NEEDS_QUOTES = re.compile(r'[ \t\n\r\v\f"{},\\]|\A(?:null)?\Z', re.IGNORECASE)
_NEEDED_QUOTES = re.compile(_NEEDS_QUOTES.pattern.encode(), re.IGNORECASE)
_TO_ESCAPE = re.compile(r'(["\\])')
_ESCAPED = re.compile(rb"\\(.)")
_TOKEN = re.compile(rb'"([^"\\]*(?:\\["\\][^"\\]*)*)"|([^ \t\n\r\v\f"{},\\]+)')
_PLAIN = re.compile(rb'[^ \t\n\r\v\f"{},\\]+(?:,[^ \t\n\r\v\f"{},\\]+)*')


def split_array(text: bytes) -> list[bytes | None]:
    """The elements of a one-dimensional array with lower bound 1, unquoted; NULL is None.

    Raises:
        ValueError: the array has another shape, or is not in `array_out`'s spelling.
    """
    if text[:1] != b"{" or text[-1:] != b"}" or len(text) < 2:
        raise ValueError("not a one-dimensional array")
    inner = text[1:-1]
    if not inner:
        return []
    if _PLAIN.fullmatch(inner):
        return [_unquoted(element) for element in inner.split(b",")]
    return _split_quoted(inner)


def _split_quoted(inner: bytes) -> list[bytes | None]:
    elements: list[bytes | None] = []
    offset, end = 0, len(inner)
    while True:
        match = _TOKEN.match(inner, offset)
        if match is None:
            raise ValueError("not a one-dimensional array")
        quoted, plain = match.groups()
        elements.append(_unquoted(plain) if quoted is None else _dequoted(quoted))
        offset = match.end()
        if offset == end:
            return elements
        if inner[offset] != 0x2C:
            raise ValueError("no comma between elements")
        offset += 1


def _unquoted(element: bytes) -> bytes | None:
    if element == b"NULL":
        return None
    if len(element) == 4 and element.upper() == b"NULL":
        raise ValueError("array_out would have quoted this element")
    return element


def _dequoted(quoted: bytes) -> bytes:
    element = _ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted
    if _NEEDED_QUOTES.search(element) is None:
        raise ValueError("array_out would not have quoted this element")
    return element


def join_array(elements: Iterable[str | None]) -> str:
    """The inverse of `split_array`, spelt as `array_out` does."""
    return "{" + ",".join(["NULL" if e is None else _quote(e) for e in elements]) + "}"


def _quote(element: str) -> str:
    if _NEEDS_QUOTES.search(element) is None:
        return element
    return '"' + _TO_ESCAPE.sub(r"\\\1", element) + '"'
