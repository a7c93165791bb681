"""A delivery over a log on disk: where it may end, what it says inside a transaction, and how much it makes at once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from support.relay_log import FileEngine, commits, piece, progress, schema_piece, table_schema, transaction
from support.relay_server import rows_of
from walbus.position import Position
from walbus.record_parser import RecordParser
from walbus.records import Flag, Kind
from walbus.relay.delivery import BLOCK_BYTES, Bound, Delivery, StreamForm
from walbus.relay.selection import Selection

LSN = 1600


@pytest.fixture
def reader(tmp_path):
    """A log whose one transaction meets a new layout behind its first change."""
    engine = FileEngine(tmp_path / "log")
    writer = engine.open_writer()
    schema, _ = writer.schemas.register(table_schema("orders"))
    other, _ = writer.schemas.register(table_schema("items", 16999))
    writer.append(piece(LSN, 1, 1, Flag.BEGIN, schema_id=schema.id))
    writer.append(schema_piece(LSN, 1, other))
    writer.append(piece(LSN, 2, 1, Flag.END, table=other.oid, schema_id=other.id))
    writer.sync()
    yield engine.open_reader()
    engine.close()


def delivery(reader, tables=(), until=None):
    form = StreamForm("binary", Selection(tables))
    return Delivery(reader, Position(0, 0, 0), bound=Bound(until), form=form)


def headers(data):
    parser = RecordParser()
    parser.feed(data)
    return [header for header, _ in parser.records()]


@pytest.mark.parametrize("tables", [(), ("public.orders",)], ids=["everything", "filtered"])
def test_a_bounded_stream_never_ends_at_a_layout_inside_a_transaction(reader, tables):
    stream = delivery(reader, tables, until=Position(1, LSN, 1))
    step = stream.step()
    stream.close()
    assert step.finished
    assert commits(headers(step.data)) == [LSN]


def test_a_heartbeat_at_a_layout_inside_a_window_belongs_to_the_window(reader, monkeypatch):
    monkeypatch.setattr("walbus.relay.cursor._SEEK_BLOCK", 1)
    monkeypatch.setattr("walbus.relay.delivery.BLOCK_BYTES", 1)  # a record a step
    stream = delivery(reader, ("public.orders",))
    begun, passed_over = stream.step(), stream.step()
    assert begun.data
    assert not passed_over.data
    (heartbeat,) = headers(stream.heartbeat())
    stream.close()
    assert (heartbeat.kind, heartbeat.last) == (Kind.TRANSACTION, Position(1, LSN, 1))


@pytest.fixture
def engine(tmp_path):
    made = FileEngine(tmp_path / "log", segment_bytes=8 << 20)
    yield made
    made.close()


@pytest.fixture
def mixed(engine, monkeypatch):
    """A log whose one transaction is an order, an item and an order, in a record each; a step reads one of them."""
    monkeypatch.setattr("walbus.relay.cursor._SEEK_BLOCK", 1)
    monkeypatch.setattr("walbus.relay.delivery.BLOCK_BYTES", 1)
    writer = engine.open_writer()
    orders, _ = writer.schemas.register(table_schema("orders"))
    items, _ = writer.schemas.register(table_schema("items", 16999))
    writer.append(progress(800))
    for i, (schema, flag) in enumerate(((orders, Flag.BEGIN), (items, Flag(0)), (orders, Flag.END)), 1):
        made = piece(LSN, i, 1, flag, table=schema.oid, schema_id=schema.id)
        writer.append(dataclasses.replace(made, body=rows_of(schema, LSN, range(i, i + 1)).body))
    writer.sync()
    return engine.open_reader()


def lines(data):
    return [json.loads(line) for line in data.splitlines()]


def test_a_line_of_life_inside_a_window_tells_the_place_before_it(mixed):
    """A client holds the changes of a window until its commit: a place inside it is nothing to go on from."""
    stream = Delivery(mixed, Position(1, 800, 0), form=StreamForm("json", Selection(("public.orders",))))
    assert [line["op"] for line in lines(stream.step().data)] == ["begin", "insert"]
    assert not stream.step().data
    assert lines(stream.heartbeat()) == [{"op": "heartbeat", "position": "1:0/640:0"}]
    assert [line["op"] for line in lines(stream.step().data)] == ["insert", "commit"]
    assert lines(stream.heartbeat()) == [{"op": "heartbeat", "position": "1:0/640:3"}]
    stream.close()


def test_a_line_of_life_inside_a_window_that_is_continued_tells_the_place_before_it(mixed):
    stream = Delivery(mixed, Position(1, LSN, 1), form=StreamForm("json", Selection(("public.orders",))))
    assert not stream.step().data
    assert lines(stream.heartbeat()) == [{"op": "heartbeat", "position": "1:0/640:0"}]
    stream.close()


def test_a_line_of_life_inside_a_transaction_of_which_nothing_was_told_moves_on(mixed):
    stream = Delivery(mixed, Position(1, 800, 0), form=StreamForm("json", Selection(("public.none",))))
    assert not stream.step().data
    assert not stream.step().data
    assert lines(stream.heartbeat()) == [{"op": "heartbeat", "position": "1:0/640:2"}]
    stream.close()


@pytest.mark.parametrize("after", [Position(1, 800, 0), Position(1, LSN, 1)], ids=["begun", "continued"])
def test_a_page_inside_a_window_is_only_kept_alive(mixed, after):
    stream = Delivery(mixed, after, form=StreamForm("sse", Selection(("public.orders",))))
    while stream.scanned < Position(1, LSN, 2):
        stream.step()
    assert stream.heartbeat() == b": alive\n\n"
    stream.step()
    assert b"event: heartbeat" not in stream.heartbeat()  # its commit has said so
    stream.close()


def test_progress_before_a_transaction_has_the_seq_before_it(mixed):
    whole = Delivery(mixed, Position(1, 800, 0))
    first = headers(whole.step().data)[0].first_seq
    whole.close()
    stream = delivery(mixed, ("public.none",))
    while stream.scanned < Position(1, LSN, 2):
        stream.step()
    (heartbeat,) = headers(stream.heartbeat())
    stream.close()
    assert (heartbeat.kind, heartbeat.last) == (Kind.PROGRESS, Position(1, LSN, 0))
    assert heartbeat.last_seq == first - 1


def test_a_bounded_stream_that_comes_back_inside_its_last_transaction_gets_the_rest_of_it(mixed):
    def ops(after, until):
        stream, data = Delivery(mixed, after, bound=Bound(until), form=StreamForm("json")), b""
        while not (step := stream.step()).finished:
            data += step.data
        stream.close()
        return [line["op"] for line in lines(data + step.data)]

    inside = Position(1, LSN, 1)
    assert ops(inside, inside) == ["begin", "insert", "insert", "commit"]
    assert ops(inside, Position(1, 800, 0)) == []
    assert ops(Position(1, LSN, 3), inside) == []


@pytest.mark.parametrize("form", ["binary", "json"])
def test_a_step_makes_no_more_of_compressed_records_than_of_others(engine, form):
    engine.compression_level = 3
    writer = engine.open_writer()
    schema, _ = writer.schemas.register(table_schema("orders"))
    for i in range(1, 41):
        if form == "json":
            made = transaction(i * 16, 2000, schema_id=schema.id)
            writer.append(dataclasses.replace(made, body=rows_of(schema, i * 16, range(2000)).body))
        else:
            writer.append(transaction(i * 16, 20, schema_id=schema.id, size=10_000))
    bounds = writer.sync()
    assert bounds.bytes < 2 << 20
    stream = Delivery(engine.open_reader(), Position(0, 0, 0), form=StreamForm(form, Selection(("public.orders",))))
    steps = []
    while not (step := stream.step()).at_end:
        assert stream.pending() > 0 or stream.place is not None
        steps.append(step.data)
    stream.close()
    record = 20 * 10_100 if form == "binary" else 2000 * 250
    assert max(map(len, steps)) <= (1 if form == "binary" else 5) * BLOCK_BYTES + record
    if form == "binary":
        assert commits(headers(b"".join(steps))) == [i * 16 for i in range(1, 41)]
    else:
        assert b"".join(steps).count(b'"op":"insert"') == 80_000


def test_what_a_fork_holds_back_it_sends_too(engine):
    engine.compression_level = 3
    writer = engine.open_writer()
    schema, _ = writer.schemas.register(table_schema("orders"))
    for i in range(1, 31):
        writer.append(transaction(i * 16, 2000, schema_id=schema.id))
    writer.sync()
    stream = Delivery(engine.open_reader(), Position(0, 0, 0), form=StreamForm("binary", Selection(("public.orders",))))
    begun = stream.step().data
    fork = stream.fork()
    rest = []
    for one in (stream, fork):
        rest.append(b"".join(iter(lambda one=one: one.step().data, b"")))
        one.close()
    assert rest[0] == rest[1]
    assert commits(headers(begun + rest[1])) == [i * 16 for i in range(1, 31)]


def test_a_table_that_comes_while_a_stream_is_made_is_in_it(engine, monkeypatch):
    writer = engine.open_writer()
    writer.append(transaction(16))
    writer.sync()
    reader = engine.open_reader()
    cursor = reader.cursor

    def slowly(after):
        schema, _ = writer.schemas.register(table_schema("orders"))
        writer.append(schema_piece(32, 0, schema))
        writer.append(transaction(32, schema_id=schema.id))
        writer.append(transaction(48, schema_id=schema.id))
        writer.sync()
        return cursor(after)

    monkeypatch.setattr(reader, "cursor", slowly)
    stream = Delivery(reader, Position(1, 32, 1), form=StreamForm("binary", Selection(("public.orders",))))
    assert commits(headers(stream.step().data)) == [48]
    stream.close()
