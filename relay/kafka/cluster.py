"""How to reach the cluster: clients with the right settings, and errors in Walbus's own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from walbus.errors import ConfigError, LogError, LogMissing, LogUnreachable, WalbusError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer
    from confluent_kafka.admin import AdminClient

_C = TypeVar("_C")

_ASK_SECONDS = 5.0

_WHO = "see that relay.kafka.options say who this is: sasl.mechanism, sasl.username, sasl.password"
_MEND = "see that the brokers run and that relay.kafka.bootstrap_servers names them; it is tried again"


@dataclass(frozen=True)
class ClusterSettings:
    """Where the cluster is, and what the log is called there.

    Attributes:
        bootstrap: `HOST:PORT,…` of brokers.
        topic: of the log; the names of the other topics follow from it.
        options: of librdkafka, for whatever the cluster asks of its clients (`security.protocol`, …).
        transaction_seconds: after which the cluster aborts a transaction whose writer is gone.
        answer_seconds: how long an answer is waited for, that to a commit too, before the cluster counts as away.
        ahead_bytes: what a cursor fetches ahead.
    """

    bootstrap: str
    topic: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    transaction_seconds: float = 60.0
    answer_seconds: float = 15.0
    ahead_bytes: int = 8 << 20

    @property
    def large(self) -> str:
        """Topic of large transactions."""
        return f"{self.topic}.large"

    @property
    def meta(self) -> str:
        """Topic of what is known about the log."""
        return f"{self.topic}.meta"

    @property
    def topics(self) -> tuple[str, str, str]:
        """All of the log's."""
        return self.topic, self.large, self.meta

    @property
    def transactional_id(self) -> str:
        """By which a writer is fenced."""
        return f"{self.topic}.writer"

    @property
    def readers_group(self) -> str:
        """Group under which records are read; it has no member and no offset."""
        return f"{self.topic}.readers"

    @property
    def writer_group(self) -> str:
        """Group whose member writes the log."""
        return f"{self.topic}.writer"

    @property
    def hold_group(self) -> str:
        """Group whose committed offset holds the log for the bootstrap that reads the cluster."""
        return f"{self.topic}.bootstrap"


