"""What `walbus tail` prints, from lines alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walbus.cli.tail_lines import json_line, pretty_line
from walbus.cli.tail_place import Place, parse_bound, whole_lines
from walbus.errors import InvalidText, ProtocolError
from walbus.position import Position

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
END = Position(1, 0x500, 2)


def line(op: str, position: str, **fields: Any) -> bytes:
    return json.dumps({"op": op, "position": position, **fields}).encode()


def transaction(lsn: int, changes: int, at: datetime = NOON) -> list[bytes]:
    time = at.isoformat()
    rows = [line("insert", f"1:0/{lsn:X}:{n}", commit_time=time, seq=lsn + n) for n in range(1, changes + 1)]
    begin = line("begin", f"1:0/{lsn:X}:0", commit_time=time)
    return [begin, *rows, line("commit", f"1:0/{lsn:X}:{changes}")]


def place(**fields: Any) -> Place:
    return Place(**{"log_id": "log", "start": "earliest", "until": None, "before": None, "end": END, **fields})


def positions(lines: list[bytes]) -> list[str]:
    return [json.loads(one)["position"] for one in lines]


def test_only_changes_are_printed() -> None:
    batch = [*transaction(0x100, 2), line("heartbeat", "1:0/180:0"), line("schema", "1:0/180:0", detail={})]
    assert [json.loads(one)["op"] for one in place().take(batch, NOON)] == ["insert", "insert", "schema"]


def test_a_heartbeat_moves_the_place_on() -> None:
    tail = place()
    tail.take([line("heartbeat", "1:0/180:0")], NOON)
    assert tail.last_done == Position(1, 0x180, 0)


def test_a_repeated_line_is_printed_once() -> None:
    tail = place()
    first = tail.take(transaction(0x100, 3)[:3], NOON)  # the connection breaks behind the second change
    second = tail.take(transaction(0x100, 3), NOON)
    assert positions(first + second) == ["1:0/100:1", "1:0/100:2", "1:0/100:3"]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6),
)
def test_each_change_is_printed_once_wherever_connections_break(
    sizes: list[int], breaks: list[tuple[int, int]]
) -> None:
    stream = [one for number, size in enumerate(sizes, 1) for one in transaction(number * 16, size)]
    tail, printed, at = place(), [], 0
    for broken_at, sent_again_from in [*breaks, (len(stream), 0)]:
        printed += tail.take(stream[at : max(at, broken_at)], NOON)
        at = min(sent_again_from, max(at, broken_at))
    printed += tail.take(stream[at:], NOON)
    assert printed == [one for one in stream if json.loads(one)["op"] == "insert"]


def test_a_time_bound_ends_with_the_first_later_commit() -> None:
    tail = place(before=NOON)
    batch = [*transaction(0x100, 1), *transaction(0x200, 1, NOON + timedelta(seconds=1)), *transaction(0x300, 1)]
    assert positions(tail.take(batch, NOON)) == ["1:0/100:1"]
    assert tail.done


def test_a_time_bound_ends_a_quiet_log_once_the_clock_passed_it() -> None:
    tail = place(before=NOON)
    tail.take([line("heartbeat", "1:0/180:0")], NOON + timedelta(seconds=1))
    assert not tail.done
    tail.take([line("heartbeat", "1:0/180:0")], NOON + timedelta(seconds=3))
    assert tail.done


def test_a_position_bound_is_done_once_passed() -> None:
    tail = place(until=Position(1, 0x200, 1))
    tail.take(transaction(0x100, 1), NOON)
    assert not tail.done
    tail.take(transaction(0x200, 1), NOON)
    assert tail.done


def test_a_bound_inside_a_transaction_is_the_last_change() -> None:
    tail = place(until=Position(1, 0x200, 2))
    batch = [*transaction(0x100, 1), *transaction(0x200, 4), *transaction(0x300, 1)]
    assert positions(tail.take(batch, NOON)) == ["1:0/100:1", "1:0/200:1", "1:0/200:2"]
    assert tail.done


def test_a_bound_behind_the_end_is_waited_for() -> None:
    assert place(until=Position(1, 0x600, 1)).follows
    assert not place(until=END).follows


def test_a_line_that_is_no_json_stops_the_tail() -> None:
    with pytest.raises(ProtocolError):
        place().take([b'{"op":"insert","pos'], NOON)


@given(st.lists(st.binary(min_size=1).filter(lambda text: b"\n" not in text)), st.data())
def test_lines_come_whole_however_the_network_cuts_them(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(one + b"\n" for one in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream))), label="cuts"))
    chunks = [stream[a:b] for a, b in pairwise([0, *cuts, len(stream)])]
    assert [one for batch in whole_lines(chunks) for one in batch] == lines


def test_a_line_that_never_came_whole_is_dropped() -> None:
    assert list(whole_lines([b"a\nb"])) == [[b"a"]]


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("earliest", "earliest"),
        ("1:16/B374D848:4", Position(1, 0x16B374D848, 4)),
        ("2026-11-23T12:00:00Z", NOON),
        ("2026-11-23T13:00:00+01:00", NOON),
    ],
)
def test_a_bound_is_a_word_a_position_or_a_time(text: str, bound: object) -> None:
    assert parse_bound(text, "--from", words=("earliest", "latest")) == bound


@pytest.mark.parametrize("text", ["", "now", "1:16/B374D848", "-1", "earliest"])
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(InvalidText, match="--until"):
        parse_bound(text, "--until", words=("latest",))


def test_json_is_printed_as_it_came() -> None:
    given_line = line("insert", "1:0/100:1", after={"price": "1.50"})
    assert json_line(given_line) is given_line


def test_a_pretty_line_tells_where_what_and_which_row() -> None:
    change = line("update", "1:0/100:1", commit_time="T", table="public.t", key={"id": 1}, after={"id": 1, "a": "x\ny"})
    text = pretty_line(colour=False)(change).decode()
    assert text == 'T 1:0/100:1 update   public.t id=1 a="x\\ny"'


def test_a_pretty_line_shows_a_key_change_and_what_was_not_sent() -> None:
    change = line(
        "update", "1:0/100:1", table="public.t", key={"id": 2}, old_key={"id": 1}, after={"id": 2}, unchanged=["doc"]
    )
    text = pretty_line(colour=False)(change).decode()
    assert "id=1 -> id=2" in text
    assert "doc=(unchanged)" in text


def test_a_long_value_is_shortened_in_a_pretty_line() -> None:
    text = pretty_line(colour=False)(line("insert", "1:0/100:1", table="public.t", after={"doc": "x" * 10_000}))
    assert len(text) < 300


def test_a_pretty_line_tells_why_a_table_must_be_read_again() -> None:
    detail = {
        "id": 3,
        "columns": [{"name": "x" * 100}],
        "reseed": {"reason": "rewritten", "what": "it was written anew"},
    }
    text = pretty_line(colour=False)(line("schema", "1:0/100:0", table="public.t", detail=detail)).decode()
    assert text == "1:0/100:0 schema   public.t must be read again (rewritten): it was written anew"
