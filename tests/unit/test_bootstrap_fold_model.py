"""Any schedule of writers, log and chunks ends with the store equal to the table: the seeding rule, as a model test.

A schedule is a list of numbers; each picks one of the steps that are possible at its place. The real ledger, event
folder and fold run on a store in memory; only PostgreSQL is a model (`support.mvcc_model`). Whenever the table is
consistent, the store must be the table as of the applied position, seqs included, also while the next generation is
seeded beside it; and it must become consistent. Only a generation that says that it is stale may lack what a rewrite
did without events, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from support.memory_store import MemoryStore
from support.mvcc_model import (
    FIRST_SEQ,
    OID,
    PUBLISHED,
    REWRITE,
    Logged,
    ModelTable,
    Rewritten,
    Row,
    Transaction,
    fill,
    key_bytes,
    one_file,
    row_bytes,
)
from walbus.bootstrap.applier import EventFolder
from walbus.bootstrap.bulk import Bulk, Offer
from walbus.bootstrap.delta import Since, delta_records, horizon_of
from walbus.bootstrap.entry import FromSnapshot, pack_prefix, unpack_entry
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.runs import TableRun
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Applied, ChunkDone, Phase
from walbus.bootstrap.store import SPACE_SIZE
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.position import ORIGIN, Position
from walbus.records import Op, body_of, check_record, iter_changes

KEYS = 4
BLOCKS = 3


@dataclass
class Chunk:
    """A chunk that was read, and is folded in row by row."""

    run: TableRun
    block: int | None  # None: keys that are read again
    behind: int
    snapshot: Snapshot
    w: int
    rows: list[tuple[bytes, bytes]]
    again: list[bytes]
    origin: FromSnapshot | None = None
    offer: Offer | None = None  # of rows that wait beside the store


class World:
    """One schedule under way."""

    def __init__(self, choices: list[int]) -> None:
        self.choices = choices
        self.table = ModelTable()
        self.store = MemoryStore()
        self.applied = 0
        self.rest: list[bytes] = []  # the second half of a transaction whose first half is applied
        self.chunks: list[Chunk] = []
        self.next_value = 1
        self._open()
        self.ledger.begin(Applied("log", *ORIGIN, FIRST_SEQ - 1, 0), UnseenCommits())
        self.ledger.resume([])

    def _open(self) -> None:
        self.ledger = Ledger(self.store, fill)
        self.folder = EventFolder(self.ledger)
        self.bulk = Bulk(self.ledger)

    def pick(self, count: int) -> int:
        return self.choices.pop() % count if self.choices else 0

    def run(self) -> None:
        self.fill_table()
        while self.choices:
            steps = self.steps()
            steps[self.pick(len(steps))]()
            self.check()
        self.finish()

    def steps(self) -> list[Callable[[], object]]:
        """Everything that can happen now; what is rare in life stands there once, everything else several times."""
        steps: list[Callable[[], object]] = [self.observe]
        steps += [self.begin] * 3
        if self.pick(8) == 0:
            steps += [self.vacuum_full, self.crash, self.table.rewrite]
        for transaction in self.table.open.values():
            if not transaction.logged:
                steps += [lambda t=transaction: self.write(t)] * 4
                steps += [lambda t=transaction: self.delete(t)] * 2
                steps += [lambda t=transaction: self.table.commit(t)] * 3
                if self.pick(6) == 0:
                    steps += [lambda t=transaction: self.truncate(t), lambda t=transaction: self.table.end(t)]
            else:
                steps += [lambda t=transaction: self.table.end(t)] * 4
        if self.rest or self.applied < len(self.table.log):
            steps += [self.apply] * 4
        run = self.ledger.newest(OID)
        if run is None or run.again or not run.seeding:
            return [*steps, *[self.start] * 8]
        steps += [self.seed] * 6
        steps += [lambda c=chunk: self.deliver(c) for chunk in self.chunks for _ in range(3)]
        return steps

    # --- the source

    def fill_table(self) -> None:
        """Some rows that were always there."""
        first = self.table.begin()
        for key in range(KEYS - 1):
            self.table.write(first, key, key, (self.value(), self.value()), self.pick(BLOCKS))
        self.table.commit(first)
        self.table.end(first)
        self.apply()

    def begin(self) -> None:
        if len(self.table.open) < 3:
            self.write(self.table.begin())

    def write(self, transaction: Transaction) -> None:
        key, kind, block = self.pick(KEYS), self.pick(4), self.pick(BLOCKS + 1)
        to = self.pick(KEYS) if kind == 0 else key
        current = self.table.value_of(transaction, key)
        toasted = self.value() if kind == 1 or current is None else current[1]
        self.table.write(transaction, key, to, (self.value(), toasted), block)

    def value(self) -> int:
        self.next_value += 1
        return self.next_value

    def delete(self, transaction: Transaction) -> None:
        self.table.delete(transaction, self.pick(KEYS))

    def truncate(self, transaction: Transaction) -> None:
        self.table.truncate(transaction)

    def vacuum_full(self) -> None:
        self.table.vacuum_full([self.pick(BLOCKS), self.pick(BLOCKS)])

    # --- the bootstrap

    def observe(self) -> None:
        self.ledger.observe(self.table.snapshot())

    def crash(self) -> None:
        """The process dies; the store stays, chunks on their way are gone."""
        self.chunks = []
        self._open()
        done = self.ledger.unseen_at or ORIGIN
        log = [logged for logged in self.table.log[: self.applied] if isinstance(logged, Logged)]
        self.ledger.resume(logged.xid for logged in log if logged.lsn >= done.commit_lsn)

    def apply(self) -> None:
        if self.rest:
            self.folder.fold([self.rest.pop(0)])
            return
        records = self.table.log[self.applied].records(self.pick(4))
        self.applied += 1
        self.folder.fold(records[:1])
        self.rest = records[1:]

    def start(self) -> None:
        self.ledger.start_generation(PUBLISHED, 1, "test")

    def seed(self) -> None:
        run = self.ledger.newest(OID)
        if run is None or self.table.excluded or run.again or not run.seeding:
            return
        snapshot, w = self.table.snapshot(), self.table.insert_lsn()
        if run.state.cut is None:
            self.ledger.observe(snapshot)
            if not run.waiting_for:
                self.ledger.plan(run, one_file(self.table.filenode, self.table.blocks()), w)
            return
        busy = [(chunk.block, chunk.behind) for chunk in self.chunks if chunk.run is run and chunk.block is not None]
        gaps = run.gaps(busy)
        if gaps:
            first, behind = gaps[self.pick(len(gaps))]
            self.read_chunk(run, first, min(behind, first + 1 + self.pick(2)), snapshot, w)
        elif not any(chunk.run is run for chunk in self.chunks) and not self.ledger.finish(run):
            self.read_again(run, snapshot, w)

    def read_chunk(self, run: TableRun, first: int, behind: int, snapshot: Snapshot, w: int) -> None:
        assert run.state.cut is not None
        if run.state.cut.parts[0].filenode != self.table.filenode:
            run.again = "another file"
            return
        rows = {key: row for block in range(first, behind) for key, row in self.table.read(snapshot, block).items()}
        self.chunks.append(Chunk(run, first, behind, snapshot, w, as_bytes(rows), []))

    def read_again(self, run: TableRun, snapshot: Snapshot, w: int) -> None:
        keys = self.store.missing(run.space, 10)
        if not keys or self.ledger.applied is None or self.ledger.applied.commit_lsn < run.state.high_water:
            return
        wanted = {key[SPACE_SIZE:] for key in keys}
        rows = [(key, row) for key, row in as_bytes(self.table.read(snapshot)) if key in wanted]
        self.chunks.append(Chunk(run, None, 0, snapshot, w, rows, keys))

    def deliver(self, chunk: Chunk) -> None:
        """Folds the next row of a chunk in, or takes all that are left in as a file, or notes that it is done."""
        if chunk.origin is None:
            chunk.origin = self.ledger.admit(chunk.run, chunk.snapshot, chunk.w)
            if chunk.origin is None:
                self.chunks.remove(chunk)
        elif chunk.offer is not None:
            self.accept(chunk, chunk.origin, chunk.offer)
        elif chunk.rows and self.pick(3) == 0:
            keys, entries = as_entries(chunk.run, chunk.origin, chunk.rows)
            chunk.offer = self.bulk.offer(chunk.run, keys, entries)
        elif chunk.rows and self.pick(3) == 0:
            self.bulk.take_in(chunk.run, chunk.origin, *as_entries(chunk.run, chunk.origin, chunk.rows))
            chunk.rows = []
        elif chunk.rows:
            self.ledger.fold_rows(chunk.run, chunk.origin, [chunk.rows.pop()])
        else:
            self.chunks.remove(chunk)
            if chunk.block is None:
                self.ledger.forget_missing(chunk.run, chunk.again)
            else:
                done = ChunkDone(chunk.origin.number, chunk.w, 0, chunk.behind)
                self.ledger.chunk_done(chunk.run, chunk.block, done)

    def accept(self, chunk: Chunk, origin: FromSnapshot, offer: Offer) -> None:
        """Moves a file in that was written some steps ago, if it may go in; if not, its rows are as before."""
        chunk.offer = None
        if self.bulk.accept(chunk.run, origin, offer):
            decided = {key[SPACE_SIZE:] for key, _ in offer.decided}
            rows = [(key, row) for key, row in chunk.rows if key in decided]
            self.ledger.fold_rows(chunk.run, origin, rows)
            chunk.rows = []

    # --- the end

    def finish(self) -> None:
        for transaction in list(self.table.open.values()):
            self.table.end(transaction)
        while self.rest or self.applied < len(self.table.log):
            self.apply()
        for _ in range(200):
            run = self.ledger.newest(OID)
            if run is not None and run.state.phase is Phase.CONSISTENT and not run.state.stale:
                break
            if run is None or run.again or not run.seeding:
                self.start()
                continue
            self.folder.fold([self.table.progress()])
            self.seed()
            for chunk in list(self.chunks):
                while chunk in self.chunks:
                    self.deliver(chunk)
        else:
            raise AssertionError("the table never became consistent")
        self.check()
        for done in range(self.applied):
            self.check_delta(done)

    def check(self) -> None:
        run = self.ledger.tables.get(OID)
        if run is not None and (run.missing or run.state.reason == "a column is missing"):
            raise AssertionError("a consistent table met an update that it could not complete")
        if run is None or run.state.phase is not Phase.CONSISTENT or self.rest:
            return
        rows, seqs = self.table.state_after(self.applied)
        stored = {
            key: (entry.row, entry.seq)
            for key, value in self.store.view().entries(run.space)
            if (entry := unpack_entry(value, {})).row is not None
        }
        expected = {key_bytes(key): (row_bytes(*row), max(seqs[key], run.state.seq_p0)) for key, row in rows.items()}
        if run.state.stale:
            assert without_rewrites(stored) == without_rewrites(expected)
        else:
            assert stored == expected
            self.check_delta(self.next_value % (self.applied + 1))

    def check_delta(self, done: int) -> None:
        """Whoever had replayed so many transactions has the table as it is now behind a delta, if that is complete."""
        served = ServedView(self.store.view())
        state, seq, position = served.tables["public.t"], FIRST_SEQ - 1, ORIGIN
        match self.table.log[done - 1] if done else None:
            case Logged() as last:
                seq, position = last.last_seq, Position(last.epoch, last.lsn, len(last.events))
            case Rewritten() as told:
                seq, position = told.seq, Position(1, told.lsn, 0)
        if not horizon_of(state).is_before(Since(seq, position)):
            return
        rows = {key_bytes(key): row_bytes(*row) for key, row in self.table.state_after(done)[0].items()}
        changed: set[bytes] = set()
        for record in delta_records(served, state, seq):
            for change in iter_changes(body_of(record, check_record(record))):
                if change.op == Op.TRUNCATE:
                    rows.clear()
                    continue
                assert change.key is not None and change.key not in changed
                changed.add(change.key)
                rows.pop(change.key, None)
                if change.op == Op.INSERT and change.after is not None:
                    rows[change.key] = change.after
        assert rows == {key_bytes(key): row_bytes(*row) for key, row in self.table.state_after(self.applied)[0].items()}


def as_entries(run: TableRun, origin: FromSnapshot, rows: list[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """Store keys in order, and the packed entry of each."""
    prefix = pack_prefix(run.state.seq_p0, run.state.schema_id, origin)
    rows = sorted(rows)
    return [run.space + key for key, _ in rows], [prefix + row for _, row in rows]


def without_rewrites(rows: dict[bytes, tuple[bytes, int]]) -> dict[bytes, tuple[bytes, int]]:
    """The rows with the plain column as it was written last."""
    return {
        key: (b"%d|%s" % (int(row.split(b"|")[0]) % REWRITE, row.split(b"|")[1]), seq)
        for key, (row, seq) in rows.items()
    }


def as_bytes(rows: dict[int, Row]) -> list[tuple[bytes, bytes]]:
    return [(key_bytes(key), row_bytes(*row)) for key, row in sorted(rows.items())]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(0, 1 << 20), min_size=20, max_size=250))
def test_a_seeded_store_equals_its_table_at_every_consistent_position(choices: list[int]) -> None:
    with capture_logs():
        World(choices).run()
