"""What PostgreSQL's refusals mean to Walbus, with the mend that an operator needs.

A server speaks the language of its `lc_messages`, which only a superuser may change for a session, so nothing here
reads a sentence where there is a code. Errors and notices of a session carry a SQLSTATE, and the name of the function
of PostgreSQL that raised them, which is never translated: it tells a missing publication from a missing slot. Whatever
may have to do with the state of the slot ends the connection as something that passes, and the next connection looks
at the slot itself and says what is wrong with it (`walbus.capture.verification`).

Connecting is the exception: libpq hands over a text alone. The fragments known here are names that no language
translates where there are such, and English else; any other refusal counts as "not reachable now" and is tried again,
with the server's own words in it.
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg
from psycopg import pq

from walbus.capture.repeats import RECONCILE
from walbus.errors import SlotInUse, SourceError, SourceGap, SourceMisconfigured, SourceUnavailable
from walbus.lsn import format_lsn

#: Names that stand in the server's message in every language.
_CONNECT_NAMES = {
    "pg_hba.conf": "let pg_hba.conf admit this user and address",
    "sslmode": "correct sslmode in source.dsn",
    "sslrootcert": "correct sslmode, sslrootcert and the certificates in source.dsn",
}
_CONNECT_MENDS = {
    "password authentication failed": "correct user and password in source.dsn",
    "no password supplied": "give the password in source.dsn, or in a password file",
    "authentication failed": "correct user and password in source.dsn",
    "is not permitted to log in": "grant it: ALTER ROLE … LOGIN",
    "WAL sender": "grant it: ALTER ROLE … REPLICATION",
    "walsender": "grant it: ALTER ROLE … REPLICATION",
    "certificate": "correct sslmode, sslrootcert and the certificates in source.dsn",
    "for connection option": "correct source.dsn",
    "server does not support SSL": "correct sslmode in source.dsn",
}
_MISSING = {"database": "correct the database's name in source.dsn", "role": "correct the user in source.dsn"}
#: What passes when somebody else leaves, and what would make room at once.
_CROWDED = {
    "max_wal_senders": "end a walsender that is not needed, or raise max_wal_senders and restart the server",
    "too many clients": "end sessions that are not needed, or raise max_connections and restart the server",
    "too many connections": "end sessions that are not needed, or raise the connection limit of the role or database",
}

#: SQLSTATE classes that pass by themselves: connection, resources, operator intervention, rollback.
_PASSING_CLASSES = ("08", "53", "57", "40")
_PASSING_STATES = ("55P03", "25P03", "25P04")
#: A table or schema that was dropped, or a member that was added, since it was looked at: the next look sees it.
_OVERTAKEN_STATES = ("42P01", "3F000", "42710")
#: The slot is not there (42704), or cannot be used as it is (55000): the next connection looks at it, and tells why.
_SLOT_STATES = ("42704", "55000")
#: Functions of PostgreSQL that open a file of WAL. Other files are missing with the same code (58P01): a library's.
_WAL_READERS = ("WalSndSegmentOpen", "wal_segment_open")
#: Functions of PostgreSQL that look a publication up by name.
_PUBLICATION_LOOKUPS = ("get_publication_oid", "GetPublicationByName", "AlterPublication", "LoadPublications")
#: The function of PostgreSQL that warns of a standby whose slot must have the WAL before ours may decode it.
_WAITS_FOR_STANDBY = "StandbySlotsHaveCaughtup"


class Refusal(NamedTuple):
    """What the server reported.

    Attributes:
        state: SQLSTATE; None if the connection broke without a word.
        text: the message, in the server's language.
        function: of PostgreSQL's source that raised it.
    """

    state: str | None
    text: str
    function: str | None = None


def connect_refusal(error: psycopg.Error, where: str) -> SourceError:
    """The error of a connection that could not be made; `where` names server and database."""
    text = _first_line(str(error))
    for fragment, mend in _CROWDED.items():
        if fragment in text:
            return SourceUnavailable(text, where=where, mend=mend)
    if error.pgconn is not None and error.pgconn.needs_password:
        return SourceMisconfigured(text, where=where, mend=_CONNECT_MENDS["no password supplied"])
    for fragment, mend in (_CONNECT_MENDS | _CONNECT_NAMES).items():
        if fragment in text:
            return SourceMisconfigured(text, where=where, mend=mend)
    for kind, mend in _MISSING.items():
        if f"{kind} " in text and "does not exist" in text:
            return SourceMisconfigured(text, where=where, mend=mend)
    return SourceUnavailable(text, where=where, mend="start the server, or correct source.dsn")


def refusal(error: psycopg.Error, doing: str) -> SourceError:
    """The error of an open session's statement; `doing` names what was tried."""
    return meaning(Refusal(error.sqlstate, _first_line(str(error)), error.diag.source_function), doing)


