"""Transaction ids of 64 bits out of the 32 that the WAL holds. Pure."""

from __future__ import annotations

_TURN = 1 << 32


def widen_xid(xid: int, near: int) -> int:
    """The 64-bit transaction id with these 32 low bits that is nearest to a known one.

    Args:
        xid: 32 bits, as pgoutput sends them.
        near: a 64-bit id of about the same time (`pg_snapshot_xmax`); less than two billion transactions away.
    """
    candidate = near - near % _TURN + xid
    if candidate - near > _TURN // 2 and candidate >= _TURN:
        return candidate - _TURN
    return candidate + _TURN if near - candidate > _TURN // 2 else candidate
