"""What every engine of the relay log promises of places: where reading begins for a position, a time or a seq."""

from __future__ import annotations

import pytest

from support.relay_log import (
    BASE_TIME,
    fill,
    progress,
    read_all,
    schema_piece,
    table_schema,
    transaction,
)
from walbus.errors import PositionTrimmed, PositionUnknown
from walbus.position import ORIGIN, Position
from walbus.records import Kind


def test_a_cursor_begins_behind_its_position_wherever_that_is(engine):
    writer = engine.open_writer()
    fill(writer, 1000, size=300)
    reader = engine.open_reader()
    for lsn in (16, 1600, 8000, 15984):
        headers = read_all(reader, Position(1, lsn, 2))
        assert headers[0].commit_lsn == lsn + 16
        assert len(headers) == 1000 - lsn // 16
    assert read_all(reader, writer.bounds().end) == []


def test_a_cursor_inside_a_record_begins_with_that_record(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    assert read_all(engine.open_reader(), Position(1, 32, 1))[0].first == Position(1, 32, 1)


def test_a_schema_record_at_the_position_itself_is_not_missed(engine):
    writer = engine.open_writer()
    fill(writer, 1)
    schema, _ = writer.schemas.register(table_schema())
    writer.append(schema_piece(16, 2, schema))
    writer.sync()
    assert [h.kind for h in read_all(engine.open_reader(), Position(1, 16, 2))] == [Kind.SCHEMA]


def test_positions_past_the_end_are_refused(engine):
    writer = engine.open_writer()
    fill(writer, 10)
    with pytest.raises(PositionUnknown):
        engine.open_reader().cursor(Position(1, 161, 0))


def test_a_time_leads_to_the_first_transaction_that_is_late_enough(engine):
    writer = engine.open_writer()
    times = [10, 20, 30, 25, 40, 35, 50]
    for i, at in enumerate(times, 1):
        writer.append(transaction(i * 16, time=at * 1_000_000))
    writer.sync()
    reader = engine.open_reader()
    assert reader.position_at(0) == ORIGIN
    assert reader.position_at(26) == Position(1, 32, 1)
    assert reader.position_at(40) == Position(1, 64, 1)
    assert reader.position_at(51) == Position(1, 112, 1)


def test_a_time_is_found_in_a_log_of_many_segments(engine):
    writer = engine.open_writer()
    fill(writer, 2000, size=300)
    reader = engine.open_reader()
    for lsn in (16, 3200, 20000, 32000):
        found = reader.position_at((BASE_TIME + lsn) / 1e6)
        assert found in (Position(1, lsn - 16, 2), ORIGIN)


def test_a_seq_leads_to_its_very_change(engine):
    writer = engine.open_writer()
    schema, _ = writer.schemas.register(table_schema())
    writer.append(progress(8))
    for i in range(1, 700):
        if i % 100 == 0:
            writer.append(schema_piece(i * 16 - 16, 3, schema))
        writer.append(transaction(i * 16, 3, size=300))
    writer.sync()
    engine.kill(writer)
    again = engine.open_writer()  # its seqs begin at the clock: a gap
    again.append(transaction(700 * 16, 3))
    bounds = again.sync()
    reader = engine.open_reader()
    headers = [header for header in read_all(reader) if header.kind == Kind.TRANSACTION]
    last = Position(1, 8, 0)
    for i, header in enumerate(headers):
        for seq in range(header.first_seq, header.last_seq + 1) if i % 37 == 0 or i > 697 else ():
            found = reader.position_at_seq(seq)
            assert found in (last, header.first._replace(ordinal=seq - header.first_seq)), seq
            wanted = next(h for h in read_all(reader, found) if h.kind == Kind.TRANSACTION)
            assert wanted == header
        last = header.last
    assert reader.position_at_seq(0) == ORIGIN
    assert reader.position_at_seq(headers[0].first_seq - 1) == Position(1, 8, 0)
    assert reader.position_at_seq(headers[-1].first_seq - 1) == headers[-2].last  # in the gap
    assert reader.position_at_seq(bounds.last_seq + 1) == bounds.end
    with pytest.raises(PositionUnknown, match="seq"):
        reader.position_at_seq(bounds.last_seq + 2)


def test_a_seq_that_was_trimmed_is_refused(engine):
    writer = engine.open_writer()
    fill(writer, 2000, size=300)
    first = read_all(engine.open_reader())[0].first_seq
    reader = engine.open_reader()
    assert reader.position_at_seq(first - 1) == ORIGIN
    trimmed = writer.trim((BASE_TIME + 16000) / 1e6 + 3600)
    held = read_all(reader, trimmed)[0]
    assert reader.position_at_seq(held.first_seq) == trimmed
    for seq in (first, held.first_seq - 1):
        with pytest.raises(PositionTrimmed, match=f"seq {seq}"):
            reader.position_at_seq(seq)
