"""Table topics that are filled beside the live ones, and take their place.

A topic cannot be renamed and has no other name, so the copy's topics have names of their own for good: those of the
next generation (`kafka_generations`). The copy is a Kafka sink with a checkpoint topic of its own, and a transactional
id of its own: a second rebuild fences the first, as a second consumer does.

    hold    says in PREFIX.checkpoint that a swap is near, and takes the writer's transactional id: it cannot commit
            any more, reads why, and waits; for ten seconds, should this process be killed
    swap    commits the copy, and then, by the writer's id, one transaction on PREFIX.checkpoint, which says from then
            on what the copy's says: checkpoint, tables and their topics, layouts, and what was replaced

Killed before that transaction, the copy is one that has a commit more, and the next rebuild goes on with it. The writer
goes on with the copy of the rows that was made here, if it runs on this machine, and else reads the topics.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import structlog

from walbus.consumers.checkpoint import Checkpoint, Following
from walbus.consumers.sinks.base import SinkPlace
from walbus.consumers.sinks.kafka import KafkaSink
from walbus.consumers.sinks.kafka_cluster import SinkClients
from walbus.consumers.sinks.kafka_generations import drop_rows, generation_prefix
from walbus.consumers.sinks.kafka_home import Home
from walbus.consumers.sinks.kafka_options import KafkaOptions
from walbus.consumers.sinks.kafka_reading import read_committed
from walbus.consumers.sinks.kafka_restoring import RecordTaker, reading_maker
from walbus.consumers.sinks.kafka_sender import Sender
from walbus.consumers.sinks.kafka_state import (
    GivenGeneration,
    SinkState,
    SinkTable,
    Written,
    hold_document,
    kept_document,
)
from walbus.consumers.sinks.kafka_topics import needed_settings
from walbus.consumers.tables import matching
from walbus.errors import Fenced, SinkError, SinkRefused, SinkUnavailable, WalbusError
from walbus.topics.names import MAX_PREFIX

_log = structlog.get_logger(__name__)

_RULED = frozenset(rule.name for rule in needed_settings(compacted=True, replicas=1, largest=1))


class KafkaCopy(KafkaSink):
    """See `walbus.consumers.sinks.copies.SinkCopy`.

    Args:
        options: of the sink.
        place: whose it is.
        number: of the generation that it fills.
        home: what the live one says.
    """

    shows_uncommitted = False

    def __init__(self, options: KafkaOptions, place: SinkPlace, number: int, home: Home) -> None:
        self._live, self._number = home, number
        self._lead_of_live: Sender | None = None
        self._held = False
        self._tried = False  # whether a swap may have come through without an answer
        super().__init__(options, place, number)

    def furnish(self) -> None:
        """See `SinkCopy.furnish`: settings that somebody gave to a topic, and tables that the bootstrap has no more."""
        with self._errors():
            live = self._live.now()
            self._carry(live)
            pairs = [
                (table.topic, own.topic)
                for oid, own in self._committed.tables.items()
                if (table := live.tables.get(oid) or live.by_name(own.layout.table)) is not None
            ]
            before = generation_prefix(self._options.prefix, live.generation)
            pairs.append((f"{before}.transactions", self._topics.transactions))
            self._live.copy_settings(pairs, _RULED)

    def hold(self) -> Checkpoint | None:
        """See `SinkCopy.hold`."""
        with self._errors():
            self._held = True
            self._live.note(hold_document(secrets.token_hex(8)))
            self._lead_of_live = self._live.take_lead()
            state = self._live.now()  # a swap that was not answered is over, one way or the other
            self._require_under_way(state)
            return self._live.checkpoint_of(state)

    def swap(self, checkpoint: Checkpoint) -> None:
        """See `SinkCopy.swap`."""
        self.commit(checkpoint)
        sender, own = self._lead_of_live, self._committed
        if sender is None:
            raise SinkUnavailable("the live topics are not held", where=f"topic {self._live.topic}")
        self._tried = True
        with self._clients.as_sink():
            try:
                self._point(sender, self._live.now(), own)
            except Fenced as error:
                mend = "nothing: it is tried again"
                raise SinkUnavailable(f"the consumer went on ({error.what})", where=error.where, mend=mend) from None
        self._held = False
        topics = sorted(table.topic for table in own.tables.values())
        _log.info("kafka.topics_swapped", prefix=self._home, topics=topics)

    def rollback(self) -> None:
        """See `Sink.rollback`; the live one's writer goes on."""
        self._let_go()
        super().rollback()

    def close(self) -> None:
        """See `Sink.close`."""
        self._let_go()
        super().close()

    def _point(self, sender: Sender, live: SinkState, own: SinkState) -> None:
        """The swap itself: PREFIX.checkpoint says what the copy's does."""
        written = replace(self._required(), writer=live.written.writer if live.written is not None else self._me)
        kept = {*live.topics, *(table.topic for table in live.tables.values())} - own.topics.keys()
        before = generation_prefix(self._options.prefix, live.generation)
        kept |= {f"{before}.transactions", self._topics.checkpoint}
        documents = [*own.in_place_of(live), kept_document(kept), hold_document(None), written.document()]
        for key, value in documents:
            sender.send(self._live.topic, 0, key, value)
        sender.commit()

    def _let_go(self) -> None:
        if self._lead_of_live is not None:
            self._lead_of_live.close()
            self._lead_of_live = None
        if self._held:
            self._held = False
            with suppress(WalbusError):  # then its writer waits until it has waited long enough
                self._live.note(hold_document(None))

    # Who fills it

    def _lead(self) -> None:
        given = GivenGeneration(self._number)
        self._require_under_way(self._live.settled(given))
        super()._lead()
        self._require_under_way(self._live.settled(given))  # whoever had the copy before may have been about to swap

    def _require_under_way(self, state: SinkState) -> None:
        if state.given != GivenGeneration(self._number):
            what, mend = "this copy was dropped meanwhile", f"`walbus rebuild {self._place.consumer}` begins another"
        elif state.generation < self._number:
            return
        elif self._tried:
            raise SinkUnavailable("the copy was swapped already", where=f"topics {self._home}.*")
        else:
            what, mend = "another `walbus rebuild` has swapped this copy", "nothing: it is live"
        raise SinkRefused(what, where=f"topics {self._home}.*", mend=mend)

    def _check_kind(self, written: Written | None) -> None:
        try:
            super()._check_kind(written)
        except SinkRefused as error:
            mend = f"`walbus rebuild {self._place.consumer} --discard` drops this copy, which was begun otherwise"
            raise SinkRefused(error.what, where=error.where, mend=mend) from None

    # Tables that the bootstrap has no more

    def _carry(self, live: SinkState) -> None:
        """Rows of tables of which nothing has come here, though the sink is sent them and the log knows them."""
        before, own = self._live.checkpoint_of(live), self._stored()
        if not isinstance(before, Following) or not isinstance(own, Following) or before.log_id != own.log_id:
            return
        names = {table.layout.table for table in self._committed.tables.values()}
        lacking = [
            table
            for oid, table in live.tables.items()
            if oid not in self._committed.tables
            and not table.parked
            and table.layout.table not in names
            and table.log_generation >= before.marks.log_generation
            and matching([table.layout.table], self._place.tables)
        ]
        for table in lacking:
            self._gather(live, table)
            self._writer.carry(table, live.layouts, own.marks, own.point.last_done)
        if lacking:
            self.commit(own)

    def _gather(self, live: SinkState, table: SinkTable) -> None:
        """Has the rows of a live topic in the copy of the rows; none that somebody else wrote."""
        taking = RecordTaker(live, self._copy, reading_maker(live, self._options.prefix))
        for record in read_committed(self._clients, {(table.topic, number): 0 for number in range(table.partitions)}):
            taking.take(record, table)
        self._copy.forget_strays(table.oid)


