"""From facts to findings: every rule, in the order in which an operator meets the things. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from walbus.capture.doctor.facts import Facts
from walbus.capture.doctor.findings import Finding
from walbus.capture.doctor.known_bugs import version_findings
from walbus.capture.doctor.publication_rules import publication_findings
from walbus.capture.doctor.role_rules import role_findings
from walbus.capture.doctor.server_rules import server_findings
from walbus.capture.doctor.slot_rules import slot_findings
from walbus.capture.doctor.table_rules import table_findings

RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    version_findings,
    server_findings,
    role_findings,
    publication_findings,
    table_findings,
    slot_findings,
)


def diagnose(facts: Facts) -> list[Finding]:
    """All findings."""
    return [finding for rule in RULES for finding in rule(facts)]
