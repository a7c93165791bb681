"""Which transactions a snapshot of PostgreSQL sees: `pg_snapshot` parsed, compared and asked.

`pg_current_snapshot()` prints `xmin:xmax:xip,xip,...`. Everything below xmin had ended when the snapshot was taken,
nothing from xmax on had, and of those between, the listed ones had not. All are top-level transaction ids widened to
64 bits, so they never wrap. Sub-transactions do not appear: their rows are visible with their parent's.

A *commit is in the WAL before it is visible*: an xid can be in the log while a snapshot taken now does not see it
(longest while the commit waits for a synchronous standby). That is why the order of the log alone cannot tell
whether a row that was read already holds an event, and why every chunk keeps its snapshot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from walbus.errors import ProtocolError

_TEXT = re.compile(r"(\d{1,20}):(\d{1,20}):((?:\d{1,20}(?:,\d{1,20})*)?)\Z")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One MVCC snapshot of one primary.

    Attributes:
        xmin: every xid below it had ended.
        xmax: no xid from it on had ended.
        running: xids in [xmin, xmax) that had not ended.
    """

    xmin: int
    xmax: int
    running: frozenset[int]

    def sees(self, xid: int) -> bool:
        """Whether the effects of a *committed* transaction are visible in this snapshot.

        The snapshot does not know commits from aborts; callers ask only about xids that they found in the log.
        """
        if xid < self.xmin:
            return True
        return xid < self.xmax and xid not in self.running

    def is_later_than(self, other: Snapshot) -> bool:
        """Whether this one was taken after the other and sees something that the other does not.

        Snapshots of one primary are nested: xmax never falls, and below an unchanged xmax transactions only end.
        """
        if self.xmax != other.xmax:
            return self.xmax > other.xmax
        return len(self.running) < len(other.running)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"


#: What stands in for a snapshot that is no longer kept: since then every transaction that it saw has been folded, so
#: whatever comes now is later.
SETTLED = Snapshot(xmin=0, xmax=0, running=frozenset())


def parse_snapshot(text: str) -> Snapshot:
    """The snapshot that `pg_current_snapshot()::text` printed.

    Raises:
        ProtocolError: the text has another form.
    """
    match = _TEXT.match(text)
    if match is None:
        raise ProtocolError(f"{text!r} is not a pg_snapshot")
    running = frozenset(int(xid) for xid in match[3].split(",") if xid)
    return Snapshot(xmin=int(match[1]), xmax=int(match[2]), running=running)
