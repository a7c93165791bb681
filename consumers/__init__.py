"""Consumers: the client library, and the sinks that keep derived data in step.

The way of the data:

    transport   HTTP: requests, status codes, streams of records
    decoding    records to changes
    machine     the pure state machine: log, snapshot, and the way back to the log
    session     drives the machine: opens what it wants, waits out what comes right by itself
    checkpoint  where a consumer is, and how that is stored
    client      `walbus.connect(url).subscribe(...)`
    runner      `walbus consume`: batches windows into a sink
    sinks       SQLite, tantivy, Redis; more by entry point
"""

from __future__ import annotations

from walbus.consumers.checkpoint import (
    Checkpoint,
    CheckpointStore,
    FileCheckpointStore,
    MemoryCheckpointStore,
)
from walbus.consumers.client import Bus, Delivery, Subscription, connect
from walbus.consumers.machine import Sweep
from walbus.consumers.runner import run_consumer

__all__ = [
    "Bus",
    "Checkpoint",
    "CheckpointStore",
    "Delivery",
    "FileCheckpointStore",
    "MemoryCheckpointStore",
    "Subscription",
    "Sweep",
    "connect",
    "run_consumer",
]
