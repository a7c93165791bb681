"""The consumer's state machine against a model: whatever crashes, breaks or is trimmed, the sink ends as the source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.model_source import ITEMS, ModelSource, delete, insert, items_layout, truncate, update
from walbus.consumers.checkpoint import (
    Checkpoint,
    Following,
    Marks,
    Point,
    dump_checkpoint,
    load_checkpoint,
)
from walbus.consumers.decoding import Layouts, decode_record
from walbus.consumers.machine import ConsumerMachine
from walbus.consumers.phases import whole_until
from walbus.consumers.steps import (
    Advance,
    AskLog,
    Deliver,
    DeltaGone,
    Discard,
    Disconnected,
    ListTables,
    LogReplaced,
    LogSeen,
    Output,
    PositionGone,
    ReadDelta,
    ReadLog,
    ReadSnapshot,
    RecordRead,
    RowsIncomplete,
    RowsRead,
    Sweep,
    TablesListed,
)
from walbus.consumers.transport import TableList
from walbus.consumers.unread import Unread
from walbus.events import Change
from walbus.position import ORIGIN
from walbus.records import Kind, Op
from walbus.values import decode_row

OTHER = "public.others"


@dataclass
class ModelRow:
    row: dict[str, str | None]
    seq: int
    mark: int
    lacks: bool = False


@dataclass
class ModelSink:
    """The contract of a sink in a few lines; `committed` is what a crash leaves.

    Attributes:
        torn: whether rows are written before the checkpoint and outlive a crash between the two, as in Redis.
    """

    torn: bool = False
    rows: dict[tuple[str, bytes], ModelRow] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    committed: tuple[dict[tuple[str, bytes], ModelRow], str | None] = field(default_factory=lambda: ({}, None))

    def take(self, output: Output) -> None:
        match output:
            case Deliver(window, marks, checkpoint):
                for change in window.changes:
                    self._apply(change, window.kind, marks)
                self._commit(checkpoint)
            case Sweep(table, seq, marks, checkpoint):
                for key, row in list(self.rows.items()):
                    old = row.mark < marks.log_generation or row.seq <= seq
                    if key[0] == table and row.mark < marks.generation and old:
                        del self.rows[key]
                self._commit(checkpoint)
            case Advance(checkpoint):
                self._commit(checkpoint)
            case Discard():
                self.crash()

    def crash(self) -> None:
        rows, text = self.committed
        if not self.torn:
            self.rows = dict(rows)
        self.checkpoint = None if text is None else load_checkpoint(text)

    def incomplete(self) -> tuple[str, ...]:
        return tuple({table for (table, _), row in self.rows.items() if row.lacks})

    def _commit(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.checkpoint = checkpoint
            self.committed = (dict(self.rows), dump_checkpoint(checkpoint))

    def _apply(self, change: Change, kind: Kind, marks: Marks) -> None:
        raw, table = change.raw, change.table
        if raw.op == Op.SCHEMA:
            return
        if raw.op == Op.TRUNCATE:
            for key in [k for k, row in self.rows.items() if k[0] == table and row.seq < change.seq]:
                del self.rows[key]
            return
        assert raw.key is not None
        key = (table, raw.key)
        there = self.rows.get(key)
        old_log = there is not None and there.mark < marks.log_generation
        snapshot = kind == Kind.SNAPSHOT or (kind == Kind.DELTA and raw.op == Op.INSERT)
        newer = there is None or old_log or change.seq + snapshot > there.seq or (snapshot and there.lacks)
        moved_from = None if raw.old_key is None else self.rows.get((table, raw.old_key))
        if moved_from is not None and moved_from.seq >= change.seq:
            moved_from = None  # another row, which has the key since
        if moved_from is not None:
            del self.rows[table, raw.old_key]  # type: ignore[arg-type]
        if not newer:
            return
        if raw.op == Op.DELETE:
            self.rows.pop(key, None)
            return
        self.rows[key] = self._merged(change, moved_from or there, marks)

    def _merged(self, change: Change, stored: ModelRow | None, marks: Marks) -> ModelRow:
        assert change.schema is not None
        assert change.raw.after is not None
        row = {n: None if v is None else str(v) for n, v in decode_row(change.schema, change.raw.after).items()}
        for name in change.unchanged:
            row[name] = stored.row[name] if stored else None
        lacks = bool(change.unchanged) and (stored is None or stored.lacks)
        return ModelRow(row, change.seq, marks.generation, lacks)


class World:
    """A source, a consumer with its sink, and everything that can come between them."""

    def __init__(self, *, torn: bool = False, delta_above: int | None = None) -> None:
        self.layouts = (items_layout(), items_layout("others", oid=16500))
        self.source = ModelSource(layouts=self.layouts)
        self.sink = ModelSink(torn)
        self.stamp = 1_000
        self.tearing = False  # whether the next window's rows are written, and its checkpoint is not
        self.lag = 0  # commits by which the bootstrap is behind; never further than the log reaches back
        self.deltas = True  # whether the bootstrap has deltas
        self.delta_above = delta_above
        self.read: list[str] = []  # what was opened: log, snapshot, delta
        self.unread = Unread("cache", (ITEMS, OTHER), "snapshot", layouts=lambda: self.layouts, since=ORIGIN)
        self.restart()

    def restart(self) -> None:
        self.tearing = False
        self.sink.crash()
        self.machine = ConsumerMachine(self.sink.checkpoint, "snapshot", self.delta_above)
        self._disconnect()

    def _disconnect(self) -> None:
        self.reading: list[object] = []
        self.target: object = None

    def lose_connection(self) -> None:
        self._receive(Disconnected())
        self._disconnect()

    def replace_log(self) -> None:
        """Another log on the same rows; its seqs begin lower, so that they tell nothing beside the old ones."""
        old = self.source
        self.source = ModelSource(f"{old.log_id}+", layouts=self.layouts)
        for table in (ITEMS, OTHER):
            edits = [insert(table, int(i), row["name"], row["body"]) for i, row in old.rows(table).items()]
            if edits:
                self.source.commit(edits)
        self.lose_connection()

    def step(self) -> None:
        """One connection made, or one record read."""
        want = self.machine.wanted
        if self.reading and self._target(want) == self.target:
            self._receive(self.reading.pop(0))
            return
        self._open(want)

    def settle(self) -> None:
        """Runs until nothing is left to read and no row lacks a value.

        Nobody commits meanwhile, and the bootstrap comes nearer to the log's end each time that it is found behind.
        """
        reread = 0
        for _ in range(3_000):
            idle = isinstance(self.machine.wanted, ReadLog) and not self.reading
            self.step()
            if idle and not self.reading and isinstance(self.machine.state, Following):
                if not self.sink.incomplete():
                    assert reread <= 1, "snapshots were read that could not have what rows lack"
                    return
                reread += self._read_what_rows_lack()
        raise AssertionError(f"does not settle: {self.machine.state}")

    def _read_what_rows_lack(self) -> bool:
        applied = self.source.history[self._applied()][0]
        listed = TableList(self.source.log_id, applied, {ITEMS: 1, OTHER: 2}, frozenset((ITEMS, OTHER)), ())
        ready = self.unread.lacking(self.sink.incomplete(), self.machine.received, listed)
        if ready:
            self.unread.reading(ready, listed)
            self._receive(RowsIncomplete(ready))
        else:
            self.lag -= 1
        return bool(ready)

    def _deltas(self, before: Checkpoint | None) -> dict[str, int]:
        source = self.source
        if not self.deltas or before is None or before.log_id != source.log_id:
            return {}
        places = {table: whole_until(before, table) for table in (ITEMS, OTHER)}
        applied = self._applied()
        return {
            table: sum(header.count for header, _ in source.delta(table, since.seq, applied))
            for table, since in places.items()
            if since is not None and since.last_done > source.horizon and source.history[applied][1] >= since.seq
        }

    def _applied(self) -> int:
        """Index of the state that the bootstrap is at."""
        history = self.source.history
        held = next(i for i, (position, _, _) in enumerate(history) if position >= self.source.trimmed)
        return max(held, len(history) - 1 - self.lag)

    def _target(self, want: object) -> object:
        match want:
            case ReadLog(log_id):
                return log_id
            case ReadSnapshot(log_id, table) | ReadDelta(log_id, table):
                return type(want), log_id, table
        return None

    def _receive(self, event: object) -> None:
        for output in self.machine.receive(event):  # type: ignore[arg-type]
            if self.tearing and isinstance(output, Deliver):
                self.sink.take(replace(output, checkpoint=None))
                self.restart()
                return
            self.sink.take(output)

    def _open(self, want: object) -> None:  # noqa: PLR0912  # every want, and every answer to it
        source, self.target = self.source, self._target(want)
        layouts = Layouts(source.layouts.__getitem__)
        self.reading = []
        match want:
            case AskLog():
                behind = max(0, source.last_seq - self.machine.received_seq)
                self._receive(LogSeen(source.log_id, source.trimmed, source.end, source.last_seq, behind))
            case ListTables(only, before):
                self.stamp += 1
                tables = only or (ITEMS, OTHER)
                at = Point(*source.history[self._applied()][:2])
                self._receive(TablesListed(source.log_id, tables, self.stamp, deltas=self._deltas(before), at=at))
            case ReadSnapshot(log_id, table, after_key):
                if log_id != source.log_id:
                    self._receive(LogReplaced())
                    return
                self.read.append("snapshot")
                records = source.snapshot(table, after_key, self._applied())
                self.reading = [RowsRead(h, decode_record(h, r, layouts)) for h, r in records]
            case ReadDelta(log_id, table, since):
                if log_id != source.log_id:
                    self._receive(LogReplaced())
                elif not self.deltas or since.last_done <= source.horizon:
                    self._receive(DeltaGone())
                elif source.history[self._applied()][1] < since.seq:
                    self.lag = 0  # it is asked to wait until the bootstrap is there
                    self.lose_connection()
                else:
                    self.read.append("delta")
                    records = source.delta(table, since.seq, self._applied())
                    self.reading = [RowsRead(h, decode_record(h, r, layouts)) for h, r in records]
            case ReadLog(log_id, after):
                if log_id != source.log_id:
                    self._receive(LogReplaced())
                elif after < source.trimmed:
                    self._receive(PositionGone())
                else:
                    self.read.append("log")
                    self.reading = [RecordRead(h, decode_record(h, r, layouts)) for h, r in source.after(after)]


def edits_of(source: ModelSource, numbers: list[int]) -> list:
    """Edits that the source's present rows allow, chosen by numbers."""
    ids = {table: set(map(int, source.rows(table))) for table in (ITEMS, OTHER)}
    edits = []
    for number in numbers:
        table = OTHER if number % 7 == 0 else ITEMS
        known, id = ids[table], number // 7 % 6
        kind = number // 42 % 8
        if id not in known:
            edits.append(insert(table, id, f"n{number}", f"b{number}"))
            known.add(id)
        elif kind == 0:
            edits.append(delete(table, id))
            known.discard(id)
        elif kind == 1 and number % 11 == 0:
            edits.append(truncate(table))
            known.clear()
        elif kind in (2, 3):
            new_id = next(i for i in range(20) if i not in known)
            row = {"name": f"m{number}"} | ({"body": f"mb{number}"} if kind == 3 else {})
            edits.append(update(table, id, new_id, **row))
            known.discard(id)
            known.add(new_id)
        else:
            row = {"name": f"u{number}"} | ({"body": f"ub{number}"} if kind > 5 else {})
            edits.append(update(table, id, **row))
    return edits


