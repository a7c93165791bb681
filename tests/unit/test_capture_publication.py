"""Which tables that are not in the publication were taken out of it, and which are added or left out."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from walbus.capture.definition import CatalogState, PublicationState, TableState
from walbus.capture.publication import Completion, MatchedTable
from walbus.config import SourceConfig
from walbus.errors import SourceMisconfigured

OID, ENTRY = 16400, 7


class Session:
    """Takes the statement that adds tables."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def execute(self, statement: Any) -> None:
        self.statements.append(statement.as_string())


def seen(*tables: TableState, others: tuple[int, ...] = ()) -> CatalogState:
    publication = PublicationState(1, 5, 10, False, ("insert",), False, "")
    return CatalogState(publication, {table.oid: table for table in tables}, {}, frozenset(others))


def published(listed: int) -> TableState:
    return TableState(
        oid=OID, namespace="public", name="t", kind="r", identity="d", listed=listed, by_schema=0, row_filter=None,
        fresh=True, columns=(), files=(),
    )  # fmt: skip


def completed(before: CatalogState | None, *, addable: bool = True) -> list[str]:
    """The statements that follow where a table that the log knows is not published."""
    found = MatchedTable(OID, "public", "t", False, True, False, addable, "somebody")
    session: Any = Session()
    with capture_logs():
        Completion(SourceConfig(dsn="host=nowhere")).complete(session, [found], {OID}, before)
    return list(session.statements)


ADDED = ['ALTER PUBLICATION "walbus" ADD TABLE "public"."t"']


@pytest.mark.parametrize("before", [None, seen(), seen(published(listed=ENTRY))])
def test_a_table_whose_entry_somebody_may_have_removed_stops_capture(before: CatalogState | None) -> None:
    with pytest.raises(SourceMisconfigured, match=r"public\.t was taken out of publication walbus"):
        completed(before)


@pytest.mark.parametrize("before", [seen(published(listed=0)), seen(others=(OID,))], ids=["left now", "left before"])
def test_one_that_left_by_itself_is_added_or_if_it_cannot_be_left_out_for_good(before: CatalogState) -> None:
    assert completed(before) == ADDED
    assert completed(before, addable=False) == []
