"""What an examination looks at, as plain values: the rules see these and nothing else. Pure.

A fact that could not be read is None (or absent from a mapping), and `Facts.unread` says which and why; rules say
nothing about what they cannot see. Sizes are bytes, times seconds, LSNs integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from walbus.capture.definition import CatalogState
from walbus.capture.timelines import Timelines
from walbus.capture.verification import SlotState, SystemIdentity
from walbus.errors import WalbusError
from walbus.log import Bounds, SourceIdentity
from walbus.position import ORIGIN

_BYTES = {"B": 1, "kB": 1 << 10, "8kB": 8 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration asks for.

    Attributes:
        tables: patterns, `schema.table` or `schema.*`.
        bootstrap: whether tables are seeded, which reads them through SQL.
        sessions: connections that Walbus opens at most, beside the walsender.
    """

    slot: str
    publication: str
    tables: tuple[str, ...]
    two_phase: bool
    failover: bool
    streaming: bool
    catch_up: bool
    bootstrap: bool
    sessions: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of pg_settings.

    Attributes:
        value: as pg_settings has it, in `unit`.
        source: where the value comes from: `default`, `configuration file`, `command line`, `user`, …
        pending_restart: another value waits for a restart.
    """

    name: str
    value: str
    unit: str | None = None
    source: str = "default"
    pending_restart: bool = False

    @property
    def number(self) -> float | None:
        """Its value, in bytes where it has a unit of size; None for what is no number. Below 0 it means no amount."""
        try:
            value = float(self.value)
        except ValueError:
            return None
        return value if value < 0 else value * _BYTES.get(self.unit or "", 1)

    @property
    def seconds(self) -> float | None:
        """Its value as a duration."""
        value = self.number
        return None if value is None else value * _SECONDS.get(self.unit or "s", 1.0)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server.

    Attributes:
        version: `server_version_num`.
        encoding: of the database.
        clock_ahead: the server's clock minus ours; the true value lies within `clock_error` of it.
        slots_used: of all kinds, in all databases.
        senders_used: walsenders that run.
        standbys: whether physical standbys stream, or have slots.
        connections_used: sessions of clients, in all databases.
        managed: the service that runs the server, where it shows (`Amazon RDS`, …).
    """

    version: int
    in_recovery: bool
    encoding: str
    database: str
    clock_ahead: float
    clock_error: float
    slots_used: int
    senders_used: int
    standbys: bool
    connections_used: int
    managed: str | None
    settings: Mapping[str, Setting]

    def number(self, name: str) -> float | None:
        """`Setting.number`; None for a setting that this version does not have."""
        setting = self.settings.get(name)
        return None if setting is None else setting.number

    def seconds(self, name: str) -> float | None:
        """`Setting.seconds`; None for a setting that this version does not have."""
        setting = self.settings.get(name)
        return None if setting is None else setting.seconds


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """How the server is reached.

    Attributes:
        remote: the connection leaves this machine.
        encrypted: by TLS.
        sslmode: as libpq has it.
        application: what Walbus's sessions are called.
    """

    host: str
    remote: bool
    encrypted: bool
    sslmode: str
    application: str = "walbus-capture"


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """The role of source.dsn.

    Attributes:
        replication: may replicate: by its own attribute, or as a member of Amazon's rds_replication.
        creates: may CREATE in the database.
        sees_sessions: sees what other roles' sessions do.
        connection_limit: None for none.
        settings: run-time parameters set on the role or the database, by name.
    """

    name: str
    superuser: bool
    replication: bool
    bypasses_row_security: bool
    creates: bool
    sees_sessions: bool
    connection_limit: int | None
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PublicationFacts:
    """The publication.

    Attributes:
        owned: the role is a member of its owner.
        all_tables: FOR ALL TABLES.
        schemas: published by TABLES IN SCHEMA.
        operations: of insert, update, delete and truncate, those that are published.
        generated: `publish_generated_columns`: `stored`, `none`; None before PostgreSQL 18.
        others: tables that it publishes and that the configuration does not mean, neither by their own name nor by that
            of a partitioned table above them.
    """

    oid: int
    owner: str
    owned: bool
    all_tables: bool
    schemas: tuple[str, ...]
    operations: frozenset[str]
    via_root: bool
    generated: str | None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table (or leaf of a partitioned one) that the configuration means.

    Attributes:
        root: name of the topmost parent that is published in its place; its own name for a table without parents.
        identity: `d` default, `n` nothing, `f` full, `i` an index.
        identified: an index (or FULL) gives its identity, so that UPDATE and DELETE can be published.
        identity_columns: of the identity's index; empty under FULL and without one.
        primary_key: has one; `deferrable`: and it cannot serve as an identity.
        unique_index: name of another index that can; empty without one.
        published: in the publication, itself or through a parent.
        named: by its own name in the configuration, not only by a wildcard.
        addable: our role may add it to the publication.
        known: the log knows it.
        listed_columns: of the publication's column list; None without one.
        filtered: the publication filters its rows; `filter_columns`: by these.
        generated: columns GENERATED ALWAYS AS; `virtual` ones are not stored.
        merging: key columns whose type prints unequal values alike, each with its type.
        renamed: key columns whose type prints a name that can change under the value, each with its type.
    """

    oid: int
    namespace: str
    name: str
    root: str
    partitioned: bool
    identity: str
    identified: bool
    identity_columns: frozenset[str]
    primary_key: bool
    deferrable: bool
    published: bool
    named: bool
    owner: str
    addable: bool
    readable: bool
    usable_schema: bool
    row_security: bool
    unique_index: str = ""
    known: bool = False
    listed_columns: frozenset[str] | None = None
    filtered: bool = False
    filter_columns: frozenset[str] = frozenset()
    generated: frozenset[str] = frozenset()
    virtual: frozenset[str] = frozenset()
    merging: frozenset[str] = frozenset()
    renamed: frozenset[str] = frozenset()

    @property
    def table(self) -> str:
        """`namespace.name`."""
        return f"{self.namespace}.{self.name}"

    @property
    def is_root(self) -> bool:
        """It is published itself, not through a parent."""
        return self.table == self.root


@dataclass(frozen=True, slots=True)
class NeverSent:
    """What the configuration's patterns match and PostgreSQL never sends.

    Attributes:
        unlogged, foreign, views: relations, by schema and name.
        sequences: number of sequences in the schemas.
        large_objects: whether the database holds any.
        missing: patterns that match nothing at all.
    """

    unlogged: tuple[tuple[str, str], ...] = ()
    foreign: tuple[tuple[str, str], ...] = ()
    views: tuple[tuple[str, str], ...] = ()
    sequences: int = 0
    large_objects: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """The replication slot; what a version does not have is None.

    Attributes:
        state: as capture itself looks at it.
        reader: pid and application name of the session that streams from it.
        retained: WAL that it holds back.
        safe: WAL that may be written before it is lost.
        synced: it is a standby's copy of the primary's.
        spilled: bytes that decoding wrote to the server's disk, since the statistics were reset.
    """

    state: SlotState
    temporary: bool = False
    reader: tuple[int, str] | None = None
    retained: int | None = None
    safe: int | None = None
    synced: bool | None = None
    spilled: int | None = None


@dataclass(frozen=True, slots=True)
class IdleSlot:
    """A slot of somebody else that nobody reads."""

    name: str
    retained: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """An old transaction.

    Attributes:
        name: the process id, or the prepared transaction's name.
        prepared: it waits for COMMIT PREPARED.
        writes: it has a transaction id.
    """

    name: str
    owner: str
    database: str
    seconds: float
    prepared: bool
    writes: bool


@dataclass(frozen=True, slots=True)
class HistoryFacts:
    """Which cluster answers, and which timelines it went through."""

    system: SystemIdentity
    timelines: Timelines


@dataclass(frozen=True, slots=True)
class LogFacts:
    """The log that exists already; None as a whole where there is none.

    Attributes:
        source: what it was made from.
        bounds: what it held before the source was looked at: the source has at least that.
        bounds_after: what it held after that, since a capture that runs moves log and slot meanwhile: the slot is
            confirmed to no more than that. None: as before.
        known: OIDs of the tables that it has layouts of.
        remembered: the catalog as capture told it last; None if nothing is known.
    """

    source: SourceIdentity
    bounds: Bounds
    known: frozenset[int]
    remembered: CatalogState | None = None
    bounds_after: Bounds | None = None

    @property
    def empty(self) -> bool:
        """It holds nothing that anything could depend on."""
        return self.bounds.end == ORIGIN

    def left_by_itself(self, oid: int) -> bool:
        """Whether a table was in the publication without an entry of its own, so that nobody can have removed that."""
        was = None if self.remembered is None else self.remembered.tables.get(oid)
        return was is not None and not was.listed


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that could not be looked at."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All of them.

    Attributes:
        stream_refused: why a replication connection was not admitted, where the role may open one.
    """

    wanted: Wanted
    server: ServerFacts
    connection: ConnectionFacts
    role: RoleFacts
    publication: PublicationFacts | None
    tables: tuple[TableFacts, ...]
    never_sent: NeverSent
    slot: SlotFacts | None
    idle_slots: tuple[IdleSlot, ...]
    transactions: tuple[Transaction, ...]
    history: HistoryFacts | None
    log: LogFacts | None
    stream_refused: WalbusError | None = None
    unread: tuple[Unread, ...] = field(default=())

    @property
    def via_root(self) -> bool:
        """Whether partitions are published as their topmost parent; capture makes a publication without that."""
        return self.publication is not None and self.publication.via_root

    @property
    def carriers(self) -> list[TableFacts]:
        """Tables under whose names rows are sent."""
        return [table for table in self.tables if (table.is_root if self.via_root else not table.partitioned)]

    @property
    def read(self) -> list[TableFacts]:
        """Tables that seeding reads: where rows lie, and those under whose names they are sent."""
        return [table for table in self.tables if not table.partitioned or (self.via_root and table.is_root)]