commits = st.tuples(st.just("commit"), st.lists(st.integers(0, 20_000), min_size=1, max_size=6), st.integers(1, 3))
steps = st.tuples(st.just("step"), st.integers(1, 6))
lags = st.tuples(st.just("lag"), st.integers(0, 3))
troubles = st.sampled_from(
    [("crash",), ("disconnect",), ("trim",), ("progress",), ("replace",), ("tear",), ("purge",), ("deltas",)]
)
scripts = st.lists(st.one_of(commits, commits, steps, steps, steps, lags, troubles), max_size=40)


@pytest.mark.parametrize("delta_above", [None, 1], ids=["follows", "weighs"])
@pytest.mark.parametrize("torn", [False, True], ids=["transactional", "torn"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=scripts)
@example(
    script=[
        ("commit", [1660], 1), ("commit", [1105, 1582, 18570, 100, 508, 1233], 3), ("commit", [1660], 2),
        ("commit", [1872, 748, 572, 277, 817, 526], 2), ("commit", [2721], 1),
        ("commit", [1872, 748, 572, 277, 817, 526], 3), ("commit", [1105, 1582, 18570, 100, 508, 1233], 1),
        ("commit", [662, 1287, 0, 225, 1603, 5438], 3), ("commit", [663, 1289, 2479], 3),
        ("lag", 1), ("step", 5), ("lag", 3), ("crash",), ("purge",), ("step", 5),
    ]
)  # fmt: skip  # the bootstrap stays behind while the consumer waits for values that rows lack
@example(
    script=[("commit", [1, 4887, 6266], 1), ("step", 4), ("crash",), ("commit", [1, 8499, 183], 1)]
)  # a key changes hands
def test_the_sink_ends_as_the_source_whatever_happens_on_the_way(  # noqa: PLR0912  # each thing that can happen
    torn: bool, delta_above: int | None, script: list[tuple]
) -> None:
    world = World(torn=torn, delta_above=delta_above)
    replaced = 0
    for action, *arguments in script:
        match action:
            case "commit":
                world.source.commit(edits_of(world.source, arguments[0]), pieces=arguments[1])
            case "step":
                for _ in range(arguments[0]):
                    world.step()
            case "crash":
                world.restart()
            case "tear":
                world.tearing = torn
            case "disconnect":
                world.lose_connection()
            case "trim":
                world.source.trim(world.source.end)
            case "lag":
                world.lag = arguments[0]
            case "progress":
                world.source.progress()
            case "purge":
                world.source.horizon = world.source.end
            case "deltas":
                world.deltas = not world.deltas
            case "replace" if replaced < 2:
                replaced += 1
                world.replace_log()
    world.settle()
    for table in (ITEMS, OTHER):
        found = {row.row["id"]: row.row for (name, _), row in world.sink.rows.items() if name == table}
        assert found == world.source.rows(table)


@pytest.mark.parametrize("steps_before", range(3, 9))
def test_rows_whose_checkpoint_was_torn_off_are_no_ghosts_when_they_are_deleted_meanwhile(steps_before: int) -> None:
    """The answer that brought them is not in the checkpoint, so the log is not replayed from where it was taken."""
    world = World(torn=True)
    world.source.commit([insert(ITEMS, n) for n in range(5)] + [insert(OTHER, n) for n in range(5)])
    for _ in range(steps_before):
        world.step()
    world.tearing = True
    world.step()
    world.source.commit([delete(ITEMS, 1), delete(OTHER, 1), update(ITEMS, 0, name="x")])
    world.settle()
    for table in (ITEMS, OTHER):
        found = {row.row["id"]: row.row for (name, _), row in world.sink.rows.items() if name == table}
        assert found == world.source.rows(table)


@pytest.mark.parametrize("crash_after", range(60))
def test_a_crash_at_any_step_of_bootstrap_and_catch_up_is_resumed(crash_after: int) -> None:
    world = World()
    for n in range(9):
        world.source.commit([insert(ITEMS, n), insert(OTHER, n)])
    world.source.trim(world.source.end)
    for step in range(crash_after):
        world.step()
        if step % 3 == 0 and step < 30:
            n = step // 3
            world.source.commit([update(ITEMS, n % 9, name=f"s{step}") if n < 9 else insert(ITEMS, 100 + n)])
    world.restart()
    world.settle()
    assert {row.row["id"]: row.row for (t, _), row in world.sink.rows.items() if t == ITEMS} == world.source.rows()


def behind_the_log(*, commits: int = 8, delta_above: int | None = None) -> World:
    """A consumer that had everything and slept; its tables changed since, items more than once."""
    world = World(delta_above=delta_above)
    world.source.commit([insert(ITEMS, n) for n in range(6)] + [insert(OTHER, n) for n in range(6)])
    world.source.progress()
    world.settle()
    for n in range(commits):
        world.source.commit([update(ITEMS, 0, name=f"n{n}"), update(ITEMS, 1, name=f"n{n}")])
    world.source.commit([delete(ITEMS, 2), delete(OTHER, 2), update(ITEMS, 3, 30)])
    world.restart()
    world.read.clear()
    return world


def is_the_source(world: World) -> bool:
    return all(
        {row.row["id"]: row.row for (name, _), row in world.sink.rows.items() if name == table}
        == world.source.rows(table)
        for table in (ITEMS, OTHER)
    )


def test_a_consumer_whose_position_is_gone_takes_a_delta_of_each_table() -> None:
    world = behind_the_log()
    world.source.trim(world.source.end)
    world.settle()
    assert world.read == ["delta", "delta", "log"]
    assert is_the_source(world)


@pytest.mark.parametrize("crash_after", range(24))
def test_a_crash_at_any_step_of_a_delta_is_resumed(crash_after: int) -> None:
    world = behind_the_log()
    world.source.trim(world.source.end)
    for step in range(crash_after):
        world.step()
        if step % 5 == 4:
            world.source.commit([update(ITEMS, 0, name=f"s{step}"), insert(ITEMS, 100 + step)])
    world.restart()
    world.settle()
    assert "snapshot" not in world.read
    assert is_the_source(world)


def test_a_delta_that_is_gone_half_way_becomes_a_snapshot_whose_sweep_sees_what_it_brought() -> None:
    world = behind_the_log()
    world.source.commit([insert(ITEMS, 7)])
    world.source.trim(world.source.end)
    while not any(row.row["id"] == "30" for row in world.sink.rows.values()):
        world.step()
    assert world.read == ["delta"]
    world.source.commit([delete(ITEMS, 30)])
    world.source.horizon = world.source.end
    world.source.trim(world.source.end)
    world.lose_connection()
    world.settle()
    assert world.read.count("delta") == 1 and "snapshot" in world.read
    assert is_the_source(world)


def test_a_snapshot_that_takes_longer_than_the_log_is_kept_comes_to_an_end() -> None:
    world = World()
    world.source.commit([insert(ITEMS, n) for n in range(20)] + [insert(OTHER, n) for n in range(20)])
    world.source.progress()
    for n in range(60):
        world.step()
        world.source.commit([update(ITEMS, n % 20, name=f"n{n}"), update(OTHER, n % 20, name=f"n{n}")])
        world.source.trim(world.source.end)
        if n % 7 == 6:
            world.lose_connection()
    world.settle()
    assert world.read.count("delta") >= 2
    assert is_the_source(world)


def test_a_consumer_that_is_far_behind_takes_deltas_only_if_they_are_worth_it() -> None:
    world = behind_the_log(delta_above=10)
    world.settle()
    assert world.read[:2] == ["delta", "delta"]
    assert is_the_source(world)
    for commits, above in ((8, None), (8, 1000), (0, 1)):
        world = behind_the_log(commits=commits, delta_above=above)
        world.settle()
        assert set(world.read) == {"log"}, (commits, above)
        assert is_the_source(world)
