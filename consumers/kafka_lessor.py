"""The parts of a group as Kafka's coordinator hands them out; what `RelayLessor` is where there is a relay.

    a thread of its own     is the member that the coordinator knows: it polls, takes tokens, renews, and gives back
    the member's thread     asks what is held, and says what is done with

**Handed out**: the member takes a token (`walbus.consumers.part_tokens`), and holds the part from then on.
**Renewed**: each third of a lease the tokens are committed anew. That the coordinator takes them proves that this was
a member when it was sent, and begins its session anew; the lease is counted from before it was sent, and the session is
a tenth and a second longer. So a lease is over by the member's clock before the coordinator gives its parts to others.
**Taken away**: partitions move one by one (cooperative-sticky), and the callback that takes some back returns only when
their work has ended, or after `handover_seconds`. All others go on meanwhile.
**Lost**: who is not heard of for the length of its session is none of the group any more. Its parts come back under
other tokens, if at all.

Commits are waited for by the thread that also hears what is taken away: one that is under way could otherwise come
behind that of the next holder. The client waits for as long as no coordinator is there, and nothing else could be done
meanwhile; the lease is over by the clock.

A membership that comes to an error is ended, and another one begun: whatever was still under way then is refused by the
coordinator, since it comes from a member that is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from walbus.consumers.backoff import Backoff
from walbus.consumers.clock import Clock
from walbus.consumers.group_membership import ASKS_AFTER, MARGIN
from walbus.consumers.kafka_member import KafkaOffsets, heed, partitions_of
from walbus.consumers.part_tokens import CommitRefused, Holdings, TokensInDoubt, take_tokens
from walbus.consumers.parts_topic import have_parts, parts_topic, require_parts
from walbus.errors import Directive, LogUnreachable, RelayUnavailable, WalbusError, directive_of
from walbus.relay.group_leases import Asked
from walbus.relay.group_requests import Told
from walbus.relay.kafka.cluster import ClusterClients, ClusterSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, TopicPartition

_log = structlog.get_logger(__name__)

#: So long a member that lives may go on with what it has begun on a part that is to go to another one.
HANDOVER_SECONDS: Final = 300.0

#: So much longer the coordinator waits for it, and so much longer than a lease a session is: a part, and seconds.
_SLOWER, _MARGIN_SECONDS = 0.1, 1.0

_POLL_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 5.0


class KafkaLessor:
    """See the module, and `walbus.consumers.lessors.Lessor`.

    Args:
        group: its name.
        cluster: that has the log.
        clock: time.
        handover_seconds: after which a part is taken from a member that has not finished with it.
    """

    def __init__(
        self, group: str, cluster: ClusterSettings, clock: Clock, handover_seconds: float = HANDOVER_SECONDS
    ) -> None:
        self._group, self._cluster, self._clock, self._handover = group, cluster, clock, handover_seconds
        self._topic = parts_topic(cluster.topic, group)
        self._where = f"group {self._topic} at {cluster.bootstrap}"
        self._member = ""
        self._news: Callable[[], object] = _nobody
        self._parts, self._lease = 0, 0.0  # as the member asks
        self._thread: threading.Thread | None = None
        self._leaves, self._is_told = threading.Event(), True
        self._consumer: Consumer | None = None  # whose callbacks count
        self._changed = threading.Condition()  # guards what both threads use, which is the next three
        self._holdings = Holdings(0)
        self._proved_at = float("-inf")  # a commit that was taken was sent after this
        self._trouble: WalbusError | None = None  # why nothing comes of it now, or ever
        self._renew_at = float("-inf")
        self._backoff = Backoff()

    def begin(self, member: str, news: Callable[[], object]) -> None:
        """See `Lessor.begin`."""
        self._member, self._news = member, news

    def ask(self, asked: Asked, timeout: float) -> Told:
        """See `Lessor.ask`.

        Raises:
            UsageError: the group's topic has another number of partitions.
            LogError: the cluster does not let it be a member; says why.
            RelayUnavailable: the cluster does not answer.
        """
        if self._thread is None and not asked.leaves:
            self._start(asked)
        with self._changed:
            self._holdings.done(asked.done)
            self._changed.notify_all()
        if asked.leaves:
            self._leave(timeout + _CLOSE_SECONDS)
            return Told(asked.parts, asked.lease, asked.parts, [])
        with self._changed:
            left = asked.lease
            if self._holdings.tokens:
                left = self._proved_at + asked.lease - self._clock.boottime()
            if (trouble := self._trouble) is not None:
                if directive_of(trouble) is Directive.RETRY:
                    raise RelayUnavailable(trouble.what, where=self._where, mend=trouble.mend)
                raise trouble
            if left <= asked.lease * MARGIN:
                raise RelayUnavailable("the group's coordinator has not answered for too long", where=self._where)
            return self._holdings.told(left)

    def _start(self, asked: Asked) -> None:
        self._parts, self._lease = asked.parts, asked.lease
        answer_seconds = min(self._cluster.answer_seconds, max(_ANSWER_SECONDS, asked.lease / 2))
        self._cluster = replace(self._cluster, answer_seconds=answer_seconds)
        self._holdings = Holdings(asked.parts)
        self._backoff = Backoff(longest=max(0.2, asked.lease * MARGIN))
        self._thread = threading.Thread(target=self._run, name=f"{self._group} in Kafka", daemon=True)
        self._thread.start()

    def _leave(self, timeout: float) -> None:
        self._leaves.set()
        if self._thread is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive() or not self._is_told:
            what = "the coordinator was not told in time: others get the parts when this member's session is over"
            raise RelayUnavailable(what, where=self._where)

    # The thread of its own

    def _run(self) -> None:
        while not self._leaves.is_set():
            try:
                self._be_member()
            except WalbusError as error:
                self._in_trouble(error)
                if directive_of(error) is not Directive.RETRY:
                    return
                self._leaves.wait(self._backoff.next_delay())
            except BaseException as error:  # it would be lost here
                _log.exception("group.broken", group=self._group)
                what = f"being a member of the group failed ({type(error).__name__})"
                self._in_trouble(WalbusError(what, where=self._where, mend="report it with the log"))
                return

    def _in_trouble(self, error: WalbusError | None) -> None:
        with self._changed:
            changed, self._trouble = self._trouble != error, error
        if changed:
            self._news()

    def _be_member(self) -> None:
        """One membership, until it is to end or comes to an error."""
        clients = ClusterClients(self._cluster)
        session = self._lease * (1 + _SLOWER) + _MARGIN_SECONDS
        rebalance = self._handover * (1 + _SLOWER) + _MARGIN_SECONDS
        try:
            have_parts(clients, self._topic, self._parts)
            self._consumer = consumer = clients.part_holder(self._topic, self._member, session, rebalance)
            try:
                told = {"on_assign": self._handed_out, "on_revoke": self._taken_away, "on_lost": self._lost}
                consumer.subscribe([self._topic], **told)
                with clients.asking(f"this is no member of the group {self._topic}"):
                    self._follow(consumer, clients)
            except WalbusError as error:
                self._in_trouble(error)  # said before it leaves, which may take a while
                raise
            finally:
                self._end(consumer)
        finally:
            clients.close()

    def _end(self, consumer: Consumer) -> None:
        """Has the coordinator told; nothing is held any more, whatever is under way.

        A cluster that is away is told nothing, and the client does not give up soon: it goes on with that by itself.
        """
        self._consumer = None
        with self._changed:
            self._holdings.lost(range(self._parts))
            self._proved_at = self._renew_at = float("-inf")
        self._news()
        closing = threading.Thread(target=consumer.close, name=f"{self._group} leaves", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        self._is_told = not closing.is_alive()

    def _follow(self, consumer: Consumer, clients: ClusterClients) -> None:
        self._offsets = KafkaOffsets(consumer, clients, self._topic, max(2.0, self._lease * ASKS_AFTER))
        while not self._leaves.is_set():
            message = consumer.poll(_POLL_SECONDS)
            if message is not None:
                heed(message, clients, self._topic)
            self._take_tokens()
            self._renew()

    def _take_tokens(self) -> None:
        with self._changed:
            bare = self._holdings.bare
        if not bare:
            return
        if bare[-1] >= self._parts:
            self._require_parts()
        sent_at = self._clock.boottime()
        try:
            tokens = take_tokens(self._offsets, bare, int(self._clock.wall() * 1000))
        except CommitRefused as refused:
            _log.info("group.part_not_taken_yet", group=self._group, member=self._member, reason=str(refused))
            return
        except TokensInDoubt as doubt:
            raise doubt.error from doubt
        except LogUnreachable as error:
            self._in_trouble(error)
            return
        self._proved(sent_at, tokens)

    def _renew(self) -> bool:
        """Proves that this is a member, if that is due; whether the coordinator says that it is none."""
        now = self._clock.boottime()
        if now < self._renew_at:
            return False
        self._renew_at = now + self._lease * MARGIN
        with self._changed:
            tokens = self._holdings.tokens
        try:
            if tokens:
                self._offsets.commit(tokens)
            else:
                self._require_parts()
        except CommitRefused as refused:
            return refused.is_gone
        except WalbusError as error:
            if directive_of(error) is not Directive.RETRY:
                raise
            self._in_trouble(error)
            return False
        self._proved(now, {})
        return False

    def _require_parts(self) -> None:
        require_parts(self._topic, self._cluster.bootstrap, self._offsets.partitions(), self._parts)

    def _proved(self, sent_at: float, taken: Mapping[int, int]) -> None:
        """The cluster answered what was sent then, and gave tokens of parts."""
        self._renew_at = sent_at + self._lease * ASKS_AFTER
        self._backoff.reset()
        with self._changed:
            self._proved_at, self._trouble = sent_at, None
            self._holdings.given(taken)
        self._news()

    # Called by the client, in the same thread

    def _handed_out(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        from confluent_kafka import OFFSET_END, TopicPartition  # noqa: PLC0415 - an extra

        mine = [TopicPartition(self._topic, part, OFFSET_END) for part in partitions_of(partitions)]
        consumer.incremental_assign(mine)
        if mine:
            consumer.pause(mine)  # nothing is written there, and nobody need ask for it
        if consumer is self._consumer:
            with self._changed:
                self._holdings.handed_out(partitions_of(partitions))

    def _taken_away(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Returns once nothing of them is under way; they go to others then."""
        if consumer is not self._consumer:
            return
        parts = partitions_of(partitions)
        with self._changed:
            self._holdings.taken_away(parts)
            until = self._clock.boottime() + self._handover
        self._news()
        gone = False
        while not gone and self._is_under_way(parts):
            if self._clock.boottime() >= until:
                _log.warning("group.part_not_given_up", group=self._group, member=self._member, parts=parts)
                break
            gone = self._renew()
        with self._changed:
            self._holdings.lost(parts)
        self._news()

    def _is_under_way(self, parts: Sequence[int]) -> bool:
        """Whether something is, within some time."""
        with self._changed:
            return not self._changed.wait_for(lambda: not self._holdings.under_way(parts), _POLL_SECONDS)

    def _lost(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        if consumer is not self._consumer:
            return
        with self._changed:
            self._holdings.lost(partitions_of(partitions))
        _log.warning("group.membership_lost", group=self._group, member=self._member)
        self._news()


def _nobody() -> None:
    """Nobody wants to know yet."""
