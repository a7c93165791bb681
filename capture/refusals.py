"""What PostgreSQL's refusals mean to Walbus: by SQLSTATE, with the mend that an operator needs.

Errors of a session carry a SQLSTATE. Those of connecting carry only a text (libpq tells no code for them), in the
server's language; the texts known here are the English ones, and any other one counts as "not reachable now", with
the server's words in it.
"""

from __future__ import annotations

import psycopg

from walbus.capture.repeats import NEW_LOG
from walbus.errors import SlotInUse, SourceError, SourceGap, SourceMisconfigured, SourceUnavailable

_CONNECT_MENDS = {
    "password authentication failed": "correct user and password in source.dsn",
    "no password supplied": "give the password in source.dsn, or in a password file",
    "no pg_hba.conf entry": "let pg_hba.conf admit this user and address",
    "pg_hba.conf rejects": "let pg_hba.conf admit this user and address",
    "authentication failed": "correct user and password in source.dsn",
    "is not permitted to log in": "grant it: ALTER ROLE … LOGIN",
    "WAL sender": "grant it: ALTER ROLE … REPLICATION",
    "walsender": "grant it: ALTER ROLE … REPLICATION",
    "certificate": "correct sslmode, sslrootcert and the certificates in source.dsn",
    "for connection option": "correct source.dsn",
    "server does not support SSL": "correct sslmode in source.dsn",
}
_MISSING = {"database": "correct the database's name in source.dsn", "role": "correct the user in source.dsn"}

#: SQLSTATE classes that pass by themselves: connection, resources, operator intervention, rollback.
_PASSING_CLASSES = ("08", "53", "57", "40")
_PASSING_STATES = ("55P03", "25P03", "25P04")
#: A table or schema that was dropped, or a member that was added, since it was looked at: the next look sees it.
_OVERTAKEN_STATES = ("42P01", "3F000", "42710")


def connect_refusal(error: psycopg.Error, where: str) -> SourceError:
    """The error of a connection that could not be made; `where` names server and database."""
    text = _first_line(str(error))
    for fragment, mend in _CONNECT_MENDS.items():
        if fragment in text:
            return SourceMisconfigured(text, where=where, mend=mend)
    for kind, mend in _MISSING.items():
        if f"{kind} " in text and "does not exist" in text:
            return SourceMisconfigured(text, where=where, mend=mend)
    return SourceUnavailable(text, where=where, mend="start the server, or correct source.dsn")


def refusal(error: psycopg.Error, doing: str) -> SourceError:
    """The error of an open session's statement; `doing` names what was tried."""
    return by_sqlstate(error.sqlstate, _first_line(str(error)), doing)


def by_sqlstate(state: str | None, text: str, doing: str) -> SourceError:  # noqa: PLR0911  (one a meaning)
    """The meaning of a SQLSTATE; None (the connection broke) passes by itself."""
    what = f"PostgreSQL refused: {text}"
    if state == "55006":
        return SlotInUse(text, where=doing, mend="stop the other session, or wait until it ends")
    if state == "42501":
        return SourceMisconfigured(what, where=doing, mend="grant the privilege to the role of source.dsn")
    if state == "53400":
        return SourceMisconfigured(what, where=doing, mend="raise max_replication_slots or max_wal_senders")
    if state == "58P01" or (state == "55000" and "slot" in text):
        return SourceGap(what, where=doing, mend=NEW_LOG)
    if state == "42704" and "publication" in text:
        return publication_gone(what, doing)
    if state == "42704" and "replication slot" in text:
        return SourceUnavailable(what, where=doing)  # the next connection looks at the slot, and says what it means
    if state is None or state.startswith(_PASSING_CLASSES) or state in _PASSING_STATES + _OVERTAKEN_STATES:
        return SourceUnavailable(text or "the connection broke", where=doing)
    return SourceError(what, where=f"{doing}, SQLSTATE {state}")


def publication_gone(what: str, where: str) -> SourceGap:
    """The publication was missing while changes were written: PostgreSQL cannot decode them for us any more."""
    return SourceGap(what, where=where, mend=NEW_LOG)


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
