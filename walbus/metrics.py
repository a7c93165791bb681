"""The names of all metrics, as a type: a misspelt name fails type checking.

Rooms without an HTTP server of their own (capture, consumers) publish their figures in a status file
(`walbus.status`), which the relay shows under `/metrics` beside its own.
"""

from __future__ import annotations

from typing import Literal, get_args

MetricName = Literal[
    # capture
    "walbus_capture_transactions_total",  # committed transactions appended to the log
    "walbus_capture_changes_total",  # row changes appended to the log
    "walbus_capture_repeats_total",  # transactions that the source sent again and the log already held
    "walbus_capture_reconnects_total",  # replication connections opened after the first
    "walbus_capture_received_lsn",  # newest WAL position that the walsender reported
    "walbus_capture_confirmed_lsn",  # position that the slot was confirmed to
    "walbus_capture_lag_bytes",  # received minus confirmed
    "walbus_capture_lag_seconds",  # from a commit to its durability here, or until now; the last second's longest
    "walbus_capture_retained_wal_bytes",  # WAL that the slot holds back on the source's disk
    "walbus_capture_slot_safe_bytes",  # WAL that may still be written before the slot is lost (max_slot_wal_keep_size)
    "walbus_capture_spooled_bytes",  # bytes of in-progress and prepared transactions in the spool
    "walbus_capture_catch_up_steps_total",  # steps read through the SQL interface
    "walbus_capture_standbys_away",  # required standbys that do not report; confirming stands still then
    "walbus_capture_disk_full",  # 1 while the log has no room and confirming stands still
    "walbus_capture_log_unreachable",  # 1 while the log's cluster does not answer; confirming stands still then too
    # relay
    "walbus_log_bytes",  # bytes of all segments held
    "walbus_log_segments",  # number of segments held
    "walbus_log_end_lsn",  # commit LSN of the last durable record
    "walbus_log_last_seq",  # last seq given
    "walbus_log_table_changes_total",  # changes appended since the relay started, by table
    "walbus_log_table_bytes_total",  # bytes of those changes, by table, before compression
    "walbus_relay_streams",  # open streams
    "walbus_relay_sent_bytes_total",  # bytes of streams sent
    "walbus_relay_requests_total",  # requests by route and status
    "walbus_relay_refusals_total",  # requests and connections turned away, by reason
    "walbus_relay_consumers",  # consumers known to the relay
    # consumers, as the relay knows them (label consumer: the 500 that are furthest behind)
    "walbus_relay_consumer_lag_changes",  # changes of the log that it has not done, at most
    "walbus_relay_consumer_lag_bytes",  # bytes of the log that it has not done
    "walbus_relay_consumer_lag_seconds",  # age of the oldest transaction that it has not done; 0 at the log's end
    "walbus_relay_consumer_leaves_log_seconds",  # until retention drops what it would read next, about
    "walbus_relay_consumer_seen_timestamp_seconds",  # when it was last seen, Unix seconds
    "walbus_relay_standbys_away",  # required standbys that do not report; nothing is confirmed then
    "walbus_relay_standby_lag_bytes",  # WAL between the log's end and what all required standbys hold
    "walbus_relay_upstream_connected",  # 1 while a relay's records are copied
    "walbus_relay_upstream_lag_bytes",  # WAL between the upstream's end and ours
    "walbus_relay_upstream_lag_seconds",  # age of the last commit that is here, while the upstream has more; else 0
    "walbus_relay_upstream_reconnects_total",  # connections to an upstream after the first
    # bootstrap
    "walbus_bootstrap_applied_lsn",  # commit LSN that the store has applied
    "walbus_bootstrap_lag_bytes",  # log end minus applied
    "walbus_bootstrap_rows",  # rows held, by table (estimate)
    "walbus_bootstrap_seeding_chunks_done",
    "walbus_bootstrap_seeding_chunks_total",
    "walbus_bootstrap_refusals_total",  # as of the relay
    "walbus_bootstrap_store_bytes",  # bytes of the store's files
    "walbus_bootstrap_store_keys",  # keys held, deleted ones too (estimate)
    "walbus_bootstrap_store_memory_bytes",  # memory of the store's caches and buffers
    "walbus_bootstrap_compaction_bytes",  # bytes of the store that wait to be rewritten in order (estimate)
    "walbus_bootstrap_writes_slowed",  # 1 while the store makes the applier wait for compaction
    "walbus_bootstrap_tombstones",  # deleted keys that are kept for deltas, as counted last
    "walbus_bootstrap_disk_full",  # 1 while nothing is applied for want of room
    # consumers
    "walbus_consumer_changes_total",
    "walbus_consumer_last_done_lsn",
    "walbus_consumer_lag_seconds",
    "walbus_consumer_dead_letters_total",
]

METRIC_NAMES: frozenset[str] = frozenset(get_args(MetricName))
