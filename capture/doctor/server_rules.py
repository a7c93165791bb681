"""Rules about the server's settings and state. Pure.

Settings are mended by ALTER SYSTEM, which writes postgresql.auto.conf and changes nothing that runs, until a restart
or, where that is enough, a reload. It has no effect where the value is given on the command line, and managed services
have their own ways; the mend then says so instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from walbus.amounts import human_bytes, human_seconds
from walbus.capture.doctor.facts import Facts, ServerFacts
from walbus.capture.doctor.findings import Finding, Mend, advice, error, info, ok, statement, warning
from walbus.capture.doctor.quoting import identifier, literal, set_setting

#: Slots and walsenders that a mend leaves room for.
_ROOM = 10
_GIB = 1 << 30
_DAY = 86_400.0
#: Seconds between the clocks that are worth saying.
_CLOCKS = 2.0
#: Seconds of wal_sender_timeout under which a pause of this machine ends the stream.
_SHORT_TIMEOUT = 5.0

_MANAGED_WAL_LEVEL = {
    "Amazon RDS": "set rds.logical_replication = 1 in the parameter group, and reboot the instance",
    "Google Cloud SQL": "set the flag cloudsql.logical_decoding = on, which restarts the instance",
    "Azure": "set the server parameter wal_level = logical, and restart the server",
}


def server_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    server = facts.server
    yield from _recovery(server)
    yield from _wal_level(server)
    yield from _slots(facts)
    yield from _senders(facts)
    yield from _connections(facts)
    yield from _keep_size(server)
    yield from _idle_slots(server)
    yield from _sender_timeout(server)
    yield from _durability(server)
    yield from _plugins(server)
    yield from _encoding(server)
    yield from _clock(server)
    yield from _work_memory(facts)
    yield from _synchronized(facts)


def set_server(server: ServerFacts, name: str, value: str, *more: str, safe: bool, restart: bool) -> tuple[Mend, ...]:
    """The steps that change a setting of the server, in the way that this server takes.

    Args:
        server: the server.
        name: of the setting.
        value: its value.
        *more: further members of a list.
        safe: whether `--fix` runs them.
        restart: it counts only after a restart; else after a reload.
    """
    setting, text = server.settings.get(name), ", ".join((value, *more))
    if server.managed is not None:
        return (advice(f"set {name} = {text} where {server.managed} keeps the server's parameters"),)
    if setting is not None and setting.source == "command line":
        return (advice(f"change {name} to {text} on the server's command line, where it is given, and restart it"),)
    change = Mend("sql", set_setting(name, value, *more), safe=safe, restart=restart)
    return (change,) if restart else (change, Mend("sql", "SELECT pg_reload_conf()", safe=safe))


def _recovery(server: ServerFacts) -> Iterator[Finding]:
    if server.in_recovery:
        mend = advice("name the primary in source.dsn, or add target_session_attrs=read-write with several hosts")
        yield error("standby", "the server is a standby", mend)


def _wal_level(server: ServerFacts) -> Iterator[Finding]:
    setting = server.settings.get("wal_level")
    if setting is None:
        return
    if setting.value == "logical":
        yield ok("wal-level", "wal_level is logical")
    elif setting.pending_restart:
        found = f"wal_level is {setting.value}; another value is set and waits for a restart of the server"
        yield error("wal-level", found, advice("restart PostgreSQL"), of=["wal_level"])
    else:
        managed = _MANAGED_WAL_LEVEL.get(server.managed or "")
        mends = (advice(managed),) if managed else set_server(server, "wal_level", "logical", safe=True, restart=True)
        yield error("wal-level", f"wal_level is {setting.value}", *mends, of=["wal_level"])


def _slots(facts: Facts) -> Iterator[Finding]:
    yield from _left(facts, "replication-slots", "max_replication_slots", facts.server.slots_used, facts.slot is None)


def _senders(facts: Facts) -> Iterator[Finding]:
    streams = facts.slot is not None and facts.slot.reader is not None
    yield from _left(facts, "wal-senders", "max_wal_senders", facts.server.senders_used, not streams)


def _left(facts: Facts, code: str, name: str, used: int, needed: bool) -> Iterator[Finding]:
    """One of a kind that a start limits: enough of them must be left for ours."""
    server = facts.server
    most = server.number(name)
    if most is None:
        return
    found = f"{used} of {most:.0f} ({name}) are in use"
    if used < most or not needed:
        yield ok(code, found)
        return
    if server.settings[name].pending_restart:
        yield error(code, f"{found}; another value waits for a restart", advice("restart PostgreSQL"), of=[name])
        return
    # A standby refuses to go on when max_wal_senders of its primary is above its own.
    safe = not (server.standbys and name == "max_wal_senders")
    mends = [] if safe else [advice(f"raise {name} on every standby first")]
    mends += set_server(server, name, str(used + _ROOM), safe=safe, restart=True)
    yield error(code, found, *mends, of=[name])


def _connections(facts: Facts) -> Iterator[Finding]:
    server, role, wanted = facts.server, facts.role, facts.wanted
    most = server.number("max_connections")
    reserved = server.number("superuser_reserved_connections") or 0
    reserved += server.number("reserved_connections") or 0
    if most is not None:
        left = int(most - reserved) - server.connections_used
        found = f"{max(left, 0)} of {most:.0f} connections are left, and Walbus opens up to {wanted.sessions}"
        if left < wanted.sessions:
            mends = set_server(server, "max_connections", str(int(most) + 100), safe=False, restart=True)
            yield warning("connections", found, *mends, of=["max_connections"])
        else:
            yield ok("connections", found)
    limit = role.connection_limit
    if limit is not None and limit < wanted.sessions + 1:
        found = f"role {role.name} may open {limit} connections, and Walbus opens up to {wanted.sessions + 1}"
        mend = statement(f"ALTER ROLE {identifier(role.name)} CONNECTION LIMIT {wanted.sessions + 5}")
        yield warning("connections", found, mend, of=[f"role {role.name}"])


def _keep_size(server: ServerFacts) -> Iterator[Finding]:
    limit = server.number("max_slot_wal_keep_size")
    if limit is None:
        return
    name = "max_slot_wal_keep_size"
    mends = set_server(server, name, "50GB", safe=False, restart=False)
    if limit < 0:
        found = f"{name} is -1: while capture is away, WAL grows until the source's disk is full"
        yield info("slot-wal-limit", found, *mends, of=[name])
    elif limit < _GIB:
        found = f"{name} is {human_bytes(limit)}: a capture that falls further behind loses its slot"
        yield warning("slot-wal-limit", found, *mends, of=[name])
    else:
        yield ok("slot-wal-limit", f"{name} is {human_bytes(limit)}")


def _idle_slots(server: ServerFacts) -> Iterator[Finding]:
    name = "idle_replication_slot_timeout"
    limit = server.seconds(name)
    if not limit:
        return
    found = f"{name} is {human_seconds(limit)}: a capture that is down for longer loses its slot"
    mends = set_server(server, name, "0", safe=False, restart=False)
    yield (warning if limit < _DAY else info)("idle-slot-timeout", found, *mends, of=[name])


def _sender_timeout(server: ServerFacts) -> Iterator[Finding]:
    name = "wal_sender_timeout"
    limit = server.seconds(name)
    if limit is None:
        return
    if limit >= _SHORT_TIMEOUT:
        yield ok("sender-timeout", f"{name} is {human_seconds(limit)}")
        return
    mends = set_server(server, name, "60s", safe=False, restart=False)
    if limit:
        found = f"{name} is {human_seconds(limit)}: a short pause of this machine or of the network ends the stream"
    else:
        idle = server.seconds("tcp_keepalives_idle") or 0
        after = f"{human_seconds(idle)} at the earliest" if idle else "about two hours"
        found = f"{name} is 0: a stream whose network is cut holds the slot until TCP notices, after {after}"
    yield warning("sender-timeout", found, *mends, of=[name])


def _durability(server: ServerFacts) -> Iterator[Finding]:
    for name in ("fsync", "full_page_writes"):
        setting = server.settings.get(name)
        if setting is not None and setting.value == "off":
            found = f"{name} is off: a crash of the server's machine loses commits that consumers have seen"
            mends = set_server(server, name, "on", safe=False, restart=False)
            yield warning("server-durability", found, *mends, of=[name])


def _plugins(server: ServerFacts) -> Iterator[Finding]:
    setting = server.settings.get("output_plugin_libraries")
    if setting is None:
        return
    allowed = [name.strip().strip("\"'") for name in setting.value.split(",")]
    if "pgoutput" not in allowed and "*" not in allowed:
        names = [*filter(None, allowed), "pgoutput"]
        mends = set_server(server, setting.name, *names, safe=False, restart=False)
        yield error("output-plugin", f"{setting.name} is {literal(setting.value)}, without pgoutput", *mends)


def _encoding(server: ServerFacts) -> Iterator[Finding]:
    if server.encoding == "SQL_ASCII":
        found = (
            f"database {server.database} has encoding SQL_ASCII: nobody knows what its texts mean, and capture refuses"
        )
        mend = advice("dump the database and restore it into one made with ENCODING 'UTF8'")
        yield error("encoding", found, mend, of=[server.database])
    else:
        yield ok("encoding", f"the database's encoding is {server.encoding}")


def _clock(server: ServerFacts) -> Iterator[Finding]:
    apart = abs(server.clock_ahead)
    if apart - server.clock_error < _CLOCKS:
        yield ok("clock", f"the server's clock and ours agree within {max(apart, server.clock_error):.2f} s")
        return
    way = "ahead of" if server.clock_ahead > 0 else "behind"
    found = f"the server's clock is {human_seconds(apart)} {way} this machine's"
    yield warning("clock", found, advice("synchronize both by NTP (chrony or systemd-timesyncd)"))


def _work_memory(facts: Facts) -> Iterator[Finding]:
    spilled = facts.slot.spilled if facts.slot is not None else None
    if not spilled:
        return
    memory = facts.server.number("logical_decoding_work_mem")
    limit = f" (logical_decoding_work_mem is {human_bytes(memory)})" if memory is not None else ""
    found = f"decoding for this slot wrote {human_bytes(spilled)} of large transactions to the server's disk{limit}"
    if facts.wanted.streaming:
        yield info("decoding-memory", found)
    else:
        yield info("decoding-memory", found, Mend("config", "[source]\nstreaming = true"))


def _synchronized(facts: Facts) -> Iterator[Finding]:
    server = facts.server
    setting = server.settings.get("synchronized_standby_slots")
    if setting is None or not (facts.wanted.failover and server.standbys):
        return
    if setting.value.strip():
        yield ok("failover-order", f"synchronized_standby_slots is {literal(setting.value)}")
        return
    found = "standbys stream, and synchronized_standby_slots is empty: the log may hold commits that a failover loses"
    mend = advice(
        "set synchronized_standby_slots to the physical slots of the standbys that may take over, and on these"
        " sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name and a dbname in primary_conninfo"
    )
    yield warning("failover-order", found, mend, of=["synchronized_standby_slots"])
