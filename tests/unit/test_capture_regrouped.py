"""Which changes of partitions the session of PostgreSQL 14 overlooks."""

from __future__ import annotations

import pytest

from walbus.capture.definition import CatalogState, FileState, PublicationState, TableState
from walbus.capture.regrouped import regrouped

ROOT, LEAF, OTHER = 16400, 16410, 16420


def leaf(inherited: int = 9, *, made_here: bool = False, oid: int = LEAF) -> FileState:
    return FileState(oid, oid, 0, inherited, made_here, ())


def table(oid: int, kind: str, files: tuple[FileState, ...], listed: int = 0) -> TableState:
    return TableState(
        oid=oid, namespace="public", name=f"t{oid}", kind=kind, identity="d", listed=listed, by_schema=0,
        row_filter=None, fresh=True, columns=(), files=files,
    )  # fmt: skip


def catalog(
    *tables: TableState, others: tuple[int, ...] = (), all_tables: bool = False, via_root: bool = True
) -> CatalogState:
    publication = PublicationState(1, 5, 10, all_tables, ("insert",), via_root, "")
    return CatalogState(publication, {table.oid: table for table in tables}, {}, frozenset(others))


def root(*files: FileState) -> TableState:
    return table(ROOT, "p", files, listed=7)


def alone(oid: int = LEAF, inherited: int = 0, listed: int = 0) -> TableState:
    return table(oid, "r", (leaf(inherited, oid=oid),), listed)


CASES = {
    "nothing": (catalog(root(leaf())), catalog(root(leaf())), False),
    "attached": (catalog(root(), others=(LEAF,)), catalog(root(leaf()), others=(LEAF,)), True),
    "made and attached since": (catalog(root()), catalog(root(leaf()), others=(LEAF,)), True),
    "made as a partition": (catalog(root()), catalog(root(leaf(made_here=True)), others=(LEAF,)), False),
    "came with its own parent": (
        catalog(root(), others=(LEAF,)), catalog(root(leaf(made_here=True)), others=(LEAF,)), True),
    "detached": (catalog(root(leaf()), others=(LEAF,)), catalog(root(), others=(LEAF,)), True),
    "dropped": (catalog(root(leaf()), others=(LEAF,)), catalog(root()), False),
    "attached again": (catalog(root(leaf(9)), others=(LEAF,)), catalog(root(leaf(10)), others=(LEAF,)), True),
    "published by itself before": (catalog(root(), alone()), catalog(root(leaf()), others=(LEAF,)), True),
    "published by itself after": (catalog(root(leaf()), others=(LEAF,)), catalog(root(), alone()), True),
    "as itself: attached": (catalog(others=(LEAF,), via_root=False), catalog(alone(inherited=9), via_root=False), True),
    "as itself: detached": (catalog(alone(inherited=9), via_root=False), catalog(others=(LEAF,), via_root=False), True),
    "as itself: dropped": (catalog(alone(inherited=9), via_root=False), catalog(via_root=False), False),
    "as itself, and listed": (
        catalog(alone(listed=8), via_root=False), catalog(alone(inherited=9, listed=8), via_root=False), False),
    "all tables as themselves": (
        catalog(alone(), all_tables=True, via_root=False),
        catalog(alone(inherited=9), all_tables=True, via_root=False),
        False,
    ),
    "a table without partitions": (catalog(alone(OTHER)), catalog(others=(OTHER,)), False),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after", "overlooked"), CASES.values(), ids=CASES)
def test_what_14_overlooks(before, after, overlooked):
    assert regrouped(before, after) is overlooked
