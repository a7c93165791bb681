"""Rules about the source as the log knows it: whether this is the database that the log was made from. Pure.

They come first. Where another database answers, whatever else could be said of its publication, its tables and its slot
compares two things that have nothing to do with each other, and a statement that mends it would mend the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator

from walbus.capture.doctor.facts import Facts, HistoryFacts, LogFacts
from walbus.capture.doctor.findings import Finding, Mend, advice, error, ok, refused, warning
from walbus.capture.verification import check_reach, lossy_switch
from walbus.errors import WalbusError
from walbus.lsn import format_lsn


def of_another_source(facts: Facts) -> bool:
    """Whether the log was made from another database or cluster than the one that was looked at."""
    log, history = facts.log, facts.history
    if log is None:
        return False
    if log.source.database != facts.server.database:
        return True
    return history is not None and log.source.system_identifier != history.system.system_identifier


def source_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's; at most one."""
    log, history = facts.log, facts.history
    if log is None:
        return
    if log.source.database != facts.server.database:
        found = f"the log holds database {log.source.database}, and source.dsn names {facts.server.database}"
        yield error("same-source", found, advice("correct source.dsn, or give this database a data_dir of its own"))
    elif log.source.slot != facts.wanted.slot:
        found = f"the log was made from slot {log.source.slot}, and source.slot is {facts.wanted.slot}"
        yield error("same-source", found, Mend("config", f'[source]\nslot = "{log.source.slot}"'))
    elif history is not None:
        yield _same_history(log, history)


def _same_history(log: LogFacts, history: HistoryFacts) -> Finding:
    system = history.system
    if log.source.system_identifier != system.system_identifier:
        found = f"another cluster answers ({system.system_identifier}); the log is of {log.source.system_identifier}"
        return error("same-source", found, advice("correct source.dsn, or give this database a data_dir of its own"))
    try:
        switch = lossy_switch(log.bounds, history.timelines)
        check_reach(system, switch.lsn if switch is not None else log.bounds.end_lsn)
    except WalbusError as refusal:
        return refused("same-source", refusal)
    if switch is not None:
        found = f"a failover at {format_lsn(switch.lsn)} lost commits that the log holds"
        return warning(
            "same-source", found, advice("start capture: it records an epoch, and names what is seeded again")
        )
    return ok("same-source", f"the log is of this cluster, timeline {history.timelines.current}")