class ClusterClients:
    """Makes clients of the cluster. What librdkafka says is kept, for the error that follows, and not printed.

    Raises:
        ConfigError: confluent-kafka is not installed, or librdkafka refuses an option.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        try:
            import confluent_kafka  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(
                "confluent-kafka is not installed", where="key relay.engine", mend="pip install 'walbus[kafka]'"
            ) from None
        self._kafka = confluent_kafka
        self.settings = settings
        self._said, self._unknown = "", False
        self._admin: AdminClient | None = None

    @property
    def admin(self) -> AdminClient:
        """The administrative client; made when it is first needed."""
        if self._admin is None:
            from confluent_kafka.admin import AdminClient  # noqa: PLC0415

            self._admin = self._made(AdminClient, {})
        return self._admin

    def forget_leaders(self) -> None:
        """Asks the next question anew: an administrative client goes on asking the leader that it knew."""
        self._admin = None

    def close(self) -> None:
        """Frees the administrative client; the other ones are closed by whoever asked for them."""
        self._admin = None

    def producer(self, largest: int) -> Producer:
        """A transactional producer.

        Args:
            largest: bytes of a batch that the topics take.
        """
        milliseconds = int(self.settings.transaction_seconds * 1000)
        return self._made(
            self._kafka.Producer,
            {
                "transactional.id": self.settings.transactional_id,
                "transaction.timeout.ms": milliseconds,
                "acks": "all",
                "linger.ms": 0,
                "message.max.bytes": largest,
                "batch.size": largest,
                "queue.buffering.max.kbytes": 64 << 10,
            },
        )

    def consumer(self, *, fetch_bytes: int | None = None, wait_seconds: float = 0.01) -> Consumer:
        """A consumer of committed messages that keeps no offsets.

        Args:
            fetch_bytes: asked for at a time; None: as the settings say.
            wait_seconds: how long the broker waits for messages at the end.
        """
        return self._made(
            self._kafka.Consumer,
            {
                "group.id": self.settings.readers_group,  # never joined: partitions are assigned by hand
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": int(wait_seconds * 1000),
                "fetch.message.max.bytes": min(fetch_bytes or 1 << 20, self.settings.ahead_bytes),
                "fetch.error.backoff.ms": 50,
                "fetch.queue.backoff.ms": 5,  # a full queue is looked at again after this
                "queued.max.messages.kbytes": self.settings.ahead_bytes >> 10,
            },
        )

    def member(self, group: str, name: str, session_seconds: float) -> Consumer:
        """A consumer that is a member of a group under a name."""
        return self._made(
            self._kafka.Consumer,
            {
                "group.id": group,
                "client.id": name,
                "session.timeout.ms": int(session_seconds * 1000),
                "max.poll.interval.ms": 24 * 3600 * 1000,  # its heartbeats alone say whether the writer lives
                "heartbeat.interval.ms": int(session_seconds * 1000) // 4,
                "enable.auto.commit": False,
            },
        )

    def asker(self, group: str) -> Consumer:
        """A consumer that is asked what a group has committed, and never becomes its member.

        An administrative client could be asked too, but librdkafka 2.16 ends the whole process (SIGSEGV, in
        `rd_kafka_handle_OffsetFetch`) when such a one is answered that the coordinator is elsewhere by now.
        """
        return self._made(self._kafka.Consumer, {"group.id": group, "enable.auto.commit": False})

    def part_holder(self, group: str, name: str, session_seconds: float, rebalance_seconds: float) -> Consumer:
        """A member of a group whose coordinator moves partitions one by one, from who has finished with them.

        Args:
            group: its id.
            name: of the member, as the cluster shows it.
            session_seconds: after which the coordinator counts one as gone that it has not heard of.
            rebalance_seconds: for which it waits for one that lives, and has still to give partitions up.
        """
        session = int(session_seconds * 1000)
        fixed = {
            "group.id": group,
            "client.id": name,
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session,
            "heartbeat.interval.ms": min(session // 8, 2000),
            "max.poll.interval.ms": int(max(rebalance_seconds, session_seconds) * 1000),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "latest",
        }
        # Those of librdkafka are a minute for an answer, and ten for a look at where the coordinator went.
        quick = {"socket.timeout.ms": max(2000, session // 2), "coordinator.query.interval.ms": 10_000}
        return self._made(self._kafka.Consumer, quick, fixed)

    def _made(
        self, kind: Callable[[dict[str, Any]], _C], options: dict[str, Any], fixed: Mapping[str, Any] | None = None
    ) -> _C:
        """A client with options, over which go those of the settings, and over these what is fixed."""
        shared = {
            "bootstrap.servers": self.settings.bootstrap,
            "client.id": "walbus",
            "log_level": 0,
            "error_cb": self._note,
            # A producer's default is True: its looks at the cluster would make a topic again that was deleted.
            "allow.auto.create.topics": False,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 30_000,
        }
        self._unknown = False
        try:
            return kind({**shared, **options, **self.settings.options, **(fixed or {})})
        except (self._kafka.KafkaException, ValueError, TypeError) as error:
            what = f"librdkafka refuses the options: {error_of(error)}"
            raise ConfigError(what, where="section relay.kafka", mend="mend what it names") from None

    def _note(self, error: KafkaError) -> None:
        refused = error.code() == self._kafka.KafkaError._AUTHENTICATION
        if self._unknown and not refused:
            return  # follows from what was said before
        self._unknown = refused
        self._said = error.str().partition(" (after ")[0]  # how long it took, and how often, makes no other reason

    def unreachable(self, what: str) -> LogUnreachable:
        """The error for something that the cluster did not do in time."""
        said = f": {self._said}" if self._said else ""
        return LogUnreachable(f"{what}{said}", where=self.settings.bootstrap, mend=_WHO if self._unknown else _MEND)

    @contextmanager
    def asking(self, what: str, needs: str = "") -> Iterator[None]:
        """Turns the errors of a question to the cluster into Walbus's own.

        Args:
            what: cannot be done, as the beginning of a sentence.
            needs: what it takes, see `told`.
        """
        try:
            yield
        except self._kafka.KafkaException as error:
            told = self.told(what, error_of(error), needs)
            self.forget_leaders()
            raise told from error

    def told(self, what: str, error: KafkaError | None, needs: str = "") -> WalbusError:
        """The error for one of Kafka's.

        Args:
            what: cannot be done, as the beginning of a sentence.
            error: why.
            needs: operation and resource that the principal has to be granted, as in "Read on the topic a".
        """
        kinds = self._kafka.KafkaError
        if self._admin is not None:
            self._admin.poll(0)  # has it say what it has to say
        if error is None:
            return LogError(what, where=self.settings.bootstrap)
        if error.code() in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC, kinds._UNKNOWN_PARTITION):
            return missing(self.settings)
        refused = {
            kinds.TOPIC_AUTHORIZATION_FAILED,
            kinds.CLUSTER_AUTHORIZATION_FAILED,
            kinds.GROUP_AUTHORIZATION_FAILED,
            kinds.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        }
        if error.code() in refused:
            mend = f"grant {needs or 'it'} to the principal of relay.kafka.options (docs/kafka-log.md#access lists all)"
            return LogError(f"{what}: {error.str()}", where=self.settings.bootstrap, mend=mend)
        if error.code() in (kinds.SASL_AUTHENTICATION_FAILED, kinds._AUTHENTICATION):
            return LogError(f"{what}: {error.str()}", where=self.settings.bootstrap, mend=_WHO)
        self._note(error)
        return self.unreachable(what)


def missing(settings: ClusterSettings) -> LogMissing:
    """The error for a cluster without the log."""
    where = f"topic {settings.topic} at {settings.bootstrap}"
    return LogMissing("there is no log yet", where=where, mend="start `walbus capture`, which makes it")


def error_of(error: BaseException) -> KafkaError | None:
    """The error that an exception of confluent-kafka carries."""
    from confluent_kafka import KafkaError  # noqa: PLC0415

    given = error.args[0] if error.args else None
    return given if isinstance(given, KafkaError) else None


def producer_errors() -> tuple[type[BaseException], ...]:
    """What calls of a producer raise that serve its callbacks.

    A fatal error, as that of a producer that was fenced, is raised while callbacks are served, and the callbacks that
    run behind it may spoil it (confluent-kafka 2.16): then the error itself is raised, though that is no exception by
    its class and neither `Exception` nor `BaseException` catches it; or it is lost, which is a SystemError.
    """
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415

    return cast("tuple[type[BaseException], ...]", (KafkaException, KafkaError, SystemError))


def told_by(error: object, producer: Producer) -> KafkaError | None:
    """The error that one of `producer_errors` tells; one that was lost is asked for again, and so is a fatal one.

    A record that meets a fatal error is told no more than that there is one, and not that the process was fenced.

    Args:
        error: was raised.
        producer: by it; nothing more can be done with it.
    """
    from confluent_kafka import KafkaError  # noqa: PLC0415

    lost = isinstance(error, SystemError)
    given = None if lost else error if isinstance(error, KafkaError) else error_of(cast("BaseException", error))
    if not lost and (given is None or given.code() != KafkaError._FATAL):
        return given
    # A fatal error is what every call of the producer tells from now on, but for one that meets an unended commit.
    told = _told_by_call(producer.begin_transaction)
    if told is not None and told.code() == KafkaError._CONFLICT:
        told = _told_by_call(lambda: producer.commit_transaction(_ASK_SECONDS))
    return told or given


def _told_by_call(ask: Callable[[], object]) -> KafkaError | None:
    try:
        ask()
    except producer_errors() as error:
        return cast("KafkaError", error) if not isinstance(error, BaseException) else error_of(error)
    return None
