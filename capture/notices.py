"""What a session that decodes is told beside its rows, by notices in their place between the frames.

Two of them are errors, and nothing behind them may be confirmed:

- PostgreSQL 18 skips rows while the publication is missing, and says so by a WARNING alone (SQLSTATE 55000).
- A slot that begins where transactions ran, without its snapshot, as where tools copied its files to a standby and not
  `pg_logical/snapshots`, passes over what commits until none of those runs any more. From where on it decodes whole
  transactions the server tells by a message to its log, and to a session that asks for such messages (`ASK`).
"""

from __future__ import annotations

import re

import psycopg
import structlog

from walbus.capture.refusals import commits_passed_over, rows_skipped
from walbus.errors import SourceError
from walbus.lsn import parse_lsn

logger = structlog.get_logger(__name__)

#: What a session says before it decodes, so that it is told what goes to the server's log.
ASK = b"SET client_min_messages = 'log'"

#: The functions of the server that tell how far the search for a beginning is. Where it still waits for transactions,
#: their number is told in the detail, in every language.
_SEARCHES = ("SnapBuildFindSnapshot", "SnapBuildRestore")
_DIGIT, _LSN = re.compile(r"\d"), re.compile(r"\b[0-9A-F]+/[0-9A-F]+\b")


class Notices:
    """A handler of the notices of one session.

    Args:
        doing: for what, as errors tell it.

    Attributes:
        fatal: what was told that makes the session useless; the first one is to be raised.
        searches: it was told that a beginning is looked for; where it is will be told too.
    """

    def __init__(self, doing: str) -> None:
        self.fatal: list[SourceError] = []
        self.searches = False
        self._doing = doing
        self._decodes_from: int | None = None
        self._confirmed: int | None = None

    def __call__(self, notice: psycopg.errors.Diagnostic) -> None:
        """Takes one."""
        self.searches = self.searches or notice.source_function in _SEARCHES
        if (skipped := rows_skipped(notice, self._doing)) is not None:
            self.fatal.append(skipped)
        elif (begins := _decodes_from(notice)) is not None:
            self._decodes_from = begins
            self._compare()
        elif notice.severity_nonlocalized != "LOG":
            text = notice.message_primary or ""
            logger.warning("source.notice", severity=notice.severity, sqlstate=notice.sqlstate, text=text)

    @property
    def decodes(self) -> bool:
        """Whether it was told that whole transactions are decoded; how far the server is means nothing before."""
        return self._decodes_from is not None

    def anew(self) -> None:
        """Another statement decodes from the slot's beginning."""
        self._decodes_from = self._confirmed = None

    def confirmed(self, lsn: int) -> None:
        """The slot was confirmed up to here when the session began: what commits behind it may not be passed over.

        Raises:
            SourceError: it is, or something else that makes the session useless was told.
        """
        self._confirmed = lsn
        self._compare()
        self.check()

    def check(self) -> None:
        """Raises what was told.

        Raises:
            SourceError: something that makes the session useless.
        """
        if self.fatal:
            raise self.fatal[0]

    def _compare(self) -> None:
        begins, confirmed = self._decodes_from, self._confirmed
        if begins is not None and confirmed is not None and begins > confirmed:
            self.fatal.append(commits_passed_over(begins, confirmed, self._doing))


def _decodes_from(notice: psycopg.errors.Diagnostic) -> int | None:
    """From which LSN on whole transactions are decoded, as the server says; None if it tells of something else."""
    if notice.source_function not in _SEARCHES or _DIGIT.search(notice.message_detail or ""):
        return None
    found = _LSN.search(notice.message_primary or "")
    return None if found is None else parse_lsn(found[0])
