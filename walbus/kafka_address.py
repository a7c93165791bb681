"""Where a log on Kafka is, for who reads it from the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from walbus.errors import UsageError

SCHEME = "kafka://"


@dataclass(frozen=True)
class KafkaAddress:
    """A log on a cluster, and what is beside it.

    Attributes:
        servers: `HOST:PORT,…` of brokers.
        topic: of the log.
        options: of librdkafka.
        bootstrap: address of the bootstrap server of this log; None: there is none.
    """

    servers: str
    topic: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    bootstrap: str | None = None

    @property
    def url(self) -> str:
        """What it is called in errors."""
        return f"{SCHEME}{self.servers}/{self.topic}"


def parse_kafka_address(url: str, options: Mapping[str, str], bootstrap: str | None) -> KafkaAddress:
    """The address `kafka://HOST:PORT,…/TOPIC`.

    Raises:
        UsageError: it is none.
    """
    servers, _, topic = url.removeprefix(SCHEME).partition("/")
    if not servers or not topic or "/" in topic:
        raise UsageError(
            f"{url[:200]!r} is no address of a log on Kafka",
            where="url",
            mend="write it as in kafka://broker1:9092,broker2:9092/walbus.walbus: brokers, and the topic of the log",
        )
    return KafkaAddress(servers, topic, options, bootstrap)
