"""A delivery over a log on disk: where it may end, and what its heartbeats say, in the middle of a transaction."""

from __future__ import annotations

import pytest

from support.relay_log import FileEngine, commits, piece, schema_piece, table_schema
from walbus.position import Position
from walbus.record_parser import RecordParser
from walbus.records import Flag, Kind
from walbus.relay.delivery import Bound, Delivery, StreamForm
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
