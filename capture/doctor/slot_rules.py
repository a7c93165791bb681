"""Rules about the slot, and about whether it continues the log that is there. Pure.

Whether capture could go on is `walbus.capture.verification`'s to say, and is said in its words. What cannot be
continued is never mended here: a slot that is made again has nothing of what happened between.
"""

from __future__ import annotations

from collections.abc import Iterator

from walbus.amounts import human_bytes, human_seconds
from walbus.capture.doctor.facts import Facts, HistoryFacts, LogFacts, SlotFacts, Transaction
from walbus.capture.doctor.findings import Finding, Mend, advice, error, info, ok, refused, statement, warning
from walbus.capture.doctor.quoting import literal
from walbus.capture.timelines import Timelines
from walbus.capture.verification import Continued, check_kind, check_slot, lossy_switch
from walbus.errors import WalbusError
from walbus.lsn import format_lsn

_GIB = 1 << 30
#: WAL held back that is worth a warning, and that of a slot of somebody else which nobody reads.
_RETAINED, _IDLE = 10 * _GIB, _GIB
#: WAL left before the slot is lost.
_SAFE = 2 * _GIB
#: Seconds after which a transaction is old.
_OLD, _OLD_PREPARED = 600.0, 60.0
_TWO_PHASE_SINCE = 150_000


def slot_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    yield from _slot(facts)
    yield from _two_phase(facts)
    yield from _idle(facts)
    yield from _transactions(facts)


def _slot(facts: Facts) -> Iterator[Finding]:
    name, slot = facts.wanted.slot, facts.slot
    try:
        if slot is not None:
            check_kind(name, slot.state, facts.server.database)
        if facts.log is not None and facts.log.source.slot == name:
            check_slot(name, slot.state if slot is not None else None, _continued(facts.log, facts.history))
    except WalbusError as refusal:
        yield refused("slot", refusal)
        return
    if slot is None:
        yield info("slot", f"there is no slot {name} yet; capture makes it at its start", of=[name])
        return
    yield from _state(name, slot)
    yield from _reader(name, slot, facts.connection.application)
    yield from _retention(name, slot)
    yield from _options(facts, slot)


def _two_phase(facts: Facts) -> Iterator[Finding]:
    if facts.wanted.two_phase and facts.server.version < _TWO_PHASE_SINCE:
        found = "source.two_phase is true, and PostgreSQL 14 does not send prepared transactions at their PREPARE"
        yield error("slot-two-phase", found, Mend("config", "[source]\ntwo_phase = false"))


def _continued(log: LogFacts, history: HistoryFacts | None) -> Continued:
    """What the slot must continue; without a look at the server's history, it is taken to be the log's."""
    bounds = log.bounds_after or log.bounds
    if history is None:
        return Continued(bounds, Timelines(bounds.end.epoch), None)
    try:
        switch = lossy_switch(bounds, history.timelines)
    except WalbusError:  # said by `walbus.capture.doctor.source_rules`
        switch = None
    return Continued(bounds, history.timelines, switch)


def _state(name: str, slot: SlotFacts) -> Iterator[Finding]:
    """Without a log, what capture would say of a lost slot at its first start."""
    if slot.temporary:
        yield error(
            "slot", f"slot {name} is temporary: it ends with its session", advice("name another in source.slot")
        )
    elif slot.state.invalidation is not None:
        drop = statement(f"SELECT pg_drop_replication_slot({literal(name)})")
        yield error("slot", f"slot {name} is lost ({slot.state.invalidation})", drop, of=[name])
    else:
        yield ok("slot", f"slot {name} is confirmed up to {format_lsn(slot.state.confirmed_lsn)}")


def _reader(name: str, slot: SlotFacts, ours: str) -> Iterator[Finding]:
    if slot.reader is None:
        return
    pid, application = slot.reader
    if application.startswith(ours):
        yield ok("slot-reader", f"capture streams from slot {name} (process {pid} of the server)")
        return
    who = f"{application!r}, process {pid} of the server" if application else f"process {pid} of the server"
    mends = [advice("stop that program, or"), statement(f"SELECT pg_terminate_backend({pid})")]
    yield warning("slot-reader", f"slot {name} is read by {who}", *mends, of=[name])


def _retention(name: str, slot: SlotFacts) -> Iterator[Finding]:
    held = "" if slot.retained is None else f"slot {name} holds {human_bytes(slot.retained)} of WAL"
    start = advice("start capture, and watch walbus_capture_lag_bytes; or raise max_slot_wal_keep_size")
    if slot.state.wal_status == "unreserved":
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
    if slot.state.two_phase and not wanted.two_phase:
        found = f"slot {name} decodes prepared transactions at their PREPARE for good, and source.two_phase is false"
        yield error("slot-two-phase", found, Mend("config", "[source]\ntwo_phase = true"), of=[name])
    elif wanted.two_phase and not slot.state.two_phase:
        found = f"slot {name} does not decode at PREPARE yet: it turns to it at the next start, for good"
        yield info("slot-two-phase", found, of=[name])
    if slot.state.failover is False and wanted.failover and facts.server.standbys:
        found = f"slot {name} is not copied to standbys yet (failover is false); a failover would lose it"
        yield info("slot-failover", found, advice("start capture: it turns failover on"), of=[name])
    if slot.synced:
        found = f"slot {name} is a standby's copy: it can be read once this server is promoted"
        yield error("slot-failover", found, advice("name the primary in source.dsn"), of=[name])


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
