"""A small model of one PostgreSQL table: row versions in blocks, transactions, snapshots, and the log they make.

It has what makes seeding hard, and nothing else:

- a commit enters the log first and becomes visible later, in any order among transactions that do not conflict;
- locks on keys are held until then;
- an update writes a new version into any block, so a row can move behind or before a scan;
- an update may leave the TOASTed column out of its event;
- TRUNCATE and VACUUM FULL replace the file; both exclude everybody else. So does a statement that rewrites every row
  without an event, of which the log tells that the table must be seeded again.

A row is `(plain, toasted)`; as bytes `plain|toasted`, where the toasted part of an event that left it out is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from support.memory_store import MemoryStore
from walbus.bootstrap.entry import Entry
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Applied, Cut, Part, PublishedTable
from walbus.bootstrap.unseen import UnseenCommits
from walbus.bootstrap.visibility import Snapshot
from walbus.capture.pieces import reseed_piece
from walbus.lsn import format_lsn
from walbus.position import ORIGIN, Position
from walbus.records import Flag, Kind, Op, pack_change, pack_record
from walbus.schema import ReplicaIdentity, TableSchema

OID = 16384
TOASTED = b"\x02"  #: bitmap of the second column
FIRST_SEQ = 1000
PUBLISHED = PublishedTable(OID, "public", "t", "r", "d", (("id", 23, -1, True), ("big", 25, -1, False)), None, 0)
REWRITE = 10**6  #: what a rewrite adds to the plain column; all other values are below

Row = tuple[int, int]


def one_file(filenode: int = 1, blocks: int = 1) -> Cut:
    """How the table's one file is cut."""
    return Cut((Part(OID, "public", "t", filenode, blocks),))


def row_bytes(plain: int, toasted: int | None) -> bytes:
    return b"%d|%s" % (plain, b"" if toasted is None else b"%d" % toasted)


def fill(schema_id: int, row: bytes, unchanged: bytes, other: Entry) -> tuple[bytes, bytes]:
    """What `walbus.values.merge_unchanged` does, for the model's rows."""
    del schema_id
    if other.row is None or other.missing:
        return row, unchanged
    return row.split(b"|")[0] + b"|" + other.row.split(b"|")[1], b""


def new_ledger(applied: Position = ORIGIN) -> Ledger:
    """A ledger without tables that follows the model's log from a place on."""
    ledger = Ledger(MemoryStore(), fill)
    ledger.begin(Applied("log", *applied, FIRST_SEQ - 1, 0), UnseenCommits())
    ledger.resume([])
    return ledger


@dataclass
class Version:
    key: int
    row: Row
    block: int
    created: int
    deleted: int | None = None


@dataclass
class Event:
    op: Op
    key: int | None = None
    old_key: int | None = None
    row: Row | None = None
    unchanged: bool = False

    def pack(self, delta: int) -> bytes:
        shown = None if self.row is None else row_bytes(self.row[0], None if self.unchanged else self.row[1])
        return pack_change(
            self.op,
            table=OID,
            schema_id=1,
            seq_delta=delta,
            ordinal_delta=delta,
            key=None if self.key is None else key_bytes(self.key),
            old_key=None if self.old_key is None else key_bytes(self.old_key),
            unchanged=TOASTED if self.unchanged else b"",
            after=shown,
        )


def key_bytes(key: int) -> bytes:
    return b"k%d" % key


@dataclass
class Transaction:
    xid: int
    events: list[Event] = field(default_factory=list)
    locks: set[int] = field(default_factory=set)
    logged: bool = False
    before_truncate: tuple[list[Version], int] | None = None


@dataclass
class Logged:
    """One transaction of the log."""

    xid: int
    lsn: int
    first_seq: int
    events: list[Event]
    epoch: int = 1

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.events) - 1

    def records(self, cut: int | None = None) -> list[bytes]:
        """The transaction in one record, or in two that meet behind `cut` changes."""
        if cut is None or not 0 < cut < len(self.events):
            return [self._record(0, len(self.events), Flag.BEGIN | Flag.END)]
        return [self._record(0, cut, Flag.BEGIN), self._record(cut, len(self.events), Flag.END)]

    def _record(self, start: int, stop: int, flags: Flag) -> bytes:
        return pack_record(
            Kind.TRANSACTION,
            flags=flags,
            epoch=self.epoch,
            commit_lsn=self.lsn,
            end_lsn=self.lsn + 8,
            first_ordinal=start + 1,
            last_ordinal=stop,
            first_seq=self.first_seq + start,
            last_seq=self.first_seq + stop - 1,
            xid=self.xid,
            commit_time=self.lsn,
            count=stop - start,
            tables=1 << OID % 64,
            body=b"".join(event.pack(delta) for delta, event in enumerate(self.events[start:stop])),
        )


