"""Keys as bytes whose order is the order of the values: memcomparable.

    key     = part+
    integer = 01 | 8 bytes, big-endian, the value plus 2^63          (int2, int4, int8, oid)
    other   = 02 | text in UTF-8 with 00 written as 00 FF | 00 01

Two keys of one table compare bytewise as the tuples of their values do: integers by value, all other types by the
bytes of their canonical text. No key is a prefix of another one with as many parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from walbus.errors import DamagedRecord
from walbus.values.utf8 import legible

INTEGER_TAG = b"\x01"
TEXT_TAG = b"\x02"
_BIAS = 1 << 63
_END = b"\x00\x01"
_INTEGER_OIDS = frozenset({20, 21, 23, 26})


def integer_part(text: bytes) -> bytes:
    """One integer; text that is no 64-bit integer (which PostgreSQL never sends) is kept as text."""
    try:
        value = int(text)
        if b"%d" % value == text:
            return INTEGER_TAG + (value + _BIAS).to_bytes(8, "big")
    except (ValueError, OverflowError):
        pass
    return text_part(text)


def text_part(text: bytes) -> bytes:
    """One value of any other type."""
    if not text.isascii():
        text = legible(text)
    return TEXT_TAG + (text.replace(b"\x00", b"\x00\xff") if b"\x00" in text else text) + _END


def part_encoder(type_oid: int) -> Callable[[bytes], bytes]:
    """The function that encodes key columns of a type."""
    return integer_part if type_oid in _INTEGER_OIDS else text_part


def encode_key(parts: Sequence[bytes], type_oids: Sequence[int]) -> bytes:
    """The key of one row.

    Args:
        parts: canonical text of each key column, in column order.
        type_oids: `pg_type.oid` of each.
    """
    return b"".join([part_encoder(oid)(part) for part, oid in zip(parts, type_oids, strict=True)])


def split_key(key: bytes) -> list[int | str]:
    """The parts of a key: integers, and the text of everything else.

    Raises:
        DamagedRecord: the bytes are no key.
    """
    offset, end = 0, len(key)
    if end == 9 and key[0] == 1:  # nearly all of them: one integer
        return [int.from_bytes(key[1:], "big") - _BIAS]
    parts: list[int | str] = []
    while offset < end:
        tag = key[offset]
        if tag == 1 and offset + 9 <= end:
            parts.append(int.from_bytes(key[offset + 1 : offset + 9], "big") - _BIAS)
            offset += 9
        elif tag == 2:
            text, offset = _read_text(key, offset + 1)
            parts.append(text)
        else:
            raise DamagedRecord("a key is damaged", where=f"byte {offset} of the key")
    return parts


def _read_text(key: bytes, offset: int) -> tuple[str, int]:
    start = offset
    while True:
        zero = key.find(b"\x00", offset)
        if zero < 0 or key[zero + 1 : zero + 2] not in (b"\x01", b"\xff"):
            raise DamagedRecord("a key is damaged", where=f"byte {start} of the key")
        if key[zero + 1] == 1:
            break
        offset = zero + 2
    try:
        return key[start:zero].replace(b"\x00\xff", b"\x00").decode(), zero + 2
    except UnicodeDecodeError:
        raise DamagedRecord("a key holds text that is not UTF-8", where=f"byte {start} of the key") from None
