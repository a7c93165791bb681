"""Canonical text to Avro bytes, one function for each built-in type.

Each takes PostgreSQL's text of one value and returns branch 1 of the column's union: the branch byte and the native
form. A value that the native form cannot hold, and any text that PostgreSQL would not have written so, raises
ValueError (or its kin in `OUTSIDE`); the caller keeps the text itself then. So nothing is lost and nothing is
normalised: what a native value prints as later is the very text that came (floats apart, which keep all their bits).

This is the hot loop of capture. Hence look-ups in place of parsing: the days and the seconds of timestamps come
from dictionaries that fill themselves, and numbers from the tables of `avro_bytes`.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from binascii import hexlify, unhexlify
from datetime import date
from fractions import Fraction

from walbus.values.avro_bytes import native_long, native_string, native_varint
from walbus.values.utf8 import checked

#: What these functions raise for a value outside the native range.
OUTSIDE = (ValueError, KeyError, OverflowError)

UNIX_DAY_ZERO = date(1970, 1, 1).toordinal()
SECOND = 1_000_000  #: in microseconds
DAY = 86_400 * SECOND

_SMALL = {b"%d" % value: native_long(value) for value in range(-100, 10_000)}
_ZERO = ord("0")
_BOOLS = {b"t": b"\x02\x01", b"f": b"\x02\x00"}
_FRACTION_UNIT = [0, 0, 100_000, 10_000, 1_000, 100, 10, 1]  # by the length of ".123"
_LARGEST = sys.float_info.max
_NOT_FINITE = frozenset({b"NaN", b"Infinity", b"-Infinity"})
_CLOCK = re.compile(rb"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_pack_float = struct.Struct("<f").pack
_unpack_float = struct.Struct("<f").unpack
_native_float = struct.Struct("<cf").pack
_native_double = struct.Struct("<cd").pack
_double_bits = struct.Struct("<d").pack

from_bool = _BOOLS.__getitem__


def from_string(text: bytes) -> bytes:
    """Text, in UTF-8, of any type."""
    return native_string(checked(text))


def from_int(text: bytes) -> bytes:
    """int2 and int4."""
    known = _SMALL.get(text)
    if known is not None:
        return known
    zigzag = _zigzag(text)
    if zigzag >> 32:
        raise ValueError("not a 32-bit integer")
    return native_varint(zigzag)


def from_long(text: bytes) -> bytes:
    """int8 and oid."""
    known = _SMALL.get(text)
    if known is not None:
        return known
    zigzag = _zigzag(text)
    if zigzag >> 64:
        raise ValueError("not a 64-bit integer")
    return native_varint(zigzag)


def _zigzag(text: bytes) -> int:
    value = int(text)
    if not (text.isdigit() and text[0] != _ZERO) and b"%d" % value != text:
        raise ValueError("not an integer as PostgreSQL prints it")
    return value << 1 if value >= 0 else ~(value << 1)


def from_float8(text: bytes) -> bytes:
    """float8; NaN and the infinities are native too."""
    value = float(text)
    if not -_LARGEST <= value <= _LARGEST and text not in _NOT_FINITE:
        raise ValueError("not a double")
    return _native_double(b"\x02", value)


def from_float4(text: bytes) -> bytes:
    """float4: the single-precision number nearest to the text, rounded once."""
    double = float(text)
    if not -_LARGEST <= double <= _LARGEST:
        if text not in _NOT_FINITE:
            raise ValueError("not a single-precision number")
        return _native_float(b"\x02", double)
    single: float = _unpack_float(_pack_float(double))[0]
    if single != double and not int.from_bytes(_double_bits(double)[:4], "little") & 0x0FFF_FFFF:
        single = _round_once(text, double, single)
    return _native_float(b"\x02", single)


def _round_once(text: bytes, double: float, single: float) -> float:
    """Mends the rare text whose double lies midway between two floats although the text itself does not."""
    exact = Fraction(text.decode())
    bits = int.from_bytes(_pack_float(single), "little")
    near: list[float] = [_unpack_float((bits + step).to_bytes(4, "little"))[0] for step in (-1, 1) if bits + step >= 0]
    return min([single, *filter(math.isfinite, near)], key=lambda number: abs(Fraction(number) - exact))


def from_bytea(text: bytes) -> bytes:
    """A bytea in hex form."""
    digits = text[2:]
    value = unhexlify(digits)
    if text[:2] != b"\\x" or hexlify(value) != digits:
        raise ValueError("not bytea's hex form")
    return native_string(value)


def from_uuid(text: bytes) -> bytes:
    """A uuid, which Avro holds as its text."""
    if _UUID.fullmatch(text) is None:
        raise ValueError("not a uuid")
    return native_string(text)


class _Days(dict[bytes, int]):
    """Unix days by `YYYY-MM-DD`; fills itself, and starts anew when it has grown large."""

    _LIMIT = 50_000

    def __missing__(self, text: bytes) -> int:
        name = text.decode()
        day = date.fromisoformat(name)
        if day.isoformat() != name:
            raise ValueError("not a date's ISO form")
        if len(self) >= self._LIMIT:
            self.clear()
        self[text] = days = day.toordinal() - UNIX_DAY_ZERO
        return days


class _Seconds(dict[bytes, int]):
    """Microseconds by `HH:MM:SS`; fills itself with those of the 86,400 that are met."""

    def __missing__(self, text: bytes) -> int:
        match = _CLOCK.fullmatch(text)
        if match is None:
            raise ValueError("not a time of day")
        hours, minutes, seconds = map(int, match.groups())
        self[text] = micros = ((hours * 60 + minutes) * 60 + seconds) * SECOND
        return micros


_DAYS = _Days()
_SECONDS = _Seconds()


def from_date(text: bytes) -> bytes:
    """A date of the years 1 to 9999."""
    return native_long(_DAYS[text])


def from_time(text: bytes) -> bytes:
    """A time of day below 24:00."""
    micros = _SECONDS[text[:8]]
    return native_long(micros + _fraction(text[8:]) if len(text) > 8 else micros)


def from_timestamp(text: bytes) -> bytes:
    """A timestamp of the years 1 to 9999."""
    micros = _DAYS[text[:10]] * DAY + _SECONDS[text[11:19]]
    if text[10:11] != b" ":
        raise ValueError("not a timestamp's ISO form")
    if len(text) > 19:
        micros += _fraction(text[19:])
    return native_long(micros)


def from_timestamptz(text: bytes) -> bytes:
    """A timestamptz of the years 1 to 9999, printed in UTC."""
    if text[-3:] != b"+00":
        raise ValueError("not printed in UTC")
    return from_timestamp(text[:-3])


def _fraction(text: bytes) -> int:
    digits = text[1:]
    if text[:1] != b"." or not digits.isdigit() or len(digits) > 6 or text[-1:] == b"0":
        raise ValueError("not a fraction of a second")
    return int(digits) * _FRACTION_UNIT[len(text)]
