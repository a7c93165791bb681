"""What each process does on a cluster, as whom it is, and what docs/kafka-log.md says that it has to be granted.

doors = Doors(guarded, folder)
names = doors.prepared("relay")
doors.run("relay", names, doors.admitted(grants_of("relay", names)))          raises what the process raises
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from support.guarded_kafka import Grant, GuardedKafka
from support.kafka_log import KafkaEngine
from support.model_source import ITEMS, ModelSource, insert
from support.rebuild_rig import dropped, rebuilt
from support.relay_log import BASE_TIME, commits, fill, piece, read_all, table_schema
from support.scripted_relay import ScriptedRelay
from support.sink_writing import fill as fill_sink
from support.sinks_under_test import SinkUnderTest, kafka_under_test
from support.topic_rows import forget_copy, reader_of
from support.waiting import wait_for
from walbus.consumers.clock import Clock
from walbus.consumers.kafka_lessor import KafkaLessor
from walbus.consumers.kafka_peer import KafkaPeer
from walbus.consumers.topic_rows_peer import TopicRowsPeer
from walbus.credentials import Credentials
from walbus.errors import Directive, WalbusError, directive_of
from walbus.kafka_address import KafkaAddress
from walbus.position import Position
from walbus.records import Flag
from walbus.relay.group_leases import Asked
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.held_offset import held_on
from walbus.relay.kafka.hold import ClusterHold

PAGE = Path(__file__).parents[2] / "docs" / "kafka-log.md"
_ROW = re.compile(r"^\| ([a-z, ]+) \| (topic|group|transactional id) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TICKED = re.compile(r"`([^`]+)`")
_PARTS, _LEASE = 4, 5.0
_PATIENCE = 60.0
_DESCRIBING = ("Read", "Write", "Delete")


@dataclass(frozen=True)
class Names:
    """What the page's names stand for."""

    log: str
    prefix: str
    group: str = "orders"
    consumer: str = "test"

    def of(self, name: str) -> tuple[str, bool]:
        """A name of the page here; and whether it stands for all that begin so."""
        here = name.replace("LOG", self.log).replace("PREFIX", self.prefix)
        here = here.replace("GROUP", self.group).replace("CONSUMER", self.consumer)
        return here.removesuffix("*"), here.endswith("*")


def grants_of(role: str, names: Names) -> list[Grant]:
    """What the page says that a process needs."""
    found = []
    for who, kind, resources, operations in _ROW.findall(PAGE.read_text()):
        if role not in who.split(", "):
            continue
        for name in _TICKED.findall(resources):
            here, starts = names.of(name)
            found += [Grant(kind, here, operation, starts) for operation in _TICKED.findall(operations)]
    assert found, f"nothing is told of {role}"
    return found


def wait_until_told(act: Callable[[], object], deadline: float = 30.0) -> None:
    """Asks again while what it says may come right by itself, or is false."""
    end = time.monotonic() + deadline
    while True:
        try:
            if act() is not False:
                return
        except WalbusError as error:
            if directive_of(error) is not Directive.RETRY or time.monotonic() > end:
                raise
        assert time.monotonic() < end
        time.sleep(0.05)


#: Each process, and what has to be there when it begins.
ROLES = {
    "capture": (),
    "relay": ("capture",),
    "consumer": ("capture",),
    "bootstrap": ("capture",),
    "member": ("capture",),
    "writer": (),
    "rebuild": ("writer",),
    "rows": ("writer",),
}


def granted() -> list[tuple[str, str, str]]:
    """What each process is granted: role, kind of a resource, and operation."""
    names = Names("log", "rows")
    return [(role, *one) for role in ROLES for one in sorted({(g.kind, g.operation) for g in grants_of(role, names)})]


def without(grants: list[Grant], kind: str, operation: str) -> list[Grant]:
    """All but these; what brings `Describe` along leaves that."""
    left = [grant for grant in grants if (grant.kind, grant.operation) != (kind, operation)]
    if operation in _DESCRIBING:
        left += [g._replace(operation="Describe") for g in grants if (g.kind, g.operation) == (kind, operation)]
    return left


