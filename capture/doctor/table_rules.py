"""Rules about the tables: replica identities first of all. Pure.

PostgreSQL refuses an application's own UPDATE and DELETE on a table that is published without a usable replica
identity. That is the one way in which capture can break the source, so it is looked for before a table is published.
Identities are proposed, never changed: FULL costs on each write, and an index is the application's to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from walbus.amounts import counted
from walbus.capture.doctor.facts import Facts, TableFacts
from walbus.capture.doctor.findings import Finding, Mend, advice, error, info, ok, statement, warning
from walbus.capture.doctor.quoting import columns, identifier, qualified

_GENERATED_SINCE = 180_000


def table_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    yield from _identities(facts)
    yield from _costs(facts)
    yield from _keyless(facts)
    yield from _key_texts(facts)
    yield from _generated(facts)
    yield from _never_sent(facts)


def _identities(facts: Facts) -> Iterator[Finding]:
    without = [table for table in facts.tables if not table.identified and not table.partitioned]
    fail = [table for table in without if _refuses(facts, table)]
    will_fail = [table for table in without if table not in fail and table.named]
    left_out = [table for table in without if table not in fail and table not in will_fail]
    if fail:
        found = f"published without replica identity: UPDATE and DELETE fail now, as in {_failing(fail[0])}"
        yield error("identity", found, *_identity_mends(fail), of=_names(fail))
    if will_fail:
        found = f"no replica identity: once published, UPDATE and DELETE fail, as in {_failing(will_fail[0])}"
        yield error("identity", found, *_identity_mends(will_fail), of=_names(will_fail))
    if left_out:
        them = "it" if len(left_out) == 1 else "them"
        found = f"no replica identity, so capture leaves {them} out: UPDATE and DELETE would fail,"
        yield warning(
            "identity", f"{found} as in {_failing(left_out[0])}", *_identity_mends(left_out), of=_names(left_out)
        )
    if facts.tables and not without:
        yield ok("identity", f"{counted(len(facts.tables), 'table')}, each with a replica identity")


def _refuses(facts: Facts, table: TableFacts) -> bool:
    """Whether the application's statements fail already."""
    publication = facts.publication
    return table.published and publication is not None and bool({"update", "delete"} & publication.operations)


def _failing(table: TableFacts) -> str:
    reason = {
        "n": "its replica identity is NOTHING",
        "i": "the index of its replica identity is gone",
    }.get(table.identity, "its primary key is DEFERRABLE" if table.deferrable else "it has no primary key")
    where = "" if table.is_root else f", a partition of {table.root}"
    return f"UPDATE of {table.table}{where} ({reason})"


def _identity_mends(tables: Iterable[TableFacts]) -> list[Mend]:
    """A statement for each table; which one depends on what it has."""
    return [mend for table in tables for mend in _identity_mend(table)]


