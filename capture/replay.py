"""A spooled transaction on its way into the assembler, in parts. Pure.

A part ends at a bound of bytes, so a transaction of any size never keeps the loop from its other duties. A full disk
(`LogFull`) ends it too: the message that found no room is fed again by the next call.

A transaction that the log has already (the source sent it again) is not read to its end: its changes would be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from walbus.capture.streamed import begin_bytes, commit_bytes
from walbus.capture.told import TELLING_KINDS, Subject, ToldLayouts, subject_of

if TYPE_CHECKING:
    from walbus.capture.assembly import Assembler
    from walbus.capture.spool import Spooled


@dataclass(frozen=True, slots=True)
class Ending:
    """How a transaction committed: LSN and end of its commit record, Unix microseconds, 32 bits of its xid."""

    commit_lsn: int
    end_lsn: int
    commit_time: int
    xid: int


class Replay:
    """One transaction's replay; Begin is fed at once.

    Args:
        assembler: takes the messages.
        told: the layouts of the connection.
        spooled: the transaction's messages.
        ending: its commit.
        origin: its Origin message; empty if it has none.
        aborted: xids of subtransactions, as they are sent, whose changes do not count. What they tell of layouts does.
        layouts: what the connection told inside the transaction.
        check: is called when everything was read, before the Commit is fed; raises if it is not what was spooled.
    """

    def __init__(  # noqa: PLR0913  (the parts of a transaction)
        self,
        assembler: Assembler,
        told: ToldLayouts,
        spooled: Spooled,
        ending: Ending,
        *,
        origin: bytes,
        aborted: frozenset[bytes],
        layouts: Iterable[Subject] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._assembler = assembler
        self._told = told
        self._spooled = spooled
        self._ending = ending
        self._aborted = aborted
        self._layouts = set(layouts)
        self._check = check
        self._messages: list[tuple[bytes, bytes]] = []
        self._next = 0
        assembler.feed(begin_bytes(ending.commit_lsn, ending.commit_time, ending.xid))
        if origin:
            assembler.feed(origin)

    def run(self, budget: int) -> bool:
        """Feeds about `budget` bytes; whether that was all.

        Raises:
            ProtocolError, SourceReplaced: of the assembler.
            LogFull: no room for a new layout; call again.
            DamagedRecord: the spool is not as it was written.
        """
        while budget > 0:
            if self._next == len(self._messages):
                if self._assembler.repeating:
                    return self._finish()
                self._messages, self._next = self._spooled.read(), 0
                if not self._messages:
                    self._check()
                    return self._finish()
            budget -= self._feed_some(budget)
        return False

    def _feed_some(self, budget: int) -> int:
        """Feeds what was read, about `budget` bytes of it; how many."""
        feed, aborted, fed, at = self._assembler.feed, self._aborted, 0, self._next
        try:
            for at in range(self._next, len(self._messages)):
                xid, message = self._messages[at]
                if message[0] in TELLING_KINDS:
                    self._layouts.add(subject_of(message))
                    self._told.feed(message)
                elif xid not in aborted:
                    feed(message)
                fed += len(message)
                if fed >= budget:
                    break
        except BaseException:
            self._next = at
            raise
        self._next = at + 1
        return fed

    def _finish(self) -> bool:
        ending = self._ending
        self._assembler.feed(commit_bytes(ending.commit_lsn, ending.end_lsn, ending.commit_time))
        self._told.feed_newest(self._layouts)
        return True
