"""Sessions on the source: one way to open them, with the settings that decide the bytes of every value.

`application_name`, TCP keepalives and the time to connect are ours unless the DSN says otherwise. The settings are
applied after connecting, so nothing that ALTER ROLE or ALTER DATABASE set can change them.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from walbus.capture.refusals import connect_refusal, refusal
from walbus.errors import ConfigError, SourceUnavailable
from walbus.session import settings_sql

_DEFAULTS: dict[str, str | int] = {
    "application_name": "walbus-capture",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

#: Seconds between two looks at `stop` while a statement blocks.
_LOOK_SECONDS = 0.2

Session = psycopg.Connection[tuple[object, ...]]


def parameters_of(dsn: SecretStr) -> dict[str, str | int | None]:
    """The DSN's connection parameters over our defaults.

    Raises:
        ConfigError: it cannot be parsed, or only by taking a piece of its password for something else; its text,
            which may hold a password, is not repeated.
    """
    if _is_misread(dsn.get_secret_value()):
        mend = "write @ as %40, / as %2F and : as %3A in user and password"
        raise ConfigError("the DSN has an @ or a / that must be encoded", where="key source.dsn", mend=mend)
    try:
        given = conninfo_to_dict(dsn.get_secret_value())
    except psycopg.ProgrammingError:
        mend = "write it as postgresql://user:password@host:5432/database"
        raise ConfigError("the DSN cannot be parsed", where="key source.dsn", mend=mend) from None
    return {**_DEFAULTS, **given}


def _is_misread(text: str) -> bool:
    """Whether libpq would take a piece of a URI's password for host, port or database, and name it in its errors."""
    scheme, _, rest = text.partition("://")
    user, at, place = rest.partition("?")[0].partition("@")
    return scheme in ("postgresql", "postgres") and bool(at) and ("/" in user or "@" in place)


def place_of(dsn: SecretStr) -> str:
    """Server and database of the DSN, for messages."""
    given = parameters_of(dsn)
    host, port = given.get("host") or given.get("hostaddr") or "localhost", given.get("port") or 5432
    return f"{host}:{port}, database {given.get('dbname') or given.get('user') or 'of the user'}"


def stream_names(dsn: SecretStr, log_id: str, term: int) -> list[str]:
    """`application_name`s of streams into a log: of its terms so far, ours last. They tell our streams from others'.

    There are none if the DSN gives a name: that stays, since `synchronous_standby_names` may mean it, and tells
    nothing.
    """
    ours = _DEFAULTS["application_name"]
    if parameters_of(dsn)["application_name"] != ours:
        return []
    first = f"{ours} {log_id[:16]}"
    return [first, *(f"{first} {later}" for later in range(2, term + 1))]


def open_session(dsn: SecretStr, *, replication: bool = False, name: str | None = None) -> Session:
    """An autocommit session with the shared settings; a walsender's if `replication`.

    Args:
        dsn: where.
        replication: whether it is to stream.
        name: its `application_name`, if not the usual one.

    Raises:
        SourceUnavailable, SourceMisconfigured: it could not be had.
    """
    parameters = parameters_of(dsn)
    if replication:
        parameters["replication"] = "database"
    if name is not None:
        parameters["application_name"] = name
    try:
        conninfo = make_conninfo("", **parameters)
        session = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise connect_refusal(error, place_of(dsn)) from None
    try:
        with refused("applying the session's settings"):
            session.execute(settings_sql().encode())
            session.execute("SET default_transaction_read_only = off")  # publication and slot are made in sessions
    except BaseException:
        session.close()
        raise
    return session


def check_same_server(one: Session, other: Session) -> None:
    """Whether two sessions reached the same server: an address may lead elsewhere in the middle of a failover.

    Raises:
        SourceUnavailable: they did not; connecting again may do better.
    """
    with refused("comparing the servers of two sessions"):
        started = [session.execute("SELECT pg_postmaster_start_time()").fetchone() for session in (one, other)]
    if started[0] != started[1]:
        raise SourceUnavailable("two connections to the same address reached different servers")


class Connected(Protocol):
    """Whatever has a connection's socket."""

    def fileno(self) -> int:
        """Its descriptor."""


@contextmanager
def cut_off(connection: Connected, stop: threading.Event, seconds: float | None) -> Iterator[None]:
    """Cuts the connection if `stop` is set, or `seconds` have passed, before the block ends.

    A statement may wait for a lock, for old transactions, or for a server that hangs, and nothing in a blocking call
    looks at `stop`. The cut makes the statement fail as if the server had gone (`SourceUnavailable`).

    Args:
        connection: whose statements run in the block.
        stop: the process's.
        seconds: None where the wait may be long for good reason.
    """
    done = threading.Event()
    watcher = threading.Thread(target=_cut_in_time, args=(connection, done, stop, seconds), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _cut_in_time(connection: Connected, done: threading.Event, stop: threading.Event, seconds: float | None) -> None:
    end = math.inf if seconds is None else time.monotonic() + seconds
    while not done.wait(_LOOK_SECONDS):
        if stop.is_set() or time.monotonic() > end:
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)
            return


@contextmanager
def refused(doing: str) -> Iterator[None]:
    """Turns errors of psycopg into Walbus's; `doing` names what is tried."""
    try:
        yield
    except psycopg.Error as error:
        raise refusal(error, doing) from None