def _identity_mend(table: TableFacts) -> tuple[Mend, ...]:
    name = qualified(table.namespace, table.name)
    if table.primary_key and not table.deferrable:
        return (statement(f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),)
    if table.unique_index:
        return (statement(f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX {identifier(table.unique_index)}"),)
    if table.deferrable:
        return (statement(f"ALTER TABLE {name} REPLICA IDENTITY FULL"), _or_key(name, "not deferrable "))
    return (statement(f"ALTER TABLE {name} REPLICA IDENTITY FULL"), _or_key(name, ""))


def _or_key(name: str, kind: str) -> Mend:
    return advice(f"or better, add a {kind}primary key: ALTER TABLE {name} ADD PRIMARY KEY (…)")


def _key_mend(table: TableFacts) -> Mend:
    """What gives a key to a table whose identity is FULL."""
    if table.unique_index:
        return _identity_mend(table)[0]
    return advice(_or_key(qualified(table.namespace, table.name), "").text.removeprefix("or better, "))


def _costs(facts: Facts) -> Iterator[Finding]:
    full = [table for table in facts.tables if table.identity == "f"]
    keyed = [table for table in full if table.primary_key and not table.deferrable]
    if full:
        found = "REPLICA IDENTITY FULL: each UPDATE and DELETE writes the whole old row to the WAL, TOASTed values too"
        mends = [statement(f"ALTER TABLE {qualified(t.namespace, t.name)} REPLICA IDENTITY DEFAULT") for t in keyed]
        note = [advice("keep FULL where consumers need the old row (Change.before)")] if keyed else []
        yield info("identity-full", found, *mends, *note, of=_names(full))


def _keyless(facts: Facts) -> Iterator[Finding]:
    keyless = [
        table for table in facts.carriers if table.identity == "f" and (table.deferrable or not table.primary_key)
    ]
    if not keyless:
        return
    found = "no key: changes are captured, and bootstrap refuses the table, so there are no snapshots of it"
    mends = [_key_mend(table) for table in keyless]
    grade = warning if facts.wanted.bootstrap else info
    yield grade("keyless", found, *mends, of=_names(keyless))


def _key_texts(facts: Facts) -> Iterator[Finding]:
    """Keys whose text does not name one row for good."""
    roots = [table for table in facts.tables if table.is_root]
    merging = [_columns_of(table, table.merging) for table in roots if table.merging]
    renamed = [_columns_of(table, table.renamed) for table in roots if table.renamed]
    if merging:
        found = (
            "key columns print unequal values alike: rows whose keys print alike are one row to whoever reads the log"
        )
        yield warning(
            "key-text", found, advice("choose a key of another type, such as oid, text or numeric"), of=merging
        )
    if renamed:
        found = "key columns print names: when what they name is renamed, a row is known by another key from then on"
        mend = advice("choose a key of type oid or text; or seed the table again after a renaming")
        yield warning("key-text", found, mend, of=renamed)


def _generated(facts: Facts) -> Iterator[Finding]:
    generated = [table for table in facts.tables if table.is_root and table.generated]
    if not generated:
        return
    in_identity = [table for table in generated if table.identity_columns & table.generated and not _sends(facts)]
    if in_identity and facts.server.version >= _GENERATED_SINCE:
        found = "the replica identity has a generated column that is not published: UPDATE and DELETE fail"
        yield error("generated-identity", found, *_publish_generated(facts), of=_names(in_identity))
    virtual = sorted(name for table in generated if (name := _columns_of(table, table.virtual)))
    stored = sorted(name for table in generated if (name := _columns_of(table, table.generated - table.virtual)))
    if stored and not _sends(facts):
        newer = facts.server.version >= _GENERATED_SINCE
        mends = (
            _publish_generated(facts) if newer else (advice("compute them in consumers; PostgreSQL 18 can send them"),)
        )
        yield info("generated-columns", "stored generated columns are not sent", *mends, of=stored)
    if virtual:
        yield info("generated-columns", "virtual generated columns are never sent", of=virtual)


def _sends(facts: Facts) -> bool:
    return facts.publication is not None and facts.publication.generated == "stored"


def _publish_generated(facts: Facts) -> tuple[Mend, ...]:
    name = columns([facts.wanted.publication])
    return (statement(f"ALTER PUBLICATION {name} SET (publish_generated_columns = stored)"),)


def _columns_of(table: TableFacts, names: Iterable[str]) -> str:
    listed = ", ".join(sorted(names))
    return f"{table.table} ({listed})" if listed else ""


def _never_sent(facts: Facts) -> Iterator[Finding]:
    never = facts.never_sent
    if never.unlogged:
        found = "unlogged tables write no WAL: their changes are never captured"
        mends = [statement(f"ALTER TABLE {qualified(*name)} SET LOGGED") for name in never.unlogged]
        yield warning("unlogged-table", found, *mends, of=_dotted(never.unlogged))
    if never.foreign:
        mend = advice("capture them on the server where they are, and take them out of source.tables")
        names = _dotted(never.foreign)
        grade = error if set(names) & set(facts.wanted.tables) else warning
        yield grade("foreign-table", "foreign tables live on another server, and are never captured", mend, of=names)
    if never.views:
        mend = advice("capture the tables that the views are made of")
        found = "source.tables names views, which have no changes of their own: capture does not start"
        yield error("view", found, mend, of=_dotted(never.views))
    if never.sequences:
        yield info("sequences", f"{counted(never.sequences, 'sequence')}: what they give is never sent")
    if never.large_objects:
        yield info("large-objects", "the database holds large objects (lo): PostgreSQL never sends their content")


def _names(tables: Iterable[TableFacts]) -> list[str]:
    return [table.table for table in tables]


def _dotted(relations: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{namespace}.{name}" for namespace, name in relations]
