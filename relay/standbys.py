"""Required standbys: relays that must hold a commit before the slot is confirmed behind it, and before it is served.

A standby that is required (`relay.required_standbys`) reports how far its copy of the log is durable. The relay keeps
the last report of each in a small file of the log's folder, which capture reads before it confirms
(`walbus.capture.confirming`), and which outlives both processes. A report is about durable bytes, so an old one stays
true; a missing one counts as nothing held. Only where the log itself lost durable bytes (a power loss, a volume that
was restored) does a report lie beyond its end, and is about bytes that will be others: it is dropped when the log is
opened.

Retention waits for required standbys as it does for the bootstrap: each has a hold, which holds everything until its
first report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from walbus.errors import InvalidText
from walbus.log import StandbyBound
from walbus.lsn import format_lsn, parse_lsn
from walbus.position import ORIGIN, parse_position
from walbus.relay.retention import holds_folder
from walbus.relay.tip import Tip
from walbus.status import read_status, write_status

_log = structlog.get_logger(__name__)

AWAY_SECONDS: Final = 5.0  #: a standby that has not reported for so long is away
_WRITE_SECONDS = 0.05  # between two files of one standby
_HOLD_PREFIX = "standby-"


@dataclass(frozen=True, slots=True)
class Report:
    """What a standby holds durably.

    Attributes:
        tip: what is known at its durable end.
        at: when it said so, Unix seconds.
    """

    tip: Tip
    at: float


def tip_document(tip: Tip) -> dict[str, object]:
    """A tip as it travels between relays, and lies in a standby's file."""
    return {
        "end": str(tip.position),
        "end_lsn": format_lsn(tip.end_lsn),
        "last_seq": tip.last_seq,
        "commit_time": tip.commit_time,
        "announced_schema": tip.announced_schema,
    }


def parse_tip(document: Mapping[str, object]) -> Tip:
    """The inverse of `tip_document`.

    Raises:
        InvalidText: a part is missing or wrong; names it.
    """
    position, end_lsn = parse_position(str(document.get("end"))), parse_lsn(str(document.get("end_lsn")))
    numbers = [document.get(name) for name in ("last_seq", "commit_time", "announced_schema")]
    last_seq, commit_time, announced = (n if type(n) is int and 0 <= n < 1 << 63 else -1 for n in numbers)
    if min(last_seq, commit_time, announced) < 0:
        raise InvalidText("last_seq, commit_time and announced_schema should be whole numbers")
    return Tip(position, end_lsn, last_seq, commit_time, announced)


def read_report(folder: Path, name: str) -> Report | None:
    """The last report of a standby; None if it never made one."""
    document = read_status(_report_path(folder, name))
    try:
        return None if document is None else Report(parse_tip(document), float(document["at"]))
    except (InvalidText, KeyError, TypeError, ValueError):
        return None


def _reports_folder(folder: Path) -> Path:
    return folder / "standbys"


def _report_path(folder: Path, name: str) -> Path:
    return _reports_folder(folder) / f"{name}.json"


def _hold_path(folder: Path, name: str) -> Path:
    return holds_folder(folder) / f"{_HOLD_PREFIX}{name}.json"


def lies_beyond(held: Tip, end: Tip) -> bool:
    """Whether a standby says that it holds more than there is."""
    if held.position.epoch == end.position.epoch and held.end_lsn > end.end_lsn:
        return True
    return held.position > end.position


