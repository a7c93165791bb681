"""What can be wrong with a source, each as facts and as what the doctor must say of it.

A case is the facts, the code, the severity, a piece of what is said, and the exact statements that mend it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from support.doctor_facts import (
    END,
    GIB,
    HEALTHY,
    LOG,
    NEW_START,
    PUBLICATION,
    REMEMBERED,
    ROLE,
    SERVER,
    WANTED,
    history,
    role,
    server,
    settings,
    slot,
    state,
    table,
    tables,
)
from walbus.capture.doctor import Severity
from walbus.capture.doctor.facts import ConnectionFacts, Facts, IdleSlot, NeverSent, Transaction, Unread
from walbus.capture.timelines import Timelines
from walbus.errors import SourceUnavailable
from walbus.log import SourceIdentity
from walbus.position import Position

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
PUT_BACK = (
    'BEGIN; ALTER PUBLICATION "walbus" DROP TABLE "public"."orders";'
    ' ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"; COMMIT'
)
NO_KEY = {"identified": False, "primary_key": False, "identity_columns": frozenset[str]()}
FULL = {"identity": "f", "identity_columns": frozenset[str]()}


class Case(NamedTuple):
    facts: Facts
    code: str
    severity: Severity
    said: str
    statements: tuple[str, ...]
    fixed: bool


def case(facts: Facts, code: str, severity: Severity, said: str, *statements: str) -> Case:
    """--fix leaves it alone."""
    return Case(facts, code, severity, said, statements, False)


def fixed(facts: Facts, code: str, severity: Severity, said: str, *statements: str) -> Case:
    """--fix runs the statements."""
    return Case(facts, code, severity, said, statements, True)


CASES: dict[str, Case] = {
    "wal_level": fixed(
        server(settings=settings(wal_level="replica")),
        "wal-level",
        ERROR,
        "wal_level is replica",
        "ALTER SYSTEM SET wal_level = 'logical'",
    ),
    "no slot left": fixed(
        replace(NEW_START, server=replace(SERVER, slots_used=10)),
        "replication-slots",
        ERROR,
        "10 of 10",
        "ALTER SYSTEM SET max_replication_slots = '20'",
    ),
    "no walsender left": fixed(
        server(senders_used=10), "wal-senders", ERROR, "10 of 10", "ALTER SYSTEM SET max_wal_senders = '20'"
    ),
    "no walsender left, and a standby that must be raised first": case(
        server(senders_used=10, standbys=True),
        "wal-senders",
        ERROR,
        "10 of 10",
        "ALTER SYSTEM SET max_wal_senders = '20'",
    ),
    "connections run out": case(
        server(connections_used=95),
        "connections",
        WARNING,
        "2 of 100 connections are left",
        "ALTER SYSTEM SET max_connections = '200'",
    ),
    "the role's connections run out": case(
        role(connection_limit=3), "connections", WARNING, "may open 3", 'ALTER ROLE "app" CONNECTION LIMIT 12'
    ),
    "WAL without limit": case(
        server(settings=settings(max_slot_wal_keep_size="-1")),
        "slot-wal-limit",
        INFO,
        "is -1",
        "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'",
        "SELECT pg_reload_conf()",
    ),
    "a limit that loses the slot": case(
        server(settings=settings(max_slot_wal_keep_size="100")),
        "slot-wal-limit",
        WARNING,
        "100.0 MiB",
        "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'",
        "SELECT pg_reload_conf()",
    ),
    "an idle timeout of minutes": case(
        server(settings=settings(idle_replication_slot_timeout="600")),
        "idle-slot-timeout",
        WARNING,
        "10 min",
        "ALTER SYSTEM SET idle_replication_slot_timeout = '0'",
        "SELECT pg_reload_conf()",
    ),
    "an idle timeout of days": case(
        server(settings=settings(idle_replication_slot_timeout="259200")),
        "idle-slot-timeout",
        INFO,
        "3 d",
        "ALTER SYSTEM SET idle_replication_slot_timeout = '0'",
        "SELECT pg_reload_conf()",
    ),
    "no sender timeout": case(
        server(settings=settings(wal_sender_timeout="0")),
        "sender-timeout",
        WARNING,
        "about two hours",
        "ALTER SYSTEM SET wal_sender_timeout = '60s'",
        "SELECT pg_reload_conf()",
    ),
    "a sender timeout of a second": case(
        server(settings=settings(wal_sender_timeout="1000")),
        "sender-timeout",
        WARNING,
        "is 1 s",
        "ALTER SYSTEM SET wal_sender_timeout = '60s'",
        "SELECT pg_reload_conf()",
    ),
    "fsync off": case(
        server(settings=settings(fsync="off")),
        "server-durability",
        WARNING,
        "fsync is off",
        "ALTER SYSTEM SET fsync = 'on'",
        "SELECT pg_reload_conf()",
    ),
    "pgoutput not allowed": case(
        server(settings=settings(output_plugin_libraries="test_decoding")),
        "output-plugin",
        ERROR,
        "without pgoutput",
        "ALTER SYSTEM SET output_plugin_libraries = 'test_decoding', 'pgoutput'",
        "SELECT pg_reload_conf()",
    ),
    "SQL_ASCII": case(server(encoding="SQL_ASCII"), "encoding", ERROR, "SQL_ASCII"),
    "a standby": case(server(in_recovery=True), "standby", ERROR, "is a standby"),
    "another clock": case(server(clock_ahead=-7200.0), "clock", WARNING, "2 h behind"),
    "failover without an order": case(
        server(standbys=True, settings=settings(synchronized_standby_slots="")),
        "failover-order",
        WARNING,
        "synchronized_standby_slots is empty",
    ),
    "decoding spills": case(slot(spilled=3 * GIB), "decoding-memory", INFO, "3.0 GiB"),
    "a connection in the clear": case(
        replace(HEALTHY, connection=ConnectionFacts("db.example", True, False, "prefer")),
        "encryption",
        WARNING,
        "not encrypted",
    ),
    "a server that nobody verified": case(
        replace(HEALTHY, connection=ConnectionFacts("db.example", True, True, "require")),
        "encryption",
        INFO,
        "not verified",
    ),
    "no REPLICATION": fixed(
        role(replication=False), "replication-privilege", ERROR, "lacks REPLICATION", 'ALTER ROLE "app" REPLICATION'
    ),
    "replication connections refused": case(
        replace(HEALTHY, history=None, stream_refused=SourceUnavailable("no pg_hba.conf entry")),
        "replication-connection",
        ERROR,
        "no pg_hba.conf entry",
    ),
    "no SELECT": fixed(
        tables(table(readable=False)),
        "select-privilege",
        ERROR,
        "may not read",
        'GRANT SELECT ON "public"."orders" TO "app"',
    ),
    "no USAGE": fixed(
        tables(table(usable_schema=False)),
        "schema-privilege",
        ERROR,
        "may not use",
        'GRANT USAGE ON SCHEMA "public" TO "app"',
    ),
    "row-level security": case(
        tables(table(row_security=True)), "row-security", ERROR, "hides rows", 'ALTER ROLE "app" BYPASSRLS'
    ),
    "timeouts of the role": case(
        role(settings={"statement_timeout": "5s", "work_mem": "1GB"}),
        "role-timeouts",
        INFO,
        "statement_timeout: set for",
    ),
    "sessions that are not seen": case(
        role(sees_sessions=False), "monitoring-privilege", INFO, "does not see", 'GRANT pg_read_all_stats TO "app"'
    ),
    "what could not be read": case(
        replace(HEALTHY, unread=(Unread("settings", "permission denied"),)), "unread", INFO, "permission denied"
    ),
    "a table that does not exist": case(
        replace(HEALTHY, never_sent=NeverSent(missing=("public.ordres",))), "missing-table", ERROR, "does not exist"
    ),
    "no publication yet": fixed(
        replace(NEW_START, publication=None),
        "publication",
        INFO,
        "capture makes it",
        'CREATE PUBLICATION "walbus" FOR TABLE "public"."orders"',
    ),
    "a publication that the role may not make": fixed(
        replace(NEW_START, publication=None, role=replace(ROLE, creates=False), tables=(table(addable=False),)),
        "publication",
        ERROR,
        "lacks CREATE on database shop",
        'CREATE PUBLICATION "walbus" FOR TABLE "public"."orders"',
    ),
    "a publication that the log needs": case(
        replace(HEALTHY, publication=None), "publication", ERROR, "while the log depends on it"
    ),
    "a table that was taken out": case(
        tables(table(published=False, known=True)),
        "table-taken-out",
        ERROR,
        "changes of them are lost",
        'ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"',
    ),
    "a table that is not in yet": fixed(
        tables(table(published=False)),
        "table-not-published",
        INFO,
        "capture adds them",
        'ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"',
    ),
    "a table that the role may not add": fixed(
        tables(table(published=False, addable=False)),
        "table-not-published",
        WARNING,
        "left out",
        'ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"',
    ),
    "tables made later by others": case(
        tables(table(addable=False)),
        "later-tables",
        INFO,
        "made later",
        'ALTER PUBLICATION "walbus" ADD TABLES IN SCHEMA "public"',
    ),
    "operations left out": case(
        tables(table(), publication=replace(PUBLICATION, operations=frozenset({"insert"}))),
        "publication-operations",
        WARNING,
        "leaves out update, delete, truncate",
        "ALTER PUBLICATION \"walbus\" SET (publish = 'insert, update, delete, truncate')",
    ),
    "a row filter": case(
        tables(table(filtered=True, filter_columns=frozenset({"id"}))), "publication-parts", INFO, "leave parts"
    ),
    "a row filter on other columns": case(
        tables(table(filtered=True, filter_columns=frozenset({"state"}))),
        "publication-identity",
        ERROR,
        "UPDATE and DELETE fail",
        PUT_BACK,
    ),
    "a column list without the key": case(
        tables(table(listed_columns=frozenset({"state"}))),
        "publication-identity",
        ERROR,
        "misses the replica identity",
        PUT_BACK,
    ),
    "FOR ALL TABLES": case(
        tables(table(), publication=replace(PUBLICATION, all_tables=True)),
        "publication-all-tables",
        INFO,
        "FOR ALL TABLES",
    ),
    "tables of others": case(
        tables(table(), publication=replace(PUBLICATION, others=("audit.log",))),
        "publication-others",
        INFO,
        "captured too",
    ),
    "partitions as their root": case(
        tables(table(partitioned=True), publication=replace(PUBLICATION, via_root=True)),
        "publication-via-root",
        INFO,
        "topmost parent",
    ),
    "no key, published": case(
        tables(table(**NO_KEY)),
        "identity",
        ERROR,
        "fail now, as in UPDATE of public.orders (it has no primary key)",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL',
    ),
    "no key, inserts alone are published": case(
        tables(table(**NO_KEY), publication=replace(PUBLICATION, operations=frozenset({"insert"}))),
        "identity",
        WARNING,
        "capture leaves it out",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL',
    ),
    "no key, named": case(
        tables(table(published=False, named=True, **NO_KEY)),
        "identity",
        ERROR,
        "once published",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL',
    ),
    "identity NOTHING": case(
        tables(table(identity="n", identified=False)),
        "identity",
        ERROR,
        "is NOTHING",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY DEFAULT',
    ),
    "the identity's index is gone": case(
        tables(table(identity="i", **NO_KEY)),
        "identity",
        ERROR,
        "index of its replica identity is gone",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL',
    ),
    "a deferrable key": case(
        tables(table(identified=False, deferrable=True)),
        "identity",
        ERROR,
        "DEFERRABLE",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY FULL',
    ),
    "a partition without identity": case(
        tables(
            table("events", partitioned=True),
            table("events_1", root="public.events", identity="n", identified=False, published=False),
        ),
        "identity",
        WARNING,
        "as in UPDATE of public.events_1, a partition of public.events",
        'ALTER TABLE "public"."events_1" REPLICA IDENTITY DEFAULT',
    ),
    "FULL beside a key": case(
        tables(table(**FULL)),
        "identity-full",
        INFO,
        "whole old row",
        'ALTER TABLE "public"."orders" REPLICA IDENTITY DEFAULT',
    ),
    "FULL without a key": case(tables(table(primary_key=False, **FULL)), "keyless", WARNING, "bootstrap refuses"),
    "a key that prints alike": case(
        tables(table(merging=frozenset({"f regproc"}))), "key-text", WARNING, "unequal values alike"
    ),
    "a key that prints a name": case(tables(table(renamed=frozenset({"c regclass"}))), "key-text", WARNING, "renamed"),
    "a generated column": case(
        tables(table(generated=frozenset({"total"}))),
        "generated-columns",
        INFO,
        "not sent",
        'ALTER PUBLICATION "walbus" SET (publish_generated_columns = stored)',
    ),
    "a generated column in the key": case(
        tables(table(generated=frozenset({"id"}))),
        "generated-identity",
        ERROR,
        "UPDATE and DELETE fail",
        'ALTER PUBLICATION "walbus" SET (publish_generated_columns = stored)',
    ),
    "an unlogged table": case(
        replace(HEALTHY, never_sent=NeverSent(unlogged=(("public", "cache"),))),
        "unlogged-table",
        WARNING,
        "never captured",
        'ALTER TABLE "public"."cache" SET LOGGED',
    ),
    "a foreign table": case(
        replace(HEALTHY, never_sent=NeverSent(foreign=(("public", "far"),))), "foreign-table", WARNING, "another server"
    ),
    "a foreign table that is named": case(
        replace(
            HEALTHY,
            never_sent=NeverSent(foreign=(("public", "far"),)),
            wanted=replace(WANTED, tables=("public.far", "public.orders")),
        ),
        "foreign-table",
        ERROR,
        "never captured",
    ),
    "a view": case(
        replace(HEALTHY, never_sent=NeverSent(views=(("public", "sums"),))), "view", ERROR, "no changes of their own"
    ),
    "sequences": case(replace(HEALTHY, never_sent=NeverSent(sequences=2)), "sequences", INFO, "2 sequences"),
    "large objects": case(
        replace(HEALTHY, never_sent=NeverSent(large_objects=True)), "large-objects", INFO, "large objects"
    ),
    "no slot yet": case(NEW_START, "slot", INFO, "capture makes it"),
    "a slot that the log needs": case(replace(HEALTHY, slot=None), "slot", ERROR, "is gone"),
    "a slot of another plugin": case(state(plugin="wal2json"), "slot", ERROR, "wal2json"),
    "a physical slot": case(state(plugin=None, database=None), "slot", ERROR, "a physical one"),
    "a lost slot": case(state(invalidation="wal_removed"), "slot", ERROR, "max_slot_wal_keep_size"),
    "a slot past the log": case(state(confirmed_lsn=5000), "slot", ERROR, "up to 0/1388"),
    "a slot that somebody else reads": case(
        slot(reader=(77, "debezium")),
        "slot-reader",
        WARNING,
        "'debezium', process 77",
        "SELECT pg_terminate_backend(77)",
    ),
    "a slot that the next checkpoint loses": case(
        state(wal_status="unreserved"), "slot-retention", ERROR, "next checkpoint"
    ),
    "a slot near its limit": case(slot(safe=GIB), "slot-retention", WARNING, "1.0 GiB more"),
    "a slot that holds much": case(slot(retained=20 * GIB), "slot-retention", WARNING, "20.0 GiB"),
    "a slot that decodes at PREPARE, unwanted": case(state(two_phase=True), "slot-two-phase", ERROR, "for good"),
    "a slot that will decode at PREPARE": case(
        replace(HEALTHY, wanted=replace(WANTED, two_phase=True)), "slot-two-phase", INFO, "at the next start"
    ),
    "two-phase on PostgreSQL 14": case(
        replace(server(version=140_025), wanted=replace(WANTED, two_phase=True)),
        "slot-two-phase",
        ERROR,
        "PostgreSQL 14",
    ),
    "a publication that was made again": case(
        replace(HEALTHY, publication=replace(PUBLICATION, oid=71), log=replace(LOG, remembered=REMEMBERED)),
        "publication",
        ERROR,
        "dropped and made again",
    ),
    "a partition that was detached": fixed(
        replace(tables(table(oid=16_500, published=False, known=True)), log=replace(LOG, remembered=REMEMBERED)),
        "table-not-published",
        INFO,
        "capture adds them",
        'ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"',
    ),
    "a named table that the role may not add": fixed(
        tables(table(published=False, addable=False, named=True)),
        "table-not-published",
        ERROR,
        "may not add",
        'ALTER PUBLICATION "walbus" ADD TABLE "public"."orders"',
    ),
    "tables of others without a publication": fixed(
        replace(NEW_START, publication=None, tables=(table(addable=False),)),
        "publication",
        WARNING,
        "tables of other owners",
        'CREATE PUBLICATION "walbus" FOR TABLE "public"."orders"',
    ),
    "a slot that no standby has": case(
        replace(state(failover=False), server=replace(SERVER, standbys=True)),
        "slot-failover",
        INFO,
        "not copied to standbys",
    ),
    "idle slots of others": case(
        replace(HEALTHY, idle_slots=(IdleSlot("old'slot", 5 * GIB),)),
        "idle-slots",
        WARNING,
        "5.0 GiB",
        "SELECT pg_drop_replication_slot('old''slot')",
    ),
    "an old transaction": case(
        replace(HEALTHY, transactions=(Transaction("901", "app", "shop", 7200.0, False, True),)),
        "old-transactions",
        WARNING,
        "open since 2 h",
        "SELECT pg_terminate_backend(901)",
    ),
    "an old prepared transaction": case(
        replace(NEW_START, transactions=(Transaction("it's", "app", "shop", 90.0, True, True),)),
        "old-transactions",
        WARNING,
        "making the slot waits for it",
        "COMMIT PREPARED 'it''s'",
        "ROLLBACK PREPARED 'it''s'",
    ),
    "another cluster": case(history(Timelines(1), system_identifier="9"), "same-source", ERROR, "another cluster"),
    "another database": case(
        replace(HEALTHY, log=replace(LOG, source=SourceIdentity("7300", "warehouse", "walbus"))),
        "same-source",
        ERROR,
        "database warehouse",
    ),
    "a failover that lost commits": case(history(Timelines(2, ((1, 1500),))), "same-source", WARNING, "lost commits"),
    "a server that was set back": case(history(Timelines(1), flushed=1500), "same-source", ERROR, "set back"),
    "a primary that was replaced": case(
        replace(HEALTHY, log=replace(LOG, bounds=replace(END, end=Position(3, 1900, 1)))),
        "same-source",
        ERROR,
        "a primary that was replaced",
    ),
    "a temporary slot": case(slot(temporary=True), "slot", ERROR, "is temporary"),
    "a lost slot before the log's first record": case(
        replace(state(invalidation="idle_timeout"), log=None),
        "slot",
        ERROR,
        "is lost (idle_timeout)",
        "SELECT pg_drop_replication_slot('walbus')",
    ),
    "another slot than the log was made from": case(
        replace(HEALTHY, wanted=replace(WANTED, slot="other")), "same-source", ERROR, "source.slot is other"
    ),
    "a standby's copy of the slot": case(slot(synced=True), "slot-failover", ERROR, "copy"),
    "no table at all yet": case(tables(), "missing-table", INFO, "matches no table yet"),
    "a virtual generated column": case(
        tables(table(generated=frozenset({"v"}), virtual=frozenset({"v"}))), "generated-columns", INFO, "never sent"
    ),
}
