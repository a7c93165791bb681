"""The report of a consumer: what is sent is what is read, and whatever else is sent is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.consumer_reports import ConsumerReport, checked_name, dump_report, parse_report
from walbus.errors import UsageError
from walbus.position import Position

texts = st.text(max_size=400)
reports = st.builds(
    ConsumerReport,
    session=st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True),
    begins=st.booleans(),
    log_id=st.from_regex(r"[0-9a-f]{0,32}", fullmatch=True),
    phase=st.sampled_from(["online", "snapshot", "waiting"]),
    last_done=st.none() | st.builds(Position, *[st.integers(0, (1 << 32) - 1)] * 3),
    seq=st.integers(0, (1 << 53) - 1),
    generation=st.integers(0, (1 << 53) - 1),
    whole=st.booleans(),
    tables=st.lists(texts, max_size=40).map(tuple),
    sink=st.none() | st.just("sqlite"),
    waiting_for=st.none() | texts,
    unread=st.lists(texts, max_size=40).map(tuple),
)

GOOD = {
    "session": "6f1c", "begins": False, "log_id": "ab", "phase": "online", "last_done": "1:16/B374D848:4", "seq": 17,
    "generation": 3, "whole": True,
}  # fmt: skip


@given(reports)
def test_a_report_is_read_as_it_was_meant_but_for_what_is_too_long(report):
    body = dump_report(report)
    assert len(body) <= 16 << 10 << 2
    read = parse_report(body)
    assert (read.session, read.begins, read.last_done, read.seq, read.order) == (
        report.session, report.begins, report.last_done, report.seq, report.order,
    )  # fmt: skip
    assert read.tables == tuple(table[:129] for table in report.tables[:16])
    assert read.unread == tuple(table[:129] for table in report.unread[:16])
    assert read.waiting_for == (None if report.waiting_for is None else report.waiting_for[:300])


def test_members_that_are_not_known_are_passed_over():
    assert parse_report(json.dumps(GOOD | {"colour": "blue"}).encode()).seq == 17


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("session", "6F1C"),
        ("session", ""),
        ("session", "f" * 33),
        ("begins", "yes"),
        ("log_id", "../.."),
        ("phase", "x" * 17),
        ("phase", None),
        ("last_done", "16/B374D848"),
        ("last_done", "1" * 65),
        ("last_done", 3),
        ("seq", -1),
        ("seq", 1 << 53),
        ("seq", 1.5),
        ("generation", "1"),
        ("whole", None),
        ("tables", ["t" * 130]),
        ("tables", ["t"] * 17),
        ("tables", "public.*"),
        ("sink", "<script>"),
        ("waiting_for", "x" * 301),
        ("unread", [1]),
    ],
)
def test_a_member_that_is_wrong_is_named(member, value):
    with pytest.raises(UsageError) as caught:
        parse_report(json.dumps(GOOD | {member: value}).encode())
    assert caught.value.where == member


@pytest.mark.parametrize("member", ["session", "begins", "log_id", "phase", "last_done", "seq", "generation", "whole"])
def test_a_member_that_is_missing_is_named(member):
    document = {key: value for key, value in GOOD.items() if key != member}
    with pytest.raises(UsageError) as caught:
        parse_report(json.dumps(document).encode())
    assert caught.value.where == member


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 16_000, b'{"seq": ' * 2000, b"1e999"])
def test_what_is_no_report_is_refused(body):
    with pytest.raises(UsageError):
        parse_report(body)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_be_refused(body):
    with pytest.raises(UsageError):
        parse_report(body)


@pytest.mark.parametrize("name", ["orders-cache", "_x", "9", "a.b", "A" * 63])
def test_names_that_consumers_have(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", ".hidden", "a" * 64, "a/b", "a b", "a\n", "é", "a\0", "%2e%2e"])
def test_names_that_no_consumer_has(name):
    with pytest.raises(UsageError):
        checked_name(name)
