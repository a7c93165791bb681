"""The Kafka sink: tables as compacted topics, by key, whole rows in Avro, each source transaction in one of Kafka's.

docs/kafka.md says what a topic holds. What is accepted is sent at once, in a Kafka transaction which `commit` ends
together with the checkpoint, that is a record of PREFIX.checkpoint. So readers with `read_committed` see whole source
transactions only, and each of them once, whatever is killed when.

One process writes the topics of a prefix. It takes the transactional id of its consumer, which fences the process that
had it before and ends what that one left open; reads PREFIX.checkpoint, which says what was committed, also where a
commit was not answered; and writes its own name there. One that is refused reads there who took over, and ends.

What a change needs to know of the rows in the topics is in a copy beside the consumer (`kafka_rows`).

    kafka_cluster, kafka_topics   clients; topics with their settings
    kafka_sender, kafka_reading   records out, and back
    kafka_state                   what PREFIX.checkpoint says
    kafka_ids                     ids of schemas: the relay's, or a registry's
    kafka_rows, kafka_restoring   the copy of the rows, and how it comes to be what the topics are
    kafka_writing, kafka_outbox   changes to records, and ends of transactions
    kafka_held                    what stands in the topics, whoever wrote it, to be compared
    kafka_generations, kafka_copy topics that a rebuild fills beside these, and the swap of the two
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

from walbus import __version__
from walbus.consumers.checkpoint import Checkpoint, Following, Marks, dump_checkpoint, last_done_of, load_checkpoint
from walbus.consumers.registered_ids import RegisteredIds
from walbus.consumers.sinks.base import Batching, ChangeTakers, HeldRow, SinkPlace, refused
from walbus.consumers.sinks.copies import SinkSwapped
from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_generations import GenerationRows, drop_rows, generation_prefix, lock_consumer
from walbus.consumers.sinks.kafka_held import HeldTopic, values_of
from walbus.consumers.sinks.kafka_ids import FirstLayoutIds, LayoutIds, RegistryLayoutIds
from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.consumers.sinks.kafka_outbox import Outbox
from walbus.consumers.sinks.kafka_reading import read_committed
from walbus.consumers.sinks.kafka_restoring import SameTopics, bring_up, check_topics
from walbus.consumers.sinks.kafka_rows import RowCopy, Stamp, Stray
from walbus.consumers.sinks.kafka_sender import Sender
from walbus.consumers.sinks.kafka_state import SinkState, Written
from walbus.consumers.sinks.kafka_topics import SinkTopics
from walbus.consumers.sinks.kafka_writing import TopicWriter, WriterParts, lacking_tables
from walbus.consumers.steps import Sweep
from walbus.errors import ConfigError, Fenced, InvalidText, SinkError, SinkRefused, SinkUnavailable
from walbus.events import Change, Window
from walbus.keys import key_texts
from walbus.position import ORIGIN, Position
from walbus.topics import RecordMaker, TopicNames
from walbus.topics.catalog import envelope_family, row_family
from walbus.topics.envelope_records import EnvelopeMaker

_HOLD_SECONDS = 10.0  # that a rebuild which swaps is waited for
_LOOK_SECONDS = 0.1
_TOLD_IDS = {"relay": "the relay", "registry": "a schema registry that is configured"}


class KafkaSink:
    """Topics of one prefix on one cluster; see `walbus.consumers.sinks.base.Sink`.

    Args:
        options: of the sink.
        place: whose it is.
        beside: generation of topics that are filled beside those that count; None: it writes those.
    """

    def __init__(self, options: KafkaOptions, place: SinkPlace, beside: int | None = None) -> None:
        self._options, self._place, self._beside = options, place, beside
        self._me = secrets.token_hex(8)
        self._claimed = False
        self._committed = SinkState()
        self._at_rest = SinkState()  # what is committed, and what was found to be otherwise since
        self._read_to = 0  # offset of PREFIX.checkpoint
        self._done: Position = ORIGIN  # everything up to here is accepted
        self._log_generation = 0
        self._lacking: tuple[str, ...] | None = None  # tables, once they are asked for
        self._strays: dict[int, Sequence[Stray]] = {}  # by OID: of tables that were read back
        self._family = row_family() if options.format == "rows" else envelope_family(options.prefix)
        self._registered: RegisteredIds | None = None
        self._rows: GenerationRows | None = None
        self._home = options.prefix if beside is None else generation_prefix(options.prefix, beside)
        self._topics: SinkTopics
        self._lock = lock_consumer(place.folder) if beside is None else None
        try:
            self._clients = SinkClients(options, place.consumer, self._home)
            self._sender = Sender(self._clients)
            self._same = SameTopics(self._clients)
            self._name_topics(beside or 0)
            self.checkpoint()
        except BaseException:
            self._free()
            raise

    @classmethod
    def open(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SinkType.open`."""
        read = KafkaOptions.read(options, place)
        if place.mapped:
            raise ConfigError(
                "a topic's schemas are those of the tables, as the relay serves them, and a mapping changes them",
                where=f"key consumer.{place.consumer}.table",
                mend="leave the mapping out",
            )
        return cls(read, place)

    @property
    def batching(self) -> Batching:
        """A commit takes some round trips: windows wait a moment for others."""
        return Batching(linger=self._options.commit_seconds, max_changes=5_000)

    def checkpoint(self) -> Checkpoint | None:
        """See `Sink.checkpoint`. The process that calls it first is the one that writes from then on."""
        with self._errors():
            self._forget()
            self._lead()
            state = self._committed.copy()
            check_topics(state, self._copy, self._topics)
            bring_up(self._clients, state, self._copy, self._maker_of(state)[0])
            self._at_rest = state.copy()
            self._begin(state)
        return self._stored()

    def write(self, windows: Sequence[Window], marks: Marks) -> None:
        """See `Sink.write`."""
        with self._errors():
            self._for_log_of(marks)
            writer = self._writer
            takers = ChangeTakers(self._place.tables, apply=writer.apply, load=writer.load, fit=writer.fit)
            for window in windows:
                writer.begin(window, marks)
                self._done = takers.take([window], self._done)
                writer.end(window)
        self._lacking = None

    def sweep(self, sweep: Sweep) -> None:
        """See `Sink.sweep`."""
        with self._errors():
            self._for_log_of(sweep.marks)
            self._writer.sweep(sweep)
        self._lacking = None

    def commit(self, checkpoint: Checkpoint) -> None:
        """See `Sink.commit`."""
        with self._errors():
            self._outbox.settle(checkpoint.log_id)
            self._note_what_lacks()
            self._same.check(self._state, self._sender.topics)
            written = replace(
                self._required(),
                writer=self._me,
                number=self._required().number + 1,
                checkpoint=dump_checkpoint(checkpoint),
                log_id=checkpoint.log_id,
                ended=self._outbox.ended,
            )
            self._commit(replace(self._state, written=written))
            self._copy.commit(Stamp(written.identity, written.number), self._sender.ends)
        self._done = last_done_of(checkpoint)

    def rollback(self) -> None:
        """See `Sink.rollback`."""
        with suppress(SinkError):
            self._forget()
            self._begin(self._at_rest.copy())

    def incomplete(self) -> tuple[str, ...]:
        """See `Sink.incomplete`; such rows are held back, or were in a topic that is gone."""
        if self._lacking is None:
            with self._errors():
                self._lacking = tuple(sorted(set(lacking_tables(self._state, self._copy))))
        return self._lacking

    # Compared, and repaired

    def held(self, table: str) -> Iterator[HeldRow]:
        """See `ReadableSink.held`. What others wrote where no row belongs is noted, for `outrank`."""
        known = self._committed.by_name(table)
        if known is None:
            return
        maker, _ = self._maker_of(self._committed)
        topic = HeldTopic(self._clients, known, self._committed, self._copy, maker)
        with self._errors():
            yield from topic.rows()
        self._strays[known.oid] = topic.strays

    def as_held(self, change: Change) -> HeldRow:
        """See `ReadableSink.as_held`."""
        raw, layout = change.raw, change.schema
        if layout is None or raw.key is None or raw.after is None:
            raise refused("a row has no layout, or no key", change, "check the bootstrap's store")
        known = self._committed.tables.get(raw.table)
        now = layout if known is None else known.layout
        return HeldRow(key_texts(raw.key), change.seq, (values_of(layout, raw.after, now),))

    def outrank(self, table: str) -> None:
        """See `OutrankingSink.outrank`: the rows that are read write over what others wrote, and the sweep the rest."""
        known, checkpoint, written = self._committed.by_name(table), self._stored(), self._required()
        if known is None or not isinstance(checkpoint, Following):
            return
        with self._errors():
            self._copy.outrank(known.oid, checkpoint.point.seq)
            self._copy.note_strays(known.oid, self._strays.pop(known.oid, ()))
            self._copy.commit(Stamp(written.identity, written.number), {})

    def close(self) -> None:
        """See `Sink.close`."""
        with suppress(SinkError):
            self._sender.close()
            self._copy.rollback()
        self._free()

    def _free(self) -> None:
        if self._rows is not None:
            self._rows.close()
        if self._registered is not None:
            self._registered.close()
        if self._lock is not None:
            self._lock.release()

    # Generations

    @property
    def _copy(self) -> RowCopy:
        if self._rows is None:
            raise SinkUnavailable("the copy of the rows is not open", where=str(self._place.folder))
        return self._rows.copy

    @property
    def _generation(self) -> int:
        return self._committed.generation if self._beside is None else self._beside

    def _turn(self) -> None:
        """Has the topics, and the copy of their rows, that PREFIX.checkpoint says."""
        number, before = self._generation, self._rows
        if before is not None and before.number == number:
            return
        rows = GenerationRows(self._place.folder, number)
        self._rows = rows
        if before is not None:
            before.close()
        if self._beside is None:
            for earlier in range(number):
                drop_rows(self._place.folder, earlier)
        self._name_topics(number)

    def _name_topics(self, number: int) -> None:
        prefix, registry = generation_prefix(self._options.prefix, number), self._options.schema_registry
        self._topics = SinkTopics(self._clients, self._options, prefix, self._home)
        self._names = TopicNames(prefix)
        if self._registered is not None:
            self._registered.close()
        self._registered = None if registry is None else RegisteredIds(self._names, registry, self._family)

    def _await_hold(self) -> None:
        """Waits while a rebuild swaps; one that is killed meanwhile is waited for so long, and no longer."""
        end, hold = time.monotonic() + _HOLD_SECONDS, self._committed.hold
        while hold is not None and self._committed.hold == hold and time.monotonic() < end:
            if self._place.stopping():
                raise SinkUnavailable("a rebuild swaps the topics", where=self._options.bootstrap_servers)
            time.sleep(_LOOK_SECONDS)
            self._read_state()

    # The right to write

    def _lead(self) -> None:
        """Has the transactional id, and PREFIX.checkpoint say so, and knows all that it says."""
        self._topics.ensure([self._topics.checkpoint])
        self._read_state()
        self._check_claim()
        if not self._sender.leads:
            self._await_hold()
            self._sender.begin()
            self._read_state()  # whoever took over in between is fenced now
        self._check_claim()
        written = self._committed.written
        self._check_kind(written)
        self._turn()
        self._topics.ensure([self._topics.transactions])
        if self._claimed and self._committed.hold is None:
            return
        claim = written or Written(
            self._place.consumer,
            secrets.token_hex(8),
            self._me,
            format=self._options.format,
            ids=self._whose_ids,
            generation=self._generation,
        )
        self._commit(replace(self._committed.copy(), written=replace(claim, writer=self._me), hold=None))
        self._claimed = True

    def _check_kind(self, written: Written | None) -> None:
        if written is not None and written.consumer != self._place.consumer:
            raise SinkRefused(
                f"the topics of the prefix {self._options.prefix} are those of the consumer {written.consumer}",
                where=f"key consumer.{self._place.consumer}.prefix",
                mend="give each consumer a prefix of its own",
            )
        if written is not None and written.format != self._options.format:
            raise SinkRefused(
                f'the topics of the prefix {self._options.prefix} have format = "{written.format}"',
                where=f"key consumer.{self._place.consumer}.format",
                mend=f"`walbus rebuild {self._place.consumer}` has them written anew, or give a consumer with the "
                "other format another prefix",
            )
        if written is not None and written.ids != self._whose_ids:
            raise SinkRefused(
                f"records of the prefix {self._options.prefix} name schemas by the ids of {_TOLD_IDS[written.ids]}, "
                f"and this consumer would by those of {_TOLD_IDS[self._whose_ids]}",
                where=f"key consumer.{self._place.consumer}.prefix, keys [relay.schema_registry]",
                mend=f"go on as they were begun; `walbus rebuild {self._place.consumer}` has them written anew, and so "
                "has a consumer with another prefix",
            )

    def _check_claim(self) -> None:
        written = self._committed.written
        if self._claimed and (written is None or written.writer != self._me):
            raise SinkRefused(
                "another process of this consumer has taken over",
                where=f"topic {self._topics.checkpoint} at {self._options.bootstrap_servers}",
                mend="let one process run it, or give the other one a name and a prefix of its own",
            )

    def _read_state(self) -> None:
        topic = self._topics.checkpoint
        for record in read_committed(self._clients, {(topic, 0): self._read_to}):
            self._committed.take(record.key, record.value, f"topic {topic}, offset {record.next - 1}")
            self._read_to = record.next

    def _commit(self, state: SinkState) -> None:
        """Ends the Kafka transaction, with what PREFIX.checkpoint says from then on."""
        topic = self._topics.checkpoint
        documents = list(state.changed_since(self._committed))
        if state.written is not None:
            documents.append(state.written.document())
        for key, value in documents:
            self._sender.send(topic, 0, key, value)
        self._sender.commit()
        self._committed = self._at_rest = state.copy()
        self._read_to = self._sender.ends[topic, 0]

    # Between two commits

    def _begin(self, state: SinkState) -> None:
        """What is accepted from now on is of the next commit."""
        self._state = state
        written = self._required()
        self._maker, ids = self._maker_of(state)
        self._outbox = Outbox(self._sender, self._maker, written.ended)
        parts = WriterParts(
            state, self._copy, self._topics, self._outbox, self._maker, ids, self._options.max_message_bytes
        )
        self._writer = TopicWriter(parts)
        checkpoint = self._stored()
        self._done = last_done_of(checkpoint)
        self._log_generation = 0 if checkpoint is None else checkpoint.marks.log_generation
        self._lacking = None

    def _maker_of(self, state: SinkState) -> tuple[RecordMaker, LayoutIds]:
        names, log_id = self._names, self._required().log_id
        ids: LayoutIds
        if self._registered is None:
            ids = FirstLayoutIds(names, self._family, state.layouts)
        else:
            ids = RegistryLayoutIds(self._registered, state.layouts)
        if self._options.format == "rows":
            return RecordMaker(names, ids, log_id), ids
        database, version = self._options.database, f"walbus-{__version__}"
        return EnvelopeMaker(names, ids, log_id, database, version, self._options.prefix), ids

    @property
    def _whose_ids(self) -> str:
        return "relay" if self._options.schema_registry is None else "registry"

    def _forget(self) -> None:
        self._sender.abort()
        if self._rows is not None:
            self._rows.copy.rollback()

    def _for_log_of(self, marks: Marks) -> None:
        """Rows of another log come: which one is told with the checkpoint behind them."""
        if marks.log_generation != self._log_generation:
            self._log_generation = marks.log_generation
            self._maker.log_id, self._outbox.ended = None, ORIGIN

    def _note_what_lacks(self) -> None:
        lacking, tables = self._copy.tables_that_lack(), self._state.tables
        for oid, table in tables.items():
            if table.lacks != (oid in lacking):
                tables[oid] = replace(table, lacks=oid in lacking)

    def _required(self) -> Written:
        written = self._committed.written
        if written is None:
            raise SinkUnavailable("the checkpoint is not known yet", where=self._options.bootstrap_servers)
        return written

    def _stored(self) -> Checkpoint | None:
        text = self._required().checkpoint
        try:
            return None if text is None else load_checkpoint(text)
        except InvalidText as error:
            raise SinkRefused(error.what, where=f"topic {self._topics.checkpoint}", mend=error.mend) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._clients.as_sink():
            try:
                yield
            except Fenced as error:
                self._read_state()
                self._check_claim()
                if self._rows is not None and self._rows.number != self._generation:
                    what = "rebuilt topics have taken the place of those that were written"
                    raise SinkSwapped(what, where=self._options.bootstrap_servers) from None
                seconds = self._options.transaction_seconds
                raise SinkUnavailable(
                    f"the cluster gave a transaction up, as it does after {seconds:g} s ({error.what})",
                    where=self._options.bootstrap_servers,
                    mend=f"raise consumer.{self._place.consumer}.transaction_seconds if one takes so long",
                ) from None


__all__ = ["KafkaOptions", "KafkaSink"]
