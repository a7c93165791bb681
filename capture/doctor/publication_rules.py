"""Rules about the publication. Pure.

The statements are those that capture itself would run at its start; where it may not, an owner runs them, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from walbus.capture.doctor.facts import Facts, PublicationFacts, TableFacts
from walbus.capture.doctor.findings import Finding, Mend, advice, error, info, ok, safe_statement, statement, warning
from walbus.capture.doctor.quoting import identifier, qualified
from walbus.capture.repeats import NEW_LOG

OPERATIONS = ("insert", "update", "delete", "truncate")


def publication_findings(facts: Facts) -> Iterator[Finding]:
    """All of this module's."""
    yield from _named_things(facts)
    if facts.publication is None:
        yield from _missing(facts)
        return
    yield from _members(facts, facts.publication)
    yield from _operations(facts, facts.publication)
    yield from _parts(facts, facts.publication)
    yield from _shape(facts, facts.publication)


def _named_things(facts: Facts) -> Iterator[Finding]:
    """What the configuration names and the database does not have."""
    if facts.never_sent.missing:
        mend = advice("create it, or correct source.tables")
        yield error("missing-table", "source.tables names what does not exist", mend, of=facts.never_sent.missing)
    elif not facts.tables:
        found = "source.tables matches no table yet; tables that are made later are added"
        yield info("missing-table", found, of=facts.wanted.tables)


def _missing(facts: Facts) -> Iterator[Finding]:
    name = facts.wanted.publication
    if facts.log is not None and not facts.log.empty:
        found = f"publication {name} is gone, while the log depends on it: changes since then are lost to capture"
        yield error("publication", found, advice(NEW_LOG), of=[name])
        return
    tables = publishable(facts.tables)
    mend = _creation(name, tables)
    left_out = [] if facts.role.superuser else [table for table in tables if not table.addable]
    if not (facts.role.creates or facts.role.superuser):
        found = (
            f"there is no publication {name}, and role {facts.role.name} may not make it: it lacks CREATE on database"
        )
        yield error("publication", f"{found} {facts.server.database}", mend, of=[name])
    elif left_out:
        found = f"there is no publication {name} yet, and role {facts.role.name} may not publish tables of other owners"
        grade = error if any(table.named for table in left_out) else warning
        yield grade("publication", found, mend, of=_names(left_out))
    else:
        yield info("publication", f"there is no publication {name} yet; capture makes it at its start", mend, of=[name])


def publishable(tables: Iterable[TableFacts]) -> list[TableFacts]:
    """Those that may be published themselves: no UPDATE would fail, in none of their partitions either."""
    tables = list(tables)
    broken = {table.root for table in tables if not table.identified and not table.partitioned}
    return [table for table in tables if table.is_root and table.identified and table.table not in broken]


def _creation(name: str, tables: list[TableFacts]) -> Mend:
    for_tables = f" FOR TABLE {_listed(tables)}" if tables else ""
    return safe_statement(f"CREATE PUBLICATION {identifier(name)}{for_tables}")


def _members(facts: Facts, publication: PublicationFacts) -> Iterator[Finding]:
    name, log = facts.wanted.publication, facts.log
    if log is not None and log.remembered is not None and log.remembered.publication.oid != publication.oid:
        found = f"publication {name} was dropped and made again, and changes in between are lost"
        yield error("publication", found, advice(NEW_LOG), of=[name])
    roots = publishable(facts.tables)
    lacking = [table for table in roots if not table.published]
    lost = [table for table in lacking if table.known and not (log is not None and log.left_by_itself(table.oid))]
    if lost:
        found = f"tables that the log knows were taken out of publication {name}: changes of them are lost"
        again = advice("then seed them again; or take them out of source.tables")
        yield error("table-taken-out", found, statement(_addition(name, lost)), again, of=_names(lost))
    yield from _new_members(facts, [table for table in lacking if table not in lost])
    if not lacking:
        yield ok("publication", f"publication {name} has all {len(roots)} configured tables")
    yield from _later_tables(facts, publication)


def _new_members(facts: Facts, tables: list[TableFacts]) -> Iterator[Finding]:
    """Tables that are to be added; by whom depends on the owners."""
    name, role = facts.wanted.publication, facts.role
    ours = [table for table in tables if table.addable or role.superuser]
    others = [table for table in tables if table not in ours]
    if ours:
        found = f"publication {name} lacks configured tables; capture adds them at its start"
        yield info("table-not-published", found, safe_statement(_addition(name, ours)), of=_names(ours))
    if others:
        found = f"publication {name} lacks configured tables that role {role.name} may not add, so they are left out"
        grade = error if any(table.named for table in others) else warning
        yield grade("table-not-published", found, safe_statement(_addition(name, others)), of=_names(others))


