"""Complete changes: every update and delete gets the row before it, and new rows their unchanged values, or neither."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.model_source import ITEMS, ModelSource, column, delete, insert, items_layout, truncate, update
from support.serving_bootstrap import SEES_ALL, SourceLayouts, published
from walbus.bootstrap import completing
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.completing import Joined, completed
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import Applied, Cut
from walbus.bootstrap.unseen import UnseenCommits
from walbus.consumers.decoding import Layouts, decode_record
from walbus.events import Change
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op, RecordHeader, body_of, check_record, pack_record, read_header
from walbus.schema import TableSchema

Row = dict[str, object]


class Completed:
    """A store that follows a source and keeps completions."""

    def __init__(self, source: ModelSource, *, complete: tuple[str, ...] = ("public.*",)) -> None:
        self.source = source
        self.store = MemoryStore()
        self.folded = 0
        self.complete = complete
        self.open()
        self.ledger.begin(Applied(source.log_id, *ORIGIN, source.last_seq, 0), UnseenCommits())
        self.ledger.resume([])
        for layout in source.layouts.values():
            self.seed(layout)

    def open(self) -> None:
        """As after a start of the process."""
        with capture_logs():
            self.ledger = Ledger(self.store, complete=self.complete)
            self.ledger.schemas = SourceLayouts(self.source)

    def seed(self, layout: TableSchema) -> None:
        with capture_logs():
            self.ledger.observe(SEES_ALL)
            run = self.ledger.start_generation(published(layout), layout.id, "test")
            assert self.ledger.plan(run, Cut(()), 0)
            assert self.ledger.finish(run)

    def fold(self, count: int = 1 << 30) -> None:
        """Folds so many more records as one batch."""
        records = [record for _, record in self.source.records[self.folded : self.folded + count]]
        self.folded += len(records)
        if records:
            EventFolder(self.ledger).fold(records)

    def pieces(self, after: Position = ORIGIN) -> list[tuple[RecordHeader, bytes]]:
        made: list[tuple[RecordHeader, bytes]] = []
        for header, record in self.source.after(after):
            joined = Joined(self.ledger.completions.of(header.first_seq, header.last_seq))
            for piece, last in completed(record, header, after, joined, self.source.layouts.__getitem__):
                told = check_record(piece)
                assert told.last == last
                made.append((told, piece))
        return made

    def changes(self, after: Position = ORIGIN) -> list[Change]:
        layouts = Layouts(self.source.layouts.__getitem__)
        return [
            change
            for header, piece in self.pieces(after)
            if header.kind == Kind.TRANSACTION
            for change in decode_record(header, piece, layouts)
        ]


def raw_changes(source: ModelSource) -> list[Change]:
    layouts = Layouts(source.layouts.__getitem__)
    return [
        change
        for header, record in source.records
        if header.kind == Kind.TRANSACTION
        for change in decode_record(header, record, layouts)
    ]


edits = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6), max_size=12
)


def write(source: ModelSource, steps: list[list[tuple[int, int, int]]], rows: dict[int, Row]) -> list[Row | None]:
    """Transactions of whatever is possible, each for each step; gives the row before each change."""
    before: list[Row | None] = []
    for number, transaction in enumerate(steps):
        made = []
        for kind, key, other in transaction:
            value = f"v{len(before)}"
            if kind == 9:
                made.append(truncate(ITEMS))
                rows.clear()
                before.append(None)
            elif key not in rows:
                made.append(insert(ITEMS, key, value, "b" * 50 + value))
                rows[key] = {"id": key, "name": value, "body": "b" * 50 + value}
                before.append(None)
            elif kind < 3:
                made.append(delete(ITEMS, key))
                before.append(rows.pop(key))
            else:
                to = other if kind < 6 and other not in rows else key
                new: dict[str, str | None] = {"name": value} if kind % 2 else {}
                made.append(update(ITEMS, key, None if to == key else to, **new))
                old = rows.pop(key)
                before.append(old)
                rows[to] = old | {"id": to} | new
        source.commit(made, pieces=1 + number % 3)
    return before


def assert_complete(changes: list[Change], before: list[Row | None]) -> None:
    """Old rows are those of the model, and new ones have nothing missing."""
    assert len(changes) == len(before)
    rows: dict[object, Row] = {}
    for change, old in zip(changes, before, strict=True):
        assert change.complete
        assert change.before == old
        if change.op is Op.TRUNCATE:
            rows.clear()
            continue
        assert change.key is not None
        if old is not None:
            assert rows.pop((change.old_key or change.key)["id"]) == old
        if change.after is not None:
            assert set(change.after) == {"id", "name", "body"}
            rows[change.key["id"]] = dict(change.after)


@settings(max_examples=60, deadline=None)
@given(edits, st.lists(st.integers(1, 5), max_size=30), st.integers(0, 3))
def test_any_history_comes_complete_in_batches_of_any_size_and_across_restarts(
    steps: list[list[tuple[int, int, int]]], batches: list[int], crashes: int
) -> None:
    source = ModelSource()
    world = Completed(source)
    before = write(source, steps, {})
    for number, count in enumerate(batches):
        world.fold(count)
        if crashes and number % (crashes + 1) == 0:
            world.open()
            world.ledger.resume([])
    world.fold()
    assert_complete(world.changes(), before)
    told = [(change.position, change.seq, change.op, change.key, change.old_key) for change in raw_changes(source)]
    assert [(c.position, c.seq, c.op, c.key, c.old_key) for c in world.changes()] == told


@settings(max_examples=40, deadline=None)
@given(edits, st.integers(1, 400))
def test_a_large_record_comes_in_pieces_that_can_be_gone_on_behind_anywhere(
    steps: list[list[tuple[int, int, int]]], piece_bytes: int
) -> None:
    source = ModelSource()
    world = Completed(source)
    before = write(source, steps, {})
    world.fold()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completing, "PIECE_BYTES", piece_bytes)
        assert_complete(world.changes(), before)
        pieces = [header for header, _ in world.pieces() if header.kind == Kind.TRANSACTION]
        begun = None
        for header in pieces:
            assert bool(header.flags & Flag.BEGIN) == (begun is None)
            assert (
                header.count == header.last_ordinal - header.first_ordinal + 1 == header.last_seq - header.first_seq + 1
            )
            assert bool(header.end_lsn) == bool(header.flags & Flag.END)
            assert begun in (None, header.first)
            begun = None if header.flags & Flag.END else header.last._replace(ordinal=header.last_ordinal + 1)
        assert begun is None
        whole = [(change.position, change.seq, change.before, change.after) for change in world.changes()]
        for number, (position, *_) in enumerate(whole, 1):
            rest = world.changes(position)
            assert [(c.position, c.seq, c.before, c.after) for c in rest] == whole[number:]


def test_folding_a_batch_again_writes_the_same_completions() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, 1), insert(ITEMS, 2)])
    world.fold()
    image = {name: dict(getattr(world.store, name)) for name in ("_documents", "_entries", "_pages")}
    source.commit([update(ITEMS, 1, name="n"), update(ITEMS, 1, 3, name="m"), delete(ITEMS, 2)])
    world.fold()
    written = dict(world.store.completions(0, 1 << 50))
    assert len(written) == 3
    for name, content in image.items():
        setattr(world.store, name, content)  # the batch's write was lost, but for what is written ahead of it
    world.folded -= 1
    world.open()
    world.ledger.resume([])
    world.fold()
    assert dict(world.store.completions(0, 1 << 50)) == written


def test_many_completions_of_a_batch_are_written_ahead_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walbus.bootstrap.staging._COMPLETION_BYTES", 100)
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, n, body="x" * 200) for n in range(5)])
    world.fold()
    sizes: list[int] = []
    monkeypatch.setattr(
        world.store,
        "write",
        lambda changes: (sizes.append(len(changes.completions)), MemoryStore.write(world.store, changes)),
    )
    source.commit([update(ITEMS, n, name="n") for n in range(5)])
    world.fold()
    assert max(sizes) == 1
    assert all(change.complete for change in world.changes())


# What cannot be known


def test_an_old_row_with_a_column_that_came_later_is_left_out_and_not_told_with_nulls() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, 1, "one", "long")])
    source.add_layout(items_layout("items", *items_layout().columns, column("note")))
    source.commit([update(ITEMS, 1, name="two", note="n")])
    source.commit([update(ITEMS, 1, name="three")])
    world.fold()
    first, second = world.changes()[1:]
    assert (first.before, first.complete) == (None, False)
    assert first.after == {"id": 1, "name": "two", "body": "long", "note": "n"}
    assert second.before == first.after
    assert second.after == {"id": 1, "name": "three", "body": "long", "note": "n"}


def test_changes_before_the_table_was_consistent_stay_as_the_log_has_them() -> None:
    source = ModelSource()
    world = Completed(source, complete=("public.*",))
    run = world.ledger.tables[16400]
    with capture_logs():
        stage = Stage(world.ledger.store)
        world.ledger.break_table(stage, run, "test")
        stage.commit()
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, name="n")])
    world.fold()
    world.seed(source.current[ITEMS])
    source.commit([insert(ITEMS, 2), update(ITEMS, 2, name="n")])
    world.fold()
    _, unknown, _, known = world.changes()
    assert (unknown.complete, unknown.before, unknown.unchanged) == (False, None, {"body"})
    assert (known.complete, known.before) == (True, {"id": 2, "name": "name", "body": "body"})


def test_rows_that_changed_without_events_are_unknown_until_they_are_seeded_again() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, 1)])
    world.fold()
    run = world.ledger.tables[16400]
    with capture_logs():
        stage = Stage(world.ledger.store)
        world.ledger.mark_stale(stage, run, "rewritten", source.end)
        stage.commit()
    source.commit([update(ITEMS, 1, name="n")])
    world.fold()
    assert world.changes()[-1].before is None


def test_a_net_difference_has_no_old_rows() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, 1)])
    source.commit([update(ITEMS, 1, name="n", body="b")])
    header, record = source.records[-1]
    net = pack_record(
        header.kind, flags=header.flags | Flag.NET, epoch=1, commit_lsn=header.commit_lsn, end_lsn=header.end_lsn,
        first_ordinal=1, last_ordinal=1, first_seq=header.first_seq, last_seq=header.last_seq, xid=header.xid,
        commit_time=header.commit_time, count=1, tables=header.tables, body=body_of(record, header),
    )  # fmt: skip
    source.records[-1] = (read_header(net), net)
    world.fold()
    assert world.changes()[-1].before is None
    assert dict(world.store.completions(0, 1 << 50)) == {}


def test_tables_that_are_not_named_have_none() -> None:
    source = ModelSource(layouts=(items_layout(), items_layout("others", oid=16500)))
    world = Completed(source, complete=(ITEMS,))
    for table in (ITEMS, "public.others"):
        source.commit([insert(table, 1), update(table, 1, name="n")])
    world.fold()
    assert [(c.table, c.complete) for c in world.changes() if c.op is Op.UPDATE] == [
        (ITEMS, True), ("public.others", False),
    ]  # fmt: skip


# Since when


def test_they_begin_where_they_are_first_asked_for_and_go_when_they_are_not() -> None:
    source = ModelSource()
    world = Completed(source, complete=())
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, name="n")])
    world.fold()
    assert world.ledger.completions.kept is None
    world.complete = (ITEMS,)
    world.open()
    world.ledger.resume([])
    kept = world.ledger.completions.kept
    assert kept is not None
    assert (kept.position, kept.seq) == (source.end, source.last_seq)
    source.commit([update(ITEMS, 1, name="m")])
    world.fold()
    assert [change.complete for change in world.changes()] == [True, False, True]
    world.open()
    world.ledger.resume([])
    assert world.ledger.completions.kept == kept
    world.complete = ("public.*",)
    world.open()
    world.ledger.resume([])
    assert world.ledger.completions.kept == msgspec.structs.replace(
        kept, tables=("public.*",), commit_lsn=source.end.commit_lsn, seq=source.last_seq, ordinal=source.end.ordinal
    )
    assert dict(world.store.completions(0, 1 << 50)) == {}
    world.complete = ()
    world.open()
    world.ledger.resume([])
    assert world.ledger.completions.kept is None


def test_they_begin_between_two_transactions() -> None:
    source = ModelSource()
    world = Completed(source, complete=())
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    world.fold(1)
    world.store._before_half = None  # as when it is opened so
    world.complete = (ITEMS,)
    world.open()
    world.ledger.resume([])
    assert world.ledger.completions.kept is None
    world.fold(1)
    kept = world.ledger.completions.kept
    assert kept is not None
    assert kept.position == source.end


def test_a_layout_inside_a_transaction_is_no_place_between_two() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, n) for n in range(4)], pieces=2)
    first, second = source.records
    source.records = [first]
    source.add_layout(items_layout("items", *items_layout().columns, column("note")))
    source.records.append(second)
    for _ in range(2):
        world.fold(1)
        assert world.ledger.applied_whole is not None
        assert world.ledger.applied_whole.position == ORIGIN
    world.fold(1)
    assert world.ledger.applied_whole == world.ledger.applied


def test_they_end_with_the_log() -> None:
    source = ModelSource()
    world = Completed(source)
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, name="n")])
    trimmed, seq = source.end, source.last_seq
    source.commit([update(ITEMS, 1, name="m")])
    world.fold()
    world.ledger.trim_completions(trimmed, seq)
    kept = world.ledger.completions.kept
    assert kept is not None
    assert kept.position == trimmed
    assert list(dict(world.store.completions(0, 1 << 50))) == [seq + 1]
    world.open()
    assert world.ledger.completions.kept == kept


@pytest.mark.parametrize("log_id", ["another", "log-a"])
def test_a_log_that_does_not_go_on_begins_without_those_of_before(log_id: str) -> None:
    """Another one, or the same in an earlier state, as of a volume that was restored."""
    source = ModelSource(log_id="log-a")
    world = Completed(source)
    source.commit([insert(ITEMS, 1), update(ITEMS, 1, name="n")])
    world.fold()
    with capture_logs():
        world.ledger.begin(Applied(log_id, *ORIGIN, 0, 0), UnseenCommits())
    assert dict(world.store.completions(0, 1 << 50)) == {}
    kept = world.ledger.completions.kept
    assert kept is not None
    assert (kept.log_id, kept.position) == (log_id, ORIGIN)
