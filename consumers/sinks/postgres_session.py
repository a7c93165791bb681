"""The sink's session with its PostgreSQL: one connection, the settings that values are read with, and errors.

Away for now is whatever passes by itself or by an operator's act on the server: a broken connection, a server that
starts, stops, is crowded, has no room, or is a standby for the moment, and a lock that another holds. Refused is what
stays: a row that the table's own constraints forbid, a privilege, a table that was changed behind our back. Of errors
that may quote a row only the code is told.

A server that is gone without a word is noticed by TCP keepalives, on both sides: it forgets a client that was cut off
with a transaction open, whose lock the next client waits for. A client that stands still (a stopped process) loses its
transaction after a minute.

A server that stands still, or a way that swallows what is sent, answers keepalives and nothing else. So each statement
has a deadline: the server's own ends one that is only slow, and shortly behind it the connection is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from walbus.capture.refusals import connect_refusal
from walbus.capture.sessions import parameters_of, place_of
from walbus.consumers.refused_rows import RowRefused
from walbus.errors import ConfigError, SinkError, SinkRefused, SinkUnavailable, SourceMisconfigured
from walbus.session import settings_sql

_LOCK_SECONDS = 5
_STANDS_STILL_SECONDS = 60
_UNACKNOWLEDGED_SECONDS = 30  #: of what was sent, before TCP gives the connection up
_GRACE_SECONDS = 2  #: behind the server's own deadline
_WHOLE_TABLE = 30  #: times as long may a statement take that goes over a whole table
#: Joins are of a batch with a table, by its key: by the index, whatever statistics a young table has.
_SETTINGS = {
    "default_transaction_read_only": "off",
    "lock_timeout": f"{_LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{_STANDS_STILL_SECONDS}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": f"{_UNACKNOWLEDGED_SECONDS}s",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
}
#: SQLSTATE classes that pass: connection, rollback, resources, operator intervention, system.
_PASSING_CLASSES = ("08", "40", "53", "57", "58")
#: Read-only (a standby), an idle transaction that was ended, objects in use, a lock not had.
_PASSING_STATES = ("25006", "25P03", "25P04", "55006", "55P03")
#: Classes whose messages quote values: data, integrity constraint, check option of a view.
_OF_ROWS = ("22", "23", "44")
_RAISED = "P0001"  # by somebody's trigger, with whatever values
_CHANGED_STATES = ("42P01", "42703", "42P10", "3F000", "42804")

Rows = list[tuple[object, ...]]
T = TypeVar("T")


class NoAnswer(psycopg.OperationalError):
    """A statement's deadline has passed without a word."""


