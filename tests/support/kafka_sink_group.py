"""Several `walbus consume orders` that read a log on Kafka from the cluster, and have their parts from it.

As `support.sink_group`, but that no relay is asked: who has which part is told by the coordinator, and how far a part
is by the status files of the members.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.database import Database
from support.kafka_group import LEASE, Asked
from support.sink_group import NAME, SinkGroup
from support.waiting import wait_for
from support.whole_system import WholeSystem
from walbus.position import parse_position


class KafkaSinkGroup(SinkGroup):
    """The members.

    Args:
        folder: for everything.
        system: capture, and a bootstrap for snapshots.
        database: the source.
        section: of the consumer.
        bootstrap: addresses of brokers.
        topic: of the log.
    """

    def __init__(  # where everything is
        self,
        folder: Path,
        system: WholeSystem,
        database: Database,
        section: Mapping[str, object],
        bootstrap: str,
        topic: str,
    ) -> None:
        super().__init__(folder, system, database, {"lease_seconds": LEASE, "read_from": "kafka", **section})
        self._bootstrap, self._topic = bootstrap, topic
        self._asked = Asked(bootstrap)

    def sections(self) -> dict[str, dict[str, object]]:
        return {
            "relay": {"engine": "kafka"},
            "relay.kafka": {"bootstrap_servers": self._bootstrap.split(","), "topic": self._topic},
            "bootstrap": {"listen": self._system.bootstrap_url.removeprefix("http://")},
            f"consumer.{NAME}": dict(self.section),
        }

    def held(self) -> dict[str, list[int]]:
        return self._asked.held(f"{self._topic}.parts.{NAME}")

    def told_of_parts(self) -> dict[str, dict[str, Any]]:
        """What the last holder of each part tells of it."""
        told: dict[str, dict[str, Any]] = {}
        for member in self.members:
            for part, one in member.status().get("held", {}).items():
                if one["token"] >= told.get(part, one)["token"]:
                    told[part] = one
        return told

    def wait_until_done(self, deadline: float = 120.0) -> None:
        lsn = self._database.insert_lsn()
        self._database.execute("UPDATE marker SET n = n + 1")

        def all_are() -> bool:
            told = self.told_of_parts()
            places = [parse_position(one["last_done"]).commit_lsn for one in told.values()]
            return len(places) == self.parts and min(places) >= lsn

        wait_for(all_are, deadline, what="each part has done it", every=0.1)
