"""Which segments may go: by age and by bytes, but not those that a hold still needs.

Whole segments go, oldest first, the active one never (one that has been active for the whole time of retention is
rolled, so that it may go later). A hold is a small file that another room writes
(`holds/NAME.json`, `{"last_done": POSITION}`): a segment stays until every hold has passed its end. When the disk is
nearly full the holds lose, and the log says so: whoever held must begin again from a snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from walbus.errors import InvalidText
from walbus.position import ORIGIN, Position, parse_position
from walbus.relay.manifest import SealedSegment
from walbus.status import read_status

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Retention:
    """The policy.

    Attributes:
        hours: a segment whose last commit is older may go.
        bytes: the oldest segments may go while the log is larger; None: no such bound.
        disk_floor: free bytes below which holds are not respected any more.
    """

    hours: float
    bytes: int | None
    disk_floor: int = 256 << 20


def expired(sealed: Sequence[SealedSegment], total_bytes: int, now: float, policy: Retention) -> int:
    """How many of the oldest segments the policy lets go, holds aside.

    Args:
        sealed: oldest first.
        total_bytes: of the log, the active segment included.
        now: Unix seconds.
        policy: age and bytes.
    """
    count = 0
    for segment in sealed:
        last_commit = segment.max_time / 1e6 if segment.max_time else segment.sealed_at
        too_old = last_commit < now - policy.hours * 3600
        too_much = policy.bytes is not None and total_bytes > policy.bytes
        if not too_old and not too_much:
            break
        count += 1
        total_bytes -= segment.length
    return count


def unheld(sealed: Sequence[SealedSegment], hold: Position | None) -> int:
    """How many of the oldest segments no hold needs; `hold` is the lowest "last done" of all."""
    if hold is None:
        return len(sealed)
    return next((i for i, segment in enumerate(sealed) if segment.end > hold), len(sealed))


def holds_folder(folder: Path) -> Path:
    """Where rooms put their holds."""
    return folder / "holds"


def lowest_hold(folder: Path) -> Position | None:
    """The lowest "last done" of all holds; None if there are none.

    A hold that cannot be read holds everything: its owner may need any of it.
    """
    positions = [_hold(path) for path in holds_folder(folder).glob("*.json")]
    return min(positions, default=None)


def _hold(path: Path) -> Position:
    status = read_status(path)
    if status is None and not path.exists():
        return _NOTHING_HELD  # removed just now
    try:
        return parse_position(str((status or {}).get("last_done")))
    except InvalidText:
        _log.warning("log_hold_unreadable", file=str(path), mend="mend or delete the file")
        return ORIGIN


_NOTHING_HELD = Position(1 << 32, 0, 0)
