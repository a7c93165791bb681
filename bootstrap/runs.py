"""A table at work: its stored state, and what only the running process knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from walbus.bootstrap.state import (
    TABLES,
    ChunkDone,
    Phase,
    TableState,
    chunk_document,
    decode,
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
        waiting_for: xids logged up to P0 (or a little behind it) that must be visible before the plan.
        again: why the next generation must begin; empty if it need not.
        missing: whether an event left a column unknown since the last look.
        rows: rows held, an estimate; stored with the state.
        space: prefix of its store keys.
    """

    state: TableState
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    done: dict[int, ChunkDone] = field(default_factory=dict)
    waiting_for: frozenset[int] = frozenset()
    again: str = ""
    missing: bool = False
    rows: int = 0
    space: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.space = space_of(self.state.oid, self.state.generation)

    @property
    def folding(self) -> bool:
        """Whether events of the table are folded in."""
        return self.state.phase in (Phase.SEEDING, Phase.CONSISTENT)

    @property
    def seeding(self) -> bool:
        """Whether an entry's origin still matters, so that events must read before they write."""
        return self.state.phase is Phase.SEEDING

    def pending(self) -> list[int]:
        """First blocks of the chunks that are not done."""
        plan = self.state.plan
        return [] if plan is None else [block for block in plan.starts() if block not in self.done]


def load_runs(store: Store) -> list[TableRun]:
    """Every table of a store; what waits for visibility is set when the applier resumes."""
    states = [decode(content, TableState) for content in store.documents(TABLES).values()]
    return [_load_run(store, state) for state in states]


def _load_run(store: Store, state: TableState) -> TableRun:
    chunks = store.documents(chunk_document(state.oid, state.generation, ""))
    snapshots = store.documents(snapshot_document(state.oid, state.generation, ""))
    space = space_of(state.oid, state.generation)
    return TableRun(
        state,
        snapshots={_number(name): parse_snapshot(text.decode()) for name, text in snapshots.items()},
        done={_number(name): decode(content, ChunkDone) for name, content in chunks.items()},
        missing=state.phase is Phase.CONSISTENT and bool(store.missing(space, 1)),
        rows=state.rows,
    )


def _number(document: str) -> int:
    """The last part of a document's name."""
    return int(document.rpartition("/")[2])
