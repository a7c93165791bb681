"""Facts of a healthy source, and ways to make them ill, for the tests of the doctor's rules."""

from __future__ import annotations

from dataclasses import replace

from walbus.capture.definition import CatalogState, PublicationState, TableState
from walbus.capture.doctor.facts import (
    ConnectionFacts,
    Facts,
    HistoryFacts,
    LogFacts,
    NeverSent,
    PublicationFacts,
    RoleFacts,
    ServerFacts,
    Setting,
    SlotFacts,
    TableFacts,
    Wanted,
)
from walbus.capture.timelines import Timelines
from walbus.capture.verification import SlotState, SystemIdentity
from walbus.log import Bounds, SourceIdentity
from walbus.position import ORIGIN, Position

GIB = 1 << 30
ALL = frozenset({"insert", "update", "delete", "truncate"})


def table(name: str = "orders", **changes: object) -> TableFacts:
    healthy = TableFacts(
        oid=16_400,
        namespace="public",
        name=name,
        root=f"public.{name}",
        partitioned=False,
        identity="d",
        identified=True,
        identity_columns=frozenset({"id"}),
        primary_key=True,
        deferrable=False,
        published=True,
        named=False,
        owner="app",
        addable=True,
        readable=True,
        usable_schema=True,
        row_security=False,
    )
    return replace(healthy, **changes)  # type: ignore[arg-type]


def settings(**values: str) -> dict[str, Setting]:
    units = {"max_slot_wal_keep_size": "MB", "wal_sender_timeout": "ms", "idle_replication_slot_timeout": "s"}
    base = {
        "wal_level": "logical",
        "max_replication_slots": "10",
        "max_wal_senders": "10",
        "max_connections": "100",
        "superuser_reserved_connections": "3",
        "max_slot_wal_keep_size": "51200",
        "wal_sender_timeout": "60000",
        "fsync": "on",
        "full_page_writes": "on",
    }
    return {name: Setting(name, value, units.get(name)) for name, value in (base | values).items()}


SERVER = ServerFacts(
    version=180_006,
    in_recovery=False,
    encoding="UTF8",
    database="shop",
    clock_ahead=0.01,
    clock_error=0.005,
    slots_used=1,
    senders_used=1,
    standbys=False,
    connections_used=5,
    managed=None,
    settings=settings(),
)
ROLE = RoleFacts("app", False, True, False, True, True, None, {})
PUBLICATION = PublicationFacts(70, "app", True, False, (), ALL, False, "none")
STATE = SlotState("pgoutput", "shop", 1000, 900, "reserved", None, False, True)
SLOT = SlotFacts(STATE, retained=GIB)
WANTED = Wanted("walbus", "walbus", ("public.*",), False, True, True, True, True, 7)
END = Bounds("log", ORIGIN, Position(1, 1900, 1), 2000, 1, 0, 0)
LOG = LogFacts(SourceIdentity("7300", "shop", "walbus"), END, frozenset({16_400}))
#: Table 16500 was in the publication as a partition of another.
REMEMBERED = CatalogState(
    PublicationState(70, 700, 10, False, ("insert", "update", "delete", "truncate"), False, ""),
    {
        16_500: TableState(
            oid=16_500,
            namespace="public",
            name="orders",
            kind="r",
            identity="d",
            listed=0,
            by_schema=0,
            row_filter=None,
            fresh=True,
            columns=(),
            files=(),
        )
    },
    {},
    frozenset(),
)
SYSTEM = SystemIdentity("7300", 1, 3000, "shop")
HEALTHY = Facts(
    wanted=WANTED,
    server=SERVER,
    connection=ConnectionFacts("127.0.0.1", False, False, "prefer"),
    role=ROLE,
    publication=PUBLICATION,
    tables=(table(),),
    never_sent=NeverSent(),
    slot=SLOT,
    idle_slots=(),
    transactions=(),
    history=HistoryFacts(SYSTEM, Timelines(1)),
    log=LOG,
)


def server(**changes: object) -> Facts:
    return replace(HEALTHY, server=replace(SERVER, **changes))  # type: ignore[arg-type]


def role(**changes: object) -> Facts:
    return replace(HEALTHY, role=replace(ROLE, **changes))  # type: ignore[arg-type]


def slot(**changes: object) -> Facts:
    return replace(HEALTHY, slot=replace(SLOT, **changes))  # type: ignore[arg-type]


def state(**changes: object) -> Facts:
    return slot(state=replace(STATE, **changes))  # type: ignore[arg-type]


def history(timelines: Timelines, **changes: object) -> Facts:
    system = replace(SYSTEM, timeline=timelines.current, **changes)  # type: ignore[arg-type]
    return replace(HEALTHY, history=HistoryFacts(system, timelines))


def tables(*given: TableFacts, publication: PublicationFacts | None = PUBLICATION) -> Facts:
    return replace(HEALTHY, tables=given, publication=publication)


#: A first start: neither slot nor log.
NEW_START = replace(HEALTHY, slot=None, log=None)
