"""Which row it is that a deferred constraint of the target refuses, when a commit would be.

A COMMIT that is refused says which constraint, and not which row; and its transaction is over. So the sink is told to
watch what comes again: it keeps which change wrote or took away which row, has the constraints checked before the next
COMMIT, and looks in the tables as they are then for a row that breaks the one that is told. No row is judged before all
are there, for a deferred constraint lets a row come before the one that it needs.

    a row that this transaction wrote     the change that wrote it
    one that lost its parent behind that  the change that took the parent away

Of a constraint that is something else (a trigger, an expression), and of a row that no change is known of, no row can
be named. Which deferred trigger it was is found by having each checked by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import psycopg

from walbus.consumers.refused_rows import RefusedRow, RowRefused, row_of
from walbus.consumers.sinks.postgres_session import PostgresSession, refuses_a_row
from walbus.consumers.sinks.postgres_table import ReplicaTable, key_values, quoted
from walbus.events import Change
from walbus.records import Op

#: A constraint: its kind, its columns, the operators that must not all hold, and of a foreign key the other table.
_CONSTRAINT: Final = """
SELECT c.contype::text, c.conkey::int4[], o.operators, p.relname::text, pn.nspname::text,
    (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY AS k (number, n)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number),
    (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(c.confkey) WITH ORDINALITY AS k (number, n)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number),
    c.confmatchtype::text = 'f' OR EXISTS (
        SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid = c.conindid AND i.indpred IS NOT NULL)
