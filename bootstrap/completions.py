"""Completions: what a change's row was before it, kept by the change's seq for whoever asks for complete changes.

PostgreSQL sends neither the old row of an update or delete nor the TOASTed values that an update leaves alone, unless
the table's replica identity is FULL. The store has both, for one moment: when the applier comes to the change. So for
the tables that `[bootstrap] complete` names, the applier keeps the row as it is then, packed as the entry that it was,
under the seq of the change. Both follow from it: it *is* the old row, and what the new one lacks it has.

    completions        Kept: of which log and tables, and from where on
    seq (8, big-endian)  ->  packed entry      in a family of their own

A completion is written no later than the position behind its change, and read only up to that position. It is a
function of the log and of the rows as they were seeded, so a batch that is folded again after a crash writes the same.

What cannot be known has no completion, and the change stays as the log has it:

- the table was not consistent then, was `wrong`, or an event said that its rows had changed without events;
- the row is not in the store: the table has no key, or rows came without events;
- the change is part of a net difference: no session made it, and the row that it replaces is that of a generation that
  has gone.

They begin where the store stood when the configuration first named their tables, always between two transactions, and
end with the log: what retention drops there is dropped here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from walbus.bootstrap.staging import Stage
from walbus.bootstrap.state import Applied, Phase, TableState, decode, encode
from walbus.bootstrap.store import Store
from walbus.position import Position
from walbus.relay.table_filter import pattern_matches, split_pattern

COMPLETIONS = "completions"
_EVERY_SEQ = (1 << 53) - 1


class Kept(msgspec.Struct, frozen=True):
    """What completions there are.

    Attributes:
        log_id: of the log that they belong to.
        tables: the patterns of the tables that they are of.
        epoch, commit_lsn, ordinal: "last done" where they begin.
        seq: the last seq given there.
    """

    log_id: str
    tables: tuple[str, ...]
    epoch: int
    commit_lsn: int
    ordinal: int
    seq: int

    @property
    def position(self) -> Position:
        """Changes behind this "last done" position have their completions."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)


class Completions:
    """Of which tables a store keeps completions, and since when. All but reading is done under its ledger's lock.

    Args:
        store: of the ledger.
        tables: patterns; none: no completions are kept.
    """

    def __init__(self, store: Store, tables: Sequence[str] = ()) -> None:
        self._store = store
        self._tables = tuple(tables)
        self._patterns = [split_pattern(pattern) for pattern in tables]
        content = store.document(COMPLETIONS)
        self._kept: Kept | None = None if content is None else decode(content, Kept)

    @property
    def asked(self) -> bool:
        """Whether any are asked for."""
        return bool(self._tables)

    @property
    def kept(self) -> Kept | None:
        """What there is; None where none are kept."""
        return self._kept

    def names(self, table: str) -> bool:
        """Whether those of a table, `namespace.name`, are asked for."""
        namespace, _, name = table.partition(".")
        return any(pattern_matches(pattern, namespace, name) for pattern in self._patterns)

    def wants(self, state: TableState) -> bool:
        """Whether a change that comes now is to get one: the store's row is the row before it."""
        if self._kept is None or state.phase is not Phase.CONSISTENT or state.stale_at:
            return False
        return self.names(state.table)

    def settle(self, stage: Stage, applied: Applied, *, whole: bool) -> None:
        """Stages that they begin behind `applied`, or are no more, where what is kept is not what is asked for.

        Args:
            stage: commits before anything behind `applied` is folded.
            applied: how far the log is folded in.
            whole: whether that lies between two transactions; if not, they begin later.
        """
        kept = self._kept
        if kept is not None and (kept.log_id, kept.tables) == (applied.log_id, self._tables):
            return
        begins = bool(self._tables) and whole
        if kept is not None or begins:
            self._begin(stage, applied if begins else None)

    def begin(self, stage: Stage, applied: Applied) -> None:
        """Stages that they begin behind `applied` whatever there was: the log does not go on where it was left."""
        self._begin(stage, applied if self._tables else None)

    def _begin(self, stage: Stage, applied: Applied | None) -> None:
        self._kept = None
        if applied is not None:
            place = applied.position
            self._kept = Kept(applied.log_id, self._tables, *place, applied.last_seq)
        stage.forget_completions(_EVERY_SEQ)
        stage.document(COMPLETIONS, encode(self._kept) if self._kept is not None else None)

    def trim(self, stage: Stage, position: Position, seq: int) -> None:
        """Stages that they begin later: the log has dropped what lies up to a position.

        Args:
            stage: of the caller.
            position: "last done" where the log begins now.
            seq: the last seq given there.
        """
        kept = self._kept
        if kept is None or position <= kept.position:
            return
        # Readers look at this behind their reading, so it moves before anything goes.
        self._kept = msgspec.structs.replace(
            kept, epoch=position.epoch, commit_lsn=position.commit_lsn, ordinal=position.ordinal, seq=max(seq, kept.seq)
        )
        stage.forget_completions(self._kept.seq)
        stage.document(COMPLETIONS, encode(self._kept))

    def of(self, first_seq: int, last_seq: int) -> Iterator[tuple[int, bytes]]:
        """(seq, packed entry) of the completions by seq, both ends included. Any thread."""
        return self._store.completions(first_seq, last_seq)
