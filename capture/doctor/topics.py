"""The topics of an examination, by code, and why each matters. Pure.

Codes are part of `walbus doctor --json`: one may be added, none changes its meaning. docs/doctor.md lists them all.
"""

from __future__ import annotations

from typing import Final

TOPICS: Final[dict[str, str]] = {
    # the server
    "connection": "everything that Walbus does begins with a connection to the source",
    "replication-connection": "changes come through a replication connection, which the server admits separately",
    "server-version": "the source's own bugs are the only way in which changes vanish before Walbus sees them",
    "standby": "Walbus manages a slot and a publication, and snapshots are read, on the primary",
    "wal-level": "without wal_level = logical the WAL lacks what logical decoding needs",
    "replication-slots": "capture holds one replication slot; without a free one it cannot start",
    "wal-senders": "capture streams from one walsender; without a free one it cannot start",
    "connections": "a start that finds no connection left is tried again, and nothing is captured meanwhile",
    "slot-wal-limit": "the slot keeps WAL until it is captured; the limit decides between a full disk and a lost slot",
    "idle-slot-timeout": "PostgreSQL invalidates a slot that nobody reads for so long, and its changes are gone",
    "sender-timeout": "it decides how soon the server notices that a reader is gone, and frees the slot",
    "server-durability": "after a crash such a server may have forgotten commits that the log and consumers hold",
    "output-plugin": "PostgreSQL 18.6 and its siblings load only the output plugins that this setting lists",
    "encoding": "values are UTF-8 in the log; bytes without an encoding cannot be made so",
    "clock": "lag and retention are told in times, and seqs start at the clock",
    "decoding-memory": "what does not fit into logical_decoding_work_mem goes to the server's disk and comes back",
    "failover-order": "capture may be ahead of a standby that takes over: the log then has commits that it lacks",
    # the role and the connection
    "encryption": "rows and credentials cross the network",
    "replication-privilege": "only a role with REPLICATION may create and read a slot",
    "schema-privilege": "seeding reads tables through SQL, which takes USAGE on their schema",
    "select-privilege": "seeding and verifying read tables through SQL",
    "row-security": "a snapshot with hidden rows would be wrong, so Walbus reads with row_security = off, which fails",
    "role-timeouts": "Walbus overrides them, so that a role's settings cannot end its work",
    "monitoring-privilege": "what other sessions do decides how long the slot holds WAL",
    "unread": "what was not looked at may still be wrong",
    # the publication
    "missing-table": "a table that is misspelt would silently never be captured",
    "publication": "the publication decides what is sent; PostgreSQL says nothing of what is not in it",
    "table-taken-out": "a table that left the publication has changes that the slot will never give",
    "table-not-published": "a table outside the publication is not captured",
    "later-tables": "a wildcard also means tables that do not exist yet",
    "publication-operations": "what is not published never reaches the log, and bootstrap refuses such tables",
    "publication-parts": "rows and columns that are left out are unknown to every consumer",
    "publication-identity": "PostgreSQL refuses UPDATE and DELETE when filter or column list miss the replica identity",
    "publication-all-tables": "it publishes every table of the database, those made tomorrow too",
    "publication-others": "the publication, not source.tables, decides what the slot sends",
    "publication-via-root": "with it, changes carry the parent's name, and no partition of its own",
    # the tables
    "identity": "a published table needs a replica identity, or its own UPDATE and DELETE are refused",
    "identity-full": "FULL gives consumers the whole old row, and costs WAL on every write",
    "keyless": "rows without a key cannot be told apart, so no latest state can be kept of them",
    "key-text": "rows are known by the text of their key, which must name one row, and always the same one",
    "generated-columns": "a column that is not sent is missing in the log, in snapshots and in sinks",
    "generated-identity": "PostgreSQL refuses UPDATE and DELETE when the identity needs a column that is not sent",
    "unlogged-table": "logical decoding reads the WAL, and these tables write none",
    "foreign-table": "their changes happen on another server, in another WAL",
    "view": "a publication holds tables",
    "sequences": "after a failover to a copy fed by Walbus, sequences must be set anew",
    "large-objects": "their content lies in a system table, which is never decoded; bytea columns are",
    # the slot and the log
    "same-source": "a log belongs to one database of one cluster; positions of another mean nothing in it",
    "slot": "the slot is the source's promise to keep what the log does not hold yet",
    "slot-reader": "a slot gives its changes once, to one reader at a time",
    "slot-retention": "WAL that the slot holds fills the source's disk, and past the limit the slot is lost",
    "slot-two-phase": "a slot decodes prepared transactions at PREPARE or at COMMIT PREPARED, as it was made",
    "slot-failover": "a slot that no standby has is gone after a failover, and changes with it",
    "idle-slots": "any slot that nobody reads keeps WAL, and old row versions, for ever",
    "old-transactions": "a slot begins behind, and holds WAL back to, the oldest transaction that still runs",
    # this machine
    "log-folder": "the log is the only copy of changes that the slot has let go",
    "log-disk-space": "a full disk stops confirming, and then the source's disk fills",
    "log-file-system": "the slot is confirmed once fdatasync returns, so that must mean what it says",
    "log-sync-speed": "no commit is confirmed before a sync; a slow one delays every change",
    "spool-folder": "transactions in progress are kept on disk until they commit",
    "store-folder": "the rows that late consumers read are kept on disk, and a full one stops their following",
    "open-files": "each stream, segment and table of the store takes a file",
    "native-core": "the native core does the work per change; its twin in Python gives the same bytes, slower",
    "packages": "what was installed with Walbus, for a report of a problem",
    "config-permissions": "whoever can read the file can become the source's role",
    "tokens-file": "a server whose file of tokens is broken does not start, and what has expired is turned away",
    "certificate": "whoever verifies a certificate refuses one that has expired, and with a broken one nothing starts",
    "listen-address": "two servers cannot share a port, and a public one shows rows to the network",
    "sinks": "a consumer without its package cannot start",
}
