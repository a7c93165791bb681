"""The log as it is now: between which offsets it lies, and what is known before and behind its records."""

from __future__ import annotations

import threading
from typing import NamedTuple

from walbus.errors import PositionTrimmed
from walbus.log import Bounds
from walbus.position import ORIGIN
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.mark import Mark
from walbus.relay.kafka.meta import LogDocument
from walbus.relay.kafka.partition import Ends, Places, ends_of
from walbus.relay.kafka.topics import SameTopic
from walbus.relay.sequence import Place
from walbus.relay.tip import EMPTY_TIP


class View(NamedTuple):
    """The log at one moment.

    Attributes:
        log: which one it is.
        ends: offsets between which its messages lie.
        base, tip: what is known before its first record that is held, and behind its last one.
        last: offset of its last message; -1 if there is none.
    """

    log: LogDocument
    ends: Ends
    base: Place
    tip: Place
    last: int

    def bounds(self) -> Bounds:
        """What the log holds durably, for callers."""
        tip = self.tip.tip
        return Bounds(
            self.log.log_id,
            self.base.tip.position,
            tip.position,
            tip.end_lsn,
            tip.last_seq,
            self.tip.offset - self.base.offset,
            tip.commit_time,
        )


def beginning(log: LogDocument) -> Place:
    """What is known before the first record of a log: seqs are above the clock of its making."""
    return Place(0, EMPTY_TIP._replace(position=ORIGIN, last_seq=log.begun), 0)


class Views:
    """Looks at the log; thread-safe. Costs one round trip, and a message where the log has grown.

    Args:
        clients: of the cluster.
        places: of the log's messages.
        log: which one it is.
    """

    def __init__(self, clients: ClusterClients, places: Places, log: LogDocument) -> None:
        self._clients, self._places, self._log = clients, places, log
        self._lock = threading.Lock()
        self._view: View | None = None
        self._same = SameTopic(clients, log.topic_id)

    def view(self) -> View:
        """The log now.

        Raises:
            LogError: its topic was deleted and made again.
            LogMissing: its topics are gone.
            LogUnreachable: the cluster does not answer.
        """
        with self._lock:
            while True:
                (ends,) = ends_of(self._clients, self._clients.settings.topic)
                self._same.check()
                if self._view is not None and self._view.ends == ends:
                    return self._view
                try:
                    self._view = self._look(ends, self._view)
                except PositionTrimmed:  # while it was looked at
                    if ends_of(self._clients, self._clients.settings.topic)[0].first == ends.first:
                        raise
                else:
                    return self._view

    def _look(self, ends: Ends, known: View | None) -> View:
        same_end = known is not None and known.ends.stable == ends.stable
        same_start = known is not None and known.ends.first == ends.first and known.last >= 0
        if known is not None and same_end:
            last, tip = known.last, known.tip
        else:
            found = self._places.last(ends)
            last, tip = (-1, beginning(self._log)) if found is None else (found[0], found[1].behind)
        if known is not None and same_start:
            base = known.base
        else:
            first = self._places.first(ends, _any)
            base = beginning(self._log) if first is None else first[1].before
        return View(self._log, ends, base, tip, last)


def _any(_: Mark) -> bool:
    return True