def _later_tables(facts: Facts, publication: PublicationFacts) -> Iterator[Finding]:
    """Tables made later that a wildcard matches are added by the role, if it may."""
    role, name = facts.role, facts.wanted.publication
    schemas = [pattern.removesuffix(".*") for pattern in facts.wanted.tables if pattern.endswith(".*")]
    covered = publication.all_tables or set(schemas) <= set(publication.schemas)
    if role.superuser or covered or not schemas or (publication.owned and all(t.addable for t in facts.tables)):
        return
    found = f"role {role.name} may not add tables to publication {name}: one that is made later is left out"
    mends = [advice("add new tables as their owner when they are made")]
    if facts.server.version >= 150_000:
        listed = ", ".join(identifier(schema) for schema in schemas)
        whole = f"ALTER PUBLICATION {identifier(name)} ADD TABLES IN SCHEMA {listed}"
        mends = [statement(whole)]
    yield info("later-tables", found, *mends, of=[f"{schema}.*" for schema in schemas])


def _operations(facts: Facts, publication: PublicationFacts) -> Iterator[Finding]:
    missing = [name for name in OPERATIONS if name not in publication.operations]
    if missing:
        name = facts.wanted.publication
        found = f"publication {name} leaves out {', '.join(missing)}: the log looks whole and is not"
        mend = statement(f"ALTER PUBLICATION {identifier(name)} SET (publish = '{', '.join(OPERATIONS)}')")
        yield warning("publication-operations", found, mend, of=[name])


def _parts(facts: Facts, publication: PublicationFacts) -> Iterator[Finding]:
    """Column lists and row filters: parts of a table are captured, and some statements of the application fail."""
    parts = [t for t in facts.tables if t.is_root and (t.listed_columns is not None or t.filtered)]
    if parts:
        found = "column lists or row filters of the publication leave parts of these tables out"
        yield info("publication-parts", found, of=_names(parts))
    blind = [table for table in parts if _hides_identity(table)]
    if blind and {"update", "delete"} & publication.operations:
        found = "a column list or row filter misses the replica identity: the application's UPDATE and DELETE fail"
        mends = [statement(_whole_table(facts.wanted.publication, table)) for table in blind]
        yield error("publication-identity", found, *mends, of=_names(blind))


def _hides_identity(table: TableFacts) -> bool:
    if table.identity == "f":
        return table.listed_columns is not None
    listed = table.listed_columns
    return (listed is not None and not table.identity_columns <= listed) or not (
        table.filter_columns <= table.identity_columns
    )


def _shape(facts: Facts, publication: PublicationFacts) -> Iterator[Finding]:
    name = facts.wanted.publication
    if publication.all_tables:
        found = f"publication {name} is FOR ALL TABLES: tables without replica identity lose UPDATE and DELETE at once"
        yield info("publication-all-tables", found, of=[name])
    if publication.others:
        found = f"publication {name} has tables that source.tables does not mean; they are captured too"
        tables = advice("name them in source.tables, or take them out with ALTER PUBLICATION … DROP TABLE")
        yield info("publication-others", found, tables, of=publication.others)
    if publication.via_root and any(table.partitioned for table in facts.tables):
        found = f"publication {name} publishes partitions as their topmost parent (publish_via_partition_root)"
        yield info("publication-via-root", found, of=[name])


def _whole_table(publication: str, table: TableFacts) -> str:
    """SET TABLE would replace every other member, so the one is taken out and put back, in one transaction."""
    name, member = identifier(publication), qualified(table.namespace, table.name)
    drop, add = f"ALTER PUBLICATION {name} DROP TABLE {member}", f"ALTER PUBLICATION {name} ADD TABLE {member}"
    return f"BEGIN; {drop}; {add}; COMMIT"


def _addition(publication: str, tables: Iterable[TableFacts]) -> str:
    return f"ALTER PUBLICATION {identifier(publication)} ADD TABLE {_listed(tables)}"


def _listed(tables: Iterable[TableFacts]) -> str:
    return ", ".join(qualified(table.namespace, table.name) for table in tables)


def _names(tables: Iterable[TableFacts]) -> list[str]:
    return [table.table for table in tables]
