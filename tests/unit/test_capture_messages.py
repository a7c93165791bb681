"""The decoder of pgoutput, on captured, made and damaged bytes."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import pgoutput_bytes as made
from support.captured_pgoutput import ITEM, STREAM, WHOLE
from walbus.capture.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Origin,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    Type,
    Update,
    decode,
)
from walbus.errors import ProtocolError

DECODED = [decode(data) for _, data in STREAM]


def the(kind: type) -> list:
    return [message for message in DECODED if type(message) is kind]


def test_a_captured_stream_is_decoded_message_by_message():
    assert the(Begin)[0] == Begin(0x16FAEC0, the(Commit)[0].commit_time, 761)
    assert the(Commit)[0].end_lsn == 0x16FAEF0
    assert the(Type)[:2] == [Type(16385, "public", "mood"), Type(16390, "", "int4")]
    assert the(Origin) == [Origin(0, "elsewhere")]
    assert the(Truncate) == [Truncate((ITEM, WHOLE), cascade=True, restart_identity=True)]
    inside, outside = the(LogicalMessage)
    assert (inside.transactional, inside.prefix, inside.content) == (True, b"outbox", b"inside")
    assert (outside.transactional, outside.content) == (False, b"outside")


def test_a_captured_layout_has_names_types_and_identity():
    item, whole = (next(r for r in the(Relation) if r.oid == oid) for oid in (ITEM, WHOLE))
    assert (item.namespace, item.name, item.identity) == ("public", "item", "d")
    assert item.columns[:2] == (RelationColumn(True, "id", 23, -1), RelationColumn(False, "name", 1043, 24))
    assert whole.identity == "f"
    assert all(column.in_identity for column in whole.columns)


def test_captured_rows_tell_null_unchanged_and_not_sent_apart():
    lamp, bare = the(Insert)[:2]
    assert lamp.new.texts[:5] == [b"1", b"lamp", b"12.50", b"glad", b"3"]
    assert bare.new.texts == [b"2", None, None, None, None, b""]
    priced, moved, changed = the(Update)
    assert priced.new == Row([b"1", b"lamp", b"13.00", b"glad", b"3", None], (5,))
    assert (moved.old_key, moved.old) == (Row([b"2", None, None, None, None, None], ()), None)
    assert (changed.old_key, changed.old) == (None, Row([b"1", b"a"], ()))
    by_key, by_row = the(Delete)
    assert (by_key.old_key.texts[0], by_key.old) == (b"9", None)
    assert (by_row.old_key, by_row.old) == (None, Row([b"1", b"b"], ()))


def test_times_are_unix_microseconds():
    assert decode(made.begin(8, 1, 1_700_000_000_000_000)).commit_time == 1_700_000_000_000_000


def test_a_message_may_stand_behind_its_envelope():
    for kind, data in STREAM:
        assert decode(b"e" * 25 + data, 25) == decode(data), kind


@pytest.mark.parametrize("index", range(len(STREAM)), ids=lambda i: f"{i}-{STREAM[i].kind}")
def test_every_truncation_is_an_error_that_names_kind_and_offset(index):
    kind, data = STREAM[index]
    for length in range(1, len(data)) if len(data) < 1000 else (*range(1, 60), len(data) - 1):
        with pytest.raises(ProtocolError) as caught:
            decode(data[:length])
        assert caught.value.where is not None
        assert caught.value.where.startswith(f"message {kind!r}, offset ")


@pytest.mark.parametrize("index", range(len(STREAM)), ids=lambda i: f"{i}-{STREAM[i].kind}")
def test_a_byte_too_many_is_an_error(index):
    with pytest.raises(ProtocolError, match="left over"):
        decode(STREAM[index].data + b"\0")


@pytest.mark.parametrize("data", [b"", b"S123", b"\x00"])
def test_an_unknown_kind_is_an_error(data):
    with pytest.raises(ProtocolError, match="no known kind"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (made.insert(1, "a").replace(b"N", b"K", 1), "stands where 'N' belongs"),
        (made.insert(1, "a").replace(b"\x01t", b"\x01b"), "kind 'b' was not asked for"),
        (made.delete(1, key=["a"]).replace(b"K", b"N", 1), "stands where an old one belongs"),
        (made.relation(1, "a.b", [], identity="x"), "replica identity 'x'"),
        (made.type_(1, "a", "b").replace(b"a", b"\xff"), "not UTF-8"),
        (b"C\x01" + made.commit(8)[2:], "commit flags 1"),
    ],
)
def test_what_makes_no_sense_is_an_error(data, what):
    with pytest.raises(ProtocolError, match=what):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"T\xff\xff\xff\xff\x00" + b"\0" * 8,
        b"I\0\0\0\1N\xff\xff" + b"t\xff\xff\xff\xff" * 3,
        b"R\0\0\0\1a\0b\0d\xff\xff\x01c\0",
        b"M\0" + b"\0" * 8 + b"p\0\xff\xff\xff\xff",
    ],
)
def test_a_promise_of_gigabytes_allocates_nothing(data):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_noise_is_decoded_or_refused_and_never_crashes(data):
    with contextlib.suppress(ProtocolError):
        decode(data)


@given(st.data())
def test_a_damaged_message_is_decoded_or_refused_and_never_crashes(data):
    original = data.draw(st.sampled_from([m.data for m in STREAM if len(m.data) < 1000]))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(1, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except ProtocolError as error:
        assert error.where is not None


VALUES = st.lists(st.one_of(st.none(), st.binary(max_size=20), st.just(made.UNCHANGED)), min_size=1, max_size=12)


@given(st.integers(1, 2**32 - 1), VALUES, VALUES)
def test_what_was_written_is_what_is_read(oid, new, old):
    update = decode(made.update(oid, new, old=old))
    assert isinstance(update, Update)
    assert update.oid == oid
    assert update.new.texts == [v if isinstance(v, bytes) else None for v in new]
    assert update.new.unchanged == tuple(i for i, v in enumerate(new) if v is made.UNCHANGED)
    assert update.old is not None
    assert len(update.old.texts) == len(old)


def test_the_prefix_of_a_logical_message_is_text():
    with pytest.raises(ProtocolError, match="UTF-8"):
        decode(made.message(1, "prefix", b"", transactional=True).replace(b"prefix", b"pre\xffix"))
