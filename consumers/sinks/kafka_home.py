"""PREFIX.checkpoint as `walbus rebuild` has to do with it, beside the consumer that writes there.

What a rebuild tells by itself (which generation it was given, that it is about to swap, that topics are gone) are
records outside of the writer's transactions. A swap is a transaction of the writer's: whoever swaps takes its
transactional id first, so what the writer has not committed by then never comes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from walbus.consumers.checkpoint import Checkpoint, load_checkpoint
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_generations import generation_prefix
from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.consumers.sinks.kafka_reading import read_committed
from walbus.consumers.sinks.kafka_sender import Sender
from walbus.consumers.sinks.kafka_state import (
    Document,
    GivenGeneration,
    SinkState,
    hold_document,
    kept_document,
    topic_document,
)
from walbus.errors import InvalidText, LogError, SinkRefused
from walbus.relay.kafka.cluster import error_of, producer_errors, told_by
from walbus.relay.kafka.topics import describe_topics, topic_settings

if TYPE_CHECKING:
    from confluent_kafka import KafkaError
    from confluent_kafka import Message as KafkaMessage

_LOOK_SECONDS = 0.1


class Home:
    """See the module. Every call raises LogError, LogUnreachable.

    Args:
        options: of the sink.
        place: whose it is.
    """

    def __init__(self, options: KafkaOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        self.clients = SinkClients(options, place.consumer)
        self.topic = f"{options.prefix}.checkpoint"
        self._state, self._read_to = SinkState(), 0

    def now(self) -> SinkState:
        """What it says; not to be changed.

        Raises:
            SinkRefused: a record is none of the sink's.
        """
        if not self._read_to and not describe_topics(self.clients, [self.topic]):
            return self._state
        for record in read_committed(self.clients, {(self.topic, 0): self._read_to}):
            self._state.take(record.key, record.value, f"topic {self.topic}, offset {record.next - 1}")
            self._read_to = record.next
        return self._state

    def checkpoint_of(self, state: SinkState) -> Checkpoint | None:
        """The checkpoint that it says; None before the first.

        Raises:
            SinkRefused: it is none, or another consumer's.
        """
        written = state.written
        if written is None or written.checkpoint is None:
            return None
        if written.consumer != self._place.consumer:
            raise SinkRefused(
                f"the topics of the prefix {self._options.prefix} are those of the consumer {written.consumer}",
                where=f"key consumer.{self._place.consumer}.prefix",
                mend=f"`walbus rebuild {written.consumer}` rebuilds them",
            )
        try:
            return load_checkpoint(written.checkpoint)
        except InvalidText as error:
            raise SinkRefused(error.what, where=f"topic {self.topic}", mend=error.mend) from None

    def note(self, *documents: Document) -> None:
        """Tells these, beside all transactions; blocks until it is durable."""
        producer, failed = self.clients.notes(), list["KafkaError"]()
        needs = f"Write on the topic {self.topic}"

        def delivered(error: KafkaError | None, message: KafkaMessage) -> None:
            del message
            if error is not None:
                failed.append(error)

        try:
            for key, value in documents:
                producer.produce(self.topic, value, key, 0, on_delivery=delivered)
            left = producer.flush(self.clients.settings.answer_seconds)
        except producer_errors() as error:
            told = self._end_of_another() if isinstance(error, SystemError) else told_by(error, producer)
            raise self.clients.told("a note is not taken", told, needs) from None
        if failed:
            raise self.clients.told("a note is not taken", failed[0], needs)
        if left:
            producer.purge()
            raise self.clients.unreachable("a note is not taken")

    def _end_of_another(self) -> KafkaError | None:
        """What ends a producer at its beginning, which is lost where callbacks of records run behind it."""
        another = self.clients.notes()
        try:
            another.poll(self.clients.settings.answer_seconds)
        except producer_errors() as error:
            return told_by(error, another)
        return None

    def take_lead(self) -> Sender:
        """The writer's right to write; a transaction that it had open is over, one way or the other."""
        sender = Sender(self.clients)
        sender.begin()
        return sender

    def settled(self, given: GivenGeneration) -> SinkState:
        """What it says, a note of this generation included, once no other rebuild can swap.

        One that holds the writer is refused by the cluster from then on, unless it has swapped: then that is told.
        """
        state = self.now()
        if state.given == given and state.hold is None:
            return state
        self.take_lead().close()
        self.note(hold_document(None))
        return self.now()

    # Topics

    def topics_of(self, numbers: range) -> list[str]:
        """The topics of generations, but of the first one, that the cluster has."""
        pattern = re.compile(re.escape(self._options.prefix) + r"-([1-9][0-9]*)\.")
        with self.clients.asking("the topics are not told"):
            found = self.clients.admin.list_topics(timeout=self.clients.settings.answer_seconds).topics
        named = ((name, pattern.match(name)) for name in found)
        return sorted(name for name, match in named if match is not None and int(match[1]) in numbers)

    def next_number(self, state: SinkState) -> int:
        """A generation's number that none of this prefix ever had, and under which nobody has topics."""
        number = max(state.generation, 0 if state.given is None else state.given.generation) + 1
        while self.topics_of(range(number, number + 1)):
            number += 1
        return number

    def strays(self, state: SinkState) -> list[str]:
        """Topics of copies that are not to be filled any more."""
        given = state.given
        if given is None:
            return []
        wanted = {state.generation} if given.dropped else {state.generation, given.generation}
        live = tuple(f"{generation_prefix(self._options.prefix, number)}." for number in wanted)
        found = self.topics_of(range(1, given.generation + 1))
        return [name for name in found if not name.startswith(live) and name not in state.kept]

    def delete(self, topics: Iterable[str]) -> None:
        """Deletes topics; blocks until the brokers know none of them."""
        from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415

        names, seconds = sorted(describe_topics(self.clients, topics)), self.clients.settings.answer_seconds
        if not names:
            return
        for name, done in self.clients.admin.delete_topics(names, request_timeout=seconds).items():
            try:
                done.result()
            except KafkaException as error:
                told = error_of(error)
                if told is not None and told.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                if told is not None and told.code() == KafkaError.TOPIC_DELETION_DISABLED:
                    raise LogError(
                        f"the brokers delete no topic, and {name} is to go",
                        where=self._options.bootstrap_servers,
                        mend="set delete.topic.enable=true on the brokers, and do this again",
                    ) from None
                needs = f"Delete on the topic {name}"
                raise self.clients.told(f"topic {name} cannot be deleted", told, needs) from error
        deadline = time.monotonic() + seconds
        while describe_topics(self.clients, names):
            if time.monotonic() > deadline:
                raise self.clients.unreachable(f"topic {names[0]} was deleted, and is there yet")
            time.sleep(_LOOK_SECONDS)

    def forget(self, topics: Iterable[str]) -> None:
        """Tells that what the last swap replaced is gone."""
        self.note(*(topic_document(name, None) for name in topics), kept_document(None))

    def copy_settings(self, pairs: Iterable[tuple[str, str]], but: frozenset[str]) -> None:
        """Gives topics the settings that somebody gave to others.

        Args:
            pairs: of the topic that has them, and the one that is given them.
            but: settings that are left alone.
        """
        from confluent_kafka.admin import (  # noqa: PLC0415
            AlterConfigOpType,
            ConfigEntry,
            ConfigResource,
            ResourceType,
        )

        wanted = list(pairs)
        there = describe_topics(self.clients, [name for name, _ in wanted])
        given = [(source, target) for source, target in wanted if source in there]
        if not given:
            return
        found = topic_settings(self.clients, [source for source, _ in given], own=True)
        changes = []
        for source, target in given:
            own = {name: value for name, value in found[source].items() if name not in but}
            entries = [ConfigEntry(n, v, incremental_operation=AlterConfigOpType.SET) for n, v in own.items()]
            if entries:
                changes.append(ConfigResource(ResourceType.TOPIC, target, incremental_configs=entries))
        if not changes:
            return
        seconds = self.clients.settings.answer_seconds
        needs = f"AlterConfigs on the topics {', '.join(target for _, target in given)}"
        with self.clients.asking("the settings of topics are not taken", needs):
            for done in self.clients.admin.incremental_alter_configs(changes, request_timeout=seconds).values():
                done.result()

    def close(self) -> None:
        """Frees its connections."""
        self.clients.close()


__all__ = ["Home"]
