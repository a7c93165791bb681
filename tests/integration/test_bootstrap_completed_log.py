"""The log's files read complete: up to what is applied, from where completions begin, in pieces to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.model_source import ITEMS, ModelSource, insert, items_layout, update
from support.relay_log import FileEngine
from support.serving_bootstrap import SEES_ALL, published
from walbus.bootstrap import completing
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.completed_log import CompletedLog
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.rocks import RocksStore
from walbus.bootstrap.seq_at import seq_at
from walbus.bootstrap.state import Applied, Cut
from walbus.bootstrap.unseen import UnseenCommits
from walbus.consumers.decoding import Layouts, decode_record
from walbus.errors import PositionTrimmed, PositionUnknown
from walbus.events import Change
from walbus.log import Piece
from walbus.position import ORIGIN, Position
from walbus.record_parser import RecordParser
from walbus.records import Kind, body_of, check_record
from walbus.relay.cursor import FileCursor
from walbus.relay.delivery import Bound, Delivery
from walbus.relay.writer import FileLogWriter

pytestmark = pytest.mark.one_version

LONG = "b" * 10_000


class World:
    """A log of the file engine that a model source writes, and a store that follows it."""

    def __init__(self, folder: Path, compression_level: int | None) -> None:
        self.engine = FileEngine(folder / "relay", segment_bytes=64 << 10)
        self.engine.compression_level = compression_level
        self.writer: FileLogWriter = self.engine.open_writer()
        self.source = ModelSource()
        self.source.layouts[1] = self.writer.schemas.register(items_layout())[0]
        self.reader = self.engine.open_reader()
        self.store = RocksStore(folder / "store")
        self.ledger = Ledger(self.store, complete=["public.*"])
        self.ledger.schemas = self.reader.schemas
        self.cursor = self.reader.cursor(ORIGIN)
        self.written = 0
        bounds = self.reader.bounds()
        with capture_logs():
            self.ledger.begin(Applied(bounds.log_id, *bounds.trimmed, bounds.last_seq, 0), UnseenCommits())
            self.ledger.resume([])
            self.ledger.observe(SEES_ALL)
            run = self.ledger.start_generation(published(items_layout()), 1, "test")
            assert self.ledger.plan(run, Cut(()), 0)
            assert self.ledger.finish(run)
        self.log = CompletedLog(folder / "relay", self.ledger)

    def write(self) -> None:
        """Puts what the source has committed into the log."""
        for header, record in self.source.records[self.written :]:
            self.writer.append(
                Piece(
                    header.kind, header.flags, 1, header.commit_lsn, header.end_lsn, header.first_ordinal,
                    header.last_ordinal, header.count, header.xid, header.commit_time, b"", header.tables,
                    body_of(record, header),
                )
            )  # fmt: skip
        self.written = len(self.source.records)
        self.writer.sync()

    def apply(self) -> None:
        while records := self.cursor.read(1 << 20):
            EventFolder(self.ledger).fold(records)

    def updates(self, count: int, each: int = 1) -> None:
        for number in range(count):
            self.source.commit([update(ITEMS, n, name=f"v{number}-{n}") for n in range(each)])
        self.write()

    def changes(self, cursor: FileCursor, max_bytes: int) -> list[Change]:
        layouts = Layouts(self.source.layouts.__getitem__)
        found: list[Change] = []
        while records := cursor.read(max_bytes):
            for record in records:
                header = check_record(record)
                if header.kind == Kind.TRANSACTION:
                    found += decode_record(header, record, layouts)
        return found

    def close(self) -> None:
        self.log.close()
        self.cursor.close()
        self.engine.close()
        self.store.close()


@pytest.fixture(params=[None, 3], ids=["plain", "zstd"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with capture_logs():
        world = World(tmp_path, request.param)
        world.source.commit([insert(ITEMS, n, "name", LONG) for n in range(30)])
        world.write()
        yield world
        world.close()


def told(changes: list[Change]) -> list[tuple[object, ...]]:
    return [(c.position, c.seq, c.op, c.before, c.after) for c in changes]


@pytest.mark.parametrize("max_bytes", [1, 20_000, 1 << 20])
def test_pieces_and_forks_give_the_same_changes(world: World, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world.updates(5, each=30)
    world.apply()
    whole = told(world.changes(world.log.cursor(ORIGIN), 1 << 20))
    assert len(whole) == 180
    assert [before for *_, before, _ in whole[30:60]] == [{"id": n, "name": "name", "body": LONG} for n in range(30)]
    assert [after for *_, after in whole[:-30]][30:] == [before for *_, before, _ in whole[60:]]
    monkeypatch.setattr(completing, "PIECE_BYTES", 50_000)
    assert told(world.changes(world.log.cursor(ORIGIN), max_bytes)) == whole
    first = world.log.cursor(ORIGIN)
    layouts = Layouts(world.source.layouts.__getitem__)
    read = [first.read(max_bytes) for _ in range(4)]
    begun = told([c for records in read for r in records for c in decode_record(check_record(r), r, layouts)])
    fork = first.fork()
    assert begun + told(world.changes(first, max_bytes)) == begun + told(world.changes(fork, max_bytes)) == whole


def test_it_goes_on_behind_any_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.updates(2, each=30)
    world.apply()
    monkeypatch.setattr(completing, "PIECE_BYTES", 50_000)
    whole = told(world.changes(world.log.cursor(ORIGIN), 1 << 20))
    for number in range(25, len(whole), 7):
        position = whole[number][0]
        assert isinstance(position, Position)
        assert told(world.changes(world.log.cursor(position), 60_000)) == whole[number + 1 :]


def test_it_ends_where_the_log_is_applied(world: World) -> None:
    world.apply()
    applied = world.log.bounds().end
    world.updates(3)
    assert world.log.bounds().end == applied < world.reader.bounds().end
    assert world.changes(world.log.cursor(applied), 1 << 20) == []
    with pytest.raises(PositionUnknown):
        world.log.cursor(world.reader.bounds().end)
    world.apply()
    assert world.log.bounds().end == world.reader.bounds().end
    assert [change.complete for change in world.changes(world.log.cursor(applied), 1 << 20)] == [True] * 3


def test_what_retention_drops_is_gone_in_it_too_also_for_who_reads_there(world: World) -> None:
    for _ in range(12):
        world.updates(20, each=30)
    world.apply()
    slow = world.log.cursor(ORIGIN)
    assert slow.read(1)
    trimmed = world.writer.trim(1_800_000_000)
    assert ORIGIN < trimmed < world.log.bounds().end
    seq = seq_at(world.reader, trimmed)
    assert seq is not None
    world.ledger.trim_completions(trimmed, seq)
    assert world.log.bounds().trimmed == trimmed
    with pytest.raises(PositionTrimmed):
        world.log.cursor(ORIGIN)
    with pytest.raises(PositionTrimmed):
        world.changes(slow, 1 << 20)
    assert next(world.store.completions(0, 1 << 60))[0] > seq
    rest = world.changes(world.log.cursor(trimmed), 1 << 20)
    assert rest
    assert all(change.complete for change in rest)


def test_changes_whose_completions_went_while_they_were_read_are_not_told_without(world: World) -> None:
    """The log's files may be open still, and hold what retention has dropped."""
    world.updates(3, each=30)
    world.apply()
    cursor = world.log.cursor(ORIGIN)
    end = world.log.bounds().end
    world.ledger.trim_completions(end, world.reader.bounds().last_seq)
    with pytest.raises(PositionTrimmed):
        cursor.read(1)


def test_a_store_that_begins_anew_leaves_nobody_with_changes_that_it_has_forgotten(world: World) -> None:
    world.updates(3, each=30)
    world.apply()
    cursor = world.log.cursor(ORIGIN)
    assert cursor.read(1)
    bounds = world.reader.bounds()
    with capture_logs():
        world.ledger.begin(Applied(bounds.log_id, *bounds.trimmed, 0, 0), UnseenCommits())
    with pytest.raises(PositionTrimmed):
        world.changes(cursor, 1 << 20)


def test_a_delivery_of_it_is_whole_though_its_records_come_in_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.updates(2, each=30)
    world.apply()
    monkeypatch.setattr(completing, "PIECE_BYTES", 50_000)
    delivery = Delivery(world.log, ORIGIN, bound=Bound(world.log.bounds().end))
    sent = b""
    while not (step := delivery.step()).finished:
        sent += step.data
    delivery.close()
    parser = RecordParser()
    parser.feed(sent + step.data)
    layouts = Layouts(world.source.layouts.__getitem__)
    found = [c for header, record in parser.records() for c in decode_record(header, record, layouts)]
    assert told(found) == told(world.changes(world.log.cursor(ORIGIN), 1 << 20))
