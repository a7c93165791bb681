"""The demo: everything on an embedded PostgreSQL, with a live load, kills, and a comparison at the end.

run             the demo from an empty folder to the comparison
folder          where all of it lies, and the configuration
postgres        an embedded PostgreSQL that can be stopped, killed and restarted (the tests use it too)
sources         the source: that server with a load
shop_schema, workload, load     the shop: tables, transactions (pure), sessions that run them at a rate
pgbench         the other load
cache_server    Redis, where the machine has one
kafka_server, jars     Apache Kafka for the log, where it is asked for; its jars (the tests use both too)
rooms           `walbus run` as a process, heard through its status files
probe           the latency from commit to cache, measured from outside
screen          the live table, or lines
changes         counts what the log holds
compare, source_rows, sink_rows, value_match    every value of every sink against the source
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walbus.demo.run import run_demo as run_demo

__all__ = ["run_demo"]


def __getattr__(name: str) -> object:
    if name == "run_demo":  # lazy, so that the embedded PostgreSQL can be had without the whole demo
        return vars(import_module("walbus.demo.run"))[name]
    raise AttributeError(f"module 'walbus.demo' has no attribute {name!r}")
