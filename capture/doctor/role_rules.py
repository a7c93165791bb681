"""Rules about the role of source.dsn and the way to the server. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from walbus.amounts import counted
from walbus.capture.doctor.facts import Facts, TableFacts
from walbus.capture.doctor.findings import (
    Finding,
    advice,
    error,
    info,
    ok,
    safe_statement,
    statement,
    warning,
)
from walbus.capture.doctor.quoting import identifier, qualified

#: What a connection pooler says of a replication connection.
_POOLER = "unsupported startup parameter"
#: Tables of one GRANT.
_GRANTED_TOGETHER = 20
_VERIFIED = ("verify-ca", "verify-full")
#: What Walbus sets in each of its sessions, whatever the role has.
_OVERRIDDEN = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)


def role_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    yield from _connection(facts)
    yield from _replication(facts)
    yield from _stream(facts)
    yield from _reading(facts)
    yield from _row_security(facts)
    yield from _timeouts(facts)
    yield from _sight(facts)


def _connection(facts: Facts) -> Iterator[Finding]:
    way = facts.connection
    if not way.remote:
        yield ok("encryption", f"the connection to {way.host} does not leave this machine")
    elif not way.encrypted:
        found = f"the connection to {way.host} is not encrypted: rows and password cross the network in the clear"
        yield warning("encryption", found, advice("add sslmode=verify-full and sslrootcert to source.dsn"))
    elif way.sslmode not in _VERIFIED:
        found = f"sslmode is {way.sslmode}: the connection to {way.host} is encrypted, and the server is not verified"
        yield info("encryption", found, advice("add sslmode=verify-full and sslrootcert to source.dsn"))
    else:
        yield ok("encryption", f"the connection to {way.host} is encrypted, sslmode {way.sslmode}")


def _replication(facts: Facts) -> Iterator[Finding]:
    role = facts.role
    if role.replication or role.superuser:
        yield ok("replication-privilege", f"role {role.name} may replicate")
        return
    name = identifier(role.name)
    found = f"role {role.name} lacks REPLICATION"
    mends = [safe_statement(f"ALTER ROLE {name} REPLICATION")]
    if facts.server.managed == "Amazon RDS":
        mends = [statement(f"GRANT rds_replication TO {name}")]
    yield error("replication-privilege", found, *mends, of=[f"role {role.name}"])


def _stream(facts: Facts) -> Iterator[Finding]:
    if facts.stream_refused is not None:
        reason = facts.stream_refused
        mend = advice(reason.mend or "let the server admit this role's replication connections")
        if _POOLER in reason.what:
            mend = advice("name PostgreSQL itself in source.dsn: a connection pooler does not replicate")
        yield error("replication-connection", f"a replication connection is refused: {reason.what}", mend)
    elif facts.history is not None:
        yield ok("replication-connection", "a replication connection is admitted")


def _reading(facts: Facts) -> Iterator[Finding]:
    role = identifier(facts.role.name)
    closed = sorted({table.namespace for table in facts.read if not table.usable_schema})
    unread = [table for table in facts.read if not table.readable]
    grade = error if facts.wanted.bootstrap else info
    if closed:
        grants = [safe_statement(f"GRANT USAGE ON SCHEMA {identifier(schema)} TO {role}") for schema in closed]
        found = f"role {facts.role.name} may not use {counted(len(closed), 'schema')} of captured tables"
        yield grade("schema-privilege", found, *grants, of=closed)
    if unread:
        found = f"role {facts.role.name} may not read tables that bootstrap seeds"
        grants = [safe_statement(f"GRANT SELECT ON {some} TO {role}") for some in _batches(unread)]
        yield grade("select-privilege", found, *grants, of=[table.table for table in unread])
    if facts.tables and not (closed or unread):
        yield ok("select-privilege", f"role {facts.role.name} may read every captured table")


def _row_security(facts: Facts) -> Iterator[Finding]:
    role = facts.role
    if role.superuser or role.bypasses_row_security:
        return
    secured = [table for table in facts.read if table.row_security]
    if secured:
        found = f"row-level security hides rows of these tables from role {role.name}, so seeding them is refused"
        grade = error if facts.wanted.bootstrap else info
        mend = statement(f"ALTER ROLE {identifier(role.name)} BYPASSRLS")
        yield grade("row-security", found, mend, of=[table.table for table in secured])


def _timeouts(facts: Facts) -> Iterator[Finding]:
    role, settings = facts.role, facts.role.settings
    overridden = [name for name in _OVERRIDDEN if settings.get(name) not in {None, "0"}]
    if overridden:
        found = f"{', '.join(overridden)}: set for role {role.name}, and 0 in every session that Walbus opens"
        yield info("role-timeouts", found, of=[f"role {role.name}"])


def _sight(facts: Facts) -> Iterator[Finding]:
    role = facts.role
    if not (role.superuser or role.sees_sessions):
        found = f"role {role.name} does not see other roles' sessions: long transactions of theirs are not checked"
        yield info("monitoring-privilege", found, statement(f"GRANT pg_read_all_stats TO {identifier(role.name)}"))
    for unread in facts.unread:
        yield info("unread", f"{unread.what} could not be checked: {unread.why}")


def _batches(tables: Sequence[TableFacts]) -> Iterator[str]:
    """Their names with commas between, some at a time: a statement that fails keeps only its own from being granted."""
    for some in range(0, len(tables), _GRANTED_TOGETHER):
        batch = tables[some : some + _GRANTED_TOGETHER]
        yield ", ".join(qualified(table.namespace, table.name) for table in batch)
