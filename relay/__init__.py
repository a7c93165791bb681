"""The relay: the log's file engine, and the HTTP server that streams it.

The way of the data, and the module that each step is in:

    writer ─► segment_file ─► segments/*.seg ─► view ─► cursor ─► reader ─► delivery ─► streams ─► followers
       │                                          ▲                            │
       └────► control, manifest: where it ends ───┘                native filter, sse: in which form

Writing     engine opens; lease says who may write, recovery what a dead writer left, retention what may go;
            sequence says what comes next, packs and compresses it; schemas keeps the table layouts, held knows a
            transaction again that is sent twice.
Files       segment, control, manifest, index: one form each; scan frames records (sans-IO); fs is what faults enter by.
Reading     reader puts the parts together; index_loader says where to begin, index_search in huge segments; wake tells
            that there is more.
Looking     log_info, log_check and log_dump are what `walbus log` tells, and only read: record_walk goes over a
            segment, segment_check and body_check judge it.
Forms       stream_query and selection read what is asked for; table_filter and projection say what that
            is of the log, and `walbus.native` cuts it out; sse makes events for browsers, content_coding compresses.
Serving     server has the routes; streams sends each delivery by itself, and feed what is new at the log's end to all
            that ask for the same, each through its outlet; ahead answers clients that the log has yet to come to. tail
            wakes them, gauges feeds /metrics, http is what every server of Walbus shares.
Copying     chain copies another relay's log, which upstream speaks to, overlap and lineage tell from others, and
            chain_watch reports to; chain_routes, standbys and served are what it meets there; promotion takes over.
Guarding    gate puts together what stands before the routes: access (the rule of each route), token_file and tokens,
            host_names, tls and certificate_dates, bounds; listener accepts; audit tells what was turned away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walbus.relay.engine import open_reader, open_writer

if TYPE_CHECKING:
    from walbus.relay.server import serve_relay

__all__ = ["open_reader", "open_writer", "serve_relay"]


def __getattr__(name: str) -> object:
    if name == "serve_relay":  # lazy, so that capture, which only writes, loads no HTTP server
        from walbus.relay.server import serve_relay  # noqa: PLC0415

        return serve_relay
    raise AttributeError(f"module 'walbus.relay' has no attribute {name!r}")
