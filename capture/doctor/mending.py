"""`--fix`: runs the steps that are marked safe, each in its own statement, and says what became of each.

A step is safe when it only adds what the configuration asks for, can be taken back by one statement, and touches
neither tables nor data: roles' privileges, the publication and its tables, settings in postgresql.auto.conf. Nothing
is dropped, no session is ended, no replica identity changed. What is there already is not run again, since steps
come from findings, and a thing that is there gives none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg

from walbus.capture.doctor.findings import Finding, Mend
from walbus.capture.refusals import refusal
from walbus.capture.sessions import Session

#: Seconds that a step waits for a lock before it gives up: an application's statements must not queue behind it.
_LOCK_SECONDS = 5
#: Looks, a tenth of a second apart, for what a reload changed.
_LOOKS = 50


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one step.

    Attributes:
        failed: why it did not work; None where it did.
    """

    code: str
    mend: Mend
    failed: str | None


def apply_safe(session: Session, findings: Iterable[Finding]) -> list[Attempt]:
    """Runs the safe steps of the findings, in their order; one that fails keeps none of the others from running.

    Raises:
        SourceUnavailable: the connection broke.
    """
    steps = [(finding.code, mend) for finding in findings for mend in finding.mends if mend.safe]
    if not steps:
        return []
    session.execute(f"SET lock_timeout = '{_LOCK_SECONDS}s'".encode())
    attempts = [_attempt(session, code, mend) for code, mend in steps]
    if any(attempt.mend.restart and attempt.failed is None for attempt in attempts):
        session.execute("SELECT pg_reload_conf()")  # makes pending_restart show what was set
    return attempts


def wait_for_reload(session: Session) -> None:
    """Waits until this session sees that a setting waits for a restart: each session hears of a reload by itself.

    Gives up after a few seconds, for a server that is very busy; it is then told as it was before.
    """
    for _ in range(_LOOKS):
        if session.execute("SELECT FROM pg_settings WHERE pending_restart").fetchone() is not None:
            return
        session.execute("SELECT pg_sleep(0.1)")


def _attempt(session: Session, code: str, mend: Mend) -> Attempt:
    try:
        session.execute(mend.text.encode())
    except psycopg.Error as error:
        if session.closed:
            raise refusal(error, "mending") from None
        return Attempt(code, mend, str(error).split("\n", 1)[0])
    return Attempt(code, mend, None)
