"""The memory of what was told of the catalog: whose it is, and what it survives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from walbus.capture.definition import CatalogState, ColumnState, FileState, PublicationState, TableState, TypeState
from walbus.capture.layouts import key_under_full
from walbus.capture.remembered import CATALOG_FILE, Remembered


def state(key: int = 1) -> CatalogState:
    columns = tuple(ColumnState(n, f"c{n}", 23, -1, n == key, n == key, True, False, 5) for n in (1, 2))
    table = TableState(
        oid=16400, namespace="public", name="t", kind="r", identity="f", listed=7, by_schema=0, row_filter=None,
        fresh=True, columns=columns, files=(FileState(16400, 1, 0, 0, False, ((1, 5, False),)),),
    )  # fmt: skip
    publication = PublicationState(1, 5, 10, False, ("insert",), False, "")
    types = {20000: TypeState("public", "mood", 0, (0,), {"20002": "sad"}, True)}
    return CatalogState(publication, {16400: table}, types, frozenset({1, 2}))


def opened(path: Path | None, log_id: str = "log") -> Remembered:
    remembered = Remembered(path)
    remembered.open(log_id, log_is_empty=False)
    return remembered


def test_a_state_that_was_kept_is_there_in_the_next_life(tmp_path):
    opened(tmp_path / CATALOG_FILE).keep(state())
    assert opened(tmp_path / CATALOG_FILE).state == state()
    assert [path.name for path in tmp_path.iterdir()] == [CATALOG_FILE]


def test_another_log_remembers_nothing_and_says_so(tmp_path):
    opened(tmp_path / CATALOG_FILE).keep(state())
    with capture_logs() as said:
        assert opened(tmp_path / CATALOG_FILE, "another").state is None
    assert [line["event"] for line in said] == ["catalog.nothing_remembered"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "log_id": "log", "state": {}}']
)
def test_a_damaged_file_is_told_and_not_believed(tmp_path, content):
    (tmp_path / CATALOG_FILE).write_bytes(content)
    with capture_logs() as said:
        remembered = opened(tmp_path / CATALOG_FILE)
    assert remembered.state is None
    assert [line["event"] for line in said] == ["catalog.memory_damaged", "catalog.nothing_remembered"]
    remembered.keep(state())
    assert opened(tmp_path / CATALOG_FILE).state == state()


def test_what_a_crash_left_half_written_is_passed_over(tmp_path):
    opened(tmp_path / CATALOG_FILE).keep(state())
    (tmp_path / f".{CATALOG_FILE}.new").write_bytes(b"half")
    remembered = opened(tmp_path / CATALOG_FILE)
    assert remembered.state == state()
    remembered.keep(state(2))
    assert opened(tmp_path / CATALOG_FILE).state == state(2)


def test_where_partitions_were_told_and_a_doubt_outlive_the_process(tmp_path):
    path = tmp_path / CATALOG_FILE
    opened(path).regrouped(state(), 1000)
    remembered = opened(path)
    assert (remembered.state, remembered.regrouped_lsn, remembered.doubtful) == (state(), 1000, False)
    remembered.doubt()
    remembered = opened(path)
    assert (remembered.state, remembered.regrouped_lsn, remembered.doubtful) == (state(), 1000, True)
    remembered.keep(state(2))  # another difference takes no doubt away
    assert (opened(path).state, opened(path).regrouped_lsn, opened(path).doubtful) == (state(2), 1000, True)
    opened(path).regrouped(state(2), 2000)
    assert (opened(path).regrouped_lsn, opened(path).doubtful) == (2000, False)


def test_a_file_of_before_doubts_has_none(tmp_path):
    path = tmp_path / CATALOG_FILE
    opened(path).keep(state())
    document = json.loads(path.read_text())
    del document["regrouped_lsn"], document["doubtful"]
    path.write_text(json.dumps(document))
    remembered = opened(path)
    assert (remembered.state, remembered.regrouped_lsn, remembered.doubtful) == (state(), 0, False)


def test_nothing_is_said_of_an_empty_log_or_without_a_file():
    with capture_logs() as said:
        Remembered(None).open("log", log_is_empty=False)
        Remembered(Path("/nowhere") / CATALOG_FILE).open("log", log_is_empty=True)
    assert said == []


def test_a_key_holds_from_its_telling_on_and_is_taken_back_where_that_was_lost(tmp_path):
    remembered = opened(tmp_path / CATALOG_FILE)
    remembered.keep(state(1))
    assert remembered.primary_key(16400) == {"c1"}
    remembered.telling(state(2))
    assert remembered.primary_key(16400) == {"c2"}
    remembered.open("log", log_is_empty=False)  # the connection broke before the event was durable
    assert remembered.primary_key(16400) == {"c1"}
    assert remembered.primary_key(99) is None


@pytest.mark.parametrize(
    ("columns", "told", "today", "key"),
    [
        (("a", "b"), {"a"}, {"b"}, {"a"}),  # the row may be of before the change
        (("b",), {"a"}, {"b"}, {"b"}),  # the old key's column is gone
        (("b",), {"a"}, {"c"}, ()),
        (("a",), None, {"a"}, {"a"}),  # a table that was not told of yet
        (("a",), frozenset(), {"a"}, frozenset()),
    ],
)
def test_the_key_under_full_is_what_was_told_if_the_row_has_it(columns, told, today, key):
    assert key_under_full(columns, told, lambda: today) == key
