"""Messages of the Kafka engine: their marks, blocks of records, and records in parts."""

from __future__ import annotations

import itertools

import pytest

from walbus.errors import DamagedRecord, UnknownFormat
from walbus.position import Position
from walbus.relay.kafka.mark import REFERENCE, Mark, pack_mark, parse_mark, parse_range
from walbus.relay.kafka.messages import Blocks, Records, reference
from walbus.relay.sequence import Place
from walbus.relay.tip import Tip


def place(number: int, offset: int = 0) -> Place:
    return Place(offset, Tip(Position(1, number * 16, 2), number * 16 + 8, number, -number, number % 5), number * 1000)


def records(number: int, size: int) -> Records:
    return Records(bytes([number % 256]) * size, place(number), place(number + 1))


def test_a_mark_is_read_as_it_was_written():
    mark = Mark(place(1, 5), place(2, 1 << 40), False, REFERENCE, 3, 9, (1 << 63) - 1, 7, 11, 1 << 50)
    assert parse_mark(pack_mark(mark), "here") == mark


@pytest.mark.parametrize("data", [None, b"", pack_mark(Mark(place(1), place(2)))[:-1]])
def test_a_message_without_a_mark_is_none_of_the_logs(data):
    with pytest.raises(DamagedRecord, match="offset 5"):
        parse_mark(data, "topic t, offset 5")


def test_a_mark_of_another_version_is_refused():
    with pytest.raises(UnknownFormat, match="version 9"):
        parse_mark(b"\x09" + pack_mark(Mark(place(1), place(2)))[1:], "here")


def test_small_transactions_share_a_message_up_to_a_blocks_size():
    blocks = Blocks(100, 1000)
    made = [message for i in range(10) for message in blocks.add([records(i, 30)])]
    made += blocks.flush()
    assert [len(message.value) for message in made] == [120, 120, 60]
    assert all(a.mark.behind == b.mark.before for a, b in itertools.pairwise(made))
    assert all(message.mark.whole for message in made)
    assert not list(blocks.flush())


def test_a_transaction_of_several_messages_begins_one_of_its_own():
    blocks = Blocks(100, 1000)
    made = list(blocks.add([records(1, 30)]))
    made += blocks.add([records(2, 60), records(3, 60), records(4, 60)])
    made += blocks.flush()
    assert [(len(m.value), m.mark.whole) for m in made] == [(30, True), (120, True), (60, False)]


def test_records_that_are_larger_than_a_message_go_in_parts_under_one_mark():
    blocks = Blocks(100, 1000)
    made = [*blocks.add([records(1, 30)]), *blocks.add([records(2, 2500)]), *blocks.flush()]
    assert [(len(m.value), m.mark.part, m.mark.parts) for m in made] == [
        (30, 0, 1),
        (1000, 0, 3),
        (1000, 1, 3),
        (500, 2, 3),
    ]
    assert b"".join(m.value for m in made[1:]) == records(2, 2500).data
    assert {(m.mark.before, m.mark.behind) for m in made[1:]} == {(place(2), place(3))}


def test_no_message_is_larger_than_the_limit():
    blocks = Blocks(1000, 1000)
    sizes = [i * 37 % 990 for i in range(1, 200)]
    made = [message for i, size in enumerate(sizes) for message in blocks.add([records(i, size)])]
    made += blocks.flush()
    assert max(len(message.value) for message in made) <= 1000
    assert b"".join(m.value for m in made) == b"".join(records(i, size).data for i, size in enumerate(sizes))


def test_a_reference_names_the_offsets_of_a_large_transaction():
    message = reference(place(1), place(2), 10, 99, 5)
    assert parse_range(message.value, "here") == (10, 99)
    assert (message.mark.form, message.mark.attempt, message.mark.large) == (REFERENCE, 5, 10)
    with pytest.raises(DamagedRecord):
        parse_range(b"short", "here")
