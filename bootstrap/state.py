"""What the store's documents say: the applied position, and where each table stands.

    applied                          Applied
    unseen                           Unseen: which logged transactions may not be visible at the source yet
    table/OID                        TableState of the generation that is served, or will be
    next/OID                         TableState of the one that is seeded beside it
    chunk/OID/GENERATION/BLOCK       ChunkDone
    snapshot/OID/GENERATION/NUMBER   text of a pg_snapshot
    rows/OID/GENERATION              how many rows it holds, in digits. It changes with each batch, and a state may be
                                     large: it names every partition

A table's way: noticed in the publication -> *seeding* (a new generation with a new P0; later, once everything up to P0
is visible, its files are cut into chunks) -> *consistent*. Whatever breaks an assumption of the seeding starts the next
generation, in its place; whatever makes a consistent one old starts the next one beside it
(`walbus.bootstrap.generations`).
"""

from __future__ import annotations

import enum
from itertools import accumulate
from typing import TypeVar

import msgspec

from walbus.errors import StoreDamaged
from walbus.position import ORIGIN, Position

T = TypeVar("T")


class Applied(msgspec.Struct, frozen=True):
    """How far the log is folded in.

    Attributes:
        log_id: of the log.
        epoch, commit_lsn, ordinal: "last done".
        last_seq: the last seq given at that position.
        commit_time: of the last record, Unix microseconds.
    """

    log_id: str
    epoch: int = ORIGIN.epoch
    commit_lsn: int = ORIGIN.commit_lsn
    ordinal: int = ORIGIN.ordinal
    last_seq: int = 0
    commit_time: int = 0

    @property
    def position(self) -> Position:
        """The "last done" position."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)

    @classmethod
    def at(cls, log_id: str, position: Position, last_seq: int, commit_time: int) -> Applied:
        """Everything up to a position is folded in."""
        return cls(log_id, position.epoch, position.commit_lsn, position.ordinal, last_seq, commit_time)


class Phase(enum.Enum):
    """Where a table stands."""

    SEEDING = "seeding"
    CONSISTENT = "consistent"
    REFUSED = "refused"  #: cannot be bootstrapped; `reason` says why. The relay streams it all the same.
    BROKEN = "broken"  #: events were lost; seeded again as soon as the source answers
    WRONG = "wrong"  #: holds what the source never had; folded on for the difference, and not served


class PublishedTable(msgspec.Struct, frozen=True):
    """What the catalog says about a published table; a difference means another generation.

    Attributes:
        oid: relation OID.
        namespace, name: unquoted.
        kind: `pg_class.relkind`.
        identity: `pg_class.relreplident`.
        columns: (name, type OID, typmod, in key) of the published columns in tuple order.
        leaves: (OID, namespace, name) of the partitions that hold the rows, where it is published as their root.
        row_filter: SQL of the publication's WHERE, None without one.
        membership: identity of the publication's entry for the table, so that one that was dropped and added again
            is noticed.
        refusal: why it cannot be bootstrapped; empty if it can.
    """

    oid: int
    namespace: str
    name: str
    kind: str
    identity: str
    columns: tuple[tuple[str, int, int, bool], ...]
    row_filter: str | None
    membership: int
    refusal: str = ""
    leaves: tuple[tuple[int, str, str], ...] = ()

    @property
    def table(self) -> str:
        """`namespace.name`."""
        return f"{self.namespace}.{self.name}"

    @property
    def partitioned(self) -> bool:
        """Whether its rows are in partitions that are published as this table."""
        return self.kind == "p"


class Part(msgspec.Struct, frozen=True):
    """One file of a table: its own, or that of a partition.

    Attributes:
        oid, namespace, name: of the table, or the partition.
        filenode: the relfilenode.
        blocks: blocks of the main fork when everything up to P0 was visible.
    """

    oid: int
    namespace: str
    name: str
    filenode: int
    blocks: int


class Cut(msgspec.Struct, frozen=True):
    """The files that a generation reads, laid end to end: block N of the second one is the first one's blocks + N.

    Attributes:
        parts: one for an ordinary table, the partitions of one that is published as its root.
    """

    parts: tuple[Part, ...]

    @property
    def blocks(self) -> int:
        """Of all parts."""
        return sum(part.blocks for part in self.parts)

    def ranges(self) -> list[tuple[int, int]]:
        """First block, and the first behind, of each part."""
        ends = list(accumulate(part.blocks for part in self.parts))
        return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []

    def part_at(self, block: int) -> tuple[Part, int]:
        """The part that holds a block, and where that part begins."""
        for part, (first, behind) in zip(self.parts, self.ranges(), strict=True):
            if first <= block < behind:
                return part, first
        raise IndexError(f"no block {block}")


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """One table's state, as the store keeps it.

    Attributes:
        oid, table: which one.
        generation: number of its seeding, from 1; part of every store key.
        phase, reason: where it stands, and why (refused, broken, wrong, or seeded again).
        stale: why a consistent generation is not what the source has, as the log or an operator said; the next one
            follows. Empty if nothing said so.
        stale_at: the position ("last done") of what said so, as text; empty where nothing did.
        net_since: the position, as text, at which the first of the generations was served from which this one was
            reached by net differences in the log: who had the rows as of then or later has them by the log alone.
        net_number: number of the difference by which it was reached; 0 if it was not.
        net_seen: number of the last difference of the table that came by the log.
        net_at: where that one stands, a position as text.
        published: what the catalog said when the generation began.
        schema_id: the registered layout of the rows that chunks read.
        p0: the position that the generation folds from, as text.
        seq_p0: the log's last seq at P0.
        epoch: of P0.
        running: xids of the transactions that ran behind the look that the generation is built on. What they wrote
            before the table was published so is decoded as it was then, and may be in no log: chunks must see it.
        cut: None until everything up to P0, and what ran, is visible at the source.
        high_water: the largest W of its chunks: WAL position that must be applied before the table is consistent.
        last_snapshot: number of its latest snapshot. Numbers are never used twice: entries keep them.
        truncated_by: xid of the last TRUNCATE since P0; None without one.
        truncated_seq: seq of the last TRUNCATE; 0 without one.
        told_at: the last event, behind P0, by which the log told that rows had changed without events, which this
            generation had read as they are now; as text, empty without one. Whoever is not behind it lacks those rows.
        told_seq: the log's last seq at that event.
        rows: rows held, an estimate, as of when the state was written; the document `rows/…` is newer.
    """

    oid: int
    table: str
    generation: int
    phase: Phase
    reason: str = ""
    stale: str = ""
    stale_at: str = ""
    net_since: str = ""
    net_number: int = 0
    net_seen: int = 0
    net_at: str = ""
    published: PublishedTable | None = None
    schema_id: int = 0
    p0: str = ""
    seq_p0: int = 0
    epoch: int = 0
    running: tuple[int, ...] = ()
    cut: Cut | None = None
    high_water: int = 0
    last_snapshot: int = 0
    truncated_by: int | None = None
    truncated_seq: int = 0
    told_at: str = ""
    told_seq: int = 0
    rows: int = 0

    @property
    def net_told(self) -> str:
        """Whoever has had the rows since `net_since` has them behind this position; empty while that is to come."""
        return (self.net_at or self.net_since) if self.net_seen >= self.net_number else ""


class ChunkDone(msgspec.Struct, frozen=True):
    """A chunk that is wholly in the store.

    Attributes:
        snapshot: number of its snapshot.
        w: its W.
        rows: how many rows it read.
        behind: the first block behind it.
        bytes: of the keys and rows that it read, as the store has them.
    """

    snapshot: int
    w: int
    rows: int
    behind: int = 0
    bytes: int = 0


class Listed(msgspec.Struct, frozen=True):
    """That every published table had its run when the log's newest layout was the one with this number."""

    schema_id: int


