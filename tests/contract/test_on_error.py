"""`on_error` over every sink that can refuse a row: what is set aside, and what a crash at any step leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import redis

from support.model_source import ITEMS, Edit, ModelSource, insert, truncate, update
from support.sinks_under_test import (
    SinkUnderTest,
    opensearch_under_test,
    postgres_under_test,
    redis_under_test,
    sqlite_under_test,
)
from walbus.consumers.checkpoint import Following, Marks, Point
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.refused_rows import row_of
from walbus.consumers.sifted_sink import Rewound, SiftedSink
from walbus.events import window_of
from walbus.position import ORIGIN

pytestmark = pytest.mark.one_version

MARKS = Marks(1, 1)
POISON = "no number, and long"
KINDS = [
    "sqlite",
    "postgres",
    "redis-hash",
    "redis-json",
    "redis-string",
    "redis-expiring",
    "opensearch",
    "elasticsearch",
]


@dataclass(frozen=True)
class Choosy:
    """A sink that refuses the name POISON, or rows that were announced, until it is mended; some cannot be."""

    under_test: SinkUnderTest
    begin: Callable[[], object] = lambda: None  #: once the table is there
    announce: Callable[[int], object] = lambda _: None
    mend: Callable[[], object] | None = None


@pytest.fixture(params=KINDS)
def choosy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Choosy]:
    kind, _, form = request.param.partition("-")
    if kind == "sqlite":
        under_test = sqlite_under_test(tmp_path)
        with closing(sqlite3.connect(under_test.options["path"], timeout=20, isolation_level=None)) as database:
            yield Choosy(
                under_test,
                lambda: database.execute(
                    "CREATE TRIGGER short BEFORE INSERT ON items WHEN length(NEW.name) > 9"
                    " BEGIN SELECT RAISE(ABORT, 'too long'); END"
                ),
                mend=lambda: database.execute("DROP TRIGGER short"),
            )
    elif kind == "postgres":
        under_test = postgres_under_test(tmp_path, request.getfixturevalue("target_database").dsn)
        with psycopg.connect(under_test.options["dsn"], autocommit=True) as connection:
            yield Choosy(
                under_test,
                lambda: connection.execute("ALTER TABLE public.items ADD CONSTRAINT short CHECK (length(name) < 10)"),
                mend=lambda: connection.execute("ALTER TABLE public.items DROP CONSTRAINT short"),
            )
    elif kind == "redis":
        url, ids = request.getfixturevalue("redis_url"), list[str]()
        with redis.Redis.from_url(url) as client:

            def announce(id: int) -> None:
                ids.append(f"walbus:test:v:{ITEMS}:{id}")
                client.rpush(ids[-1], "a list")

            yield Choosy(redis_under_test(tmp_path, url, form), announce=announce, mend=lambda: client.delete(*ids))
    else:
        url, fields = request.getfixturevalue(f"{kind}_url"), {ITEMS: {"name": {"type": "integer"}}}
        yield Choosy(opensearch_under_test(tmp_path, url, fields=fields))


class Crash(BaseException):
    """The process is gone."""


class Steps:
    """Calls of a sink and of its letters, before or behind one of which the process ends."""

    def __init__(self, last: int) -> None:
        self._left = last

    def of(self, calls: object, *names: str) -> Any:
        steps = self

        class Counted:
            def __getattr__(self, name: str) -> Any:
                found = getattr(calls, name)
                return steps._counted(found) if name in names else found

            def __len__(self) -> int:
                return len(calls)  # type: ignore[arg-type]

        return Counted()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._step()
            given = call(*arguments, **named)
            self._step()
            return given

        return counted

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Crash


_WRITES = ("park", "park_behind", "resolved", "truncating", "committed", "settle")


class Consumer:
    """A sink with its letters, which may crash; what it has read again comes from the source."""

    def __init__(self, choosy: Choosy, source: ModelSource, folder: Path, *, parks: bool = True) -> None:
        self.under_test, self._source = choosy.under_test, source
        self._path, self._parks = folder / "letters.sqlite", parks
        self.skipped = 0

    @contextmanager
    def opened(self, last: int = 0) -> Iterator[SiftedSink]:
        """One process, which ends at a step."""
        steps = Steps(last)
        sink, letters = self.under_test.open(), DeadLetters(self._path) if self._parks else None
        told = None if letters is None else steps.of(letters, *_WRITES)
        sifted = SiftedSink(steps.of(sink, "write", "commit"), row_of, told, 2, "test", lambda: 0.0)
        sifted.log_id = lambda: self._source.log_id
        try:
            yield sifted
        except Crash:
            pass
        finally:
            self.skipped += sifted.skipped
            sink.close()
            if letters is not None:
                letters.close()

    def catch_up(self, last: int = 0) -> None:
        with self.opened(last) as sifted:
            while True:
                checkpoint = cast("Following | None", sifted.checkpoint())
                after = ORIGIN if checkpoint is None else checkpoint.point.last_done
                windows = [
                    window_of(h, r, self._source.layouts.__getitem__, after=after) for h, r in self._source.after(after)
                ]
                try:
                    sifted.write(windows, MARKS)
                    last_done = Point(self._source.end, self._source.last_seq)
                    sifted.commit(Following(self._source.log_id, MARKS, last_done))
                    break
                except Rewound:
                    sifted.rollback()

    def try_letters(self, last: int = 0) -> None:
        with closing(DeadLetters(self._path)) as operator:
            operator.retry()
        with self.opened(last) as sifted:
            sifted.checkpoint()
            sifted.try_letters()

    def letters(self) -> list[tuple[int, str]]:
        with closing(DeadLetters(self._path)) as operator:
            found = sorted(operator.letters(), key=lambda letter: letter.change.seq)
            return [(int((letter.change.key or {})["id"]), letter.error) for letter in found]


def begin(choosy: Choosy, consumer: Consumer, source: ModelSource) -> None:
    source.commit([insert(ITEMS, n, str(n)) for n in range(5)])
    consumer.catch_up()
    choosy.begin()


def poison(choosy: Choosy, id: int) -> Edit:
    choosy.announce(id)
    return insert(ITEMS, id, POISON)


def without(source: ModelSource, *ids: int) -> dict[str, Any]:
    return {id: row for id, row in source.rows().items() if int(id) not in ids}


def test_refused_rows_are_parked_with_what_follows_and_all_others_are_there(
    choosy: Choosy, source: ModelSource, tmp_path: Path
) -> None:
    consumer = Consumer(choosy, source, tmp_path)
    begin(choosy, consumer, source)
    source.commit(
        [update(ITEMS, 1, name="11", body="b"), poison(choosy, 50), insert(ITEMS, 6, "6"), poison(choosy, 51)]
    )
    consumer.catch_up()
    source.commit([update(ITEMS, 50, name="5050", body="b"), insert(ITEMS, 7, "7")])
    consumer.catch_up()
    assert choosy.under_test.rows() == without(source, 50, 51)
    assert consumer.letters() == [(50, "RowRefused"), (51, "RowRefused"), (50, "behind")]
    consumer.try_letters()
    assert len(consumer.letters()) == 3, "nothing was mended"
    if choosy.mend is not None:
        choosy.mend()
        consumer.try_letters()
        assert consumer.letters() == []
        assert choosy.under_test.rows() == source.rows()


def test_a_letter_behind_one_that_is_to_move_its_row_is_not_tried_before_it(
    choosy: Choosy, source: ModelSource, tmp_path: Path
) -> None:
    consumer = Consumer(choosy, source, tmp_path)
    begin(choosy, consumer, source)
    source.commit([poison(choosy, 50)])
    consumer.catch_up()
    source.commit([update(ITEMS, 50, new_id=60, name="60", body="b")])
    source.commit([update(ITEMS, 60, name="6060", body="b")])
    consumer.catch_up()
    consumer.try_letters()
    assert consumer.letters() == [(50, "RowRefused"), (60, "behind"), (60, "behind")]
    assert choosy.under_test.rows() == without(source, 60)


def test_refused_rows_are_skipped_and_what_follows_is_there(
    choosy: Choosy, source: ModelSource, tmp_path: Path
) -> None:
    consumer = Consumer(choosy, source, tmp_path, parks=False)
    begin(choosy, consumer, source)
    source.commit([poison(choosy, 50), insert(ITEMS, 6, "6"), poison(choosy, 51)])
    consumer.catch_up()
    assert choosy.under_test.rows() == without(source, 50, 51)
    assert consumer.skipped == 2
    if choosy.mend is not None:
        choosy.mend()
    source.commit([update(ITEMS, 50, name="50", body="b"), update(ITEMS, 51, name="51", body="b")])
    if choosy.mend is not None or choosy.under_test.name == "opensearch":
        consumer.catch_up()
        assert choosy.under_test.rows() == source.rows()


def test_a_crash_at_any_step_between_a_letter_and_its_commit_loses_and_repeats_nothing(
    choosy: Choosy, source: ModelSource, tmp_path: Path
) -> None:
    consumer = Consumer(choosy, source, tmp_path)
    begin(choosy, consumer, source)
    parked: list[int] = []
    for step in range(1, 13):
        id = 100 + step
        parked.append(id)
        source.commit([update(ITEMS, 1, name=str(step), body="b"), poison(choosy, id)])
        consumer.catch_up(step)
        consumer.catch_up()  # in one batch, a sink may write the last of a row's versions
        source.commit([update(ITEMS, id, name=str(id), body="b"), insert(ITEMS, 1000 + step, "1")])
        consumer.catch_up(step)
        consumer.catch_up()
        assert choosy.under_test.rows() == without(source, *parked), f"step {step}"
    expected = [(id, error) for id in parked for error in ("RowRefused", "behind")]
    assert consumer.letters() == expected
    if choosy.mend is not None:
        choosy.mend()
        for step in range(1, 12):
            consumer.try_letters(step)
        consumer.try_letters()
        assert consumer.letters() == []
        assert choosy.under_test.rows() == source.rows()


@pytest.mark.parametrize("choosy", ["sqlite", "postgres"], indirect=True)
def test_letters_are_void_with_the_commit_of_their_tables_truncate_and_a_crash_at_any_step_changes_nothing(
    choosy: Choosy, source: ModelSource, tmp_path: Path
) -> None:
    consumer = Consumer(choosy, source, tmp_path)
    begin(choosy, consumer, source)
    for step in range(1, 15):
        before, after = 100 + step, 200 + step
        source.commit([poison(choosy, before), insert(ITEMS, 6, "6")])
        consumer.catch_up()
        assert consumer.letters() == [(before, "RowRefused")]
        source.commit([truncate(ITEMS), insert(ITEMS, 7, "7"), poison(choosy, after)])
        consumer.catch_up(step)
        consumer.catch_up()
        assert consumer.letters() == [(after, "RowRefused")], f"step {step}"
        assert choosy.under_test.rows() == without(source, after), f"step {step}"
        source.commit([truncate(ITEMS)])
        consumer.catch_up(step)
        consumer.catch_up()
        assert consumer.letters() == [], f"step {step}"