FROM pg_catalog.pg_constraint c
JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_class p ON p.oid = c.confrelid
LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
LEFT JOIN LATERAL (
    SELECT array_agg(format('OPERATOR(%I.%s)', s.nspname, e.oprname) ORDER BY x.n) AS operators
    FROM unnest(c.conexclop) WITH ORDINALITY AS x (oid, n)
    JOIN pg_catalog.pg_operator e ON e.oid = x.oid JOIN pg_catalog.pg_namespace s ON s.oid = e.oprnamespace
) o ON true
WHERE n.nspname = $1 AND t.relname = $2 AND c.conname = $3
"""


#: Deferred triggers of one name, which is what can be checked by itself: schema, name, tables and functions.
_TRIGGERS: Final = """
SELECT n.nspname::text, g.tgname::text,
    string_agg(format('%I.%I', n.nspname, t.relname), ' or ' ORDER BY t.relname), string_agg(DISTINCT p.proname, ', ')
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_class t ON t.oid = g.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
WHERE g.tgdeferrable AND NOT g.tgisinternal AND g.tgconstraint <> 0 GROUP BY 1, 2 ORDER BY 1, 2
"""


class Watched:
    """The changes of one transaction of the sink, by the rows that they wrote or took away.

    Args:
        session: of the sink.
    """

    def __init__(self, session: PostgresSession) -> None:
        self._session = session
        self.forget()

    def forget(self) -> None:
        """What was written is undone, or committed."""
        self._wrote: dict[tuple[int, int], list[tuple[list[str | None], RefusedRow]]] = {}  # by table and seq
        self._took: dict[tuple[int, tuple[str | None, ...]], RefusedRow] = {}  # by table and key
        self._emptied: dict[int, RefusedRow] = {}  # by table

    @property
    def has_any(self) -> bool:
        """Whether a change was written."""
        return bool(self._wrote or self._took or self._emptied)

    def note(self, change: Change) -> None:
        """A change is written."""
        raw, row = change.raw, row_of(change)
        if raw.op == Op.TRUNCATE:
            self._emptied[raw.table] = row
            return
        if raw.op in (Op.INSERT, Op.UPDATE):
            key = [] if raw.key is None else key_values(raw.key)
            self._wrote.setdefault((raw.table, change.seq), []).append((key, row))
        gone = raw.key if raw.op == Op.DELETE else raw.old_key
        if gone is not None:
            self._took[raw.table, tuple(key_values(gone))] = row

    def require_kept(self, named: Callable[[str, str], ReplicaTable | None]) -> None:
        """Sees to it that no deferred constraint refuses what was written.

        Args:
            named: the replica's table of a schema and a name in the target.

        Raises:
            psycopg.Error
            RowRefused: one does; names the row, where that is known.
        """
        self._session.run("SAVEPOINT _walbus_deferred")
        try:
            self._session.run("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            if not refuses_a_row(error):
                raise
            self._session.run("ROLLBACK TO SAVEPOINT _walbus_deferred")
            with self._session.patiently():
                row = self._breaking(error, named)
                trigger = None if row is not None else self._raising()
            refusal = self._session.meaning(error)
            what, where, mend = refusal.what, refusal.where or self._session.where, refusal.mend
            if trigger is not None:
                _, name, tables, functions = trigger
                what += f": the deferred trigger {name} (function {functions}) raises it, and does not tell for which"
                where = f"table {tables}, {where}"
                mend = "let it allow what the source allows, or raise it at once and not at the commit; or drop it"
            raise RowRefused(what, where=where, mend=mend, row=row) from None
        self._session.run("RELEASE SAVEPOINT _walbus_deferred")

    def _raising(self) -> tuple[str, ...] | None:
        """The deferred trigger that refuses what is written, if one does by itself; the transaction stays as it is."""
        for found in self._session.run(_TRIGGERS):
            trigger = tuple(map(str, found))
            try:
                self._session.run(f"SET CONSTRAINTS {quoted(trigger[0])}.{quoted(trigger[1])} IMMEDIATE")
            except psycopg.Error as error:
                if not refuses_a_row(error):
                    raise
                self._session.run("ROLLBACK TO SAVEPOINT _walbus_deferred")
                return trigger
            self._session.run("ROLLBACK TO SAVEPOINT _walbus_deferred")
        return None

    def _breaking(self, error: psycopg.Error, named: Callable[[str, str], ReplicaTable | None]) -> RefusedRow | None:
        told = error.diag
        table = named(told.schema_name or "", told.table_name or "")
        names = [told.schema_name, told.table_name, told.constraint_name]
        found = self._session.run(_CONSTRAINT, names)
        if table is None or not found:
            return None
        kind, numbers, operators, parent, namespace, columns, others, is_odd = found[0]
        if kind not in ("f", "u", "p", "x") or is_odd or 0 in list(numbers):  # type: ignore[call-overload]
            return None
        mine = _names(columns)
        if kind == "f":
            away = named(str(namespace), str(parent))
            return self._orphan(table, mine, f"{quoted(str(namespace))}.{quoted(str(parent))}", away, _names(others))
        signs = [str(one) for one in operators] if operators else ["="] * len(mine)  # type: ignore[attr-defined]
        return self._twin(table, mine, signs)

    def _orphan(
        self, table: ReplicaTable, mine: Sequence[str], parent: str, away: ReplicaTable | None, theirs: Sequence[str]
    ) -> RefusedRow | None:
        """A row whose parent is not there: what came later, the change that wrote it or the one that took that away."""
        there = " AND ".join(f"t.{quoted(one)} IS NOT NULL" for one in mine)
        same = " AND ".join(f"p.{quoted(b)} = t.{quoted(a)}" for a, b in zip(mine, theirs, strict=True))
        of_key = [] if away is None else [away.layout.columns[index].name for index in away.layout.key_indexes]
        keyed = away is not None and sorted(of_key) == sorted(theirs)
        pointing = [mine[theirs.index(name)] for name in of_key] if keyed else []
        broken = f"{there} AND NOT EXISTS (SELECT FROM {parent} AS p WHERE {same})"
        found = self._first(table, pointing, broken)
        if found is None:
            return None
        row, points_to = found
        took = None if away is None else self._took.get((away.oid, tuple(points_to))) or self._emptied.get(away.oid)
        return max((one for one in (row, took) if one is not None), key=lambda one: one.seq, default=None)

    def _twin(self, table: ReplicaTable, columns: Sequence[str], signs: Sequence[str]) -> RefusedRow | None:
        """The later one of two rows that may not both be there."""
        same = " AND ".join(f"o.{quoted(one)} {sign} t.{quoted(one)}" for one, sign in zip(columns, signs, strict=True))
        found = self._first(table, (), f"EXISTS (SELECT FROM {table.sql} AS o WHERE {same} AND o.ctid <> t.ctid)")
        return None if found is None else found[0]

    def _first(
        self, table: ReplicaTable, more: Sequence[str], condition: str
    ) -> tuple[RefusedRow | None, list[str | None]] | None:
        """The newest row of which a condition holds: its change, if that is known, and the texts of more columns."""
        key = table.key if table.keyed else []
        texts = [f"format('%s', t.{name})" for name in (*key, *map(quoted, more))]
        chosen = ", ".join([f"t.{quoted(table.seq)}", *texts])
        newest = f"ORDER BY t.{quoted(table.seq)} DESC LIMIT 1"
        found = self._session.run(f"SELECT {chosen} FROM {table.sql} AS t WHERE {condition} {newest}")
        if not found:
            return None
        seq, *values = found[0]
        told: list[str | None] = [None if value is None else str(value) for value in values]
        wrote = self._wrote.get((table.oid, int(str(seq))), [])
        rows = [row for of, row in wrote if len(wrote) == 1 or of == told[: len(key)]]
        return (rows[0] if len(rows) == 1 else None), told[len(key) :]


def _names(value: object) -> list[str]:
    return [str(one) for one in value]  # type: ignore[attr-defined]
