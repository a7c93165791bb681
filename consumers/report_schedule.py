"""When a consumer tells the relay where it is: at most once a second, and at once when somebody waits. Pure.

Most reports are of use to nobody in particular, so they are few: one a second while something changes, one in half a
minute otherwise, which says that the consumer lives. When the relay has told that somebody waits for a place
(`Flag.ASKED`), the report that says that the consumer is there goes out at once; one from before that place would be of
no use to whoever waits. A relay that does not take reports is asked again with growing pauses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from walbus.consumer_reports import ConsumerReport
from walbus.position import ORIGIN, Position

#: Seconds between two reports that say something new.
REPORT_SECONDS: Final = 1.0

#: Seconds until the same is said again.
REFRESH_SECONDS: Final = 30.0

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_MAX_ASKED = 256


@dataclass
class ReportSchedule:
    """The reports of one consumer; times are seconds of one monotonic clock.

    Attributes:
        latest: what is true now; None before anything is.
    """

    latest: ConsumerReport | None = None

    def __post_init__(self) -> None:
        self._sent: ConsumerReport | None = None
        self._sent_at = float("-inf")
        self._blocked_until = float("-inf")
        self._pause = _FIRST_PAUSE
        self._asked: list[Position] = []

    def note(self, report: ConsumerReport) -> None:
        """This is true now. A session's beginning stays one until the relay has taken a report of it."""
        last = self.latest
        if last is not None and last.session == report.session and last.begins:
            report = replace(report, begins=True)
        self.latest = report

    def asked(self, position: Position) -> None:
        """Somebody waits for the consumer to get here."""
        if len(self._asked) < _MAX_ASKED:
            self._asked.append(position)

    def due(self) -> float:
        """When a report is to be sent next; infinite if never."""
        if self.latest is None:
            return float("inf")
        return max(self._blocked_until, self._wanted_at(self.latest))

    def _wanted_at(self, report: ConsumerReport) -> float:
        if self._sent is None or self._sent.session != report.session or self._is_waited_for(report):
            return float("-inf")
        return self._sent_at + (REPORT_SECONDS if report != self._sent else REFRESH_SECONDS)

    def _is_waited_for(self, report: ConsumerReport) -> bool:
        return any(position <= (report.last_done or ORIGIN) for position in self._asked)

    def last_word(self) -> ConsumerReport | None:
        """What is left to say at the end; None if that was said, or has been tried once."""
        report, self.latest = self.latest, None
        unsaid = report is not None and report != self._sent and self._blocked_until == float("-inf")
        return report if unsaid else None

    def taken(self, report: ConsumerReport, now: float) -> None:
        """The relay took a report."""
        if self.latest is not None and self.latest.session == report.session:
            self.latest = replace(self.latest, begins=False)
        self._settle(replace(report, begins=False), now)

    def passed_over(self, report: ConsumerReport, now: float) -> None:
        """The relay took note of a report and counts another instead: what is said next is said in turn."""
        self._settle(report, now)

    def failed(self, now: float, at_least: float = 0.0) -> None:
        """The relay did not answer, or asks for some seconds."""
        self._blocked_until = now + max(self._pause, at_least)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _settle(self, report: ConsumerReport, now: float) -> None:
        self._sent, self._sent_at = report, now
        self._blocked_until, self._pause = float("-inf"), _FIRST_PAUSE
        self._asked = [position for position in self._asked if position > (report.last_done or ORIGIN)]
