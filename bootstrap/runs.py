"""A table at work: its stored state, and what only the running process knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from walbus.bootstrap.pace import Breath
from walbus.bootstrap.state import (
    ChunkDone,
    Phase,
    TableState,
    chunk_document,
    decode,
    rows_document,
    snapshot_document,
)
from walbus.bootstrap.store import Store, space_of
from walbus.bootstrap.visibility import Snapshot, parse_snapshot


@dataclass(slots=True)
class TableRun:
    """A table's state and what only matters while it is seeded.

    Attributes:
        state: as stored.
        snapshots: those of the generation's chunks, by number.
        done: chunks that are wholly in the store, by first block.
        waiting_for: xids logged up to P0 (or a little behind it) that must be visible before blocks are counted.
        again: why the next generation must begin; empty if it need not.
        missing: whether an event left a column unknown since the last look.
        rows: rows held, an estimate; stored in a document of its own.
        stored: the state as it was stored last.
        touched: store keys that events have written to since P0, up to `touched_up_to`; None where they are too many.
        touched_up_to: the seq up to which `touched` speaks.
        stride: blocks of the next chunk; 0 before the first one.
        held: whether the source is too crowded to be read.
        breath: how long its workers rest.
        told: number of the net difference by which it follows the generation that is served; 0 before it is told.
        space: prefix of its store keys.
    """

    state: TableState
    stored: TableState | None = None
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    done: dict[int, ChunkDone] = field(default_factory=dict)
    waiting_for: frozenset[int] = frozenset()
    again: str = ""
    missing: bool = False
    rows: int = 0
    touched: set[bytes] | None = field(default_factory=set)
    touched_up_to: int = 0
    stride: int = 0
    held: bool = False
    breath: Breath = field(default_factory=Breath)
    told: int = 0
    space: bytes = field(init=False)
    _covered: list[tuple[int, int]] = field(init=False)  # the blocks of `done`, as few ranges

    def __post_init__(self) -> None:
        self.space = space_of(self.state.oid, self.state.generation)
        self._covered = _merged((block, chunk.behind) for block, chunk in self.done.items())

    @property
    def folding(self) -> bool:
        """Whether events of the table are folded in."""
        return self.state.phase in (Phase.SEEDING, Phase.CONSISTENT, Phase.WRONG)

    @property
    def settled(self) -> bool:
        """Whether it was consistent once, so that the next generation is seeded beside it."""
        return self.state.phase in (Phase.CONSISTENT, Phase.WRONG)

    @property
    def seeding(self) -> bool:
        """Whether an entry's origin still matters, so that events must read before they write."""
        return self.state.phase is Phase.SEEDING

    @property
    def read(self) -> bool:
        """Whether every chunk is in the store."""
        return self.state.cut is not None and not self.gaps(())

    def note_done(self, block: int, chunk: ChunkDone) -> None:
        """A chunk that begins with a block is in the store."""
        self.done[block] = chunk
        self._covered = _merged([*self._covered, (block, chunk.behind)])

    def forget_chunks(self) -> None:
        """The seeding is over: its chunks and their snapshots say nothing any more."""
        self.snapshots, self.done, self._covered = {}, {}, []

    @property
    def blocks_done(self) -> int:
        """Blocks of the chunks that are in the store."""
        return sum(behind - first for first, behind in self._covered)

    @property
    def chunks_expected(self) -> int:
        """Chunks that are in the store, and those that the rest will be at the present stride."""
        left = (self.state.cut.blocks if self.state.cut else 0) - self.blocks_done
        return len(self.done) + -(-left // max(1, self.stride))

    def gaps(self, busy: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges of blocks, none longer than its part, that are neither in the store nor busy.

        Args:
            busy: ranges that are being read: first block, and the first behind.
        """
        if self.state.cut is None:
            return []
        taken = _merged([*self._covered, *busy])
        return [gap for part in self.state.cut.ranges() for gap in _outside(part, taken)]


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same blocks as few ranges, in order."""
    merged: list[tuple[int, int]] = []
    for first, behind in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], behind))
        elif first < behind:
            merged.append((first, behind))
    return merged


def _outside(part: tuple[int, int], taken: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of a range."""
    start, end = part
    for first, behind in taken:
        if behind <= start or first >= end:
            continue
        if first > start:
            yield start, first
        start = max(start, behind)
    if start < end:
        yield start, end


def load_runs(store: Store, kind: str) -> dict[int, TableRun]:
    """The runs of a store by OID; what waits for visibility is set when the applier resumes.

    Args:
        store: of the process.
        kind: `TABLES` or `SUCCESSORS`.
    """
    states = [decode(content, TableState) for content in store.documents(kind).values()]
    return {state.oid: _load_run(store, state) for state in states}


def _load_run(store: Store, state: TableState) -> TableRun:
    chunks = store.documents(chunk_document(state.oid, state.generation, ""))
    snapshots = store.documents(snapshot_document(state.oid, state.generation, ""))
    space = space_of(state.oid, state.generation)
    rows = store.document(rows_document(state.oid, state.generation))
    return TableRun(
        state,
        stored=state,
        snapshots={_number(name): parse_snapshot(text.decode()) for name, text in snapshots.items()},
        done={_number(name): decode(content, ChunkDone) for name, content in chunks.items()},
        missing=state.phase is Phase.CONSISTENT and bool(store.missing(space, 1)),
        rows=state.rows if rows is None else int(rows),
        touched=set() if state.phase is Phase.SEEDING else None,
    )


def _number(document: str) -> int:
    """The last part of a document's name."""
    return int(document.rpartition("/")[2])
