"""Avro's binary form of the two things that every row is made of: varints and strings.

An Avro `long` is a zigzag varint, 7 bits a byte. Building one in a Python loop costs more than everything else that
is done for an integer column, so the loop is replaced by tables of 14 bits: a value below 2^14 is one look-up, one
below 2^28 two and a concatenation.

Every column is a union whose branch 0 is `null` and whose branch 1 is the native type, so the branch byte is
already part of the first table's entries.
"""

from __future__ import annotations

NULL = b"\x00"  #: branch 0 of a union
BRANCH_NATIVE = b"\x02"  #: branch 1
BRANCH_TEXT = b"\x04"  #: branch 2: canonical text of a value outside the native range

_BITS = 14
_MASK = (1 << _BITS) - 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_FINAL = [bytes((bits,)) for bits in range(0x80)]
_CONTINUED = [bytes((bits | 0x80,)) for bits in range(0x80)]
_LAST = _FINAL + [low + high for high in _FINAL[1:] for low in _CONTINUED]  # the highest bits of a number
_MORE = [low + high for high in _CONTINUED for low in _CONTINUED]  # 14 bits below others
_NATIVE_LAST = [BRANCH_NATIVE + encoded for encoded in _LAST]
_NATIVE_MORE = [BRANCH_NATIVE + encoded for encoded in _MORE]


def native_varint(zigzag: int) -> bytes:
    """Branch 1 and an unsigned varint, the zigzag form of an Avro int or long."""
    if zigzag <= _MASK:
        return _NATIVE_LAST[zigzag]
    rest = zigzag >> _BITS
    if rest <= _MASK:
        return _NATIVE_MORE[zigzag & _MASK] + _LAST[rest]
    out = _NATIVE_MORE[zigzag & _MASK]
    while rest > _MASK:
        out += _MORE[rest & _MASK]
        rest >>= _BITS
    return out + _LAST[rest]


def native_long(value: int) -> bytes:
    """Branch 1 and an Avro int or long (both have the same bytes)."""
    return native_varint(value << 1 if value >= 0 else ~(value << 1))


def native_string(text: bytes) -> bytes:
    """Branch 1 and an Avro string or bytes."""
    twice = len(text) << 1
    return (_NATIVE_LAST[twice] if twice <= _MASK else native_varint(twice)) + text


def text_string(text: bytes) -> bytes:
    """Branch 2 and an Avro string."""
    return BRANCH_TEXT + _varint(len(text) << 1) + text


def native_array(items: list[bytes]) -> bytes:
    """Branch 1 and an Avro array of items that are already encoded."""
    if not items:
        return BRANCH_NATIVE + b"\x00"
    return b"".join((native_long(len(items)), *items, b"\x00"))


def read_long(data: bytes, offset: int) -> tuple[int, int]:
    """The Avro long at an offset, and the offset behind it.

    Raises:
        IndexError: the data ends inside it, or it has more than 64 bits.
    """
    shift = zigzag = 0
    while True:
        byte = data[offset]
        if shift == 63 and byte > 1:
            raise IndexError
        offset += 1
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), offset
        shift += 7
