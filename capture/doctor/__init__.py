"""The doctor: whether the source can be captured well, and what mends it if not.

    reading, reading_tables     facts out of the catalog, in a handful of statements          I/O
    facts                       what was read, as plain values                                pure
    diagnosis                   every rule, in order                                          pure
      source_rules, known_bugs, server_rules, role_rules, publication_rules, table_rules, slot_rules
    findings, topics            what rules give: code, severity, what was found, mends        pure
    quoting                     names and texts as SQL writes them                            pure
    mending                     runs the steps that are safe                                  I/O

A rule sees facts alone, so that each is tested without a server; `walbus doctor` adds what concerns this machine.
"""

from __future__ import annotations

from walbus.capture.doctor.diagnosis import diagnose
from walbus.capture.doctor.facts import LogFacts, Wanted
from walbus.capture.doctor.findings import Finding, Mend, Severity, in_order
from walbus.capture.doctor.known_bugs import too_old
from walbus.capture.doctor.mending import Attempt, apply_safe, wait_for_reload
from walbus.capture.doctor.reading import read_facts

__all__ = [
    "Attempt",
    "Finding",
    "LogFacts",
    "Mend",
    "Severity",
    "Wanted",
    "apply_safe",
    "diagnose",
    "in_order",
    "read_facts",
    "too_old",
    "wait_for_reload",
]
