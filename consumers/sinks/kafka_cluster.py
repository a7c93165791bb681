"""How the sink reaches its cluster: clients with the right settings, and errors in a sink's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.errors import ConfigError, LogError, LogMissing, LogUnreachable, SinkRefused, SinkUnavailable, WalbusError
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

_AWAY = "see that the brokers run and that bootstrap_servers names them; it is tried again"
_AHEAD_BYTES = 8 << 20


class SinkClients(ClusterClients):
    """The clients of one consumer.

    Args:
        options: of the sink.
        consumer: its name.
        prefix: of topics that it has the right to write; None: that of the sink.

    Raises:
        ConfigError: confluent-kafka is not installed, or librdkafka refuses an option.
    """

    def __init__(self, options: KafkaOptions, consumer: str, prefix: str | None = None) -> None:
        self._largest, self._key = options.max_message_bytes, f"key consumer.{consumer}"
        given = {name: value.get_secret_value() for name, value in options.options.items()}
        cluster = ClusterSettings(
            options.bootstrap_servers,
            options.prefix,
            given,
            options.transaction_seconds,
            options.answer_seconds,
            _AHEAD_BYTES,
        )
        try:
            super().__init__(cluster)
        except ConfigError as error:
            raise _of_options(error, self._key) from None
        #: By which a process of this consumer fences the one before it.
        self.transactional_id = f"{prefix or options.prefix}.{consumer}"

    def writer(self) -> Producer:
        """A transactional producer of rows."""
        made: Producer = self._made(self._kafka.Producer, self._of_writer())
        return made

    def notes(self) -> Producer:
        """A producer of what is told beside all transactions; one batch at a time, see `kafka_sender`."""
        given = {"acks": "all", "enable.idempotence": True, "linger.ms": 0, "max.in.flight.requests.per.connection": 1}
        made: Producer = self._made(self._kafka.Producer, given)
        return made

    def _of_writer(self) -> dict[str, object]:
        return {
            "transactional.id": self.transactional_id,
            "transaction.timeout.ms": int(self.settings.transaction_seconds * 1000),
            "acks": "all",
            "linger.ms": 5,
            "compression.type": "lz4",
            "message.max.bytes": self._largest,
            "queue.buffering.max.kbytes": 64 << 10,
        }

    def told(self, what: str, error: KafkaError | None, needs: str = "") -> WalbusError:
        """The error for one of Kafka's; see `ClusterClients.told`."""
        kinds = self._kafka.KafkaError
        if error is not None and error.code() == kinds.INVALID_TRANSACTION_TIMEOUT:
            mend = f"lower {self._key}.transaction_seconds, or raise the brokers' transaction.max.timeout.ms"
            return LogError(f"{what}: {error.str()}", where=self.settings.bootstrap, mend=mend)
        if error is not None and error.code() == kinds.MSG_SIZE_TOO_LARGE:
            mend = f"raise {self._key}.max_message_bytes, and max.message.bytes of the topics"
            return LogError(f"{what}: {error.str()}", where=self.settings.bootstrap, mend=mend)
        return super().told(what, error, needs)

    @contextmanager
    def as_sink(self) -> Iterator[None]:
        """Turns the errors of clients into a sink's."""
        try:
            yield
        except ConfigError as error:
            raise _of_options(error, self._key) from None
        except LogMissing:
            what = "a topic of the sink is gone"
            raise SinkUnavailable(
                what, where=self.settings.bootstrap, mend="wait: it is made anew, and filled"
            ) from None
        except LogUnreachable as error:
            raise SinkUnavailable(error.what, where=error.where, mend=_AWAY) from None
        except LogError as error:
            mend = (error.mend or "").replace("relay.kafka.options", "the sink's options") or None
            raise SinkRefused(error.what, where=error.where, mend=mend) from None


def _of_options(error: ConfigError, key: str) -> ConfigError:
    """An error of the shared clients, which know the configuration of the log only."""
    mend = error.mend if error.mend is not None and "pip" in error.mend else f"mend it in {key}.options"
    return ConfigError(error.what, where=f"{key}.options", mend=mend)
