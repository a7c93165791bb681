"""Tables that PostgreSQL 14 goes on to publish as they were before an ATTACH or a DETACH. Pure.

A session of pgoutput remembers of each table that it met whether its rows are published, and as which table's. From 15
on whatever alters a table makes it look again. 14 looks again only when a publication is altered: a table that it met
while that was unpublished stays so behind an ATTACH, and one that it met as a partition is sent as rows of its root
behind a DETACH. Only another session helps: one that meets the table first behind the statement, which is one that
begins where the slot is confirmed behind it. ATTACH and DETACH lock the table against writers, so that no transaction
that writes to it runs across them.

A table that was made as a partition (CREATE TABLE … PARTITION OF) was not met before, and one that was dropped is not
met again: neither counts.
"""

from __future__ import annotations

from walbus.capture.definition import CatalogState, FileState, TableState

#: First version whose pgoutput looks again.
LOOKS_AGAIN_SINCE = 150_000


def regrouped(before: CatalogState, after: CatalogState) -> bool:
    """Whether a table that lives came into a published partitioned table, or left one, in a way that 14 overlooks.

    Args:
        before: an earlier look.
        after: a later one.
    """
    if after.publication.all_tables and not after.publication.via_root:
        return False  # every table is published as itself, whatever it is a partition of
    was, now = _partitions(before), _partitions(after)
    gone, come = was.keys() - now.keys(), now.keys() - was.keys()
    left = (oid in after.others or oid in after.tables for _, oid, _ in gone)
    came = (not now[key].made_here or key[1] in before.others or key[1] in before.tables for key in come)
    return any(left) or any(came)


def _partitions(state: CatalogState) -> dict[tuple[int, int, int], FileState]:
    """Partitions by (published table, partition, xmin of its row in pg_inherits)."""
    return {
        (table.oid, file.oid, file.inherited): file
        for table in state.tables.values()
        for file in table.files
        if file.inherited and not _by_itself(table)
    }


def _by_itself(table: TableState) -> bool:
    """Whether it is published under its own name, wherever it belongs."""
    return table.kind == "r" and bool(table.listed)
