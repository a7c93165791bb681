"""One suite for every sink that members of a group can write: what a holder of before does late changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, update
from support.sink_writing import MARKS, windows
from support.sinks_under_test import SinkUnderTest, postgres_under_test, redis_under_test
from walbus.consumers.checkpoint import Following, Marks, Part, Point
from walbus.consumers.partitions import GroupPart
from walbus.consumers.sinks import Sink, open_fenced_sink
from walbus.consumers.sinks.taking_over import FencedSink
from walbus.consumers.steps import Sweep
from walbus.errors import PartLost, SinkRefused, SinkUnavailable, UsageError
from walbus.position import ORIGIN, Position

pytestmark = pytest.mark.one_version

LEASE = 15.0
EARLIER, LATER, LATEST = Part("3/8", 1000), Part("3/8", 2000), Part("3/8", 3000)


@pytest.fixture(params=["postgres", "redis hash", "redis json", "redis string", "redis expiring", "redis pointer"])
def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> SinkUnderTest:
    """Redis: the rows of all parts lie together, but where there is a pointer."""
    if request.param == "postgres":
        return postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
    form = request.param.partition(" ")[2]
    url = request.getfixturevalue("redis_url")
    if form == "pointer":
        under_test = redis_under_test(tmp_path, url, "hash", pointer="items:live")
    else:
        under_test = redis_under_test(tmp_path, url, form)
    part = GroupPart("3/8", together=form != "pointer")
    return replace(under_test, place=replace(under_test.place, part=part))


@pytest.fixture
def opened(under_test: SinkUnderTest) -> Iterator[Callable[[], FencedSink]]:
    """Opens it for one more process."""
    sinks: list[FencedSink] = []

    def another() -> FencedSink:
        sinks.append(open_fenced_sink(under_test.name, under_test.options, under_test.place))
        return sinks[-1]

    yield another
    for sink in sinks:
        sink.close()


@pytest.fixture
def source() -> ModelSource:
    source = ModelSource()
    source.commit([insert(ITEMS, 1, "one"), insert(ITEMS, 2, "two")])
    return source


def place_of(source: ModelSource, part: Part) -> Following:
    return Following(source.log_id, MARKS, Point(source.end, source.last_seq), part=part)


def stored_text(under_test: SinkUnderTest, request: pytest.FixtureRequest) -> str | None:
    """What the sink has of its checkpoint."""
    if under_test.name == "postgres":
        return str(request.getfixturevalue("target_database").value("SELECT checkpoint FROM _walbus.checkpoints"))
    with redis.Redis.from_url(under_test.options["url"], decode_responses=True) as client:
        return client.get("walbus:test:checkpoint")


def store_text(under_test: SinkUnderTest, request: pytest.FixtureRequest, text: str | None) -> None:
    """Puts another one there; None: it is gone."""
    if under_test.name == "postgres":
        request.getfixturevalue("target_database").execute("UPDATE _walbus.checkpoints SET checkpoint = %s", [text])
        return
    with redis.Redis.from_url(under_test.options["url"]) as client:
        client.delete("walbus:test:checkpoint") if text is None else client.set("walbus:test:checkpoint", text)


def put(sink: Sink, source: ModelSource, part: Part, after: Position = ORIGIN) -> None:
    sink.write(windows(source, after), MARKS)
    sink.commit(place_of(source, part))


def handed_on(opened: Callable[[], FencedSink], source: ModelSource) -> tuple[FencedSink, FencedSink]:
    """Who had the part, and has written it, and its later holder."""
    first, second = opened(), opened()
    first.take_over(EARLIER, LEASE)
    put(first, source, EARLIER)
    second.take_over(LATER, LEASE)
    return first, second


def test_a_later_holder_goes_on_where_the_one_before_was(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, second = opened(), opened()
    assert first.take_over(EARLIER, LEASE) is None
    put(first, source, EARLIER)
    before = source.end
    assert second.take_over(LATER, LEASE) == place_of(source, LATER)
    source.commit([update(ITEMS, 1, name="uno"), delete(ITEMS, 2)])
    put(second, source, LATER, before)
    assert under_test.rows() == source.rows()


def test_what_a_holder_of_before_writes_late_is_refused(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, second = handed_on(opened, source)
    before, rows = source.end, under_test.rows()
    source.commit([update(ITEMS, 1, name="late"), delete(ITEMS, 2)])
    with pytest.raises(PartLost, match="part 3/8"):
        put(first, source, EARLIER, before)
    first.rollback()
    assert under_test.rows() == rows
    put(second, source, LATER, before)
    assert under_test.rows() == source.rows()


def test_a_part_without_a_checkpoint_is_taken_over_all_the_same(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, second = opened(), opened()
    assert first.take_over(EARLIER, LEASE) is None
    assert second.take_over(LATER, LEASE) is None
    with pytest.raises(PartLost):
        put(first, source, EARLIER)
    first.rollback()
    assert under_test.rows() == {}
    assert second.take_over(LATER, LEASE) is None


def test_a_sweep_of_a_holder_of_before_deletes_nothing(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, _ = handed_on(opened, source)
    with pytest.raises(PartLost):
        first.sweep(Sweep(ITEMS, source.last_seq, Marks(2, 1), place_of(source, EARLIER)))
        first.commit(place_of(source, EARLIER))
    first.rollback()
    assert under_test.rows() == source.rows()


def test_columns_that_a_holder_of_before_meets_late_change_no_table(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, _ = handed_on(opened, source)
    before, rows = source.end, under_test.rows()
    columns = (column("id", 23, "int4", in_key=True), column("name"), column("body"), column("more"))
    source.add_layout(items_layout("items", *columns, schema_id=2))
    source.commit([update(ITEMS, 1, name="late", body="b", more="m")])
    with pytest.raises(PartLost):
        put(first, source, EARLIER, before)
    first.rollback()
    assert under_test.rows() == rows
    third = opened()
    third.take_over(LATEST, LEASE)
    put(third, source, LATEST, before)
    told = under_test.rows()
    if under_test.options.get("format") == "string":  # whose template has no such column
        assert told["1"]["name"] == "late"
        return
    assert (told["1"]["name"], told["1"]["more"], told["2"]["name"]) == ("late", "m", "two")


def test_an_earlier_holder_cannot_take_the_part_back(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, second = opened(), opened()
    second.take_over(LATER, LEASE)
    with pytest.raises(PartLost):
        first.take_over(EARLIER, LEASE)
    put(second, source, LATER)  # nothing of the first one keeps it up
    with pytest.raises(PartLost):
        first.take_over(EARLIER, LEASE)
    assert opened().take_over(LATEST, LEASE) == place_of(source, LATEST)


def test_one_that_rolls_back_and_takes_its_part_over_again_goes_on(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    sink = opened()
    sink.take_over(EARLIER, LEASE)
    put(sink, source, EARLIER)
    before = source.end
    source.commit([update(ITEMS, 1, name="uno")])
    sink.write(windows(source, before), MARKS)
    sink.rollback()
    assert sink.take_over(EARLIER, LEASE) == Following(
        source.log_id, MARKS, Point(before, source.last_seq - 1), part=EARLIER
    )
    put(sink, source, EARLIER, before)
    assert under_test.rows() == source.rows()


def test_a_take_over_that_the_server_has_lost_is_made_once_more(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource, request: pytest.FixtureRequest
) -> None:
    """A failover to a standby that lacks it, behind a pooler that keeps the connection."""
    first, second = opened(), opened()
    first.take_over(EARLIER, LEASE)
    put(first, source, EARLIER)
    before, text = source.end, stored_text(under_test, request)
    source.commit([update(ITEMS, 1, name="uno", body="b")])
    for lost in (text, None):
        second.take_over(LATER, LEASE)
        store_text(under_test, request, lost)
        with pytest.raises(
            SinkUnavailable, match=r"has lost (commits|writes|the consumer's checkpoint)|came back empty"
        ):
            put(second, source, LATER, before)
        second.rollback()
        assert second.take_over(LATER, LEASE) == (lost and replace(place_of(source, LATER), point=Point(before, 2)))
        put(second, source, LATER, before if lost else ORIGIN)
        assert under_test.rows() == source.rows()
        first.rollback()


def test_a_take_over_of_what_is_no_checkpoint_leaves_the_row_to_others(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, request: pytest.FixtureRequest
) -> None:
    sink = opened()
    store_text(under_test, request, "garbage")
    with pytest.raises(SinkRefused, match="not a checkpoint"):
        sink.take_over(EARLIER, LEASE)
    if under_test.name == "postgres":
        request.getfixturevalue("target_database").execute(
            "SELECT checkpoint FROM _walbus.checkpoints FOR UPDATE NOWAIT"
        )


def test_a_checkpoint_of_another_part_is_refused(opened: Callable[[], FencedSink], source: ModelSource) -> None:
    sink = opened()
    sink.take_over(EARLIER, LEASE)
    put(sink, source, EARLIER)
    with pytest.raises(UsageError, match="part 3/8"):
        opened().take_over(Part("4/8", 2000), LEASE)


def test_a_part_of_a_process_without_a_group_is_taken_over(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    alone = replace(under_test, place=replace(under_test.place, part=None)).open()
    put(alone, source, Part("3/8"))
    sink = opened()
    assert sink.take_over(EARLIER, LEASE) == place_of(source, EARLIER)
    with pytest.raises(SinkRefused):
        put(alone, source, Part("3/8"))
    alone.close()


def test_a_sink_that_came_back_empty_is_taken_over_again(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource, request: pytest.FixtureRequest
) -> None:
    sink = opened()
    sink.take_over(EARLIER, LEASE)
    put(sink, source, EARLIER)
    if under_test.name == "redis":
        with redis.Redis.from_url(under_test.options["url"]) as client:
            client.flushall()
    else:
        database = request.getfixturevalue("target_database")
        database.execute("DROP SCHEMA _walbus CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with pytest.raises((SinkUnavailable, SinkRefused)):
        put(sink, source, EARLIER)
    sink.rollback()
    assert sink.take_over(EARLIER, LEASE) is None
    put(sink, source, EARLIER)
    assert under_test.rows() == source.rows()
    assert opened().take_over(LATER, LEASE) == replace(place_of(source, EARLIER), part=LATER)


def test_two_members_under_one_token_do_not_both_commit(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    """No relay gives one twice; two copies of one machine may ask as one member."""
    one, two = opened(), opened()
    one.take_over(EARLIER, LEASE)
    two.take_over(EARLIER, LEASE)
    put(one, source, EARLIER)
    before = source.end
    source.commit([update(ITEMS, 1, name="one's"), delete(ITEMS, 2)])
    put(one, source, EARLIER, before)
    rows = under_test.rows()
    with pytest.raises(SinkUnavailable):
        put(two, source, EARLIER)
    two.rollback()
    assert under_test.rows() == rows == source.rows()


def test_a_row_that_came_late_and_lacks_a_value_is_noted_by_nobody_but_the_holder(
    opened: Callable[[], FencedSink], under_test: SinkUnderTest, source: ModelSource
) -> None:
    first, second = opened(), opened()
    first.take_over(EARLIER, LEASE)
    put(first, source, EARLIER)
    before = source.end
    source.commit([update(ITEMS, 2, name="without its body")])
    late = windows(source, before)
    source.commit([delete(ITEMS, 2)])
    second.take_over(LATER, LEASE)
    put(second, source, LATER, before)
    with pytest.raises(PartLost):
        first.write(late, MARKS)
        first.commit(place_of(source, EARLIER))
    first.rollback()
    third = opened()
    third.take_over(LATEST, LEASE)
    assert third.incomplete() == ()
    assert under_test.rows() == source.rows()
