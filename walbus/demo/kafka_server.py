"""A real Apache Kafka on this machine: brokers in KRaft mode, each in a JVM of its own, started in seconds.

Maven fetches the jars once (43 MB; see `walbus.demo.jars`). It takes a JDK of 17 or later.

with embedded_kafka(folder, jars) as cluster:     one broker, which is the controller too; brokers=3: three of both
    cluster.bootstrap                127.0.0.1:PORT,…
    broker = cluster.brokers[0]
    broker.pid                       to stop or kill it by
    broker.kill(); broker.start()    the same folder and ports; `await_answer` waits until the cluster answers again
"""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from walbus.demo.jars import Kind, check_java, fetched
from walbus.demo.postgres import free_port
from walbus.errors import LogUnreachable, UsageError

KAFKA = Kind(Path(__file__).with_name("kafka"), "4.1.1", "KafkaNode")

LEAST_JAVA = 17
_DEADLINE = 60.0
#: A broker that lives for a minute is best compiled in haste, and collected by one thread.
JAVA = ("java", "-Xmx256m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
#: A cluster without load, which answers at once.
_SETTINGS = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.io.buffer.size": "65536",
    "controlled.shutdown.enable": "false",
}


class Broker:
    """One node: a broker that is a controller too."""

    def __init__(
        self, folder: Path, classes: Path, java: Sequence[str], cluster: str, properties: Mapping[str, str]
    ) -> None:
        self._folder, self._classes, self._java, self._cluster = folder, classes, java, cluster
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        given = {**properties, "log.dirs": str(folder / "data")}
        (folder / "properties").write_text("".join(f"{name}={value}\n" for name, value in given.items()))

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None  # noqa: S101 - it was started
        return self._process.pid

    def start(self) -> None:
        """Starts it; it takes some seconds until it answers."""
        command = [*self._java, "-cp", f"{self._classes}:{self._classes}/*", KAFKA.node]
        command += [str(self._folder / "properties"), str(self._folder / "data"), self._cluster]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (no shell)
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def check_alive(self) -> None:
        """Raises LogUnreachable if it has ended."""
        if not self.alive():
            raise LogUnreachable(f"Kafka did not start: {self.log()[-2000:]}", where=str(self._folder))

    def log(self) -> str:
        """What it says."""
        return (self._folder / "log").read_text(errors="replace")


class Cluster:
    """Brokers that know each other.

    Attributes:
        bootstrap: `HOST:PORT,…`.
        brokers: by number; their folders are `FOLDER/broker1` and so on.
    """

    def __init__(
        self, folder: Path, classes: Path, java: Sequence[str], brokers: int, settings: Mapping[str, str]
    ) -> None:
        ports = [(free_port(), free_port()) for _ in range(brokers)]
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port, _ in ports)
        voters = ",".join(f"{i}@127.0.0.1:{controller}" for i, (_, controller) in enumerate(ports, 1))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a", 1)
        copies, needed = str(min(brokers, 3)), str(min(brokers, 2))
        shared = {
            **_SETTINGS,
            "process.roles": "broker,controller",
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": needed,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": needed,
            **settings,
        }
        self.brokers = [
            Broker(
                folder / f"broker{i}",
                classes,
                java,
                cluster,
                {
                    **shared,
                    "node.id": str(i),
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
                    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
                },
            )
            for i, (port, controller) in enumerate(ports, 1)
        ]

    def await_answer(self) -> None:
        """Waits until every broker is part of the cluster; LogUnreachable if that takes too long."""
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415

        options: dict[str, Any] = {"bootstrap.servers": self.bootstrap, "log_level": 0, "error_cb": lambda _: None}
        client = AdminClient(options)

        def answers() -> bool:
            for broker in self.brokers:
                broker.check_alive()
            with suppress(KafkaException):
                return len(client.list_topics(timeout=1).brokers) == len(self.brokers)
            return False

        end = time.monotonic() + _DEADLINE
        while not answers():
            if time.monotonic() > end:
                raise LogUnreachable(f"Kafka does not answer for {_DEADLINE:.0f} s", where=self.bootstrap)
            time.sleep(0.02)


@contextmanager
def embedded_kafka(
    folder: Path,
    jars: Path,
    brokers: int = 1,
    settings: Mapping[str, str] | None = None,
    java: Sequence[str] = JAVA,
) -> Iterator[Cluster]:
    """A cluster, killed at the end.

    Args:
        folder: for all of its files; made when missing.
        jars: where jars are kept, and fetched to.
        brokers: how many.
        settings: of brokers, over those that all have.
        java: the program and its options.

    Raises:
        UsageError: it cannot be had here; says why.
        LogUnreachable: it does not come up.
    """
    if importlib.util.find_spec("confluent_kafka") is None:
        raise UsageError("confluent-kafka is not installed", mend="pip install 'walbus[kafka]'")
    check_java(LEAST_JAVA)
    cluster = Cluster(folder, fetched(KAFKA, jars), java, brokers, settings or {})
    try:
        for broker in cluster.brokers:
            broker.start()
        cluster.await_answer()
        yield cluster
    finally:
        for broker in cluster.brokers:
            broker.kill()
