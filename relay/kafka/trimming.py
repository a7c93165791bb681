"""Which of the log's oldest messages go: by age and by bytes, but none that a hold still needs, and never the last one.

Kafka's own retention is off (`topics`); the writer asks for records to be deleted up to an offset, at which no
transaction is under way. Of TOPIC.large goes what no reference names that is left.

A hold is a file in the writer's own folder, or what a bootstrap has committed to the cluster (`hold`). The cluster is
asked for it only where something would go by age or bytes. A hold that cannot be read holds everything, and is asked
for again a little later: the writer must not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from walbus.errors import LogError
from walbus.position import Position
from walbus.relay.kafka.cluster import ClusterClients
from walbus.relay.kafka.held_offset import held_on
from walbus.relay.kafka.mark import Mark
from walbus.relay.kafka.partition import Places, ends_of
from walbus.relay.kafka.reader import KafkaLogReader
from walbus.relay.kafka.view import View
from walbus.relay.retention import Retention, lowest_hold
from walbus.relay.sequence import Place

_log = structlog.get_logger(__name__)


_ASK_SECONDS = 3.0
_AGAIN_SECONDS = 30.0  #: between two questions for a hold that is not told


class Trimming:
    """The policy, and how it is carried out.

    Args:
        clients: of the cluster.
        retention: age and bytes.
        holds: folder whose `holds/` other rooms write on this machine.
        monotonic: seconds.
        ask_seconds: for which the cluster is asked for its hold.
    """

    def __init__(
        self,
        clients: ClusterClients,
        retention: Retention,
        holds: Path,
        monotonic: Callable[[], float] = time.monotonic,
        ask_seconds: float = _ASK_SECONDS,
    ) -> None:
        self._clients, self._retention, self._holds = clients, retention, holds
        self._monotonic, self._ask_seconds = monotonic, ask_seconds
        self._ask_at = monotonic()
        self._untold: str | None = None  # why the hold was not told last

    def trim(self, reader: KafkaLogReader, now: float) -> Place:
        """Drops what may go; what is known before the first record that is left.

        Args:
            reader: of the log.
            now: Unix seconds.

        Raises:
            LogUnreachable: the cluster does not answer.
        """
        view = reader.view()
        if view.last < 0:
            return view.base
        kept = self._young(reader.places, view, now)
        if _drops_nothing(view, kept):
            return view.base
        kept = self._held(reader.places, view, kept)
        offset, mark = self._whole(reader.places, view, kept)
        if _drops_nothing(view, (offset, mark)):
            return view.base
        self._delete(self._clients.settings.topic, offset)
        (large,) = ends_of(self._clients, self._clients.settings.large)
        if mark.large > large.first:
            self._delete(self._clients.settings.large, mark.large)
        _log.info("log_trimmed", offset=offset, trimmed=str(mark.before.tip.position))
        return mark.before

    def _young(self, places: Places, view: View, now: float) -> tuple[int, Mark]:
        """Offset and mark of the first message that stays by age and bytes."""
        oldest = int((now - self._retention.hours * 3600) * 1e6)
        wanted = [places.first(view.ends, lambda mark: mark.behind.max_time >= oldest)]
        limit = self._retention.bytes
        if limit is not None:
            wanted.append(places.first(view.ends, lambda mark: view.tip.offset - mark.before.offset <= limit))
        last = places.last(view.ends)
        assert last is not None  # noqa: S101 - the caller saw that there is one
        return max((found or last for found in wanted), key=_offset)

    def _held(self, places: Places, view: View, kept: tuple[int, Mark]) -> tuple[int, Mark]:
        """The same, or an earlier message that a hold needs."""
        found = [kept]
        hold = lowest_hold(self._holds)
        if hold is not None:
            found.append(places.first(view.ends, lambda mark: mark.behind.tip.position > hold) or kept)
        offset = self._held_offset()
        if offset is not None:
            held = view.ends._replace(first=max(offset, view.ends.first))
            found.append(places.first(held, _any) or kept)
        return min(found, key=_offset)

    def _held_offset(self) -> int | None:
        """From where on the cluster's own hold keeps messages; None if there is none, 0 if it is not told."""
        if self._monotonic() < self._ask_at:
            return 0
        try:
            held = held_on(self._clients, self._ask_seconds)
        except LogError as error:
            self._ask_at = self._monotonic() + _AGAIN_SECONDS
            if error.what != self._untold:
                _log.warning("log_hold_unreadable", error=str(error), note="nothing is trimmed meanwhile")
            self._untold = error.what
            return 0
        self._untold = None
        return None if held is None else held.offset

    def _whole(self, places: Places, view: View, found: tuple[int, Mark]) -> tuple[int, Mark]:
        """The last message up to this one at which no transaction is under way."""
        while not found[1].whole:
            within = found[1].before.tip.position
            begun = Position(within.epoch, within.commit_lsn, 0)
            earlier = places.first(view.ends, partial(_reaches, begun))
            if earlier is None or earlier[0] >= found[0]:
                break
            found = earlier
        return found

    def _delete(self, topic: str, offset: int) -> None:
        from confluent_kafka import TopicPartition  # noqa: PLC0415

        with self._clients.asking(f"old records of {topic} cannot be dropped", f"Delete on the topic {topic}"):
            asked = self._clients.admin.delete_records(
                [TopicPartition(topic, 0, offset)], request_timeout=self._clients.settings.answer_seconds
            )  # fmt: skip
            for done in asked.values():
                done.result()


def _reaches(position: Position, mark: Mark) -> bool:
    return mark.behind.tip.position >= position


def _drops_nothing(view: View, kept: tuple[int, Mark]) -> bool:
    return kept[0] <= view.ends.first or kept[1].before.offset <= view.base.offset


def _any(_: Mark) -> bool:
    return True


def _offset(found: tuple[int, Mark]) -> int:
    return found[0]