@dataclass
class Rewritten:
    """What the log tells of a statement that changed every row without an event."""

    lsn: int
    seq: int

    def records(self, cut: int | None = None) -> list[bytes]:
        del cut
        return [reseed_record(self.lsn, at=self.lsn, seq=self.seq)]


def reseed_record(lsn: int, *, at: int, reason: str = "rewritten", seq: int = FIRST_SEQ) -> bytes:
    """The record of a statement that changed rows of the table silently, seen at an LSN."""
    schema = TableSchema(1, OID, "public", "t", ReplicaIdentity.DEFAULT, ())
    told = {"reason": reason, "what": "it changed", "lsn": format_lsn(lsn), "snapshot": "5:5:"}
    made = reseed_piece(Position(1, at, 0), 9, schema, told)
    fields = {name: getattr(made, name) for name in made.__slots__}
    return pack_record(fields.pop("kind"), first_seq=seq, last_seq=seq, **fields)


class ModelTable:
    """The table, its transactions and its log."""

    def __init__(self, first_lsn: int = 1000, epoch: int = 1) -> None:
        self._epoch = epoch
        self.versions: list[Version] = []
        self.filenode = 1
        self.open: dict[int, Transaction] = {}
        self.log: list[Logged | Rewritten] = []
        self._next_xid = 100
        self._latest_ended = 99
        self._aborted: set[int] = set()
        self._lsn = first_lsn
        self._next_seq = FIRST_SEQ

    def snapshot(self) -> Snapshot:
        xmax = self._latest_ended + 1
        running = frozenset(xid for xid in self.open if xid < xmax)
        return Snapshot(min(running, default=xmax), xmax, running)

    def insert_lsn(self) -> int:
        """W: behind every commit record so far."""
        return self._lsn + 1

    def progress(self) -> bytes:
        """A PROGRESS record that says that the log has everything up to now."""
        self._lsn += 2
        seq = self._next_seq - 1
        return pack_record(
            Kind.PROGRESS, flags=0, epoch=1, commit_lsn=self._lsn, first_ordinal=0, last_ordinal=0,
            first_seq=seq, last_seq=seq, commit_time=0,
        )  # fmt: skip

    @property
    def excluded(self) -> bool:
        """Whether a transaction holds the whole table."""
        return any(transaction.before_truncate is not None for transaction in self.open.values())

    def begin(self) -> Transaction:
        transaction = Transaction(self._next_xid)
        self._next_xid += 1
        self.open[transaction.xid] = transaction
        return transaction

    def _free(self, transaction: Transaction, key: int) -> bool:
        others = [other for other in self.open.values() if other is not transaction]
        return not any(key in other.locks or other.before_truncate is not None for other in others)

    def _current(self, transaction: Transaction, key: int) -> Version | None:
        """The version that the key's next writer sees, which holds the key's lock."""
        live = [v for v in self.versions if v.key == key and v.deleted is None and v.created not in self._aborted]
        assert len(live) <= 1
        return live[0] if live else None

    def write(self, transaction: Transaction, key: int, to: int, row: Row, block: int) -> bool:
        """Inserts the key, or updates it (to another key, if that is free); False if a lock or a row is in the way."""
        if not self._free(transaction, key):
            return False
        current = self._current(transaction, key)
        if current is None:
            transaction.locks.add(key)
            self.versions.append(Version(key, row, block, transaction.xid))
            transaction.events.append(Event(Op.INSERT, key, row=row))
            return True
        if to != key and (not self._free(transaction, to) or self._current(transaction, to) is not None):
            return False
        transaction.locks |= {key, to}
        current.deleted = transaction.xid
        self.versions.append(Version(to, row, block, transaction.xid))
        unchanged = row[1] == current.row[1]
        old_key = key if to != key else None
        transaction.events.append(Event(Op.UPDATE, to, old_key, row, unchanged))
        return True

    def value_of(self, transaction: Transaction, key: int) -> Row | None:
        current = self._current(transaction, key)
        return current.row if current else None

    def delete(self, transaction: Transaction, key: int) -> bool:
        current = self._current(transaction, key) if self._free(transaction, key) else None
        if current is None:
            return False
        transaction.locks.add(key)
        current.deleted = transaction.xid
        transaction.events.append(Event(Op.DELETE, key))
        return True

    def truncate(self, transaction: Transaction) -> bool:
        if any(other is not transaction and (other.locks or other.events) for other in self.open.values()):
            return False
        if transaction.before_truncate is None:
            transaction.before_truncate = (self.versions, self.filenode)
        self.versions = []
        self.filenode += 1
        transaction.events.append(Event(Op.TRUNCATE))
        return True

    def vacuum_full(self, blocks: list[int]) -> bool:
        """Writes every row into another block of a new file."""
        if any(other.locks or other.events for other in self.open.values()):
            return False
        self.versions = [v for v in self.versions if v.deleted is None and v.created not in self._aborted]
        for version, block in zip(self.versions, blocks * len(self.versions), strict=False):
            version.block = block
        self.filenode += 1
        return True

    def rewrite(self) -> bool:
        """Changes every row in a new file, and writes no event but that this was done."""
        if not self.vacuum_full([0]):
            return False
        for version in self.versions:
            version.row = (version.row[0] + REWRITE, version.row[1])
        self._lsn += 10
        self.log.append(Rewritten(self._lsn, self._next_seq - 1))
        return True

    def commit(self, transaction: Transaction) -> None:
        """Writes the commit record; the transaction is not visible yet."""
        transaction.logged = True
        if not transaction.events:
            return
        self._lsn += 10
        self.log.append(Logged(transaction.xid, self._lsn, self._next_seq, transaction.events, self._epoch))
        self._next_seq += len(transaction.events)

    def end(self, transaction: Transaction) -> None:
        """Makes a committed transaction visible, or aborts another one; gives its locks back."""
        if not transaction.logged:
            self._abort(transaction)
        del self.open[transaction.xid]
        self._latest_ended = max(self._latest_ended, transaction.xid)

    def _abort(self, transaction: Transaction) -> None:
        self._aborted.add(transaction.xid)
        if transaction.before_truncate is not None:
            self.versions, self.filenode = transaction.before_truncate
        for version in self.versions:
            if version.deleted == transaction.xid:
                version.deleted = None

    def blocks(self) -> int:
        return max((version.block + 1 for version in self.versions), default=0)

    def read(self, snapshot: Snapshot, block: int | None = None) -> dict[int, Row]:
        """The rows that the snapshot sees, of one block or of all."""
        committed = {xid for xid in range(self._next_xid) if xid not in self._aborted}

        def seen(xid: int | None) -> bool:
            return xid is not None and xid in committed and snapshot.sees(xid)

        return {
            version.key: version.row
            for version in self.versions
            if seen(version.created) and not seen(version.deleted) and block in (None, version.block)
        }

    def state_after(self, applied: int) -> tuple[dict[int, Row], dict[int, int]]:
        """Rows, and the seq of the last event of each key, when so many logged transactions have been replayed."""
        rows: dict[int, Row] = {}
        seqs: dict[int, int] = {}
        for logged in self.log[:applied]:
            if isinstance(logged, Rewritten):
                rows = {key: (plain + REWRITE, toasted) for key, (plain, toasted) in rows.items()}
                continue
            for seq, event in enumerate(logged.events, logged.first_seq):
                if event.op == Op.TRUNCATE:
                    rows.clear()
                    continue
                assert event.key is not None
                seqs[event.key] = seq
                if event.old_key is not None:
                    seqs[event.old_key] = seq
                    del rows[event.old_key]
                if event.op == Op.DELETE:
                    del rows[event.key]
                elif event.row is not None:
                    rows[event.key] = event.row
        return rows, seqs
