"""A bootstrap that reads its log from a cluster, as on a machine of its own: no relay, and capture's folder elsewhere.

with KafkaRig(folder, database, kafka, chunk_rows=100) as rig:
    rig.start()
    rig.assert_equals_source("public.items")
    rig.held()                                   # what it holds on the cluster
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from support.bootstrap_rig import BootstrapRig
from support.database import Database
from support.waiting import wait_for
from support.walbus_command import Running, write_config
from walbus.log import Bounds
from walbus.position import Position, parse_position
from walbus.relay.kafka import open_kafka_reader
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings
from walbus.relay.kafka.held_offset import Held, held_on
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.status import read_status


class KafkaRig(BootstrapRig):
    """`walbus capture` with a data folder of its own, and `walbus bootstrap` with `read_from = "kafka"`.

    Args:
        folder: for everything.
        database: the source.
        servers: addresses of brokers.
        relay: further keys of `[relay]`.
        together: whether both have one data folder, as on one machine.
        options: further keys of `[bootstrap]`.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        servers: str,
        relay: dict[str, object] | None = None,
        *,
        together: bool = False,
        **options: object,
    ) -> None:
        super().__init__(folder, database, {"engine": "kafka", **(relay or {})}, **{"read_from": "kafka", **options})
        self.cluster = ClusterSettings(servers, f"walbus-test-{secrets.token_hex(6)}")
        where = {"bootstrap_servers": servers.split(","), "topic": self.cluster.topic}
        with self.config.open("a") as file:
            file.write("\n".join(["[relay.kafka]", *(f"{key} = {json.dumps(value)}" for key, value in where.items())]))
        log: dict[str, dict[str, object]] = {"relay": {"engine": "kafka", **(relay or {})}, "relay.kafka": where}
        sections = {"source": {"dsn": database.dsn}, **log}
        self.capture_dir = self.data_dir if together else folder / "capture-data"
        self._capture_config = write_config(folder / "capture.toml", sections, self.capture_dir)

    def join(self, other: KafkaRig) -> None:
        """Reads the log of another rig, whose capture runs."""
        text = self.config.read_text()
        self.config.write_text(text.replace(self.cluster.topic, other.cluster.topic))
        self.cluster = other.cluster

    def start_capture(self) -> None:
        self.capture = Running("capture", "-c", str(self._capture_config), log=self._folder / "capture.log")

    def open_log(self) -> KafkaLogReader:
        return open_kafka_reader(self.cluster)

    def bounds(self) -> Bounds:
        """What the cluster holds of the log."""
        with closing(self.open_log()) as reader:
            return reader.bounds()

    def status(self) -> dict[str, Any]:
        """The bootstrap's status file."""
        return read_status(self.data_dir / "status" / "bootstrap.json") or {}

    def held(self) -> Held | None:
        """What is held on the cluster."""
        with closing(ClusterClients(self.cluster)) as clients:
            return held_on(clients, 15.0)

    def held_behind(self) -> Position:
        """Behind which position the log is held."""
        held = wait_for(self.held, 60, what="there is a hold on the cluster", every=0.2)
        return parse_position(held.text)

    def trimmed_to(self, position: Position, deadline: float = 120) -> None:
        """Waits until what lies up to a position is gone from the cluster; says what there was instead."""
        until = time.monotonic() + deadline
        while (bounds := self.bounds()).trimmed < position:
            if time.monotonic() > until:
                raise AssertionError(f"not trimmed up to {position}: {self.seen(bounds)}")
            time.sleep(0.2)

    def seen(self, bounds: Bounds) -> str:
        """All that has to do with what is held and trimmed."""
        with closing(self.open_log()) as reader:
            view = reader.view()
            messages, offset = [], view.ends.first
            while (found := reader.places.first(view.ends._replace(first=offset), lambda _: True)) is not None:
                messages.append((found[0], str(found[1].before.tip.position), str(found[1].behind.tip.position)))
                offset = found[0] + 1
        files = {path.name: path.read_text() for path in (self.capture_dir / "relay" / "holds").glob("*")}
        capture = read_status(self.capture_dir / "status" / "capture.json")
        lines = self.capture.log().splitlines() if self.capture else []
        told = [line for line in lines if "hold" in line or "trim" in line]
        return (
            f"held {self.held()}, hold files {files}, {view.ends}, trimmed {bounds.trimmed}, end {bounds.end},"
            f" {bounds.bytes} bytes in {len(messages)} messages {messages[:20]},"
            f" bootstrap applied {self.status().get('applied')}, capture {capture},"
            f" capture said {told[-20:]}"
        )

    def let_go(self) -> None:
        """Ends the hold of a bootstrap that was killed, as `kafka-consumer-groups.sh --delete` does.

        The group has its member until that one's session is over.
        """
        client = AdminClient({"bootstrap.servers": self.cluster.bootstrap, "log_level": 0})

        def gone() -> bool:
            (done,) = client.delete_consumer_groups([self.cluster.hold_group]).values()
            try:
                done.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:
                    raise
                return False
            return True

        wait_for(gone, 60, what="the group is deleted", every=0.2)
