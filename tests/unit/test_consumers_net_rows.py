"""Whether a stale table is read again or waits for the log: by where the consumer's rows come from."""

from __future__ import annotations

import pytest

from walbus.consumers.checkpoint import (
    CatchingUp,
    Following,
    Lacking,
    Marks,
    Point,
    Snapshotting,
    TableProgress,
    dump_checkpoint,
    load_checkpoint,
)
from walbus.consumers.machine import ConsumerMachine
from walbus.consumers.steps import Advance, RowsSettled
from walbus.consumers.transport import TableList
from walbus.consumers.unread import Unread
from walbus.position import ORIGIN, Position

T, U = "public.t", "public.u"


def at(lsn: int, ordinal: int = 0) -> Position:
    return Position(1, lsn, ordinal)


def listed(since: Position | None, told: Position | None) -> TableList:
    return TableList(
        "log", at(900), {T: 1}, frozenset([T]), (), {T: at(500)},
        net_since={} if since is None else {T: since}, net_told={} if told is None else {T: told},
    )  # fmt: skip


UNREAD = Unread("cache", ("public.*",), "snapshot", layouts=tuple, since=ORIGIN)


def following(rows: Position, done: Position, unread: tuple[str, ...] = (T,)) -> Following:
    return Following("log", Marks(1, 1), Point(done, 7), tuple(map(Lacking, unread)), rows=rows)


@pytest.mark.parametrize(
    ("since", "told", "rows", "done", "expected"),
    [
        (at(100), at(600), at(100), at(600, 4), ((T,), ())),  # it has done the difference
        (at(100), at(600), at(150), at(599), ((), (T,))),  # it is still to come to this consumer
        (at(100), None, at(150), at(700), ((), (T,))),  # it is still to come to the log
        (at(100), at(600), at(99), at(700), ((), ())),  # its rows are older than what differences speak of
        (at(100), at(600), ORIGIN, at(700), ((), ())),  # nobody knows where its rows come from
        (None, None, at(150), at(700), ((), ())),  # a bootstrap that hands nothing over
    ],
)
def test_a_table_is_read_again_where_no_difference_speaks_of_its_rows(since, told, rows, done, expected):
    assert UNREAD.by_log((T,), listed(since, told), following(rows, done)) == expected


def test_a_table_that_is_only_incomplete_is_read_again_in_any_case():
    state = following(at(150), at(700), unread=(U,))
    assert UNREAD.by_log((T,), listed(at(100), at(600)), state) == ((), ())


def test_what_came_by_the_log_is_not_stale_any_more_and_the_checkpoint_says_so():
    machine = ConsumerMachine(following(at(150), at(700), unread=(U, T)), "snapshot")
    (output,) = machine.receive(RowsSettled((T,)))
    assert output == Advance(following(at(150), at(700), unread=(U,)))
    assert machine.state.unread == (Lacking(U),)


@pytest.mark.parametrize("rows", [ORIGIN, at(150, 2)])
def test_every_phase_remembers_where_its_rows_come_from(rows):
    point, tables = Point(at(700), 7), (TableProgress(T),)
    for checkpoint in (
        Following("log", Marks(1, 1), point, rows=rows),
        CatchingUp("log", Marks(1, 1), point, at(800), rows=rows),
        Snapshotting("log", Marks(1, 1), tables, point, point, rows=rows),
        Snapshotting("log", Marks(1, 1), tables, point, point),
    ):
        assert load_checkpoint(dump_checkpoint(checkpoint)) == checkpoint
