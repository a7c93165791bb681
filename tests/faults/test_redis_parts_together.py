"""The parts of a group whose rows lie under one layout of keys: each part's sink leaves the others' rows alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from support.model_source import ITEMS, Edit, ModelSource, delete, insert, items_layout, truncate, update
from support.seed import announced_seed
from support.sink_writing import MARKS
from support.sinks_under_test import SinkUnderTest, redis_under_test
from walbus.consumers.checkpoint import Following, Marks, Part, Point
from walbus.consumers.partitions import GroupPart
from walbus.consumers.sinks import open_fenced_sink
from walbus.consumers.sinks.base import HeldRow, ReadableSink
from walbus.consumers.sinks.redis_parts import RowsOfPart
from walbus.consumers.sinks.taking_over import FencedSink
from walbus.consumers.steps import Sweep
from walbus.events import Window, window_of
from walbus.keys import encode_key
from walbus.native.pure_filter import RecordFilter
from walbus.native.reading import ALL_TABLES, Partition
from walbus.position import ORIGIN, Position
from walbus.records import RecordHeader, read_header
from walbus.schema import TableSchema

pytestmark = pytest.mark.one_version

COUNT = 3
THINGS = "public.things"


class _Everything:
    """What a stream of all tables, and all of their columns, asks the relay for."""

    bits = ALL_TABLES
    everything = True

    def learn(self) -> None:
        """The layouts stay."""

    def wants_change(self, op: int, table: int, schema_id: int) -> bool:
        return True

    def left_out(self, schema_id: int) -> tuple[TableSchema, int]:
        raise AssertionError(schema_id)


class Parts:
    """The sinks of all parts, and how far each is."""

    def __init__(self, under_test: SinkUnderTest, source: ModelSource, stack: ExitStack) -> None:
        self._source = source
        self.done = [ORIGIN] * COUNT
        self.sinks: list[FencedSink] = []
        for index in range(COUNT):
            part = GroupPart(f"{index}/{COUNT}", together=True)
            place = replace(under_test.place, consumer=f"test.{part.word}", part=part)
            sink = stack.enter_context(closing(open_fenced_sink("redis", under_test.options, place)))
            assert sink.take_over(Part(part.partition, 1000), 15.0) is None
            self.sinks.append(sink)

    def windows(self, index: int, records: Any, after: Position = ORIGIN) -> list[Window]:
        """What the relay, or a bootstrap, would send a part of records."""
        chosen = RecordFilter(_Everything(), _Everything(), Partition(index, COUNT))
        found = []
        for header, record in records:
            kept = chosen.filter(header, record)
            if kept:
                found.append(window_of(read_header(kept), kept, self._source.layouts.__getitem__, after=after))
        return found

    def take(self, *indexes: int, count: int | None = None) -> None:
        """Some parts take what they have not yet, or so many records of it; each commits."""
        for index in indexes or range(COUNT):
            records: list[tuple[RecordHeader, bytes]] = list(self._source.after(self.done[index]))[:count]
            if records:
                self.sinks[index].write(self.windows(index, records, self.done[index]), MARKS)
                self.done[index] = records[-1][0].last
            self.sinks[index].commit(self.place(index, MARKS))

    def place(self, index: int, marks: Marks) -> Following:
        point = Point(self.done[index], self._source.last_seq)
        return Following(self._source.log_id, marks, point, part=Part(f"{index}/{COUNT}", 1000))

    def held(self) -> list[HeldRow]:
        """The rows of all parts, as each is read back."""
        assert all(isinstance(sink, ReadableSink) for sink in self.sinks)
        return [row for sink in self.sinks for row in sink.held(ITEMS)]  # type: ignore[attr-defined]


def ids_of(index: int, count: int, start: int = 0) -> list[int]:
    """Ids whose keys are of a part."""
    part = RowsOfPart(GroupPart(f"{index}/{COUNT}", together=True))
    chosen = (id for id in range(start, 10_000) if part.has(encode_key([b"%d" % id], [23])))
    return [next(chosen) for _ in range(count)]


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource()
    source.commit([insert(ITEMS, n, f"n{n}") for n in range(30)])
    return source


@pytest.fixture(params=["hash", "json", "string", "expiring"])
def under_test(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> SinkUnderTest:
    return redis_under_test(tmp_path, redis_url, request.param)


@pytest.fixture
def parts(under_test: SinkUnderTest, source: ModelSource) -> Iterator[Parts]:
    with ExitStack() as stack:
        yield Parts(under_test, source, stack)


def test_rows_of_all_parts_lie_under_the_keys_of_a_sink_without_parts(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    parts.take()
    assert under_test.rows() == source.rows()
    keys = {key for key in client.scan_iter() if not key.startswith("walbus:")}
    assert keys == {f"{ITEMS}:{n}" for n in range(30)}


def test_parts_that_are_at_different_places_come_to_the_rows_of_the_source(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource
) -> None:
    dice = random.Random(announced_seed("parts together"))
    for turn in range(120):
        there = [int(id) for id in source.rows()]
        edit: Edit
        match dice.randrange(12):
            case 0:
                edit = truncate(ITEMS)
            case 1 | 2 if there:
                edit = delete(ITEMS, dice.choice(there))
            case 3 | 4 | 5 if there:
                edit = update(ITEMS, dice.choice(there), name=f"t{turn}")
            case 6 | 7 if there and (free := [n for n in range(40) if n not in there]):
                edit = update(ITEMS, dice.choice(there), new_id=dice.choice(free), name=f"m{turn}", body=f"b{turn}")
            case _:
                free = [n for n in range(40) if n not in there]
                edit = insert(ITEMS, dice.choice(free), f"i{turn}") if free else delete(ITEMS, dice.choice(there))
        source.commit([edit])
        if dice.random() < 0.5:
            parts.take(dice.randrange(COUNT), count=dice.randrange(1, 8))
    parts.take()
    assert under_test.rows() == source.rows()
    assert [sink.incomplete() for sink in parts.sinks] == [()] * COUNT


def test_a_row_that_leaves_a_part_is_deleted_by_that_part_alone(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource
) -> None:
    """The part that it goes to comes late, and the old key has another row by then."""
    [old], [new] = ids_of(0, 1), ids_of(1, 1, start=100)
    source.commit([update(ITEMS, old, new_id=new, name="moved", body="b")])
    source.commit([insert(ITEMS, old, "another one")])
    parts.take(0)
    parts.take(1, 2)
    assert under_test.rows() == source.rows()


def test_a_sweep_deletes_ghosts_of_its_own_part_alone(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource
) -> None:
    parts.take()
    ghost, kept = ids_of(0, 2)
    now = ModelSource(first_seq=1000)
    now.commit([insert(ITEMS, kept, "kept")])
    marks = Marks(2, 1)
    place = parts.place(0, marks)
    parts.sinks[0].write(parts.windows(0, now.snapshot(ITEMS, None)), marks)
    parts.sinks[0].sweep(Sweep(ITEMS, now.last_seq, marks, place))
    parts.sinks[0].commit(place)
    others = {id: row for id, row in source.rows().items() if int(id) not in ids_of(0, 15)}
    assert str(ghost) not in under_test.rows()
    assert under_test.rows() == {**others, str(kept): now.rows()[str(kept)]}


def test_a_truncate_and_another_name_are_each_parts_own(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource
) -> None:
    parts.take()
    before = source.rows()
    first = set(map(str, ids_of(0, 15))) & before.keys()
    source.commit([truncate(ITEMS)])
    source.commit([insert(ITEMS, n, "again") for n in range(30)])
    parts.take(0, count=1)
    assert under_test.rows() == {id: row for id, row in before.items() if id not in first}
    parts.take()
    assert under_test.rows() == source.rows()
    source.add_layout(items_layout("things"))
    source.commit([update(THINGS, n, name="x", body="y") for n in range(30)])
    parts.take(0)
    assert under_test.rows(THINGS).keys() == first
    assert under_test.rows().keys() == before.keys() - first
    parts.take()
    assert under_test.rows(THINGS) == source.rows(THINGS)
    assert under_test.rows() == {}


def test_what_other_parts_have_for_themselves_is_no_row(
    redis_url: str, tmp_path: Path, source: ModelSource, client: redis.Redis
) -> None:
    """Under such keys the version of a text looks like a row of the table."""
    under_test = redis_under_test(tmp_path, redis_url, "json", key="{key}:{table}")
    with ExitStack() as stack:
        parts = Parts(under_test, source, stack)
        parts.take()
        assert client.exists(f"walbus:test.{GroupPart(f'0/{COUNT}', together=True).word}:v:{ids_of(0, 1)[0]}:{ITEMS}")
        assert sorted(row.key for row in parts.held()) == sorted((str(n),) for n in range(30))
        source.commit([truncate(ITEMS)])
        parts.take()
    assert not list(client.scan_iter(match=f"[0-9]*:{ITEMS}"))


def test_each_row_is_read_back_by_one_part_and_so_is_what_nobody_wrote(
    parts: Parts, under_test: SinkUnderTest, source: ModelSource, client: redis.Redis
) -> None:
    parts.take()
    assert sorted(row.key for row in parts.held()) == sorted((str(n),) for n in range(30))
    assert all(row.seq is not None for row in parts.held())
    for key in (f"{ITEMS}:1", f"{ITEMS}:2"):
        client.delete(key, *(f"walbus:test.{index}-of-{COUNT}:v:{key}" for index in range(COUNT)))
    client.rpush(f"{ITEMS}:1", "by hand")
    client.set(f"{ITEMS}:no number", "by hand")
    foreign = [row.key for row in parts.held() if row.seq is None]
    assert sorted(foreign) == [("1",), ("no number",)]
    assert len(parts.held()) == 30
