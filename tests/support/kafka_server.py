"""A real Apache Kafka for tests and benchmarks: brokers in KRaft mode, each in a JVM of its own, started in seconds.

Maven fetches the jars once into `.services/kafka` (43 MB); see `support.maven_jars`. It takes a JDK of 17 or later.

with local_kafka() as cluster:       one broker, which is the controller too; local_kafka(brokers=3): three of both
    cluster.bootstrap                127.0.0.1:PORT,…
    broker = cluster.brokers[0]
    broker.pid                       to stop or kill it by
    broker.kill(); broker.start()    the same folder and ports; `await_answer` waits until the cluster answers again
"""

from __future__ import annotations

import base64
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from support.maven_jars import Kind, check_java, fetched
from support.waiting import wait_for
from walbus.demo.postgres import free_port

KAFKA = Kind("kafka", "4.1.1", "KafkaNode")

#: A broker that lives for a minute is best compiled in haste, and collected by one thread.
_JAVA = ("java", "-Xmx256m", "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
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

    def __init__(self, folder: Path, cluster: str, properties: Mapping[str, str]) -> None:
        self._folder, self._cluster = folder, cluster
        self._classes = fetched(KAFKA)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        given = {**properties, "log.dirs": str(folder / "data")}
        (folder / "properties").write_text("".join(f"{name}={value}\n" for name, value in given.items()))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it; it takes some seconds until it answers."""
        command = [*_JAVA, "-cp", f"{self._classes}:{self._classes}/*", KAFKA.node]
        command += [str(self._folder / "properties"), str(self._folder / "data"), self._cluster]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"Kafka did not start: {(self._folder / 'log').read_text()[-2000:]}")


class Cluster:
    """Brokers that know each other."""

    def __init__(self, folder: Path, brokers: int, settings: Mapping[str, str]) -> None:
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
        """Waits until every broker is part of the cluster."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "error_cb": lambda _: None})

        def answers() -> bool:
            for broker in self.brokers:
                broker.check_alive()
            with suppress(KafkaException):
                return len(client.list_topics(timeout=1).brokers) == len(self.brokers)
            return False

        wait_for(answers, 60, what="Kafka answers")


@contextmanager
def local_kafka(brokers: int = 1, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster in a temporary folder, with settings of its own.

    Raises:
        UsageError: it cannot be had here; says why.
    """
    check_java(17)
    with tempfile.TemporaryDirectory(prefix="walbus-kafka-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder), brokers, settings or {})
        try:
            for broker in cluster.brokers:
                broker.start()
            cluster.await_answer()
            yield cluster
        finally:
            for broker in cluster.brokers:
                broker.kill()
