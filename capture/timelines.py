"""The epoch of a commit: the timeline that holds its WAL. Pure.

A promotion ends one timeline at a switch point and begins the next there. Commits below the switch point keep their
epoch, though the new primary sends them again under its own timeline; so the epoch comes from the LSN and the
timeline's history, never from the timeline that answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from walbus.errors import InvalidText, ProtocolError
from walbus.lsn import parse_lsn


@dataclass(frozen=True, slots=True)
class Timelines:
    """The server's timeline and how it came to be.

    Attributes:
        current: the timeline that the server writes now.
        switches: (timeline, LSN at which it was left), oldest first.
    """

    current: int
    switches: tuple[tuple[int, int], ...] = ()

    def epoch_of(self, lsn: int) -> int:
        """The timeline that holds the WAL at an LSN."""
        for timeline, switch in self.switches:
            if lsn < switch:
                return timeline
        return self.current

    @property
    def since(self) -> int:
        """The LSN from which on all is of the current timeline."""
        return max((switch for _, switch in self.switches), default=0)

    def left_at(self, timeline: int) -> int | None:
        """Where the history left a timeline; None for the current one and those it never had."""
        return dict(self.switches).get(timeline)


def parse_history(current: int, content: bytes) -> Timelines:
    """The timelines of a TIMELINE_HISTORY answer.

    Args:
        current: the timeline whose history it is.
        content: the history file: lines of timeline, switch point and reason, parted by tabs; `#` begins a comment.

    Raises:
        ProtocolError: a line has another form.
    """
    switches = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            switches.append((int(fields[0]), int(parse_lsn(fields[1]))))
        except (ValueError, IndexError, InvalidText):
            where = f"history of timeline {current}, line {number}"
            raise ProtocolError("a timeline history that cannot be read", where=where) from None
    return Timelines(current, tuple(switches))
