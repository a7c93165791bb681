"""What an examination finds: a code, how bad it is, what was seen, and what mends it. Pure.

A finding speaks of one topic (its `code`, which never changes its meaning) and of one or more subjects: two hundred
tables without a key are one finding with two hundred subjects, not two hundred findings. Why a topic matters is the
same each time and stands in `walbus.capture.doctor.topics`.

Severity is a promise about the next start:

    error     capture cannot run, loses changes, or makes the application's own statements fail
    warning   it runs, and something will go wrong one day, or costs more than it must
    info      worth knowing; nothing need be done
    ok        looked at, and right
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from walbus.capture.doctor.topics import TOPICS
from walbus.errors import WalbusError


class Severity(enum.StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    OK = "ok"


#: The worst first.
ORDER = tuple(Severity)

MendKind = Literal["sql", "replication", "config", "shell", "advice"]


@dataclass(frozen=True, slots=True)
class Mend:
    """One step that mends a finding.

    Attributes:
        kind: what `text` is: a statement for an ordinary session, a command for a replication session, a line for
            walbus.toml, a command for a shell, or a sentence.
        text: exact, quoted, to be copied as it is.
        safe: `--fix` runs it: it adds only what the configuration asks for, and takes nothing away.
        restart: it counts only after a restart of PostgreSQL.
    """

    kind: MendKind
    text: str
    safe: bool = False
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one topic.

    Attributes:
        code: the topic, a key of `TOPICS`.
        severity: how bad.
        found: what was seen, one sentence without a full stop.
        subjects: the tables, settings, roles or folders that it is about; may be empty.
        mends: steps, in their order. Several are one after the other, unless a sentence says "or".
    """

    code: str
    severity: Severity
    found: str
    subjects: tuple[str, ...] = ()
    mends: tuple[Mend, ...] = ()

    @property
    def why(self) -> str:
        """Why the topic matters."""
        return TOPICS[self.code]

    def for_hands(self) -> Finding:
        """The same, with steps that `--fix` leaves alone."""
        return replace(self, mends=tuple(replace(mend, safe=False) for mend in self.mends))


def error(code: str, found: str, *mends: Mend, of: Iterable[str] = ()) -> Finding:
    """A finding that stops capture, loses changes or breaks the application."""
    return Finding(code, Severity.ERROR, found, tuple(of), mends)


def warning(code: str, found: str, *mends: Mend, of: Iterable[str] = ()) -> Finding:
    """A finding that will hurt one day."""
    return Finding(code, Severity.WARNING, found, tuple(of), mends)


def info(code: str, found: str, *mends: Mend, of: Iterable[str] = ()) -> Finding:
    """Something worth knowing."""
    return Finding(code, Severity.INFO, found, tuple(of), mends)


def ok(code: str, found: str) -> Finding:
    """Something that is right."""
    return Finding(code, Severity.OK, found)


def refused(code: str, refusal: WalbusError) -> Finding:
    """What capture itself would say at its start."""
    where = f" (at {refusal.where})" if refusal.where else ""
    mends = [advice(refusal.mend)] if refusal.mend else []
    return error(code, f"{refusal.what}{where}", *mends)


def statement(text: str) -> Mend:
    """SQL that an operator decides on; `--fix` leaves it alone."""
    return Mend("sql", text)


def safe_statement(text: str) -> Mend:
    """SQL that `--fix` runs."""
    return Mend("sql", text, safe=True)


def advice(text: str) -> Mend:
    """A sentence that begins with a verb."""
    return Mend("advice", text)


def shell(text: str) -> Mend:
    """A command for a shell on this machine."""
    return Mend("shell", text)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise as they came."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))
