"""What `walbus doctor` says: one JSON object, or lines for people. Pure.

The lines are drawn with rich, which leaves colours out where there is no terminal. Statements stand alone on their
lines, unwrapped and with a semicolon, so that they can be copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from walbus import __version__
from walbus.amounts import counted
from walbus.capture.doctor import Attempt, Finding, Mend, Severity, in_order

#: Version of the JSON form.
FORM = 1

_MARKS = {
    Severity.ERROR: ("✗", "bold red"),
    Severity.WARNING: ("!", "bold yellow"),
    Severity.INFO: ("·", "cyan"),
    Severity.OK: ("✓", "green"),
}
#: Subjects, and steps of one finding, that people are shown; --json has all.
_SHOWN = 8
_LABELS = {"shell": "shell", "config": "toml", "replication": "repl", "sql": "sql"}
#: Columns before the text of a line.
_LABEL = 11


@dataclass(frozen=True, slots=True)
class Report:
    """An examination, and what --fix did.

    Attributes:
        place: of the source, without secrets.
        reached: whether the source could be looked at.
        findings: what is so now (after --fix, if that was asked for).
        attempts: what --fix ran.
    """

    place: str
    reached: bool
    findings: tuple[Finding, ...]
    attempts: tuple[Attempt, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 if the source could not be looked at, 3 if there is an error or a warning, else 0."""
        if not self.reached:
            return 1
        found = {finding.severity for finding in self.findings}
        return 3 if found & {Severity.ERROR, Severity.WARNING} else 0


def document(report: Report) -> dict[str, Any]:
    """The report as `--json` prints it; docs/doctor.md describes every member."""
    counts = Counter(finding.severity for finding in report.findings)
    return {
        "version": FORM,
        "walbus": __version__,
        "source": {"place": report.place, "reached": report.reached},
        "exit_code": report.exit_code,
        "counts": {severity.value: counts[severity] for severity in Severity},
        "findings": [_finding(finding) for finding in in_order(report.findings)],
        "fixed": [
            {"code": attempt.code, "text": attempt.mend.text, "restart": attempt.mend.restart, "failed": attempt.failed}
            for attempt in report.attempts
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "found": finding.found,
        "why": finding.why,
        "subjects": list(finding.subjects),
        "mends": [
            {"kind": mend.kind, "text": mend.text, "fix": mend.safe, "restart": mend.restart} for mend in finding.mends
        ],
    }


@dataclass(frozen=True, slots=True)
class Line:
    """A line for people; `prose` may be wrapped, under its label, and a statement may not."""

    text: Text
    prose: bool = True

    def wrapped(self, console: Console) -> Iterator[Text]:
        """Its lines on this terminal; elsewhere, and for a statement, the one line that it is."""
        if not (self.prose and console.is_terminal):
            yield self.text
            return
        label, rest = self.text.divide([_LABEL])[:2] if len(self.text) > _LABEL else (self.text, Text())
        for number, part in enumerate(rest.wrap(console, max(20, console.width - _LABEL))):
            yield Text.assemble(label if number == 0 else " " * _LABEL, part)


_BLANK = Line(Text())


def lines(report: Report) -> Iterator[Line]:
    """The report for people."""
    yield Line(Text.assemble(("walbus doctor", "bold"), f"  {report.place}"), prose=False)
    yield _BLANK
    for attempt in report.attempts:
        yield from _attempt(attempt)
    if report.attempts:
        yield _BLANK
    for finding in in_order(report.findings):
        if finding.severity is not Severity.OK:
            yield from _lines_of(finding)
    yield from _right(report.findings)
    yield _BLANK
    yield Line(_summary(report), prose=False)


def _attempt(attempt: Attempt) -> Iterator[Line]:
    restart = "   -- counts after a restart of PostgreSQL" if attempt.mend.restart else ""
    if attempt.failed is None:
        yield Line(Text.assemble((" ✓ done    ", "bold green"), f"{attempt.mend.text};", (restart, "dim")), prose=False)
    else:
        yield Line(Text.assemble((" ✗ failed  ", "bold red"), f"{attempt.mend.text};"), prose=False)
        yield _labelled("", attempt.failed)


def _lines_of(finding: Finding) -> Iterator[Line]:
    mark, style = _MARKS[finding.severity]
    yield Line(
        Text.assemble((f" {mark} {finding.severity.value:<8}", style), (finding.code, "bold"), f"  {finding.found}")
    )
    if len(finding.subjects) > 1:
        yield _labelled("of", _shortened(finding.subjects))
    yield _labelled("why", finding.why)
    for mend in finding.mends[:_SHOWN]:
        yield from _mend(mend)
    if len(finding.mends) > _SHOWN:
        yield _labelled("", f"… and {counted(len(finding.mends) - _SHOWN, 'step')} more, which --json lists")
    yield _BLANK


def _shortened(subjects: Sequence[str]) -> str:
    more = f" and {len(subjects) - _SHOWN:,} more" if len(subjects) > _SHOWN else ""
    return ", ".join(subjects[:_SHOWN]) + more


def _labelled(label: str, text: str) -> Line:
    return Line(Text.assemble((f"     {label:<6}", "dim"), text))


def _mend(mend: Mend) -> Iterator[Line]:
    if mend.kind == "advice":
        yield _labelled("do", mend.text)
        return
    notes = [*(["done by --fix"] if mend.safe else []), *(["then restart PostgreSQL"] if mend.restart else [])]
    note = f"   -- {', '.join(notes)}" if notes else ""
    first, *rest = mend.text.split("\n")
    end = ";" if mend.kind in {"sql", "replication"} else ""
    label = f"     {_LABELS[mend.kind]:<6}"
    yield Line(Text.assemble((label, "dim"), (f"{first}{end}", "green"), (note, "dim")), prose=False)
    for line in rest:
        yield Line(Text.assemble(" " * _LABEL, (line, "green")), prose=False)


def _right(findings: Sequence[Finding]) -> Iterator[Line]:
    """What is right, one line each."""
    mark, style = _MARKS[Severity.OK]
    for finding in findings:
        if finding.severity is Severity.OK:
            yield Line(
                Text.assemble((f" {mark} ok      ", style), (finding.code, "bold"), (f"  {finding.found}", "dim"))
            )


def _summary(report: Report) -> Text:
    counts = Counter(finding.severity for finding in report.findings)
    found = ", ".join(
        counted(counts[severity], severity.value) for severity in (Severity.ERROR, Severity.WARNING) if counts[severity]
    )
    if not report.reached:
        return Text("the source could not be looked at", style="bold red")
    safe = sum(mend.safe for finding in report.findings for mend in finding.mends)
    fix = (
        f"; walbus doctor --fix runs {counted(safe, 'statement')} of the above" if safe and not report.attempts else ""
    )
    if any(attempt.mend.restart and attempt.failed is None for attempt in report.attempts):
        fix = "; restart PostgreSQL, and run walbus doctor again"
    if not found:
        return Text.assemble(("nothing found that stands in the way", "bold green"), fix)
    return Text.assemble((found, "bold"), fix)
