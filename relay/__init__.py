"""The relay: the log's file engine, and the HTTP server that streams it.

The way of the data:

    writer ─► segment_file ─► segments/*.seg ─► view ─► cursor ─► reader ─► server ─► followers
                  control, manifest (where it ends)       index (where to begin)

    fs             file operations, passed in            lease      who may write: lock, heartbeat, writer epoch
    segment        a segment's name and header           recovery   opening after a clean and an unclean stop
    scan           framing: sans-IO                      retention  what may go
    control        the durable end                       wake       readers woken over a Unix socket
    manifest       the list of segments                  schemas    table layouts
    index(_loader) where to begin reading                held       transactions known again
"""

from __future__ import annotations

from walbus.relay.engine import open_reader, open_writer
from walbus.relay.server import serve_relay

__all__ = ["open_reader", "open_writer", "serve_relay"]
