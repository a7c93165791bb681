"""Native values to PostgreSQL's canonical text: the inverse of `from_text`.

Each function takes the raw Avro value (microseconds, days, bytes; no `datetime`) and prints what PostgreSQL prints
under `walbus.session.SESSION_SETTINGS`. Floats are printed as PostgreSQL 12 and later print them: the shortest
digits that lie strictly inside the number's rounding interval, positional for exponents from -4 to 14 (float8) or
to 5 (float4).
"""

from __future__ import annotations

import math
import struct
from datetime import date
from fractions import Fraction
from functools import lru_cache

from walbus.values.from_text import DAY, SECOND, UNIX_DAY_ZERO

_pack_float = struct.Struct("<f").pack
_unpack_float = struct.Struct("<f").unpack
_DOUBLE_EXACT = 2.0**53  # integers below it are doubles
_FLOAT_EXACT = 2.0**24  # likewise floats
_SMALLEST_NORMAL_FLOAT = 2.0**-126


def bool_text(value: bool) -> str:
    """`t` or `f`, as COPY and pgoutput print it (`::text` says `true`)."""
    return "t" if value else "f"


@lru_cache(maxsize=4096)  # rows of one batch are mostly of the same few days
def date_text(days: int) -> str:
    """ISO date from Unix days."""
    return date.fromordinal(days + UNIX_DAY_ZERO).isoformat()


def time_text(micros: int) -> str:
    """`HH:MM:SS[.ffffff]` without trailing zeros."""
    seconds, fraction = divmod(micros, SECOND)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:06}".rstrip("0") if fraction else text


def timestamp_text(micros: int) -> str:
    """ISO date, a space, time."""
    days, rest = divmod(micros, DAY)
    return f"{date_text(days)} {time_text(rest)}"


def timestamptz_text(micros: int) -> str:
    """As `timestamp_text`, with `+00`."""
    return timestamp_text(micros) + "+00"


def timestamptz_iso(micros: int) -> str:
    """ISO 8601 in UTC: `2024-01-01T00:00:00.5Z`."""
    days, rest = divmod(micros, DAY)
    return f"{date_text(days)}T{time_text(rest)}Z"


def bytea_text(value: bytes) -> str:
    r"""`\x` and hexadecimal digits."""
    return "\\x" + value.hex()


def float8_text(value: float) -> str:
    """The shortest text that reads back as the same double."""
    if not math.isfinite(value):
        return _not_finite(value)
    shortest = repr(value)
    if abs(value) >= _DOUBLE_EXACT:
        shortest = _inside(value, shortest)
    return _layout(shortest, 15)


def float4_text(value: float) -> str:
    """The shortest text that reads back as the same single-precision number (given as a double)."""
    size = abs(value)
    if _SMALLEST_NORMAL_FLOAT <= size < _FLOAT_EXACT:
        packed = _pack_float(value)
        for precision in range(6, 10):
            text = f"{value:.{precision}g}"
            if _pack_float(float(text)) == packed:
                # The rounding interval of a power of two is lopsided: shorter digits may lie on its wider side.
                return _float4_with_care(value) if precision > 6 and _is_power_of_two(value) else _layout(text, 6)
    return _float4_with_care(value)


def _float4_with_care(value: float) -> str:
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0.0:
        return _layout(repr(value), 6)
    least = 6 if abs(value) >= _SMALLEST_NORMAL_FLOAT else 1
    for precision in range(least, 10):
        for candidate in _candidates(value, precision):
            if _reads_as_float(candidate, value):
                return _layout(candidate, 6)
    raise AssertionError("nine digits tell every float apart")


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _is_power_of_two(value: float) -> bool:
    return abs(math.frexp(value)[0]) == 0.5


def _candidates(value: float, precision: int) -> list[str]:
    """The nearest decimal with so many digits, and for a power of two (whose interval is wider above) the next."""
    nearest = f"{value:.{precision - 1}e}"
    if not _is_power_of_two(value):
        return [nearest]
    mantissa, exponent = nearest.split("e")
    digits = int(mantissa.replace(".", "")) + (1 if value > 0 else -1)
    return [nearest, f"{digits}e{int(exponent) - precision + 1}"]


def _reads_as_float(text: str, value: float) -> bool:
    double = float(text)
    try:
        single = _unpack_float(_pack_float(double))[0]
    except OverflowError:
        return False
    return bool(single == value) and not _midway_float(double, value)


def _midway_float(double: float, value: float) -> bool:
    if double == value:
        return False
    bits = int.from_bytes(_pack_float(value), "little")
    other = bits + (1 if abs(double) > abs(value) else -1)
    neighbour = _unpack_float((other & 0xFFFFFFFF).to_bytes(4, "little"))[0]
    return math.isfinite(neighbour) and abs(neighbour - double) == abs(value - double)


def _inside(value: float, shortest: str) -> str:
    """Replaces a text exactly midway to a neighbouring double (1e+23), which PostgreSQL avoids."""
    exact = Fraction(shortest)
    if exact == value:
        return shortest
    neighbour = math.nextafter(value, math.inf if exact > value else -math.inf)
    if not math.isfinite(neighbour) or exact * 2 != Fraction(value) + Fraction(neighbour):
        return shortest
    for precision in range(1, 17):
        candidate = f"{value:.{precision}e}"
        if float(candidate) == value and Fraction(candidate) * 2 != Fraction(value) + Fraction(neighbour):
            return candidate
    raise AssertionError("seventeen digits tell every double apart")


def _layout(text: str, limit: int) -> str:
    """Writes a decimal positionally if its exponent is at least -4 and below the limit, else scientifically."""
    sign = "-" if text[0] == "-" else ""
    mantissa, _, exponent = text.lstrip("-").partition("e")
    whole, _, part = mantissa.partition(".")
    digits = (whole + part).lstrip("0")
    if not digits:
        return sign + "0"
    point = len(digits) - len(part) + int(exponent or 0)  # the decimal point stands behind so many digits
    digits = digits.rstrip("0")
    power = point - 1
    if not -4 <= power < limit:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point >= len(digits):
        return sign + digits.ljust(point, "0")
    return f"{sign}{digits[:point]}.{digits[point:]}"