def reported(result: pq.abc.PGresult) -> Refusal:
    """What a result of libpq reports."""
    field = pq.DiagnosticField
    state, text, function = (
        (result.error_field(part) or b"").decode("utf-8", "replace")
        for part in (field.SQLSTATE, field.MESSAGE_PRIMARY, field.SOURCE_FUNCTION)
    )
    return Refusal(state or None, text, function or None)


def meaning(refused: Refusal, doing: str) -> SourceError:
    """What a refusal means; without a SQLSTATE the connection broke, which passes by itself."""
    state, text, function = refused
    what = f"PostgreSQL refused: {text}"
    if state == "42704" and function in _PUBLICATION_LOOKUPS:
        return publication_gone(what, doing)
    if state == "58P01" and function in _WAL_READERS:
        return SourceGap(f"WAL that the slot needs is gone from the server: {text}", where=doing, mend=RECONCILE)
    lasting = _lasting(state, what, text, doing)
    if lasting is not None:
        return lasting
    passing = _PASSING_STATES + _OVERTAKEN_STATES + _SLOT_STATES
    if state is None or state.startswith(_PASSING_CLASSES) or state in passing:
        return SourceUnavailable(text or "the connection broke", where=doing)
    return SourceError(what, where=f"{doing}, SQLSTATE {state}")


def _lasting(state: str | None, what: str, text: str, doing: str) -> SourceError | None:
    """The meaning of the codes that say exactly what is wrong."""
    if state == "55006":
        return slot_in_use(text, doing)
    if state == "42501":
        return SourceMisconfigured(what, where=doing, mend="grant the privilege to the role of source.dsn")
    if state == "53400":
        return SourceMisconfigured(what, where=doing, mend="raise max_replication_slots or max_wal_senders")
    return None


def slot_in_use(text: str, where: str) -> SlotInUse:
    """Another session streams from the slot."""
    return SlotInUse(text, where=where, mend="stop the other session, or wait until it ends")


def publication_gone(what: str, where: str) -> SourceGap:
    """The publication was missing while changes were written: PostgreSQL cannot decode them for us any more."""
    return SourceGap(what, where=where, mend=RECONCILE)


def rows_skipped(notice: psycopg.errors.Diagnostic, doing: str) -> SourceGap | None:
    """The gap that a notice tells; None if it tells none.

    PostgreSQL 18 decodes on while the publication is missing and leaves its rows out, with a WARNING of SQLSTATE 55000
    before the first of them. A wait for one of `synchronized_standby_slots` (17+) has the same code and loses nothing.
    """
    if notice.sqlstate != "55000" or notice.source_function == _WAITS_FOR_STANDBY:
        return None
    return publication_gone(f"PostgreSQL skips rows: {notice.message_primary or ''}", doing)


def commits_passed_over(begins: int, confirmed: int, doing: str) -> SourceGap:
    """The gap of a slot that decodes from a place behind where it is confirmed."""
    return SourceGap(
        f"the slot lacks the snapshot that it begins from: PostgreSQL passes over what commits between"
        f" {format_lsn(confirmed)} and {format_lsn(begins)}",
        where=doing,
        mend=RECONCILE,
    )


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0].strip()
    for prefix in (
        "connection failed: ",
        "consuming input failed: ",
        "receiving copy data failed: ",
        "ERROR:",
        "FATAL:",
    ):
        line = line.removeprefix(prefix)
    return line.strip()
