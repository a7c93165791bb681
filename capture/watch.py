"""The catalog, looked at about every second from a thread of its own.

The stream says nothing of tables without changes, of a publication that loses tables, and of new tables that match
the configuration. A thread, since a statement may wait for a lock or for a server that hangs, and the stream must not.

The thread only looks, and adds new tables to the publication; what it found is taken by the loop with `take`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import structlog

from walbus.capture.catalog import CatalogView, read_catalog
from walbus.capture.publication import complete_publication, matched_tables
from walbus.capture.sessions import Session, open_session
from walbus.config import SourceConfig
from walbus.errors import Directive, directive_of

logger = structlog.get_logger(__name__)

#: Seconds between two looks; more when a look takes long, so that it costs at most a twentieth of the time.
PERIOD = 1.0
_SHARE = 20.0


class CatalogWatch:
    """Looks at the catalog until it is closed.

    Args:
        source: where, and which publication and tables.
        known: OIDs of the tables that the log knows.
    """

    def __init__(self, source: SourceConfig, known: Iterable[int]) -> None:
        self._source = source
        self._known = set(known)
        self._closed = threading.Event()
        self._found: CatalogView | Exception | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="catalog-watch", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def take(self) -> CatalogView | None:
        """What was found since the last call, if anything.

        Raises:
            Exception: the look failed in a way that does not pass by itself; nothing is looked at any more.
        """
        with self._lock:
            found, self._found = self._found, None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Ends the thread; one that hangs in a statement is left to the end of the process."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _run(self) -> None:
        session: Session | None = None
        while not self._closed.is_set():
            begun = time.monotonic()
            try:
                session = session or open_session(self._source.dsn)
                self._put(self._look(session))
            except Exception as error:  # a thread that ended in silence would let a lost table pass
                if directive_of(error) is not Directive.RETRY:
                    self._put(error)
                    break
                logger.debug("catalog.unavailable", error=str(error))
                _close(session)
                session = None
            self._closed.wait(max(PERIOD, _SHARE * (time.monotonic() - begun)))
        _close(session)

    def _look(self, session: Session) -> CatalogView:
        complete_publication(session, self._source, matched_tables(session, self._source), self._known)
        view = read_catalog(session, self._source.publication)
        self._known.update(layout.oid for layout in view.layouts)
        return view

    def _put(self, found: CatalogView | Exception) -> None:
        with self._lock:
            self._found = found


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()
