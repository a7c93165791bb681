"""Transactions that the source sends again: told from new ones, and from another history. Pure.

A slot may go back (a crash of the server forgets confirmations since its last checkpoint; a promotion forgets more),
so the same commits come again. Their place decides: behind what the log was given, a transaction is new. At or below
it, the log must hold a transaction at that commit LSN with the same xid and commit time, and the repeat is dropped;
anything else means that the source's history is not the log's (a restored volume shows the same system identifier,
timeline, LSN and even xid), and nothing that it sends may enter the log.

That alone would not see a history that has nothing at the places of the log's last commits: a volume that was restored
to before them, and whose next commit lies behind the log's end. So the log's last transaction is *owed* wherever the
slot begins before it: until it was sent again, nothing that is new may enter the log.

PostgreSQL 14 may send a transaction again with rows that another session left out, or without rows that it sent
(`walbus.capture.regrouped`). Where that is to be expected, a transaction that the log lacks is dropped all the same,
for an event behind the log's end has its tables read again; and the owed one is known by its Begin, rows or not.

A connection that breaks inside a transaction leaves its first pieces in the log, which drops them when the transaction
begins again (`LogWriter.append`).
"""

from __future__ import annotations

from collections.abc import Callable

from walbus.capture.places import GAP
from walbus.errors import SourceReplaced
from walbus.log import Held
from walbus.lsn import format_lsn
from walbus.native.interface import Transaction
from walbus.position import ORIGIN, Position

#: What an operator can do where changes are missing.
RECONCILE = (
    "run `walbus snapshot --reconcile` and start again: the log goes on, and what is missing is read from the tables"
)
#: What an operator can do where a log cannot be continued.
NEW_LOG = "if that is meant, drop the slot and move the relay's folder away: a new log begins, and consumers bootstrap"


class Repeats:
    """Judges each transaction by what the log was given.

    Args:
        find: the log's durable transactions (`LogWriter.find`). Whatever whole transaction was appended must have
            been made durable before a connection begins.
        end: position of the last record that the log was given.
        trimmed: up to here the log has forgotten; transactions at or below it cannot be compared.
    """

    def __init__(self, find: Callable[[int, int], Held | None], *, end: Position, trimmed: Position = ORIGIN) -> None:
        self._find = find
        self._owed: Held | None = None
        self._other_rows = False
        self.end = end  #: position of the last record that the log was given
        self.trimmed = trimmed  #: moves with the log's retention

    def restart(self, end: Position) -> None:
        """A new connection: the log was given records up to `end` and no others."""
        self.end = end

    def owe(self, transaction: Held | None, *, other_rows: bool = False) -> None:
        """The source must send this one again before anything new; None: the slot begins behind the log's last one.

        Args:
            transaction: the log's last one.
            other_rows: what comes again may have other rows than it had, or none.
        """
        self._owed = transaction
        self._other_rows = other_rows

    @property
    def owing(self) -> bool:
        """Whether the log's last transaction has still to be sent again."""
        return self._owed is not None

    @property
    def sees_begins(self) -> bool:
        """Whether each transaction that begins is to be shown to `begins`."""
        return self._other_rows and self._owed is not None

    def begins(self, transaction: Transaction) -> None:
        """A transaction begins, which may have no change."""
        if _first(transaction) <= self.end:
            self._compare(self._held(transaction), transaction)

    def check_owed(self) -> None:
        """Something new is about to enter the log.

        Raises:
            SourceReplaced: the log's last transaction was not sent before it.
        """
        if self._owed is not None:
            what = "the source's history is not the log's: it goes on without the log's last transaction"
            where = f"transaction {self._owed.xid}, commit {format_lsn(self._owed.commit_lsn)}"
            raise SourceReplaced(what, where=where, mend=NEW_LOG)

    def is_repeat(self, transaction: Transaction) -> bool:
        """Whether the log has a transaction that is about to have its first change.

        Raises:
            SourceReplaced: it stands where the log holds another one, or none.
        """
        position = _first(transaction)
        if position > self.end:
            return False
        held = self._held(transaction)
        if held is None and position > self.trimmed and not self._other_rows:
            raise _diverged(transaction, "the log has passed that place without a transaction there")
        self._compare(held, transaction)
        return True

    def has_passed(self, transaction: Transaction) -> bool:
        """Whether the log is past the place of a transaction whose changes are not at hand, if it had any.

        Raises:
            SourceReplaced: the log holds another one there.
        """
        if _first(transaction) > self.end:
            return False
        self._compare(self._held(transaction), transaction)
        return True

    def _held(self, transaction: Transaction) -> Held | None:
        """What the log holds at a transaction's place, or where it was moved to (`walbus.capture.places`)."""
        epoch, lsn = transaction.epoch, transaction.commit_lsn
        return self._find(epoch, lsn) or self._find(epoch, lsn + GAP)

    def _compare(self, held: Held | None, transaction: Transaction) -> None:
        if held is None:
            return
        if not _same(held, transaction):
            raise _diverged(transaction, f"the log holds another transaction there, {held.xid}")
        if held == self._owed:
            self._owed = None

    def passed(self, position: Position) -> bool:
        """The log is to get a whole transaction, or a record between transactions, that ends at a position.

        False if the log has passed that place already.
        """
        if position <= self.end:
            return False
        self.end = position
        return True


def _first(transaction: Transaction) -> Position:
    return Position(transaction.epoch, transaction.commit_lsn, 1)


def _same(held: Held, transaction: Transaction) -> bool:
    """A lone message (xid 0) has no commit time of its own."""
    return held.xid == transaction.xid and (held.xid == 0 or held.commit_time == transaction.commit_time)


def _diverged(transaction: Transaction, why: str) -> SourceReplaced:
    where = f"transaction {transaction.xid}, commit {format_lsn(transaction.commit_lsn)}"
    return SourceReplaced(f"the source's history is not the log's: {why}", where=where, mend=NEW_LOG)
