"""Amounts as people read them. Pure."""

from __future__ import annotations

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def human_bytes(size: float) -> str:
    """A size: `1.5 MiB`."""
    for unit in _SIZES[:-1]:
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_SIZES[-1]}"


def human_seconds(seconds: float) -> str:
    """A duration: `3.2 h`, `45 s`, `0.8 ms`."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    if 0 < seconds < 0.1:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.3g} s"


def counted(number: int, thing: str) -> str:
    """A number of things: `1 table`, `2,000 tables`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