def drop_reports_beyond(folder: Path, end: Tip) -> None:
    """Forgets what standbys reported of bytes that the log has lost; when it is opened, before it is written to.

    Args:
        folder: of the log.
        end: what is known at its durable end.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in _reports_folder(folder).glob("*.json"):
        report = read_report(folder, path.stem)
        if report is not None and lies_beyond(report.tip, end):
            _tell_lost(path.stem, report.tip, end)
            path.unlink(missing_ok=True)
            _hold_path(folder, path.stem).unlink(missing_ok=True)


def _tell_lost(name: str, held: Tip, end: Tip) -> None:
    _log.error(
        "standby_holds_what_the_log_lost",
        standby=name,
        held=str(held.position),
        end=str(end.position),
        note="nothing counts as held by it until it reports again",
        mend="if it refuses to go on, move its folder away; or have it take over, since it holds more",
    )


def hold_for(folder: Path, required: tuple[str, ...]) -> None:
    """Has retention wait for these standbys, from before their first reports on, and for no others."""
    holds = {_hold_path(folder, name) for name in required}
    try:
        for path in holds_folder(folder).glob(f"{_HOLD_PREFIX}*.json"):
            if path not in holds:
                path.unlink(missing_ok=True)
        for path in holds:
            if not path.exists():
                write_status(path, {"last_done": str(ORIGIN)})
    except OSError as error:
        note = "retention does not wait for required standbys until they report"
        _log.error("standby_holds_not_written", folder=str(folder), error=error.strerror, note=note)


class Standbys:
    """The required standbys of one log, as their reports come in. Thread-safe.

    Args:
        folder: of the log.
        required: their names.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path, required: tuple[str, ...], clock: Callable[[], float] = time.time) -> None:
        self.required = required
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._reports = {name: read_report(folder, name) for name in required}
        self._written = dict.fromkeys(required, 0.0)
        self._away: frozenset[str] = frozenset()

    def report(self, name: str, tip: Tip) -> None:
        """A standby holds everything up to here durably.

        Raises:
            KeyError: no standby of this name is required.
            OSError: its file cannot be written.
        """
        with self._lock:
            before, now = self._reports[name], self._clock()
            self._reports[name] = Report(tip, now)
            if before is not None and tip.position < before.tip.position:
                _log.warning("standby_went_back", standby=name, held=str(before.tip.position), holds=str(tip.position))
            if not 0 <= now - self._written[name] < _WRITE_SECONDS:
                self._written[name] = now
                self._write(name, tip, now)

    def look_again(self, end: Tip) -> None:
        """Another writer has opened the log, and dropped the reports of bytes that it lost.

        Args:
            end: what is known at the log's durable end by now.
        """
        with self._lock:
            for name, known in self._reports.items():
                kept = read_report(self._folder, name)
                report = kept and (known or kept)
                if report is not None and lies_beyond(report.tip, end):
                    _tell_lost(name, report.tip, end)
                    report = None
                self._reports[name] = report

    def lowest(self) -> Tip | None:
        """What all required standbys hold; None if one of them has never reported."""
        with self._lock:
            tips = [report.tip if report is not None else None for report in self._reports.values()]
        known = [tip for tip in tips if tip is not None]
        return min(known, key=_order) if len(known) == len(tips) else None

    def hold(self, tip: Tip) -> bool:
        """Whether all of them hold everything up to a place."""
        lowest = self.lowest()
        return lowest is not None and _order(tip) <= _order(lowest)

    def reports(self) -> dict[str, Report | None]:
        """The last report of each."""
        with self._lock:
            return dict(self._reports)

    def away(self) -> frozenset[str]:
        """Those that have not reported for a while; said once when one goes, and once when it is back."""
        now = self._clock()
        with self._lock:
            away = frozenset(n for n, report in self._reports.items() if not report or now - report.at > AWAY_SECONDS)
            went, came, self._away = away - self._away, self._away - away, away
        for name in sorted(went):
            _log.error(
                "standby_away",
                standby=name,
                note="the slot is not confirmed, and nothing new is served, until it is back",
                mend="start it, or take its name out of relay.required_standbys",
            )
        for name in sorted(came):
            _log.info("standby_is_back", standby=name)
        return away

    def _write(self, name: str, tip: Tip, now: float) -> None:
        write_status(_report_path(self._folder, name), {**tip_document(tip), "at": now})
        write_status(_hold_path(self._folder, name), {"last_done": str(tip.position)})


def _order(tip: Tip) -> tuple[object, int]:
    """Layouts are announced between two changes, at the position of the first or of the second."""
    return tip.position, tip.announced_schema


def confirmable(folder: Path, required: tuple[str, ...], now: float, epoch: int) -> StandbyBound:
    """As the relay has written it down, for the process that confirms.

    LSNs of two epochs do not compare: where a failover lost commits, the end of a copy that has not seen the new epoch
    may be a larger LSN than what the log got since.

    Args:
        folder: of the log.
        required: names of the standbys.
        now: Unix seconds.
        epoch: of the log's durable end.
    """
    reports = {name: read_report(folder, name) for name in required}
    tips = [report.tip if report else None for report in reports.values()]
    lsn = min((tip.end_lsn if tip and tip.position.epoch >= epoch else 0 for tip in tips), default=0)
    away = tuple(name for name, report in reports.items() if report is None or now - report.at > AWAY_SECONDS)
    return StandbyBound(lsn, away)
