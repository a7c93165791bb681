"""Rules about the slot, and about whether it continues the log that is there. Pure.

What cannot be continued is never mended here: a slot that is made again has nothing of what happened between, so the
mend is always to compare with the source.
"""

from __future__ import annotations

from collections.abc import Iterator

from walbus.amounts import human_bytes, human_seconds
from walbus.capture.doctor.facts import Facts, HistoryFacts, LogFacts, SlotFacts, Transaction
from walbus.capture.doctor.findings import Finding, Mend, advice, error, info, ok, statement, warning
from walbus.capture.doctor.quoting import identifier, literal
from walbus.lsn import format_lsn

_GIB = 1 << 30
#: WAL held back that is worth a warning, and that of a slot of somebody else which nobody reads.
_RETAINED, _IDLE = 10 * _GIB, _GIB
#: WAL left before the slot is lost.
_SAFE = 2 * _GIB
#: Seconds after which a transaction is old.
_OLD, _OLD_PREPARED = 600.0, 60.0
_OURS = "walbus-capture"

_COMPARE = advice("let Walbus compare with the source: see docs/doctor.md, changes that were missed")


def slot_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    yield from _same_source(facts)
    yield from _slot(facts)
    yield from _idle(facts)
    yield from _transactions(facts)


def _same_source(facts: Facts) -> Iterator[Finding]:
    log, history = facts.log, facts.history
    if log is None:
        return
    if log.database != facts.server.database:
        found = f"the log holds database {log.database}, and source.dsn names {facts.server.database}"
        yield error("same-source", found, advice("correct source.dsn, or give this database a data_dir of its own"))
    elif log.slot != facts.wanted.slot:
        found = f"the log was made from slot {log.slot}, and source.slot is {facts.wanted.slot}"
        yield error("same-source", found, Mend("config", f'[source]\nslot = "{log.slot}"'))
    elif history is not None:
        yield from _same_history(log, history)


def _same_history(log: LogFacts, history: HistoryFacts) -> Iterator[Finding]:
    if log.system_identifier != history.system_identifier:
        found = f"another cluster answers: {history.system_identifier}, and the log is of {log.system_identifier}"
        yield error("same-source", found, advice("correct source.dsn, or give this database a data_dir of its own"))
        return
    left_at = history.left_at.get(log.epoch)
    gone = log.epoch > history.timeline or (log.epoch < history.timeline and left_at is None)
    if not log.empty and (gone or (left_at is not None and log.end_lsn > left_at)):
        found = f"timeline {history.timeline} does not continue the log's end {format_lsn(log.end_lsn)}"
        yield error("same-source", f"{found}: a failover lost commits that the log holds", _COMPARE)
    elif not log.empty and history.flushed < log.end_lsn:
        found = f"the server's WAL ends at {format_lsn(history.flushed)}, before the log's end: it was set back"
        yield error("same-source", found, _COMPARE)
    else:
        yield ok("same-source", f"the log is of this cluster, timeline {history.timeline}")


def _slot(facts: Facts) -> Iterator[Finding]:
    name, slot, log = facts.wanted.slot, facts.slot, facts.log
    if slot is None:
        if log is not None and not log.empty:
            found = f"slot {name} is gone, and with it the changes behind {format_lsn(log.end_lsn)}"
            yield error("slot", found, _COMPARE, of=[name])
        else:
            yield info("slot", f"there is no slot {name} yet; capture makes it at its start", of=[name])
        return
    if slot.plugin != "pgoutput" or slot.database != facts.server.database or slot.temporary:
        kind = f"of plugin {slot.plugin}, database {slot.database}" if slot.plugin else "a physical one"
        mend = Mend("config", f'[source]\nslot = "{_other_name(name)}"')
        yield error("slot", f"slot {name} is {'temporary' if slot.temporary else kind}", mend, of=[name])
        return
    if slot.lost is not None:
        yield error("slot", f"slot {name} is lost ({slot.lost}): changes can no longer be had from it", _COMPARE)
        return
    if log is not None and not log.empty and slot.confirmed_lsn > log.end_lsn:
        found = f"slot {name} is confirmed up to {format_lsn(slot.confirmed_lsn)}, past the log's end"
        yield error("slot", f"{found} {format_lsn(log.end_lsn)}: it was made again, or read by another", _COMPARE)
        return
    yield ok("slot", f"slot {name} is confirmed up to {format_lsn(slot.confirmed_lsn)}")
    yield from _reader(name, slot)
    yield from _retention(name, slot)
    yield from _options(facts, slot)


