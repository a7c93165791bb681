"""What a session that decodes is told by notices, in whatever language: what is an error, and where it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from walbus.capture.notices import Notices
from walbus.errors import SourceGap
from walbus.lsn import parse_lsn

CONFIRMED = parse_lsn("A/1000")


@dataclass
class Notice:
    """As much of psycopg's Diagnostic as is looked at."""

    message_primary: str | None
    message_detail: str | None = None
    source_function: str | None = "SnapBuildFindSnapshot"
    severity_nonlocalized: str = "LOG"
    sqlstate: str | None = "00000"
    severity: str = "LOG"


def told(notices: Notices, *said: Notice) -> Notices:
    for notice in said:
        notices(cast(Any, notice))
    return notices


def found(lsn: str, function: str = "SnapBuildFindSnapshot") -> Notice:
    return Notice(f"Logikaldekodierung fand konsistenten Punkt bei {lsn}", "Keine laufenden Transaktionen.", function)


@pytest.mark.parametrize("lsn", ["A/1000", "A/FFF", "9/FFFFFFFF", "A/00000FFF"])
@pytest.mark.parametrize("function", ["SnapBuildFindSnapshot", "SnapBuildRestore"])
def test_a_slot_that_decodes_from_where_it_is_confirmed_or_before_is_whole(lsn, function):
    notices = told(Notices("streaming"), found(lsn, function))
    notices.confirmed(CONFIRMED)
    assert notices.decodes
    assert not notices.fatal


@pytest.mark.parametrize("compares_first", [True, False])
def test_one_that_begins_behind_that_is_a_gap_whichever_is_known_first(compares_first):
    notices = Notices("streaming")
    if compares_first:
        notices.confirmed(CONFIRMED)
        told(notices, found("A/1001"))
    else:
        told(notices, found("A/1001"))
        with pytest.raises(SourceGap):
            notices.confirmed(CONFIRMED)
    with pytest.raises(SourceGap, match=r"lacks the snapshot.*between A/1000 and A/1001.*streaming.*--reconcile"):
        notices.check()


def test_a_search_that_still_waits_for_transactions_is_no_beginning():
    waits = Notice("logical decoding found initial starting point at A/500", "approximately 1 older than 760")
    notices = told(Notices("streaming"), waits)
    notices.confirmed(CONFIRMED)
    assert not notices.decodes
    assert notices.searches  # so it will be told, and nothing is believed until then
    told(notices, found("B/0"))
    assert notices.decodes
    assert isinstance(notices.fatal[0], SourceGap)


def test_another_statement_begins_anew():
    notices = told(Notices("catching up"), found("A/800"))
    notices.anew()
    assert not notices.decodes


def test_the_servers_other_log_lines_are_neither_errors_nor_told():
    with capture_logs() as said:
        notices = told(
            Notices("streaming"),
            Notice("starting logical decoding for slot A/B", "at 0/1", "CreateDecodingContext"),
            Notice("statement: COPY (SELECT 1/2)", None, "exec_simple_query"),
            Notice(None, None, "SnapBuildFindSnapshot"),
        )
        assert not said
        assert not notices.decodes
        told(notices, Notice("a word of the operator", None, "x", "WARNING", "01000"))
    assert [line["event"] for line in said] == ["source.notice"]
    notices.check()


def test_rows_that_postgresql_skips_are_a_gap():
    notices = told(Notices("streaming"), Notice("skipped", None, "LoadPublications", "WARNING", "55000"))
    with pytest.raises(SourceGap):
        notices.check()
