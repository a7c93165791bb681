"""What a stream was asked for, and what passes its filter; bytes only."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from support.guarded_relay import listened
from support.memory_log import MemorySchemas
from support.relay_log import table_schema
from walbus.config import RelayConfig
from walbus.errors import UsageError
from walbus.native import new_filter
from walbus.position import Position
from walbus.records import (
    HEADER_SIZE,
    Flag,
    Kind,
    Op,
    check_record,
    iter_changes,
    key_hash,
    pack_change,
    pack_record,
    read_header,
)
from walbus.relay.gate import listen_address
from walbus.relay.http import errors_as_json
from walbus.relay.projection import Projection
from walbus.relay.selection import EVERYTHING, parse_selection
from walbus.relay.stream_query import After, AtTime, StreamQuery, parse_stream_query
from walbus.relay.table_filter import TableFilter

TABLES = ("orders", "items", "notes")
WHOLE_ROWS = Projection((), MemorySchemas())


def registry() -> MemorySchemas:
    schemas = MemorySchemas()
    for i, name in enumerate(TABLES):
        schemas.register(table_schema(name, 100 + i))
    return schemas


def query(text: str = "", accept: str = "") -> StreamQuery:
    return parse_stream_query(dict(part.split("=", 1) for part in text.split("&") if part), {"Accept": accept})


def test_a_bare_request_follows_everything_from_now_in_binary():
    assert query() == StreamQuery(EVERYTHING, "latest", None, True, "", None, "binary")


def test_a_bounded_request_begins_with_what_is_held_and_ends():
    assert query("until=latest") == StreamQuery(EVERYTHING, "earliest", "latest", False, "", None, "binary")
    assert query("follow=false").start == "earliest"
    assert query("until=1:0/10:1&follow=true").follow


def test_after_wins_over_from():
    assert query("after=1:0/10:2&from=earliest").start == After(Position(1, 16, 2))


def test_from_includes_its_position():
    assert query("from=1:0/10:2").start == After(Position(1, 16, 1))
    assert query("from=1:0/10:0").start == After(Position(1, 16, 0))


@pytest.mark.parametrize(
    "text", ["1700000000", "1700000000.0", "2023-11-14T22:13:20Z", "2023-11-14T22:13:20", "2023-11-14T23:13:20 01:00"]
)
def test_a_time_may_be_written_in_several_ways(text):
    assert query(f"from={text}").start == AtTime(1_700_000_000.0)


def test_the_accept_header_chooses_json_and_the_parameter_wins():
    assert query(accept="application/x-ndjson").format == "json"
    assert query(accept="text/event-stream").format == "sse"
    assert query("format=binary", accept="application/x-ndjson").format == "binary"
    assert query("format=json").format == "json"


@given(st.dictionaries(st.sampled_from(["after", "from", "until", "follow", "tables", "name"]), st.text(max_size=30)))
def test_any_text_is_read_or_refused_by_the_name_of_its_parameter(parameters):
    try:
        parse_stream_query(parameters, {})
    except UsageError as error:
        assert error.where in parameters


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), TABLES),
        (("*.*",), TABLES),
        (("public.*",), TABLES),
        (("public.orders",), ("orders",)),
        (("*.items", "public.notes"), ("items", "notes")),
        (("other.*",), ()),
        (("public.order",), ()),
    ],
)
def test_patterns_choose_tables(patterns, expected):
    schemas = registry()
    chosen = TableFilter(patterns, schemas)
    assert tuple(s.name for s in schemas.all() if chosen.wants_change(Op.UPDATE, s.oid, s.id)) == expected


def test_what_belongs_to_no_table_or_to_an_unknown_one():
    narrow, wide = TableFilter(["public.orders"], registry()), TableFilter([], registry())
    assert wide.wants_change(Op.MESSAGE, 0, 0)
    assert not narrow.wants_change(Op.MESSAGE, 0, 0)
    assert narrow.wants_change(Op.EPOCH, 0, 0)
    assert narrow.wants_change(Op.TRUNCATE, 100, 0)
    assert not narrow.wants_change(Op.TRUNCATE, 101, 0)
    assert narrow.wants_change(Op.TRUNCATE, 999, 0)  # cannot be judged, so it passes


def packed(number: int, tables: list[int], first: int, flags: int) -> bytes:
    """A piece with a change of each of the tables (indexes of TABLES)."""
    body = b"".join(
        pack_change(
            Op.INSERT, table=100 + t, schema_id=1 + t, seq_delta=i, ordinal_delta=i, key=b"%d" % (first + i),
            after=bytes([t]) * 5,
        )
        for i, t in enumerate(tables)
    )  # fmt: skip
    bits = 0
    for t in tables:
        bits |= 1 << (100 + t) % 64
    return pack_record(
        Kind.TRANSACTION, flags=flags, epoch=1, commit_lsn=number * 16, end_lsn=5 if flags & Flag.END else 0,
        first_ordinal=first, last_ordinal=first + len(tables) - 1, first_seq=1000 + first,
        last_seq=1000 + first + len(tables) - 1, xid=number, commit_time=1, count=len(tables), tables=bits, body=body,
        origin=b"elsewhere",
    )  # fmt: skip


TRANSACTIONS = st.lists(
    st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=5), max_size=6
)  # transactions of pieces of tables


@given(TRANSACTIONS, st.sets(st.sampled_from(TABLES)))
def test_a_filter_keeps_exactly_what_it_should_and_whole_windows(transactions, wanted):
    wanted_ids = {1 + TABLES.index(name) for name in wanted}
    chosen = new_filter(TableFilter([f"public.{name}" for name in wanted] or ["no.table"], registry()), WHOLE_ROWS)
    sent, expected = [], []
    for number, pieces in enumerate(transactions, 1):
        first = 1
        for i, tables in enumerate(pieces):
            flags = (Flag.BEGIN if i == 0 else 0) | (Flag.END if i == len(pieces) - 1 else 0)
            record = packed(number, tables, first, flags)
            header = read_header(record)
            expected += [
                (number, first + c.ordinal_delta, 1000 + first + c.seq_delta, c.key, c.after)
                for c in iter_changes(record[HEADER_SIZE + header.origin_length :])
                if c.schema_id in wanted_ids
            ]
            sent.append(chosen.filter(header, record))
            first += len(tables)
    assert changes_of(sent) == expected
    assert not chosen.in_window


def changes_of(sent: list[bytes]) -> list[tuple[int, int, int, bytes | None, bytes | None]]:
    """The changes of what a filter sent; checks checksums, counts, table bits and bounds on the way."""
    found, inside = [], False
    for record in filter(None, sent):
        header = check_record(record)
        assert bool(header.flags & Flag.BEGIN) != inside
        inside = not header.flags & Flag.END
        changes = list(iter_changes(record[HEADER_SIZE + header.origin_length :]))
        assert header.count == len(changes)
        assert record[HEADER_SIZE:].startswith(b"elsewhere")
        assert all(header.tables >> c.table % 64 & 1 for c in changes)
        assert all(c.key_hash == key_hash(c.key or b"") for c in changes)
        found += [
            (header.xid, header.first_ordinal + c.ordinal_delta, header.first_seq + c.seq_delta, c.key, c.after)
            for c in changes
        ]
    assert not inside
    return found


@pytest.mark.parametrize("listen", ["127.0.0.1:7070", "localhost:0", "[::1]:7070", "127.9.9.9:1"])
def test_loopback_needs_no_insecure(listen):
    assert str(listen_address(RelayConfig(listen=listen), "relay")) == listen


def test_a_choice_of_columns_is_judged_in_one_pass():
    """A megabyte of spaces takes hours in two nested ones."""
    with pytest.raises(UsageError) as refused:
        parse_selection(None, None, " " * (1 << 20), None)
    assert refused.value.where == "columns"
    chosen = parse_selection(None, None, " public.orders ( id , total ) , public.items(sku),", None)
    assert [(one.pattern, sorted(one.columns)) for one in chosen.columns] == [
        ("public.orders", ["id", "total"]),
        ("public.items", ["sku"]),
    ]


@pytest.mark.parametrize("left", [ConnectionResetError("gone"), BrokenPipeError(32, "Broken pipe")])
def test_a_client_that_leaves_is_no_failure_of_the_server(left):
    async def leaving(_: web.Request) -> web.StreamResponse:
        raise left

    with listened() as events:
        asyncio.run(errors_as_json(make_mocked_request("GET", "/v1/stream"), leaving))
    assert [event["level"] for event in events] == ["debug"]