class KafkaCopies:
    """See `walbus.consumers.sinks.copies.SinkCopies`."""

    def __init__(self, options: KafkaOptions, place: SinkPlace) -> None:
        self._options, self._place = options, place
        self._home = Home(options, place)

    @classmethod
    def copies(cls, options: Mapping[str, Any], place: SinkPlace) -> Self:
        """See `SwappableSinkType.copies`."""
        return cls(KafkaOptions.read(options, place), place)

    def live(self) -> Checkpoint | None:
        """See `SinkCopies.live`."""
        with self._home.clients.as_sink():
            return self._home.checkpoint_of(self._home.now())

    def kept(self) -> bool:
        """See `SinkCopies.kept`."""
        with self._home.clients.as_sink():
            return bool(self._home.now().kept)

    def beside(self) -> KafkaCopy:
        """See `SinkCopies.beside`."""
        with self._home.clients.as_sink():
            number = self._under_way(self._home.now()) or self._begin()
            return KafkaCopy(self._options, self._place, number, self._home)

    def discard(self) -> bool:
        """See `SinkCopies.discard`."""
        with self._home.clients.as_sink():
            number = self._under_way(self._home.now())
            state = self._home.now()
            if number is not None:
                dropped = GivenGeneration(number, dropped=True)
                self._home.note(dropped.document())
                state = self._home.settled(dropped)
                if state.generation == number:  # it was just being swapped
                    return False
                self._end_writer(number)
            found = self._home.strays(state)
            self._home.delete(found)
            if number is not None:
                drop_rows(self._place.folder, number)
            return number is not None or bool(found)

    def drop_kept(self) -> bool:
        """See `SinkCopies.drop_kept`."""
        with self._home.clients.as_sink():
            topics = self._home.now().kept
            if topics:
                self._home.delete(topics)
                self._home.forget(topics)
            return bool(topics)

    def close(self) -> None:
        """See `SinkCopies.close`."""
        self._home.close()

    def _begin(self) -> int:
        state = self._home.now()
        self._home.delete(self._home.strays(state))
        number = self._home.next_number(state)
        prefix = generation_prefix(self._options.prefix, number)
        if len(prefix) > MAX_PREFIX:
            raise SinkRefused(
                f"the copy's topics would begin with {prefix}, and a prefix has at most {MAX_PREFIX} signs",
                where=f"key consumer.{self._place.consumer}.prefix",
                mend="have the topics written by a consumer with a shorter prefix",
            )
        for earlier in range(1, number):
            if earlier != state.generation:
                drop_rows(self._place.folder, earlier)
        self._home.note(GivenGeneration(number).document())
        return number

    def _end_writer(self, number: int) -> None:
        """Whoever fills the copy is refused from now on."""
        clients = SinkClients(self._options, self._place.consumer, generation_prefix(self._options.prefix, number))
        sender = Sender(clients)
        try:
            sender.begin()
        finally:
            with suppress(SinkError):
                sender.close()
            clients.close()

    @staticmethod
    def _under_way(state: SinkState) -> int | None:
        given = state.given
        return None if given is None or given.dropped or given.generation <= state.generation else given.generation


__all__ = ["KafkaCopies", "KafkaCopy"]