class Unseen(msgspec.Struct, frozen=True):
    """Logged transactions up to a position that no snapshot was known to see.

    Attributes:
        epoch, commit_lsn, ordinal: the position ("last done").
        xids: those not known to be visible.
    """

    epoch: int
    commit_lsn: int
    ordinal: int
    xids: tuple[int, ...]

    @property
    def position(self) -> Position:
        """The position that `xids` is complete for."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)


APPLIED = "applied"
UNSEEN = "unseen"
LISTED = "listed"
TABLES = "table/"
SUCCESSORS = "next/"


def table_document(oid: int) -> str:
    """Name of a table's document."""
    return f"{TABLES}{oid}"


def successor_document(oid: int) -> str:
    """Name of the document of a table's next generation."""
    return f"{SUCCESSORS}{oid}"


def chunk_document(oid: int, generation: int, block: int | str) -> str:
    """Name of a chunk's document; with "" the prefix of all of a generation."""
    return f"chunk/{oid}/{generation}/{block}"


def snapshot_document(oid: int, generation: int, number: int | str) -> str:
    """Name of a snapshot's document; with "" the prefix of all of a generation."""
    return f"snapshot/{oid}/{generation}/{number}"


ROWS = "rows/"


def rows_document(oid: int, generation: int) -> str:
    """Name of the document of a generation's number of rows."""
    return f"{ROWS}{oid}/{generation}"


def encode(document: msgspec.Struct) -> bytes:
    """A document's bytes: JSON, for whoever looks into a store by hand."""
    return msgspec.json.encode(document)


def decode(content: bytes, kind: type[T]) -> T:
    """The inverse of `encode`.

    Raises:
        StoreDamaged: the bytes are no such document.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreDamaged(f"a {kind.__name__} document of the store does not parse: {error}") from None
