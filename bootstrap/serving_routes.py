"""The routes that serve what the store holds. Each answers as of one position, and says which.

    GET /v1/snapshot?table=T|tables=…     rows in key order: SNAPSHOT records, JSON lines, or an Arrow stream
    GET /v1/delta?table=T&after=…         the last version of each key that changed since: DELTA records or JSON lines
    GET /v1/delta?…&count=true            at most how many changes that would be
    GET /v1/row?table=T&key=…             one row

A response is read from one view of the store, whatever is applied meanwhile. One that breaks off has no END, and its
reader asks again behind the last key, or the last seq, that it has dealt with: of whichever process, whenever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

from aiohttp import web

from walbus.bootstrap.arrow_rows import arrow_stream
from walbus.bootstrap.delta import Horizon, Since, count_changes, delta_records, horizon_of, purged_up_to
from walbus.bootstrap.queries import (
    DELTA_PARAMETERS,
    KEY_COLUMN,
    MEDIA_TYPES,
    ROW_PARAMETERS,
    SNAPSHOT_PARAMETERS,
    Format,
    format_of,
    key_of,
    limit_of,
    partition_of,
    patterns_of,
    refuse_unknown,
    row_key,
    since_of,
)
from walbus.bootstrap.reading_pace import ReadingPace
from walbus.bootstrap.seq_at import seq_at
from walbus.bootstrap.serving import ServedView
from walbus.bootstrap.state import Phase, TableState
from walbus.errors import LogUnreachable
from walbus.jsonlines import LineRenderer
from walbus.log import LogReader
from walbus.position import Position
from walbus.records import read_header
from walbus.relay.access import require_tables
from walbus.relay.http import STOPPING, RequestError, json_response
from walbus.relay.table_filter import pattern_matches, split_pattern
from walbus.schema import TableSchema
from walbus.values import row_json

_RETRY = {"Retry-After": "1"}
_TOGETHER = 8  # parts that are read in one go: a way to a thread and back takes as long as some hundred rows


class ServingRoutes:
    """The handlers.

    Args:
        view: gives the store as it is now, or raises what a client is told while there is none.
        layout_of: a layout of the log by its number; KeyError if there is none.
        open_log: opens the log, to find the seq of a position; None where it is not at hand.
        behind: whether the applier is, so that readers go slower.
    """

    def __init__(
        self,
        view: Callable[[], ServedView],
        layout_of: Callable[[int], TableSchema],
        open_log: Callable[[], LogReader] | None = None,
        behind: Callable[[], bool] = lambda: False,
    ) -> None:
        self._pace = ReadingPace(behind)
        self._view = view
        self._layout_of = layout_of
        self._open_log = open_log

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Registers them."""
        router.add_get("/v1/snapshot", self._snapshot, allow_head=False)
        router.add_get("/v1/delta", self._delta, allow_head=False)
        router.add_get("/v1/row", self._row, allow_head=False)

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        refuse_unknown(query, SNAPSHOT_PARAMETERS)
        form = format_of(query, request.headers.get("Accept", ""), ("binary", "json", "arrow"))
        after_key, partition = key_of(query), partition_of(query)
        asked = _asked_tables(request)
        served = self._view()
        _require_log(request, served)
        tables = _behind(request, _chosen(served, asked))
        if form != "arrow":
            parts = served.snapshot(tables, after_key, partition)
            return await self._stream(request, served, tables, parts, form)
        if len(tables) != 1:
            mend = "ask for one table at a time, or for json or binary"
            raise RequestError(400, f"an Arrow stream has one table, and not {len(tables)}", where="tables", mend=mend)
        layout = self._layout(tables[0].schema_id)
        rows = arrow_stream(layout, served.rows(tables[0], after_key, partition), self._layout_of)
        return await self._stream(request, served, tables, rows, form)

    async def _delta(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        refuse_unknown(query, DELTA_PARAMETERS)
        form = format_of(query, request.headers.get("Accept", ""), ("binary", "json"))
        partition, limit = partition_of(query), limit_of(query)
        position, seq = since_of(query)
        name = _table_name(request)
        served = self._view()
        _require_log(request, served)
        table = _consistent(served, name)
        if seq is None and position is not None:
            seq = await asyncio.to_thread(self._seq_at, position)
        since = Since(seq or 0, position)
        _require_complete(served, table, since)
        if limit is None:
            parts = delta_records(served, table, since.seq, partition)
            return await self._stream(request, served, [table], parts, form)
        found, more = await asyncio.to_thread(count_changes, served, table, since.seq, limit)
        return json_response(
            {**_place(served), "table": name, "changes_at_most": found, "more": more, "rows": table.rows}
        )

    async def _row(self, request: web.Request) -> web.StreamResponse:
        refuse_unknown(request.query, ROW_PARAMETERS, prefix=KEY_COLUMN)
        name = _table_name(request)
        served = self._view()
        _require_log(request, served)
        table = _consistent(served, name)
        key = row_key(request.query, self._layout(table.schema_id))
        version = await asyncio.to_thread(served.version, table, key)
        told: dict[str, object] = {**_place(served), "table": name, "seq": version.seq if version else None}
        if version is None or version.row is None:
            what = "the row was deleted" if version else "there is no such row"
            raise RequestError(404, what, where="key", more={**told, "deleted": version is not None})
        layout = self._layout(version.schema_id)
        return json_response({**told, "schema_id": layout.id, "row": row_json(layout, version.row)})

    def _layout(self, schema_id: int) -> TableSchema:
        try:
            return self._layout_of(schema_id)
        except KeyError:
            raise RequestError(503, "the log is not open yet", mend="ask again later", headers=_RETRY) from None

    def _seq_at(self, position: Position) -> int:
        """The log's last seq at a position, which it must still hold."""
        if self._open_log is None:
            mend = "give the seq of the position"
            raise RequestError(503, "the log is not at hand", where="seq", mend=mend, headers=_RETRY)
        try:
            with closing(self._open_log()) as reader:
                found = seq_at(reader, position)
        except LogUnreachable:
            mend = "give the seq of the position, or ask again later"
            raise RequestError(503, "the log does not answer", where="seq", mend=mend, headers=_RETRY) from None
        if found is None:
            raise RequestError(
                410, "the log no longer holds the position", where="after", mend="give its seq too, or read a snapshot"
            )
        return found

    async def _stream(
        self,
        request: web.Request,
        served: ServedView,
        tables: list[TableState],
        parts: Iterator[bytes],
        form: Format,
    ) -> web.StreamResponse:
        """Sends what the store gives, read in a thread, some parts at a time, as fast as the client takes them."""
        headers = {
            "Content-Type": MEDIA_TYPES[form],
            "Walbus-Log-Id": served.applied.log_id,
            "Walbus-Position": str(served.applied.position),
            **({"Walbus-Oid": str(tables[0].oid), "Walbus-Folds-From": tables[0].p0} if len(tables) == 1 else {}),
            **({"Walbus-Stale": "yes"} if any(table.stale for table in tables) else {}),
        }
        stopping = request.app[STOPPING]
        lines = LineRenderer(self._layout_of) if form == "json" else None

        def following() -> list[bytes]:
            some = list(islice(parts, _TOGETHER))
            return some if lines is None else [lines.render(read_header(part), part) for part in some]

        some = await asyncio.to_thread(following)  # what cannot be served at all is refused by its status
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with self._pace.reader():
            while not stopping.is_set():
                if not some:
                    await response.write_eof()
                    return response
                for part in filter(None, some):  # a record without rows has no lines
                    await response.write(part)
                some = await self._pace.read(following)
        if request.transport is not None:
            request.transport.abort()  # a clean end would say that this was all
        return response


def _place(served: ServedView) -> dict[str, object]:
    return {"log_id": served.applied.log_id, "position": str(served.applied.position)}


def _table_name(request: web.Request) -> str:
    name = request.query.get("table")
    if not name:
        raise RequestError(400, "which table", where="table", mend="give table=SCHEMA.NAME")
    require_tables(request, [name], "table")
    return name


def _asked_tables(request: web.Request) -> tuple[str, ...] | str:
    """The patterns of `tables`, or the name of `table`."""
    if "tables" not in request.query:
        return _table_name(request)
    if "table" in request.query:
        raise RequestError(400, "table and tables exclude each other", where="tables", mend="give one of them")
    patterns = patterns_of(request.query)
    if not patterns:
        raise RequestError(400, "which tables", where="tables", mend="give names or patterns: schema.name,schema.*")
    require_tables(request, patterns, "tables")
    return patterns


def _chosen(served: ServedView, asked: tuple[str, ...] | str) -> list[TableState]:
    if isinstance(asked, str):
        return [_consistent(served, asked)]
    chosen: set[str] = set()
    for pattern in map(split_pattern, asked):
        named = {
            state.table
            for state in served.tables.values()
            if state.published is not None
            and pattern_matches(pattern, state.published.namespace, state.published.name)
            and (state.phase is not Phase.REFUSED or "*" not in pattern)
        }
        if not named:
            raise _unknown(".".join(pattern), "tables")
        chosen |= named
    return [_consistent(served, name, "tables") for name in served.tables if name in chosen]


def _behind(request: web.Request, tables: list[TableState]) -> list[TableState]:
    """Those of the tables that are not done yet, by `after_table`."""
    done = request.query.get("after_table")
    if done is None:
        if "after_key" in request.query and len(tables) > 1:
            raise RequestError(
                400, "behind which table's key", where="after_table", mend="give after_table=SCHEMA.NAME"
            )
        return tables
    if done not in [table.table for table in tables]:
        mend = "name one of those that are asked for"
        raise RequestError(400, f"{done[:140]!r} is not among the tables", where="after_table", mend=mend)
    return [table for table in tables if table.table >= done]


def _consistent(served: ServedView, name: str, where: str = "table") -> TableState:
    table = served.tables.get(name)
    if table is None:
        raise _unknown(name, where)
    if table.phase is Phase.REFUSED:
        raise RequestError(409, f"{name} cannot be bootstrapped", where=where, mend=table.reason)
    if table.phase is not Phase.CONSISTENT:
        more: dict[str, object] = {"state": table.phase.value, "reason": table.reason}
        raise RequestError(
            503, f"{name} is being seeded", where=where, mend="ask again later", more=more, headers=_RETRY
        )
    return table


def _unknown(name: str, where: str) -> RequestError:
    mend = "see /v1/tables, or add it to [source] tables"
    return RequestError(404, f"no table {name[:140]!r} is published", where=where, mend=mend)


def _require_log(request: web.Request, served: ServedView) -> None:
    wanted = request.query.get("log_id")
    if wanted not in (None, served.applied.log_id):
        raise RequestError(
            409,
            f"this is the state of another log, {served.applied.log_id}",
            where="log_id",
            mend="begin with a snapshot: positions and seqs of two logs do not compare",
            more=_place(served),
        )


def _require_complete(served: ServedView, table: TableState, since: Since) -> None:
    applied = served.applied
    if since.seq > applied.last_seq:
        what = f"the store is at seq {applied.last_seq}, before {since.seq}"
        raise RequestError(503, what, where="after", mend="ask again later", more=_place(served), headers=_RETRY)
    if since.position is not None and since.position > applied.position:
        what = f"the store is at {applied.position}, before {since.position}"
        raise RequestError(503, what, where="after", mend="ask again later", more=_place(served), headers=_RETRY)
    horizon = horizon_of(table, purged_up_to(served))
    if not horizon.is_before(since):
        raise _too_old(served, table, horizon)


def _too_old(served: ServedView, table: TableState, horizon: Horizon) -> RequestError:
    return RequestError(
        410,
        f"a delta of {table.table} is complete from behind {horizon.position} (seq {horizon.seq}) only",
        where="after",
        mend=f"read /v1/snapshot?table={table.table}, and remove the rows that it does not bring",
        more={**_place(served), "horizon": {"position": str(horizon.position), "seq": horizon.seq}},
    )


__all__ = ["ServingRoutes"]
