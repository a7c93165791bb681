"""Beside the copying: tells the upstream how far the copy is durable, and learns how far the upstream is.

Where there are several upstreams the others are asked for the log's term, so that one that has taken over is followed
although its predecessor, or another copy, still answers.

A required standby's report lets the upstream confirm and serve, so it is made as soon as something is durable, by a
thread of its own, so that the next records do not wait for the answer. Nothing is reported before the last record that
is here was found to be the upstream's: a copy of another history holds nothing of it. A copy that nobody waits for only
asks now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from walbus.errors import Directive, RelayUnavailable, WalbusError, directive_of
from walbus.relay.tip import Tip
from walbus.relay.upstream import Origin, Upstream

REPORT_SECONDS = 0.5  #: between two reports of the same end
_ASK_SECONDS = 2.0
_TERMS_SECONDS = 3.0
_FIRST_ANSWER_SECONDS = 1.0  # that copying waits for the others' first answers


class ChainWatch:
    """The thread of one connection.

    Args:
        upstream: who is told.
        origin: what it said when the connection began.
    """

    def __init__(self, upstream: Upstream, origin: Origin) -> None:
        self.upstream_tip = origin.tip  #: the upstream's durable end, by its last answer
        self._upstream, self._origin = upstream, origin
        self._durable: Tip | None = None  # not known yet to be the upstream's
        self._error: WalbusError | None = None
        self._news = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="walbus-chain-watch", daemon=True)
        self._thread.start()

    def durable(self, tip: Tip) -> None:
        """The copy is durable up to here, and is one of the upstream's log."""
        self._durable = tip
        if self._origin.required:
            self._news.set()

    def check(self) -> None:
        """Raises what the upstream refused for good."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the thread, when the request under way has ended."""
        self._closed = True
        self._news.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            self._news.clear()
            try:
                self.upstream_tip = self._asked()
            except WalbusError as error:
                if directive_of(error) is not Directive.RETRY:  # what passes, the stream meets too
                    self._error = error
                    return
            self._news.wait(REPORT_SECONDS if self._origin.required else _ASK_SECONDS)

    def _asked(self) -> Tip:
        durable = self._durable
        if self._origin.required and durable is not None:
            return self._upstream.report(self._origin.log_id, self._origin.term, durable)
        return self._upstream.origin().tip


class TermWatch:
    """The thread of one connection that looks whether another upstream has a later term of the log.

    Args:
        others: the other upstreams.
        origin: what the one that is copied said.
    """

    def __init__(self, others: Sequence[Upstream], origin: Origin) -> None:
        self._others, self._origin = others, origin
        self._later: RelayUnavailable | None = None
        self._asked = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="walbus-chain-terms", daemon=True)
        self._thread.start()
        self._asked.wait(_FIRST_ANSWER_SECONDS)

    def check(self) -> None:
        """Raises RelayUnavailable if there is one."""
        if self._later is not None:
            raise self._later

    def close(self) -> None:
        """Ends the thread, when the request under way has ended."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            for upstream in self._others:
                self._ask(upstream)
            self._asked.set()
            self._closed.wait(_TERMS_SECONDS)

    def _ask(self, upstream: Upstream) -> None:
        try:
            other = upstream.origin()
        except WalbusError:
            return  # it is not the one that is copied, so nothing is missing
        if other.log_id == self._origin.log_id and other.term > self._origin.term:
            what = f"{upstream.url} has taken over for term {other.term} of the log"
            self._later = RelayUnavailable(what, where=f"term {self._origin.term}")