class Doors:
    """Processes that come as somebody.

    Args:
        guarded: the cluster.
        folder: for their files.
        answer_seconds: for which somebody waits; what nobody may be told is waited for to the end.
    """

    def __init__(self, guarded: GuardedKafka, folder: Path, answer_seconds: float = 5.0) -> None:
        self._guarded, self._folder, self._answer_seconds = guarded, folder, answer_seconds
        self._source = ModelSource()
        self._source.commit([insert(ITEMS, n) for n in range(20)])

    def prepared(self, role: str) -> Names:
        """A log and topics that nobody has but who made what a process begins with."""
        names = Names(f"log-{secrets.token_hex(4)}", f"rows-{secrets.token_hex(4)}")
        for before in ROLES[role]:
            self.run(before, names, None)
        return names

    def run(self, role: str, names: Names, options: dict[str, str] | None) -> None:
        """Does what the process does, as somebody; None: as who may do everything."""
        getattr(self, f"_{role}")(names, options)

    def admitted(self, grants: list[Grant], mechanism: str = "PLAIN") -> dict[str, str]:
        """Options of one who has these."""
        user = self._guarded.somebody(grants)
        if mechanism != "PLAIN":
            self._guarded.know_by_scram(user)
        return dict(self._guarded.options(user, mechanism))

    def _engine(self, names: Names, options: dict[str, str] | None = None) -> KafkaEngine:
        """The log as somebody has it, or as who may do everything does."""
        where = self._guarded.bootstrap if options is None else self._guarded.door
        made = KafkaEngine(where, self._folder / secrets.token_hex(4), block_bytes=5_000)
        seconds = self._seconds(options)
        made.cluster = replace(made.cluster, topic=names.log, options=options or {}, answer_seconds=seconds)
        made.large_bytes, made.kept_bytes = 50_000, 100_000
        made.ask_seconds = min(made.ask_seconds, seconds)
        return made

    def _sink(self, names: Names, options: dict[str, str] | None = None) -> SinkUnderTest:
        """Likewise the table topics."""
        where = self._guarded.bootstrap if options is None else self._guarded.door
        folder = self._folder / names.prefix
        folder.mkdir(exist_ok=True)
        seconds = self._seconds(options)
        return kafka_under_test(folder, where, prefix=names.prefix, options=options or {}, answer_seconds=seconds)

    def _seconds(self, options: dict[str, str] | None) -> float:
        """Who may do everything is told everything, however busy the machine is."""
        return _PATIENCE if options is None else self._answer_seconds

    # What they do

    def _capture(self, names: Names, options: dict[str, str] | None) -> None:
        """Makes a log, writes to it, trims it, and opens it again."""
        engine = self._engine(names, options)
        with closing(engine):
            writer = engine.open_writer()
            writer.schemas.register(table_schema())
            for lsn in (16, 32, 48):
                for first in range(1, 101, 10):
                    flags = (Flag.BEGIN if first == 1 else 0) | (Flag.END if first == 91 else 0)
                    writer.append(piece(lsn, first, 10, flags, size=1000))
                writer.sync()
            assert writer.trim((BASE_TIME + 33) / 1e6 + 3600) == Position(1, 32, 100)
            writer.close()
            writer = engine.open_writer()
            fill(writer, 1, first=4)
            writer.close()

    def _relay(self, names: Names, options: dict[str, str] | None) -> None:
        """Reads the log."""
        with closing(open_kafka_reader(self._engine(names, options).cluster)) as reader:
            assert commits(read_all(reader, reader.bounds().trimmed)) == [48, 64]
            assert reader.schemas.all()

    def _consumer(self, names: Names, options: dict[str, str] | None) -> None:
        """Reads the log as a consumer does."""
        cluster = self._engine(names, options).cluster
        with closing(KafkaPeer(KafkaAddress(cluster.bootstrap, names.log, cluster.options), Credentials())) as peer:
            seen = peer.info().log
            peer.stream(seen.trimmed, seen.log_id, ("public.*",), "orders").close()

    def _bootstrap(self, names: Names, options: dict[str, str] | None) -> None:
        """Reads the log, and holds it."""
        self._relay(names, options)
        cluster = self._engine(names, options).cluster
        with closing(ClusterHold(cluster)) as hold, closing(open_kafka_reader(cluster)) as reader:
            wait_until_told(hold.require)
            hold.move(reader.bounds().log_id, reader.bounds().end)
            with closing(ClusterClients(self._engine(names).cluster)) as clients:
                wait_for(lambda: held_on(clients, 5.0), 30, what="it is held", every=0.1)

    def _member(self, names: Names, options: dict[str, str] | None) -> None:
        """Reads the log, and has all parts of a group."""
        self._relay(names, options)
        lessor = KafkaLessor(names.group, self._engine(names, options).cluster, Clock())
        lessor.begin("first", threading.Event().set)
        try:
            wait_until_told(lambda: len(lessor.ask(Asked(_PARTS, _LEASE), 1.0).holds) == _PARTS)
        finally:
            with suppress(WalbusError):
                lessor.ask(Asked(_PARTS, _LEASE, leaves=True), 1.0)

    def _writer(self, names: Names, options: dict[str, str] | None) -> None:
        """Writes table topics, and reads them when it has lost its copy of the rows."""
        sink = self._sink(names, options)
        with closing(sink.open()) as opened:
            fill_sink(opened, self._source)
        forget_copy(sink)
        with closing(sink.open()) as opened:
            assert opened.checkpoint() is not None

    def _rebuild(self, names: Names, options: dict[str, str] | None) -> None:
        """Has table topics written anew, one of which somebody gave a setting, and drops the old ones."""
        sink = self._sink(names, options)
        self._guarded.give_setting(reader_of(sink).of_table(ITEMS), "delete.retention.ms", "7654321")
        with ScriptedRelay(self._source) as relay:
            rebuilt(relay, sink)
        assert dropped(sink)

    def _rows(self, names: Names, options: dict[str, str] | None) -> None:
        """Has rows from table topics."""
        sink = self._sink(names, options)
        address = KafkaAddress(sink.options["bootstrap_servers"], names.prefix, sink.options["options"])
        with closing(TopicRowsPeer(address)) as peer:
            assert ITEMS in peer.tables().consistent
            peer.snapshot(ITEMS, None).close()
