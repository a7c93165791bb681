"""A spooled transaction on its way into the assembler, in parts. Pure.

A part ends at a bound of bytes, so a transaction of any size never keeps the loop from its other duties. A full disk
(`LogFull`) ends it too: the message that found no room is fed again by the next call.

A transaction that the log has already (the source sent it again) is not read to its end: its changes would be dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from walbus.capture.streamed import ENTRY, begin_bytes, commit_bytes
from walbus.capture.told import TELLING_KINDS, Subject, ToldLayouts, subject_of

if TYPE_CHECKING:
    from walbus.capture.assembly import Assembler
    from walbus.capture.spool import Spooled
    from walbus.native.interface import ReplayRows


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
        replay_rows: of the assembler's core.
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
        replay_rows: ReplayRows,
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
        self._replay_rows = replay_rows
        self._spooled = spooled
        self._ending = ending
        self._aborted = aborted
        self._layouts = set(layouts)
        self._check = check
        self._chunk = b""  # entries, the last one perhaps cut off
        self._at = 0  # of the next one in it
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
        core, aborted = self._assembler.core, self._aborted
        while budget > 0:
            begin = self._at
            self._at = self._replay_rows(core, self._chunk, begin, aborted)
            missing = self._feed_next()
            budget -= self._at - begin
            if missing and (self._assembler.repeating or not self._read_on(missing)):
                return self._finish()
        return False

    def _feed_next(self) -> int:
        """Feeds the entry that the core left; how many bytes of it are missing, if it is not whole."""
        chunk, at = self._chunk, self._at + ENTRY.size
        if len(chunk) < at:
            return at - len(chunk)
        length, xid = ENTRY.unpack_from(chunk, self._at)
        end = at + length
        if len(chunk) < end:
            return int(end - len(chunk))
        self._feed(xid, chunk[at:end])
        self._at = end
        return 0

    def _feed(self, xid: bytes, message: bytes) -> None:
        if message and message[0] in TELLING_KINDS:
            self._layouts.add(subject_of(message))
            self._told.feed(message)
        elif xid not in self._aborted:
            self._assembler.feed(message)

    def _read_on(self, missing: int) -> bool:
        """Reads what follows, at least the entry that is cut off; whether there was anything."""
        rest = self._chunk[self._at :]
        if not rest and not self._spooled.left:
            self._check()
            return False
        self._chunk, self._at = rest + self._spooled.read(missing), 0
        return True

    def _finish(self) -> bool:
        ending = self._ending
        self._assembler.feed(commit_bytes(ending.commit_lsn, ending.end_lsn, ending.commit_time))
        self._told.feed_newest(self._layouts)
        return True
