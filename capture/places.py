"""Where a net difference stands in the order of commits, which is PostgreSQL's own. Pure.

Positions are LSNs of commit records, and a difference has none. It stands between two transactions: behind all that
commits before the LSN B up to which the log is complete, in front of all that commits from B on. A progress record
stands at B already, and the next commit record may begin at B exactly, so there is no place left between the two.

But no record of WAL is shorter than its header of 24 bytes, and each begins at a multiple of 8. So nothing else can
stand in the 23 bytes behind B. Differences take those of the first 22 that are neither multiples of 8 nor in front of
one (where messages outside transactions stand), in order: 18 places, which nothing but a difference ever has. The last
byte is for the transaction whose commit record begins at B, if there is one and a difference stands in front of it.
That transaction is *moved*: its commit LSN in the log is 23 more than its record's.

A difference of which nothing was left took no ordinal, so the next one may stand at its LSN. Where every place is
taken, the next one waits for the WAL to grow.
"""

from __future__ import annotations

from walbus.position import Position

#: Bytes behind a record's beginning that no other record begins or ends in.
GAP = 23
_ALIGNMENT = 8


def difference_place(end: Position, epoch: int, bound: int) -> Position | None:
    """Where the next difference goes (ordinal 0); None if there is no place any more as long as the WAL does not grow.

    Args:
        end: position of the log's last record.
        epoch: the timeline that holds `bound`.
        bound: everything that commits before this LSN is in the log.
    """
    base = -(-bound // _ALIGNMENT) * _ALIGNMENT
    lsn = base + 1
    if end.epoch == epoch and end.commit_lsn >= lsn:
        lsn = end.commit_lsn + (end.ordinal > 0)
    while not is_of_difference(lsn):
        lsn += 1
    return Position(epoch, lsn, 0) if lsn < base + GAP else None


def is_of_difference(lsn: int) -> bool:
    """Whether only a difference can stand at an LSN."""
    return 0 < lsn % _ALIGNMENT < _ALIGNMENT - 1


def moved_lsn(end: Position, epoch: int, commit_lsn: int) -> int:
    """The commit LSN that a new transaction has in the log.

    Args:
        end: position of the log's last record.
        epoch: of the transaction.
        commit_lsn: where its commit record begins.
    """
    behind = end.epoch == epoch and commit_lsn < end.commit_lsn < commit_lsn + GAP
    moved = behind and commit_lsn % _ALIGNMENT == 0 and is_of_difference(end.commit_lsn)
    return commit_lsn + GAP if moved else commit_lsn
