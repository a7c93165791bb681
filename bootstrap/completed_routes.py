"""`/v1/stream?complete=true`: the log with whole rows, from the server that knows them.

It is the relay's stream server (`walbus.relay.streams`) over a `CompletedLog`: the same parameters, forms, positions
and seqs. What differs is which questions can be answered. A table whose completions nobody asked for in the
configuration is refused by name, instead of coming incomplete without a word; what cannot be known of single changes is
described in `walbus.bootstrap.completions`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from walbus.bootstrap.completed_log import CompletedLog
from walbus.bootstrap.ledger import Ledger
from walbus.bootstrap.state import Phase
from walbus.relay.access import require_tables
from walbus.relay.http import STOPPING, RequestError
from walbus.relay.peer import Peer
from walbus.relay.selection import parse_selection
from walbus.relay.streams import OpenStream, StreamServer
from walbus.relay.table_filter import pattern_matches, split_pattern

_RETRY = {"Retry-After": "1"}
_THREADS = 4
_MEND = "name the table under [bootstrap] complete, or read the relay's stream, which leaves rows as the log has them"


class _Nobody:
    """Who consumers are is for the relay to know, to which they report."""

    def opened(self, name: str, tables: Iterable[str], peer: Peer, stream: OpenStream) -> None:
        """See `walbus.relay.streams.StreamWatcher`."""

    def closed(self, name: str, stream: OpenStream) -> None:
        """See `walbus.relay.streams.StreamWatcher`."""


class CompletedRoutes:
    """The handler, and what it needs while the server runs.

    Args:
        ledger: what is applied, and completed.
        log_dir: folder of the log; None where its files are not at hand.
    """

    def __init__(self, ledger: Ledger, log_dir: Path | None) -> None:
        self._ledger = ledger
        self._log_dir = log_dir
        self._served: tuple[CompletedLog, StreamServer] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._waking: list[asyncio.Task[None]] = []

    def add_to(self, application: web.Application) -> None:
        """Registers it."""
        application.router.add_get("/v1/stream", self._stream, allow_head=False)
        application.cleanup_ctx.append(self._running)

    async def _running(self, application: web.Application) -> AsyncIterator[None]:
        del application
        loop = asyncio.get_running_loop()

        def moved() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._wake)

        unwatch = self._ledger.watch(moved)
        with ThreadPoolExecutor(_THREADS, "walbus-complete") as self._threads:
            yield
            unwatch()
            await self._end()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        completions = self._ledger.completions
        if not completions.asked:
            raise RequestError(400, "no complete changes are kept", where="complete", mend=_MEND)
        if request.query.get("complete") == "true":  # anything else is refused by who parses it
            self._require_completed(request)
        if completions.kept is None or self._log_dir is None:
            raise RequestError(503, "complete changes have not begun yet", mend="ask again later", headers=_RETRY)
        return await (await self._server(request, self._log_dir)).handle(request)

    def _require_completed(self, request: web.Request) -> None:
        """Refuses tables that will never come complete. A pattern may meet some without a key."""
        patterns = parse_selection(",".join(request.query.getall("tables", [])), None, None).tables or ("*.*",)
        require_tables(request, patterns, "tables")  # before any that it does not reach is named
        names = self._ledger.completions.names
        for name in patterns:
            if "*" not in name and not names(name):
                raise _not_completed(name)
        for state in [run.state for run in self._ledger.tables.values()]:
            namespace, _, name = state.table.partition(".")
            if not any(pattern_matches(split_pattern(pattern), namespace, name) for pattern in patterns):
                continue
            if state.phase is Phase.REFUSED:
                if state.table in patterns:
                    what = f"changes of {state.table} cannot be completed"
                    raise RequestError(400, what, where="tables", mend=state.reason)
            elif not names(state.table):
                raise _not_completed(state.table)

    async def _server(self, request: web.Request, log_dir: Path) -> StreamServer:
        """That of the log which the store follows."""
        applied = self._ledger.applied
        if self._served is not None and applied is not None and self._served[0].log_id != applied.log_id:
            await self._end()
        if self._served is None:
            if self._threads is None:
                raise AssertionError("the server does not run")
            log = CompletedLog(log_dir, self._ledger)
            stopping = request.app[STOPPING]
            streams = StreamServer(log, None, self._threads, stopping, _Nobody(), complete=True)
            self._served = log, streams
            self._waking = [asyncio.create_task(streams.wake_at_stop())]
        return self._served[1]

    def _wake(self) -> None:
        if self._served is not None:
            self._served[1].wake()

    async def _end(self) -> None:
        """Ends what is open; streams of a log that is no more end with their next read."""
        served, self._served = self._served, None
        for task in self._waking:
            task.cancel()
        self._waking = []
        if served is not None:
            await served[1].close()
            served[0].close()


def _not_completed(table: str) -> RequestError:
    return RequestError(400, f"changes of {table[:140]} are not completed", where="tables", mend=_MEND)