def _other_name(name: str) -> str:
    return f"{name[:60]}_2"


def _reader(name: str, slot: SlotFacts) -> Iterator[Finding]:
    if slot.reader is None:
        return
    pid, application = slot.reader
    if application.startswith(_OURS):
        yield ok("slot-reader", f"capture streams from slot {name} (process {pid} of the server)")
        return
    who = f"{application!r}, process {pid} of the server" if application else f"process {pid} of the server"
    mends = [advice("stop that program, or"), statement(f"SELECT pg_terminate_backend({pid})")]
    yield warning("slot-reader", f"slot {name} is read by {who}", *mends, of=[name])


def _retention(name: str, slot: SlotFacts) -> Iterator[Finding]:
    held = "" if slot.retained is None else f"slot {name} holds {human_bytes(slot.retained)} of WAL"
    start = advice("start capture, and watch walbus_capture_lag_bytes; or raise max_slot_wal_keep_size")
    if slot.wal_status == "unreserved":
        yield error("slot-retention", f"{held}; the next checkpoint may remove what it needs", start, of=[name])
    elif slot.safe is not None and slot.safe < _SAFE:
        found = f"{held}; after {human_bytes(max(slot.safe, 0))} more it is lost (max_slot_wal_keep_size)"
        yield warning("slot-retention", found, start, of=[name])
    elif slot.retained is not None and slot.retained > _RETAINED:
        yield warning("slot-retention", f"{held} on the source's disk", start, of=[name])
    elif held:
        yield ok("slot-retention", held)


def _options(facts: Facts, slot: SlotFacts) -> Iterator[Finding]:
    wanted, name = facts.wanted, facts.wanted.slot
    if slot.two_phase is not None and slot.two_phase != wanted.two_phase:
        has, asked = _word(slot.two_phase), _word(wanted.two_phase)
        found = f"slot {name} has two_phase = {has}, and source.two_phase is {asked}"
        yield warning("slot-two-phase", found, Mend("config", f"[source]\ntwo_phase = {has}"))
    if slot.failover is False and wanted.failover and facts.server.standbys:
        found = f"slot {name} is not copied to standbys (failover is false), so a failover loses it"
        command = Mend("replication", f"ALTER_REPLICATION_SLOT {identifier(name)} (FAILOVER true)")
        yield warning("slot-failover", found, advice("while capture is stopped:"), command, of=[name])
    if slot.synced:
        found = f"slot {name} is a standby's copy: it can be read once this server is promoted"
        yield error("slot-failover", found, advice("name the primary in source.dsn"), of=[name])


def _word(value: bool) -> str:
    return "true" if value else "false"


def _idle(facts: Facts) -> Iterator[Finding]:
    for slot in facts.idle_slots:
        if slot.retained > _IDLE:
            found = (
                f"slot {slot.name} of another program, which nobody reads, holds {human_bytes(slot.retained)} of WAL"
            )
            drop = statement(f"SELECT pg_drop_replication_slot({literal(slot.name)})")
            yield warning("idle-slots", found, advice("start its reader; or, if there is none any more,"), drop)


def _transactions(facts: Facts) -> Iterator[Finding]:
    old = [t for t in facts.transactions if t.seconds > (_OLD_PREPARED if t.prepared else _OLD)]
    waits = "; making the slot waits for it" if facts.slot is None else ""
    for transaction in old:
        held = waits if transaction.writes else ""
        yield _prepared(transaction, held) if transaction.prepared else _running(transaction, held)
    if not old:
        yield ok("old-transactions", "no transaction is old enough to hold the slot back")


def _prepared(transaction: Transaction, held: str) -> Finding:
    since = human_seconds(transaction.seconds)
    found = f"prepared transaction {transaction.name} of {transaction.owner} waits since {since}{held}"
    name = literal(transaction.name)
    where = advice(f"in database {transaction.database}, as its owner says: one of")
    mends = (where, statement(f"COMMIT PREPARED {name}"), statement(f"ROLLBACK PREPARED {name}"))
    return warning("old-transactions", found, *mends, of=[transaction.name])


def _running(transaction: Transaction, held: str) -> Finding:
    since = human_seconds(transaction.seconds)
    found = f"a transaction of {transaction.owner} in database {transaction.database} is open since {since}{held}"
    mends = (advice("end it in the application, or"), statement(f"SELECT pg_terminate_backend({transaction.name})"))
    return warning("old-transactions", found, *mends, of=[f"process {transaction.name}"])