class _BoundedConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection that is closed when a statement has no answer within `patience` seconds, or is not waited for."""

    patience = 0.0
    unwanted: Callable[[], bool] | None = None  # asked while a statement waits that may be given up

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **named: Any) -> T:  # noqa: ANN401  # psycopg's own
        """See `psycopg.Connection.wait`; raises NoAnswer."""
        return super().wait(self._within(gen, time.monotonic() + self.patience), *arguments, **named)

    def _within(self, gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise NoAnswer(f"it has not answered for {self.patience:.0f} seconds")
                if not ready and self.unwanted is not None and self.unwanted():
                    self.pgconn.finish()
                    raise NoAnswer("it had not let this process write when that was to end")
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


class PostgresSession:
    """One connection, made when it is needed.

    Args:
        dsn: of the target; its password goes nowhere else.
        consumer: whose sink it is.
        statement_seconds: how long a statement may take; `patiently` gives it more.
        stopping: whether the consumer is to end.
    """

    def __init__(
        self, dsn: SecretStr, consumer: str, statement_seconds: float, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._stopping = stopping
        self._key = f"key consumer.{consumer}.dsn"
        self._seconds, self._seconds_key = statement_seconds, f"consumer.{consumer}.statement_seconds"
        with self._our_key():
            unacknowledged = {"tcp_user_timeout": _UNACKNOWLEDGED_SECONDS * 1000}
            self._parameters = {**unacknowledged, **parameters_of(dsn), "application_name": f"walbus {consumer}"}
            self.where = f"PostgreSQL at {place_of(dsn)}"
        self._connection: _BoundedConnection | None = None

    def connect(self) -> bool:
        """Connects unless there is a connection that works; whether it is a new one.

        Raises:
            SinkUnavailable, SinkRefused
        """
        if self._connection is not None and not self._connection.closed:
            return False
        try:
            connection = _BoundedConnection.connect(
                make_conninfo("", **self._parameters),
                autocommit=True,
                prepare_threshold=None,
                cursor_factory=psycopg.RawCursor,
            )
        except psycopg.Error as error:
            raise self._not_connected(error) from None
        self._connection = connection
        connection.patience = self._seconds + _GRACE_SECONDS
        settings = {**_SETTINGS, "statement_timeout": f"{self._seconds * 1000:.0f}"}
        with self.errors():
            connection.execute(settings_sql().encode())
            connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()).encode())
        encoding = self.run("SHOW server_encoding")[0][0]
        if encoding != "UTF8":
            mend = "name a database that was created with ENCODING 'UTF8'"
            raise SinkRefused(
                f"the database's encoding, {encoding}, cannot hold every text", where=self.where, mend=mend
            )
        return True

    def run(self, statement: str, parameters: Sequence[object] = ()) -> Rows:
        """Runs one statement with parameters `$1`, `$2`, …; its rows, [] where there are none.

        Raises:
            psycopg.Error: translated by `errors`.
        """
        if self._connection is None:
            raise psycopg.OperationalError("there is no connection")
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def wait_for_turn(self, statement: str, parameters: Sequence[object] = ()) -> Rows:
        """As `run`, of a statement that waits for others, and is given up when the consumer is to end."""
        if self._connection is not None:
            self._connection.unwanted = self._stopping
        try:
            return self.run(statement, parameters)
        finally:
            if self._connection is not None:
                self._connection.unwanted = None

    def let_stand_still(self, seconds: float) -> None:
        """From now on this process loses its transaction, and the locks, when it stands still for so long within it."""
        self.run(f"SET idle_in_transaction_session_timeout = {min(seconds, _STANDS_STILL_SECONDS) * 1000:.0f}")

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Within it, and within a transaction, statements may go over a whole table, and take that much longer."""
        self._bound(self._seconds * _WHOLE_TABLE)
        try:
            yield
        except BaseException:
            if self._connection is not None:  # its transaction is over, and the server's bound with it
                self._connection.patience = self._seconds + _GRACE_SECONDS
            raise
        self._bound(self._seconds)

    def _bound(self, seconds: float) -> None:
        self.run(f"SET LOCAL statement_timeout = {seconds * 1000:.0f}")
        if self._connection is not None:
            self._connection.patience = seconds + _GRACE_SECONDS

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, failed or not."""
        if self._connection is None:
            return False
        return self._connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE

    def forget_transaction(self) -> None:
        """Rolls back; a connection that cannot even do that is closed. Never raises."""
        try:
            if self.in_transaction:
                self.run("ROLLBACK")
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """Closes the connection. Never raises."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    @contextmanager
    def errors(self, doing: str = "", *, of_rows: bool = True) -> Iterator[None]:
        """Translates trouble; `doing` says what was tried, with the table, and `of_rows` whether rows were written."""
        try:
            yield
        except psycopg.Error as error:
            raise self.meaning(error, f"{doing}, {self.where}" if doing else self.where, of_rows=of_rows) from None

    def meaning(self, error: psycopg.Error, where: str | None = None, *, of_rows: bool = True) -> SinkError:
        """What trouble means, as `errors` tells it."""
        state, where = error.sqlstate, where or self.where
        if state is None or state.startswith(_PASSING_CLASSES) or state in _PASSING_STATES:
            unsaid = str(error) if isinstance(error, NoAnswer) else "the connection broke"
            message = error.diag.message_primary or unsaid
            slow = isinstance(error, psycopg.errors.QueryCanceled)
            mend = f"if its statements take that long, raise {self._seconds_key}" if slow else None
            return SinkUnavailable(f"PostgreSQL is not available: {message}", where=where, mend=mend)
        if state.startswith(_OF_ROWS) or (state == _RAISED and of_rows):
            kind = RowRefused if of_rows else SinkRefused
            return kind(f"PostgreSQL refuses a row ({_kind(error)})", where=where, mend=_row_mend(error))
        message = f"PostgreSQL refuses: {error.diag.message_primary}"
        if state == "42501":
            mend = "grant it to the role of the sink's dsn, or let another role make schemas and tables its own"
            return SinkRefused(message, where=where, mend=mend)
        if state in _CHANGED_STATES:
            mend = "leave the replica's tables to the sink; to make them anew, drop them and the consumer's checkpoint"
            return SinkRefused(message, where=where, mend=mend)
        return SinkRefused(message, where=f"{where}, SQLSTATE {state}")

    def _not_connected(self, error: psycopg.Error) -> SinkError:
        meant = connect_refusal(error, self.where)
        mend = (meant.mend or "").replace("source.dsn", self._key.removeprefix("key ")) or None
        kind = SinkRefused if isinstance(meant, SourceMisconfigured) else SinkUnavailable
        return kind(f"PostgreSQL does not answer: {meant.what}", where=self.where, mend=mend)

    @contextmanager
    def _our_key(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            raise ConfigError(error.what, where=self._key, mend=error.mend) from None


def is_of_a_row(error: psycopg.Error) -> bool:
    """Whether the trouble is with a value, and not with the statement or the server."""
    return (error.sqlstate or "").startswith(_OF_ROWS)


def refuses_a_row(error: psycopg.Error) -> bool:
    """As `is_of_a_row`, where rows are written: or somebody's trigger does not want one."""
    return is_of_a_row(error) or error.sqlstate == _RAISED


def _kind(error: psycopg.Error) -> str:
    named = error.diag.constraint_name or error.diag.column_name
    name = type(error).__name__
    return f"{name}, {named}" if named else f"{name}, SQLSTATE {error.sqlstate}"


def _row_mend(error: psycopg.Error) -> str:
    if error.sqlstate == _RAISED:
        return "let the target's trigger that raises it allow what the source allows, or drop it"
    if (error.sqlstate or "").startswith("23"):
        return "drop the constraint that the target has and the source has not"
    return "compare the column's type in the target with that in the source"
