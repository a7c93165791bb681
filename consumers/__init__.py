"""Consumers: the client library, and the sinks that keep derived data in step.

The way of the data:

    transport   HTTP: routes and status codes; record_stream reads what they send
    decoding    records to changes
    steps       what goes into the state machine, and what comes out
    machine     the pure state machine: log, snapshot, delta, and the way back to the log; phases are its states
    phase_events  what is told of that way
    narrowing   which part of the tables' changes is asked for
    partitions  parts of all keys: names and places of their own
    stale       which rows an event has made stale
    unread      which tables must be read again, and whether the bootstrap has them
    subscribed  what a consumer asks for; whole_rows how far back it can be had complete
    listing     which tables the bootstrap has, and what deltas of them cost
    session     drives the machine: opens what it wants, waits out what comes right by itself
    checkpoint  where a consumer is; checkpoint_store keeps it, and those in SQLite, PostgreSQL, Redis and files that
                a group shares (checkpoint_shared) do, behind one checkpoint_fence
    arrow       windows as Arrow record batches; frames as those of pandas and Polars
    reporting   tells the relay where the consumer is; report_schedule when, progress also for people
    read_your_writes   waits until a consumer has done what was committed
    deliveries  what a subscription yields
    callbacks   a consumer as an object that is called; callback_loop calls it for what a called_feed gives, by steps
                that callback_effects are done by
    dead_letters   what it refuses: letter_file has it on disk, letter_index knows by key what is there, letter_steps
                are those of the loop that park it and try it again
    typed_rows  rows as objects of a class; places where in the log a reading begins and ends
    subscription  one consumer's deliveries and commits
    group_member   has the parts worked on that a member of a group holds, as group_membership says; part_lease is what
                one may do with a part
    lessors     hand parts out: a relay, or Kafka's coordinator of groups (kafka_lessor, by kafka_member's questions,
                with part_tokens, over the partitions of a parts_topic)
    client      `walbus.connect(url).subscribe(...)` and `.join(...)`
    async_client  `walbus.aconnect(url)`, the same for asyncio
    runner      `walbus consume`: what a session gives, by a sink_feed in batches, into a sink
    group_sinks   the same for the parts that a member of a group has; leased_sink lets nothing in when a lease is over,
                group_status is what people see
    sink_verifying   compares a sink with the bootstrap, by way of a row_spool, and has tables read again
    rebuilding  fills a copy of a sink beside it, and swaps the two
    mapping     what a sink gets of a table; mapping_values for Python's values, mapped_sink puts it before a sink
    sinks       SQLite, PostgreSQL, tantivy, Redis, OpenSearch and Elasticsearch, JSON lines; more by entry point
"""

from __future__ import annotations

from walbus.consumers.async_client import (
    AsyncBus,
    AsyncDelivery,
    AsyncGroupMember,
    AsyncLeasedSubscription,
    AsyncSubscription,
    aconnect,
)
from walbus.consumers.callbacks import AsyncCallbacks, Callbacks, ChangesRefused, Failures
from walbus.consumers.checkpoint import Checkpoint
from walbus.consumers.checkpoint_postgres import PostgresCheckpointStore
from walbus.consumers.checkpoint_redis import RedisCheckpointStore
from walbus.consumers.checkpoint_shared import SharedFileCheckpointStore
from walbus.consumers.checkpoint_sqlite import SqliteCheckpointStore
from walbus.consumers.checkpoint_store import CheckpointStore, FileCheckpointStore, MemoryCheckpointStore
from walbus.consumers.client import Bus, connect
from walbus.consumers.dead_letters import DeadLetters
from walbus.consumers.deliveries import Batches, Delivered, Delivery
from walbus.consumers.group_member import GroupMember
from walbus.consumers.letter_file import DeadLetter
from walbus.consumers.part_lease import LeasedSubscription
from walbus.consumers.phase_events import PhaseEvent
from walbus.consumers.read_your_writes import ConsumerBehind, ConsumerPlace
from walbus.consumers.runner import run_consumer
from walbus.consumers.steps import (
    Sweep,
)
from walbus.consumers.subscription import Subscription

__all__ = [
    "AsyncBus",
    "AsyncCallbacks",
    "AsyncDelivery",
    "AsyncGroupMember",
    "AsyncLeasedSubscription",
    "AsyncSubscription",
    "Batches",
    "Bus",
    "Callbacks",
    "ChangesRefused",
    "Checkpoint",
    "CheckpointStore",
    "ConsumerBehind",
    "ConsumerPlace",
    "DeadLetter",
    "DeadLetters",
    "Delivered",
    "Delivery",
    "Failures",
    "FileCheckpointStore",
    "GroupMember",
    "LeasedSubscription",
    "MemoryCheckpointStore",
    "PhaseEvent",
    "PostgresCheckpointStore",
    "RedisCheckpointStore",
    "SharedFileCheckpointStore",
    "SqliteCheckpointStore",
    "Subscription",
    "Sweep",
    "aconnect",
    "connect",
    "run_consumer",
]
