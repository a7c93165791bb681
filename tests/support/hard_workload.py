"""A workload that does to tables all that a change feed must survive; the same seed gives the same again.

One thread drives several sessions whose transactions are open at the same time: each step draws a session and lets it
do one thing. So the statements of many transactions, with nested savepoints and partial rollbacks, interleave in the
WAL as the seed says, and not as threads happen to run. Sessions must never wait for each other then: each has keys of
its own, and a table that one of them truncates or alters is left alone by the others until it has ended.

    workload = HardWorkload(database.dsn, seed)     # sessions=5, large_rows=3000, two_phase=False
    workload.prepare()                              # makes the tables and their publication: before the slots
    workload.work(500)                              # 500 steps; transactions stay open at the end
    with workload.running(): ...                    # steps in a thread; goes on after a crash of the server
    workload.finish()                               # ends what is open

`TABLES` have every replica identity, values out of line, partitions, no key at all; `shifting` changes its columns, its
name and its replica identity. DDL that changes rows without events is followed by an UPDATE of all rows in the same
transaction, so that a log folded row by row (`support.folding`) equals the tables in the end. With `unsaid` some is
not, and tables are rewritten (VACUUM FULL).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg

_COLUMNS = "id int, n int, note text, big text"  #: of every table; values of 3,000 characters in `big` lie out of line

#: Table -> what makes it, besides storage.
TABLES: dict[str, tuple[str, ...]] = {
    "plain": (f"CREATE TABLE plain ({_COLUMNS}, PRIMARY KEY (id))",),
    "whole": (f"CREATE TABLE whole ({_COLUMNS}, PRIMARY KEY (id))", "ALTER TABLE whole REPLICA IDENTITY FULL"),
    "coded": (
        f"CREATE TABLE coded ({_COLUMNS}, code text NOT NULL)",
        "CREATE UNIQUE INDEX coded_code ON coded (code)",
        "ALTER TABLE coded REPLICA IDENTITY USING INDEX coded_code",
    ),
    "keyless": (f"CREATE TABLE keyless ({_COLUMNS})", "ALTER TABLE keyless REPLICA IDENTITY FULL"),
    "mute": (f"CREATE TABLE mute ({_COLUMNS}, PRIMARY KEY (id))", "ALTER TABLE mute REPLICA IDENTITY NOTHING"),
    "parted": (
        f"CREATE TABLE parted ({_COLUMNS}, PRIMARY KEY (id)) PARTITION BY HASH (id)",
        *(f"CREATE TABLE parted_{i} PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER {i})" for i in range(3)),
    ),
    "shifting": (f"CREATE TABLE shifting ({_COLUMNS}, PRIMARY KEY (id))",),
}

#: What a step does, and how often.
_ACTIONS = {
    "insert": 20,
    "insert_range": 5,
    "insert_many": 1,
    "copy": 2,
    "update": 18,
    "update_big": 6,
    "update_range": 3,
    "change_key": 6,
    "delete": 10,
    "delete_range": 3,
    "savepoint": 12,
    "rollback_to": 7,
    "release": 4,
    "truncate": 1,
    "alter": 1,
    "message": 2,
    "commit": 12,
    "rollback": 2,
}
_KEYS_EACH = 1_000_000  # keys of one session
_FEW = 60  # of them are used again and again
_NOTES = (None, "", "x", "naïve 東京 🦊", "NULL", 'a,b "c" {d}\\', "long " * 60)
_PREPARED_AT_MOST = 8
_WIDER = {"integer": "bigint", "bigint": "numeric", "numeric": "text", "text": "text"}


@dataclass
class _Session:
    connection: psycopg.Connection
    base: int  # its first key
    fresh: int = _FEW  # its next key that was never used
    opened: bool = False
    savepoints: int = 0
    touched: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)  # tables that nobody else may touch

    def ended(self) -> None:
        self.opened, self.savepoints = False, 0
        self.touched.clear()
        self.owned.clear()


@dataclass(frozen=True)
class _Prepared:
    gid: str
    touched: frozenset[str]
    owned: frozenset[str]


class HardWorkload:
    """The workload on one database.

    Args:
        dsn: of the database, as the tables' owner.
        seed: decides everything.
        sessions: transactions that may be open at a time.
        large_rows: rows of the largest statements.
        two_phase: some transactions are prepared first (the server needs max_prepared_transactions).
        shifting: columns, name and identity of one table change.
        tables: those of `TABLES` that there are.
        unsaid: some DDL changes or moves rows without events.
    """

    def __init__(
        self,
        dsn: str,
        seed: int,
        *,
        sessions: int = 5,
        large_rows: int = 3000,
        two_phase: bool = False,
        shifting: bool = True,
        tables: Sequence[str] = tuple(TABLES),
        unsaid: bool = False,
    ) -> None:
        self._dsn = dsn
        self._dice = random.Random(seed)
        self._count = sessions
        self._large_rows = large_rows
        self._tables = tables
        self._unsaid = unsaid
        self._sessions: list[_Session] = []
        self._prepared: list[_Prepared] = []
        self._bases = 0
        self._numbers = 0
        self._shifting_oid = 0
        self._weights = {
            **_ACTIONS,
            "alter": _ACTIONS["alter"] * shifting,
            "rewrite": 1 * unsaid,
            "prepare": 4 * two_phase,
            "resolve": 4 * two_phase,
        }
        self.committed = 0  #: transactions, the empty ones too

    def prepare(self) -> None:
        """Makes the tables and the publication `walbus`, which has them all (a managed one leaves `mute` out)."""
        with psycopg.connect(self._dsn, autocommit=True) as session:
            for table in self._tables:
                for statement in (*TABLES[table], f"ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL"):
                    session.execute(statement.encode())
            session.execute(f"CREATE PUBLICATION walbus FOR TABLE {', '.join(self._tables)}".encode())
            row = session.execute("SELECT 'shifting'::regclass::oid::int8").fetchone()
            assert row is not None
            self._shifting_oid = row[0]

    def work(self, steps: int) -> None:
        """Does so many steps; a crash of the server is the caller's to deal with."""
        for _ in range(steps):
            self._step()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Steps without end in a thread, until the block ends; then nothing is open any more."""
        stop, failures = threading.Event(), list[BaseException]()

        def run() -> None:
            try:
                while not stop.is_set():
                    self._step_or_begin_anew(stop)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
            if not thread.is_alive():
                self.finish()
        assert not thread.is_alive(), "the workload hangs"
        if failures:
            raise failures[0]

    def finish(self) -> None:
        """Commits or rolls back whatever is open, and closes the sessions."""
        for session in self._sessions:
            if session.opened:
                self._commit(session) if self._dice.random() < 0.8 else self._rollback(session)
            session.connection.close()
        self._sessions = []
        self._resolve_all()

    def tell_name(self) -> None:
        """Has `shifting` change once more without an effect: a new name is in the log from a table's next change on."""
        session = _Session(self._connect(), 0)
        table = self._name(session)
        self._run(session, f"INSERT INTO {table} (id) VALUES (0)")
        self._run(session, f"DELETE FROM {table} WHERE id = 0")
        session.connection.execute("COMMIT")
        session.connection.close()

    # Steps.

    def _step_or_begin_anew(self, stop: threading.Event) -> None:
        try:
            self._step()
        except (psycopg.OperationalError, psycopg.InterfaceError):  # the server went away
            for session in self._sessions:
                session.connection.close()
            self._sessions, self._prepared = [], []
            while not stop.wait(0.05):  # as soon as it is back, or what is prepared would hold its locks to the end
                with suppress(psycopg.OperationalError):
                    self._resolve_all()
                    return

    def _step(self) -> None:
        while len(self._sessions) < self._count:
            self._sessions.append(_Session(self._connect(), self._new_base()))
        session = self._dice.choice(self._sessions)
        (action,) = self._dice.choices(list(self._weights), list(self._weights.values()))
        try:
            getattr(self, f"_{action}")(session)
        except psycopg.errors.LockNotAvailable:  # somebody outside has a lock
            self._rollback(session)

    def _run(self, session: _Session, statement: str, *parameters: object) -> psycopg.Cursor:
        if not session.opened:
            session.connection.execute("BEGIN")
            session.opened = True
        return session.connection.execute(statement.encode(), parameters)

    def _connect(self) -> psycopg.Connection:
        options = "-c lock_timeout=3s -c client_min_messages=error"
        return psycopg.connect(self._dsn, autocommit=True, options=options, prepare_threshold=None)

    def _new_base(self) -> int:
        self._bases += 1
        return self._bases * _KEYS_EACH

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Tables.

    def _table(self, session: _Session, *, updated: bool = False) -> str | None:
        """A table that this session may touch now, by the name that it has now."""
        others: set[str] = set().union(*(p.owned for p in self._prepared))
        others = others.union(*(s.owned for s in self._sessions if s is not session))
        free = [t for t in self._tables if t not in others and not (updated and t == "mute")]
        if not free:
            return None
        table = self._dice.choice(free)
        session.touched.add(table)
        return self._name(session) if table == "shifting" else table

    def _owned(self, session: _Session, tables: list[str]) -> bool:
        """Takes tables for this session alone, if no other one is at them."""
        others = [*(s.touched for s in self._sessions if s is not session), *(p.touched for p in self._prepared)]
        if any(touched.intersection(tables) for touched in others):
            return False
        session.touched.update(tables)
        session.owned.update(tables)
        return True

    def _name(self, session: _Session) -> str:
        query = "SELECT relname::text FROM pg_class WHERE oid = %s"  # a cast to regclass may know the old name only
        row = self._run(session, query, self._shifting_oid).fetchone()
        assert row is not None
        return str(row[0])

    # Rows. Keys that two sessions could meet at do not exist.

    def _key(self, session: _Session) -> int:
        return session.base + self._dice.randrange(_FEW)

    def _note(self) -> str | None:
        return self._dice.choice(_NOTES)

    def _big(self) -> str | None:
        return self._dice.choice((None, "small", self._dice.choice("abcdef") * self._dice.choice((3000, 9000))))

    def _insert(self, session: _Session) -> None:
        if table := self._table(session):
            key = self._key(session)
            self._insert_rows(session, table, key, key, self._big())

    def _insert_range(self, session: _Session) -> None:
        if table := self._table(session):
            self._insert_fresh(session, table, self._dice.choice((3, 20, 80)))

    def _insert_many(self, session: _Session) -> None:
        if (table := self._table(session)) and session.fresh + self._large_rows < _KEYS_EACH:
            self._insert_fresh(session, table, self._large_rows)

    def _insert_fresh(self, session: _Session, table: str, rows: int) -> None:
        first = session.base + session.fresh
        session.fresh += rows
        self._insert_rows(session, table, first, first + rows - 1, self._dice.choice((None, "small", "m" * 300)))

    def _insert_rows(self, session: _Session, table: str, first: int, last: int, big: str | None) -> None:
        more, code = (", code", ", 'c' || k") if table == "coded" else ("", "")
        unless = "" if table == "keyless" else " ON CONFLICT DO NOTHING"
        statement = (
            f"INSERT INTO {table} (id, n, note, big{more}) SELECT k, 0, %s, %s{code}"
            f" FROM generate_series(%s::int, %s) k{unless}"
        )
        self._run(session, statement, self._note(), big, first, last)

    def _copy(self, session: _Session) -> None:
        if not (table := self._table(session)):
            return
        self._run(session, "SELECT")
        columns = "id, n, note, big" + (", code" if table == "coded" else "")
        with session.connection.cursor().copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
            for _ in range(self._dice.choice((1, 30))):
                key = session.base + session.fresh
                session.fresh += 1
                copy.write_row((key, 1, self._note(), self._big(), *([f"c{key}"] if table == "coded" else [])))

    def _update(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            key = self._key(session)
            self._run(session, f"UPDATE {table} SET n = n + 1, note = %s WHERE id = %s", self._note(), key)

    def _update_big(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            self._run(session, f"UPDATE {table} SET big = %s WHERE id = %s", self._big(), self._key(session))

    def _update_range(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            self._run(session, f"UPDATE {table} SET n = n + 1 WHERE id BETWEEN %s AND %s", *self._range(session))

    def _change_key(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            old, new = self._key(session), self._key(session)
            code = ", code = 'c' || %(new)s::int" if table == "coded" else ""
            statement = (
                f"UPDATE {table} SET id = %(new)s{code} WHERE id = %(old)s"
                f" AND NOT EXISTS (SELECT FROM {table} WHERE id = %(new)s)"
            )
            self._run(session, "SELECT")
            session.connection.execute(statement.encode(), {"old": old, "new": new})

    def _delete(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            self._run(session, f"DELETE FROM {table} WHERE id = %s", self._key(session))

    def _delete_range(self, session: _Session) -> None:
        if table := self._table(session, updated=True):
            self._run(session, f"DELETE FROM {table} WHERE id BETWEEN %s AND %s", *self._range(session))

    def _range(self, session: _Session) -> tuple[int, int]:
        first = session.base + self._dice.randrange(session.fresh)
        return first, first + self._dice.choice((5, 40, self._large_rows))

    def _truncate(self, session: _Session) -> None:
        tables = self._dice.sample([t for t in self._tables if t != "shifting"], self._dice.choice((1, 2)))
        if self._owned(session, tables):
            self._run(session, f"TRUNCATE {', '.join(tables)} {self._dice.choice(('', 'RESTART IDENTITY', 'CASCADE'))}")

    def _message(self, session: _Session) -> None:
        transactional, size = self._dice.random() < 0.7, self._dice.choice((0, 10, 2000))
        self._run(session, "SELECT pg_logical_emit_message(%s, 'hard', %s)", transactional, "m" * size)

    # DDL. What it does to rows without a word is told by an UPDATE of all of them, unless it is to stay unsaid.

    def _alter(self, session: _Session) -> None:
        if not self._owned(session, ["shifting"]):
            return
        table = self._name(session)
        query = (
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attname LIKE 'x%%' ORDER BY attnum"
        )
        columns = dict(self._run(session, query, self._shifting_oid).fetchall())
        for statement in self._alteration(table, columns):
            self._run(session, statement)

    def _alteration(self, table: str, columns: dict[str, str]) -> tuple[str, ...]:
        new, dice = f"x{self._number()}", self._dice
        kinds = ("add", "add", "drop", "rename", "retype", "identity", "rename table")
        kind = dice.choice(kinds)
        alter, touch = f"ALTER TABLE {table}", f"UPDATE {table} SET n = n + 1"
        if kind == "rename table":
            return (f"{alter} RENAME TO shifting_{new}",)
        if kind == "identity":
            return (f"{alter} REPLICA IDENTITY {dice.choice(('FULL', 'DEFAULT'))}",)
        if kind == "add" or not columns:
            return self._addition(table, new)
        old = dice.choice(list(columns))
        if kind == "drop":
            return f"{alter} DROP {old}", touch
        if kind == "rename":
            return f"{alter} RENAME {old} TO {new}", touch
        wider = _WIDER[columns[old]]
        changed, told = (f"({old}::text || '1')", ()) if self._unsaid else (old, (touch,))
        return f"{alter} ALTER {old} TYPE {wider} USING {changed}::{wider}", *told

    def _addition(self, table: str, new: str) -> tuple[str, ...]:
        wanted = self._dice.choice(("integer", "integer DEFAULT 7", "text", "numeric DEFAULT 1.50"))
        add, touch = f"ALTER TABLE {table} ADD {new} {wanted}", f"UPDATE {table} SET n = n + 1"
        if self._unsaid and "DEFAULT" in wanted:
            return (add,)
        return add, f"{touch}, {new} = id::text::{wanted.split()[0]} WHERE mod(id, 2) = 0", touch

    def _rewrite(self, session: _Session) -> None:
        table = self._dice.choice([t for t in self._tables if t != "shifting"])
        if session.opened or not self._owned(session, [table]):
            return
        try:
            session.connection.execute(f"VACUUM FULL {table}".encode())
        finally:
            session.ended()

    # The ends of transactions, and of parts of them.

    def _savepoint(self, session: _Session) -> None:
        if session.savepoints < 5:
            self._run(session, f"SAVEPOINT s{session.savepoints}")
            session.savepoints += 1

    def _rollback_to(self, session: _Session) -> None:
        if session.savepoints:
            session.savepoints = self._dice.randrange(session.savepoints) + 1
            self._run(session, f"ROLLBACK TO SAVEPOINT s{session.savepoints - 1}")

    def _release(self, session: _Session) -> None:
        if session.savepoints:
            session.savepoints = self._dice.randrange(session.savepoints)
            self._run(session, f"RELEASE SAVEPOINT s{session.savepoints}")

    def _commit(self, session: _Session) -> None:
        if session.opened:
            session.connection.execute("COMMIT")
            self.committed += 1
            session.ended()

    def _rollback(self, session: _Session) -> None:
        if session.opened:
            session.connection.execute("ROLLBACK")
            session.ended()

    def _prepare(self, session: _Session) -> None:
        """The session goes on with other keys: a prepared transaction keeps its rows locked."""
        if session.opened and len(self._prepared) < _PREPARED_AT_MOST:
            gid = f"hard {self._number()}"
            session.connection.execute(f"PREPARE TRANSACTION '{gid}'".encode())
            self._prepared.append(_Prepared(gid, frozenset(session.touched), frozenset(session.owned)))
            session.ended()
            session.base, session.fresh = self._new_base(), _FEW

    def _resolve(self, session: _Session) -> None:
        if self._prepared and not session.opened:
            prepared = self._prepared.pop(self._dice.randrange(len(self._prepared)))
            self._end_prepared(session.connection, prepared.gid)

    def _resolve_all(self) -> None:
        """Ends every prepared transaction of this database, also one that nobody knows of since the server's crash."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"
            for (gid,) in connection.execute(query).fetchall():
                self._end_prepared(connection, gid)
        self._prepared = []

    def _end_prepared(self, connection: psycopg.Connection, gid: str) -> None:
        commits = self._dice.random() < 0.75
        connection.execute(f"{'COMMIT' if commits else 'ROLLBACK'} PREPARED '{gid}'".encode())
        self.committed += commits
