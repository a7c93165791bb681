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
from walbus.capture.doctor.source_rules import of_another_source, source_findings
from walbus.capture.doctor.table_rules import table_findings

Rule = Callable[[Facts], Iterator[Finding]]

#: About the server that answers, whatever is captured from it.
OF_THE_SERVER: tuple[Rule, ...] = (version_findings, server_findings, role_findings)
#: About what is captured.
OF_THE_SOURCE: tuple[Rule, ...] = (publication_findings, table_findings, slot_findings)


def diagnose(facts: Facts) -> list[Finding]:
    """All findings; of another source than the log's, what concerns its server alone, and nothing for `--fix`."""
    if of_another_source(facts):
        return [finding.for_hands() for rule in (source_findings, *OF_THE_SERVER) for finding in rule(facts)]
    return [finding for rule in (source_findings, *OF_THE_SERVER, *OF_THE_SOURCE) for finding in rule(facts)]
